"""The first use of a prior's name: an original checkpoint over HTTP, whole in the cache or not there, and kept."""

import io
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_convert import build
from torch import Tensor
from web_server import Answer, Web, web

from ld3m import priors
from ld3m.errors import UserError
from ld3m.machine import download
from ld3m.priors.getting import MIRROR, get, mirrored
from ld3m.priors.known import KNOWN, KnownPrior
from ld3m.priors.originals.config import KINDS
from ld3m.priors.originals.convert import write_configurations
from ld3m.recipe import SamplerRecipe

NAME = "tiny256"


class Original(SimpleNamespace):
    """A small model of the original code, of ImageNet's classes."""

    weights: dict[str, Tensor]
    params: dict[str, Any]
    checkpoint: bytes


@pytest.fixture(scope="module")
def original() -> Original:
    _, _, weights, config = build("two heads", "VQ")
    weights["cond_stage_model.embedding.weight"] = torch.randn(1001, 24)
    file = io.BytesIO()
    torch.save({"state_dict": weights, "global_step": 1}, file)
    return Original(weights=weights, params=config["model"]["params"], checkpoint=file.getvalue())


@pytest.fixture
def server(original: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """The origin of a name that is known in this test, and an empty cache."""
    monkeypatch.setenv("LD3M_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(KINDS, NAME, original.params)
    write_configurations(NAME, tmp_path / "outline")
    with web(original.checkpoint) as server:
        known = KnownPrior(
            about="random weights",
            kind="ClassConditionalLDM",
            resolution=16,
            licence="cc-by-nc-4.0",
            outline=tmp_path / "outline",
            origin=server.url,
            size=len(original.checkpoint),
            original=NAME,
            scaling_factor=1.0,
        )
        monkeypatch.setitem(KNOWN, NAME, known)
        yield server


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds between attempts; time passes in no other way."""
    slept: list[float] = []
    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=slept.append, monotonic=lambda: sum(slept)))
    return slept


def check_whole(original: Original) -> None:
    """That the prior of the name has the checkpoint's weights, and is found without its server."""
    prior: Any = priors.load(SamplerRecipe(source=NAME))
    table = original.weights["cond_stage_model.embedding.weight"]
    assert torch.equal(prior.class_embeddings(["tench"])[0, 0], table[0])
    first = original.weights["model.diffusion_model.input_blocks.0.0.weight"]
    assert torch.equal(prior.denoiser.conv_in.weight, first)


def nothing_is_here(tmp_path: Path) -> bool:
    """Whether no prior of the name is found: there is neither a folder nor a note of it."""
    shelf = tmp_path / "cache" / "priors"
    return not (shelf / NAME).exists() and not (shelf / f"{NAME}.json").exists()


def test_a_cut_at_every_tenth(server: Web, original: Original, tmp_path: Path) -> None:
    """Each command that is cut off for good ends with a line, and the next one resumes from there."""
    length, server.always = len(original.checkpoint), Answer(status=503)
    for tenth in range(10):
        there = max((path.stat().st_size for path in tmp_path.rglob("*.ckpt.part")), default=0)
        server.answers = [Answer(cut=tenth * length // 10 - there)]
        words = rf"^prior\.source: {NAME}: cannot be fetched from http://127.* \(it answers 503"
        with pytest.raises(UserError, match=words):
            get(NAME)
        assert nothing_is_here(tmp_path)
    server.always = None
    check_whole(original)
    assert int(str(server.ranges_asked[-1])[len("bytes=") : -1]) > 8 * length // 10


def test_a_checkpoint_that_lacks_its_end_or_a_tensor_is_no_prior(
    server: Web, original: Original, tmp_path: Path
) -> None:
    """The server says that it is all."""
    server.content, server.tag = original.checkpoint[: len(original.checkpoint) // 2], '"half"'
    with pytest.raises(UserError, match=rf"^prior\.source: .* ld3m priors get {NAME}"):
        get(NAME)
    assert nothing_is_here(tmp_path)
    weights = dict(original.weights)
    del weights["first_stage_model.post_quant_conv.bias"]
    file = io.BytesIO()
    torch.save({"state_dict": weights}, file)
    server.content, server.tag = file.getvalue(), '"less"'
    with pytest.raises(UserError, match=r"post_quant_conv\.bias"):
        get(NAME, again=True)
    assert nothing_is_here(tmp_path)
    server.content, server.tag = original.checkpoint, '"whole"'
    get(NAME, again=True)
    check_whole(original)


def test_a_mirror_is_asked_instead(
    server: Web, original: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror's URL, then a folder; the Hub's repositories have one of their own."""
    monkeypatch.setenv(MIRROR, f"{tmp_path / 'shared'}/")
    with pytest.raises(UserError, match=rf"^{MIRROR}: '{tmp_path}/shared/model\.ckpt' is not there; give "):
        get(NAME)
    with web(original.checkpoint) as mirror:
        monkeypatch.setenv(MIRROR, mirror.url.removesuffix("/models/model.ckpt"))
        check_whole(original)
        assert mirror.lines == ["GET /model.ckpt HTTP/1.1"]
    assert server.lines == []
    assert mirrored(str(KNOWN["dit-xl-2-256"].origin)) is None


PROGRAM = """
import json, sys
from pathlib import Path
from ld3m.priors.getting import get
from ld3m.priors.known import KNOWN, KnownPrior
from ld3m.priors.originals.config import KINDS
name, params, outline, origin = sys.argv[1:]
KINDS[name] = json.loads(params)
KNOWN[name] = KnownPrior("random", "ClassConditionalLDM", 16, "mit", Path(outline), origin, 1, name)
print("began", flush=True)
get(name)
"""


@pytest.mark.slow
def test_kills_at_random_moments(server: Web, original: Original, tmp_path: Path) -> None:
    """While it is fetched, converted, renamed and noted: what is found afterwards is whole."""
    draw, server.pause = random.Random(0), 0.002
    arguments = [NAME, json.dumps(original.params), str(tmp_path / "outline"), server.url]
    kills = 0
    for _ in range(20):
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE)
        assert process.stdout
        process.stdout.readline()
        try:
            process.wait(draw.uniform(0, 4))
        except subprocess.TimeoutExpired:
            kills += 1
        process.kill()
        process.wait()
        if (tmp_path / "cache" / "priors" / f"{NAME}.json").exists():
            asked = len(server.lines)
            check_whole(original)
            assert len(server.lines) == asked  # what has a note is taken as it is
            shutil.rmtree(tmp_path / "cache")
    assert kills > 5
    check_whole(original)
