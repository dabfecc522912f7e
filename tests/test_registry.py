"""What other packages add: found by name once installed, in recipes and options alike."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import CLASSES, Outcome, make_prior

from ld3m import networks, objectives
from ld3m.errors import UserError

PACKAGE = '''
"""A network, an objective, a data source and a prior in another package."""

import numpy as np
import torch
from PIL import Image
from torch import nn

from ld3m import networks
from ld3m.objectives import Objective
from ld3m.priors import ClassConditionalLDM
from ld3m.randomness import generator
from ld3m.sources import Example, Source


class Linear(nn.Module):
    def __init__(self, shape, recipe):
        super().__init__()
        self.classifier = nn.Linear(shape.channels * shape.resolution**2, shape.classes)

    def embed(self, images):
        return images.flatten(1)

    def forward(self, images):
        return self.classifier(self.embed(images))


class MeanLogits(Objective):
    def __init__(self, recipe, images, own, accelerator):
        shape = networks.Shape(recipe.data.channels, recipe.data.resolution, len(images.classes))
        self.network = networks.build(recipe.network.arch, shape, recipe.network, generator(recipe.seed, "network"))
        real = [images.normalise(images.images("train", label) / 255) for label in own]
        self.real = torch.stack([self.network(batch).mean(0) for batch in real]).detach()
        self.normalise = images.normalise
        self.weight = recipe.distill.options["weight"]

    def match(self, iteration, pixels):
        pixels = pixels.detach().requires_grad_()
        synthetic = torch.stack([self.network(self.normalise(images)).mean(0) for images in pixels])
        losses = (synthetic - self.real).square().sum(1) * self.weight
        return losses.detach(), torch.autograd.grad(losses.sum(), pixels)[0]


def stripes(recipe):
    """Three classes of stripes, each with a width of its own."""
    def example(split, label, index):
        pixels = np.tile((np.arange(16) + index) // (label + 1) % 2 * 200, (16, 1)).astype(np.uint8)
        return Example(f"{split} {label} {index}", label, lambda: Image.fromarray(pixels))

    splits = {
        split: [example(split, label, index) for label in range(3) for index in range(4)] for split in ("train", "test")
    }
    return Source(CLASSES, splits, "stripes")


def load_prior(parts):
    return ClassConditionalLDM.load(parts)
'''
ENTRY_POINTS = """
[ld3m.networks]
linear = ld3m_stripes:Linear
broken = ld3m_stripes:Missing
convnet = ld3m_stripes:Linear

[ld3m.objectives]
mean-logits = ld3m_stripes:MeanLogits

[ld3m.sources]
stripes = ld3m_stripes:stripes

[ld3m.priors]
StripedLDM = ld3m_stripes:load_prior
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package and its metadata, laid out as pip does."""
    site = tmp_path_factory.mktemp("site-packages")
    (site / "ld3m_stripes.py").write_text(PACKAGE.replace("CLASSES", repr(CLASSES)))
    metadata = site / "ld3m_stripes-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: ld3m-stripes\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    return site


@pytest.fixture
def importable(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(installed)
    monkeypatch.delitem(sys.modules, "ld3m_stripes", raising=False)


@pytest.mark.usefixtures("importable")
def test_names_are_ours_or_a_packages() -> None:
    found = networks.NETWORKS.find("linear")
    assert found.__name__ == "Linear"
    ours = networks.NETWORKS.find("convnet")
    assert ours is networks.NETWORKS["convnet"], "no package replaces what is ours"
    assert sorted(objectives.OBJECTIVES.offered) == ["mean-logits"]


@pytest.mark.usefixtures("importable")
def test_unknown_names_are_told_with_all_that_are_known() -> None:
    with pytest.raises(UserError, match=r"^distill\.objective: 'md' is not known; known are dm.*, mean-logits$"):
        objectives.OBJECTIVES.find("md")


@pytest.mark.usefixtures("importable")
def test_a_broken_package_is_named() -> None:
    with pytest.raises(
        UserError, match=r"^--arch: 'broken' cannot be loaded from ld3m_stripes:Missing \(Attr"
    ) as error:
        networks.NETWORKS.find("broken", "--arch")
    assert len(error.value.lines) == 1


@pytest.mark.usefixtures("importable")
def test_a_package_of_four_is_distilled_and_evaluated_with(ld3m: Callable[..., Outcome], tmp_path: Path) -> None:
    prior = tmp_path / "prior"
    make_prior().save(prior)
    index = json.loads((prior / "model_index.json").read_text())
    (prior / "model_index.json").write_text(json.dumps(index | {"_class_name": "StripedLDM"}))
    recipe = {
        "name": "striped",
        "data": {"source": "stripes", "resolution": 16, "channels": 1},
        "prior": {"source": str(prior), "steps": 2},
        "distill": {
            "objective": "mean-logits",
            "options": {"weight": 2},
            "iterations": 3,
            "lr_latents": 0.1,
            "lr_conditioning": 0.1,
        },
        "network": {"arch": "linear"},
        "evaluate": {"arch": ["linear"], "seeds": 1, "epochs": 2},
    }
    (tmp_path / "striped.yaml").write_text(yaml.safe_dump(recipe))
    done = ld3m("distill", "striped.yaml")
    assert done.code == 0, done.err
    losses = [json.loads(line)["loss"] for line in (tmp_path / "runs/striped/metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 3
    assert len(list((tmp_path / "runs/striped/images").rglob("*.png"))) == 3
    done = ld3m("evaluate", "--json")
    assert done.code == 0, done.err
    assert [row["arch"] for row in json.loads(done.out)["results"]] == ["linear"]


def test_a_prior_of_an_unknown_kind_is_told(ld3m: Callable[..., tuple[int, str, str]], recipe_file: Path) -> None:
    prior = Path("prior")
    prior.mkdir()
    (prior / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    code, _, err = ld3m("distill", recipe_file, "prior.source=prior")
    assert code == 2
    assert err == (
        "ld3m: prior.source: the kind of prior: 'KandinskyPipeline' is not known; known are ClassConditionalLDM, "
        "LDMPipeline, DiTPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline, StableDiffusion3Pipeline, "
        "SanaPipeline, ConsistencyModelPipeline\n"
    )
