"""What `import ld3m` offers to programs and notebooks."""

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Outcome, distilled, latents

import ld3m as package

README = Path(__file__).parent.parent / "README.md"


def python(code: str, folder: Path) -> str:
    """What a process of its own prints."""
    process = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.long
@pytest.mark.slow
def test_the_five_lines_of_the_readme(recipe_file: Path, tmp_path: Path) -> None:
    """On a smaller recipe than the README's; the package's docstring has the same lines."""
    (lines,) = re.findall(r"```python\n(import ld3m\n.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert textwrap.indent(lines, "    ") in str(package.__doc__)
    assert len(lines.split("\n")) == 6  # one is blank, and one ends the last line
    smaller = lines.replace('"quickstart"', repr(str(recipe_file))).replace("iterations=20", "iterations=3")
    code = f"{smaller}\nimport json; print(json.dumps([str(run), report]))"
    run, report = json.loads(python(code, tmp_path).splitlines()[-1])
    assert run == "runs/short"
    folder = tmp_path / run
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    assert report["run"] == "runs/short"
    (row,) = report["results"]
    assert (row["trained_on"], row["arch"], row["images"], row["tested_on"]) == ("distilled", "convnet", 6, 18)
    assert len(row["accuracies"]) == 2
    assert row["mean"] == pytest.approx(sum(row["accuracies"]) / 2)
    assert json.loads((folder / "evaluation.json").read_text())["results"] == report["results"]
    by_command = distilled(recipe_file, tmp_path / "other", "distill.iterations=3")
    assert torch.equal(latents(folder)["z"], latents(by_command)["z"])


def test_import_is_immediate(tmp_path: Path) -> None:
    code = """
import sys
import ld3m
assert {"distill", "evaluate", "load_recipe", "load_prior", "sampling"} <= set(dir(ld3m))
print(*sorted(name for name in sys.modules if name.partition(".")[0] in ("torch", "numpy", "pydantic", "yaml", "ld3m")))
"""
    assert python(code, tmp_path).split() == ["ld3m"]


def test_every_name_is_there_and_no_other() -> None:
    assert all(getattr(package, name) is not None for name in package.__all__)
    with pytest.raises(AttributeError, match="module 'ld3m' has no attribute 'distil'"):
        package.distil  # noqa: B018 - looked up for its error


def test_latents_are_rendered_by_hand(recipe_file: Path, tmp_path: Path) -> None:
    """The prior, the latents and the sampler are enough for the images of a run, and for a gradient at them."""
    recipe = package.load_recipe(recipe_file, "prior.noise=fixed", "distill.iterations=1")
    run = package.distill(recipe, output=tmp_path / "run")
    tensors = package.load_latents(run)
    prior = package.load_prior(recipe)
    schedule = package.sampling.Schedule.of(prior.noise_schedule, 3, "reference", 3.0)
    z, c = tensors["z"], tensors["c"]
    pixels, pull_back = package.sampling.render(prior, schedule, z, c, torch.zeros_like(z))
    assert pixels.shape == (6, 1, 16, 16)
    assert [grad.shape for grad in pull_back(torch.ones_like(pixels))] == [z.shape, c.shape]
    assert package.load_prior(recipe.prior.source).latent_shape == prior.latent_shape
    with pytest.raises(package.UserError, match=r"give ld3m\.load_prior the recipe"):
        package.load_prior("pixels")


def test_a_name_with_overrides_and_a_run_to_resume(
    recipe_file: Path, tmp_path: Path, ld3m: Callable[..., Outcome]
) -> None:
    run = package.distill(recipe_file, "distill.iterations=2", output="first")
    assert run == Path("first")
    more = package.distill(recipe_file, "distill.iterations=4", output="second", resume=run)
    assert torch.equal(latents(more)["z"], latents(distilled(recipe_file, tmp_path / "whole"))["z"])
    before = latents(more)["z"]
    again = package.distill(recipe_file, "distill.iterations=0", output="second", resume=False)
    assert not torch.equal(latents(again)["z"], before)
    with pytest.raises(TypeError, match=r"distill\.iterations=5: overrides go to ld3m\.load_recipe"):
        package.distill(package.load_recipe(recipe_file), "distill.iterations=5")
    with pytest.raises(package.UserError, match=r"^RUN: there is no finished run"):
        package.evaluate()
