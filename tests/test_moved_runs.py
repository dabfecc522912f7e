"""Runs whose data, prior or own folder is elsewhere by now, and other data and priors in their place."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, Outcome, distilled, draw_shape, latents, make_prior
from PIL import Image

from ld3m.recipe import Recipe
from ld3m.recipe.files import digest, digest_with_paths
from ld3m.reporting.status import read

FEW = ("distill.images_per_class=1", "distill.checkpoint_every=1", "distill.pictures=1", "prior.steps=2")
COMMANDS = """
import json, sys
from ld3m.__main__ import main

for line in json.load(sys.stdin):
    sys.argv = ["ld3m", *line]
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            sys.exit(f"{line}: {stop.code}")
"""


@pytest.fixture
def here(tmp_path: Path, shapes: Path, prior_folder: Path, recipe_file: Path) -> Path:
    """A folder with data, a prior, and a recipe that names them by their absolute paths."""
    here = tmp_path / "here"
    shutil.copytree(shapes, here / "shapes")
    shutil.copytree(prior_folder, here / "prior")
    text = recipe_file.read_text().replace(str(shapes), str(here / "shapes"))
    (here / "recipe.yaml").write_text(text.replace(str(prior_folder), str(here / "prior")))
    return here


@pytest.fixture
def begun(here: Path) -> Path:
    """A run after the first of two iterations."""
    return distilled(here / "recipe.yaml", here / "begun", *FEW, "distill.iterations=1")


@pytest.fixture(scope="module")
def undisturbed(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, whole, and where it always was."""
    return distilled(recipe_file, tmp_path_factory.mktemp("runs") / "whole", *FEW, "distill.iterations=2")


def same(one: Path, other: Path) -> bool:
    """Whether two runs have the same latents and images, bit for bit."""
    mine, theirs = latents(one), latents(other)
    pairs = [[np.asarray(Image.open(run / "images" / name / "0.png")) for run in (one, other)] for name in CLASSES]
    return all(torch.equal(mine[name], theirs[name]) for name in theirs) and all(
        np.array_equal(*pair) for pair in pairs
    )


def test_another_machine(here: Path, begun: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Another home, cache and working folder; data and prior are elsewhere, and nothing is left where they were."""
    finished = distilled(here / "recipe.yaml", here / "finished", *FEW, "distill.iterations=2")
    assert same(finished, undisturbed)
    there = tmp_path / "there"
    for name in ("begun", "finished"):
        shutil.copytree(here / name, there / "runs" / name)
    shutil.copytree(here / "begun" / "checkpoints" / "000001", there / "backup")
    shutil.move(here / "shapes", there / "images")
    shutil.move(here / "prior", there / "model")
    shutil.rmtree(here)
    data, prior, all_of_it = "data.source=images", "prior.source=model", "distill.iterations=2"
    lines = [
        ["status", "runs/finished"],
        ["report", "runs/finished"],
        ["push-to-hub", "runs/finished", "--dry-run"],
        ["evaluate", "runs/finished", data, "--seeds", "1", "evaluate.epochs=1", "--against", "runs/finished"],
        ["render", "runs/finished", prior, "-o", "rendered"],
        ["distill", "runs/begun/recipe.yaml", data, prior, all_of_it, "--resume", "backup", "-o", "from-backup"],
        ["distill", "runs/begun/recipe.yaml", data, prior, all_of_it, "--resume", "runs/begun", "-o", "copy"],
        ["distill", "runs/begun/recipe.yaml", data, prior, all_of_it, "-o", "runs/begun"],
    ]
    (there / "home").mkdir()
    elsewhere = {
        "HOME": str(there / "home"),
        "LD3M_CACHE": str(there / "cache"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    process = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        cwd=there,
        env=os.environ | elsewhere,
        timeout=600,
    )
    assert process.returncode == 0, process.stderr
    assert "runs/finished: finished, iteration 2 of 2 (100 %)" in process.stdout
    assert "Finished, 2 iterations" in " ".join((there / "runs/finished/report.html").read_text().split())
    assert (there / "runs/finished/hub/README.md").is_file()
    rows = json.loads((there / "runs/finished/evaluation.json").read_text())["results"]
    assert [row["trained_on"] for row in rows] == ["distilled", "run finished"]
    assert rows[0]["accuracies"] == rows[1]["accuracies"], "the same images, by the same seed"
    for name in CLASSES:
        pair = [
            np.asarray(Image.open(folder / name / "0.png"))
            for folder in (there / "rendered/images", undisturbed / "images")
        ]
        assert np.array_equal(*pair)
    for folder in ("runs/begun", "from-backup", "copy"):
        assert same(there / folder, undisturbed), folder


def test_a_moved_run_asks_for_its_data_and_not_for_its_prior(
    here: Path, begun: Path, ld3m: Callable[..., Outcome]
) -> None:
    shutil.rmtree(here / "prior")
    assert ld3m("evaluate", begun, "--seeds", "1", "evaluate.epochs=1").code == 0
    (here / "shapes").rename(here / "elsewhere")
    outcome = ld3m("evaluate", begun)
    assert outcome.code == 2
    assert outcome.err.startswith(f"ld3m: data.source: '{here / 'shapes'}' is not there")
    outcome = ld3m("render", begun)
    assert outcome.code == 2
    assert outcome.err.startswith("ld3m: prior.source: ")
    assert str(here / "prior") in outcome.err


def refused(ld3m: Callable[..., Outcome], run: Path, *overrides: str, start: Path | None = None) -> str:
    """The line by which a run is not resumed; nothing in its folder changes."""
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    more = ("--resume", start, "-o", run.parent / "other") if start else ("-o", run)
    outcome = ld3m("distill", run.parent / "recipe.yaml", *FEW, "distill.iterations=2", *overrides, *more)
    lines = [line for line in outcome.err.splitlines() if line.startswith("ld3m:")]
    assert (outcome.code, len(lines)) == (2, 1), outcome.err
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert not (run.parent / "other" / "latents.safetensors").exists()
    return lines[0]


def test_other_data_is_refused_and_named(here: Path, begun: Path, ld3m: Callable[..., Outcome]) -> None:
    """An image replaced by another, also where the run's folder is unknown; an image more; a class less."""
    shutil.copytree(begun / "checkpoints" / "000001", here / "backup")
    draw_shape("cross", np.random.default_rng(1)).save(here / "shapes" / "train" / "circle" / "3.png")
    line = refused(ld3m, begun)
    assert line.startswith(f"ld3m: data.source: {here / 'shapes'} is not the data with which the run in {begun} began")
    assert "class 'circle' has other training images; give another --output, or --no-resume" in line
    assert "class 'circle' has other training images" in refused(ld3m, begun, start=begun)
    assert f"data.source: {here / 'shapes'} is not what" in refused(ld3m, begun, start=here / "backup")
    draw_shape("cross", np.random.default_rng(1)).save(here / "shapes" / "train" / "cross" / "more.png")
    shutil.rmtree(here / "shapes" / "train" / "square")
    shutil.rmtree(here / "shapes" / "test" / "square")
    assert "its classes are circle, cross, not circle, cross, square" in refused(ld3m, begun)


def test_a_class_of_more_images_is_refused(here: Path, begun: Path, ld3m: Callable[..., Outcome]) -> None:
    draw_shape("cross", np.random.default_rng(1)).save(here / "shapes" / "train" / "cross" / "more.png")
    assert "class 'cross' has 13 training images, not 12" in refused(ld3m, begun)


def test_another_prior_is_refused(here: Path, begun: Path, ld3m: Callable[..., Outcome]) -> None:
    prior = make_prior()
    with torch.no_grad():
        next(iter(prior.denoiser.parameters())).add_(1e-3)
    prior.save(here / "other-prior")
    line = refused(ld3m, begun, f"prior.source={here / 'other-prior'}")
    assert f"prior.source: {here / 'other-prior'} has other weights than when the run in {begun} began" in line
    assert "has other weights" in refused(ld3m, begun, f"prior.source={here / 'other-prior'}", start=begun)


def test_only_keys_that_matter_are_listed(here: Path, begun: Path, ld3m: Callable[..., Outcome]) -> None:
    """Not where data and prior are, what is logged, and how networks are evaluated."""
    (here / "shapes").rename(here / "elsewhere")
    moved = (f"data.source={here / 'elsewhere'}", "evaluate.epochs=9", "distill.log_every=2", "name=other")
    line = refused(ld3m, begun, *moved, "prior.guidance=2", "distill.momentum=0.9")
    assert "holds a run of another recipe (distill.momentum, prior.guidance differ)" in line


def test_a_run_at_a_checkpoint_needs_no_start(here: Path, begun: Path, tmp_path: Path) -> None:
    """`distill.init` named another run's folder, which has gone."""
    start = (f"distill.init={begun}", *FEW)
    whole = distilled(here / "recipe.yaml", tmp_path / "whole", *start, "distill.iterations=2")
    half = distilled(here / "recipe.yaml", tmp_path / "half", *start, "distill.iterations=1")
    begun.rename(tmp_path / "gone")
    assert same(distilled(here / "recipe.yaml", half, *start, "distill.iterations=2"), whole)


# --- runs of older versions ----------------------------------------------------------------------------------


def as_older(run: Path, recipe_digest: str) -> None:
    """Takes out of a run what versions did not write that knew data by its path."""
    (run / "data.json").unlink()
    for path in run.glob("checkpoints/*/manifest.json"):
        manifest = json.loads(path.read_text())
        del manifest["prior"], manifest["data"], manifest["sha256"]
        path.write_text(json.dumps(manifest | {"recipe": recipe_digest}))


def test_an_older_run_resumes_with_data_at_the_same_path(
    here: Path, begun: Path, undisturbed: Path, ld3m: Callable[..., Outcome]
) -> None:
    as_older(begun, "0123456789abcdef")
    shutil.copytree(here / "shapes", here / "elsewhere")
    line = refused(ld3m, begun, f"data.source={here / 'elsewhere'}")
    assert "holds a run of another recipe (data.source differ)" in line
    assert same(distilled(here / "recipe.yaml", begun, *FEW, "distill.iterations=2"), undisturbed)
    assert (begun / "data.json").is_file()


@pytest.mark.parametrize(
    ("keys", "noted"),
    [
        ({"data": {"source": "fashion-mnist-small"}, "prior": {"source": "fashion-mnist"}}, "40289772780780d2"),
        (
            {
                "data": {"source": "digits", "resolution": 16, "channels": 1},
                "prior": {"source": "digits", "steps": 3},
                "distill": {"images_per_class": 2, "objective": "mtt", "schedule": "cosine"},
            },
            "3a4e6419613ac81d",
        ),
    ],
)
def test_the_digest_of_older_checkpoints_is_known(keys: dict[str, object], noted: str) -> None:
    """As the version before, which had data.source and prior.source in it, computed it."""
    recipe = Recipe.model_validate({"name": "x", **keys})
    assert digest_with_paths(recipe) == noted
    assert digest(recipe) != noted


def test_a_checkpoint_alone_of_an_older_version_resumes(here: Path, begun: Path, undisturbed: Path) -> None:
    from ld3m.distillation.loop import distill
    from ld3m.recipe.files import load

    recipe = load(Recipe, str(here / "recipe.yaml"), [*FEW, "distill.iterations=2", f"output={here / 'copy'}"])
    as_older(begun, digest_with_paths(recipe))
    shutil.copytree(begun / "checkpoints" / "000001", here / "backup")
    assert same(distill(recipe, start=here / "backup"), undisturbed)


# --- reading -------------------------------------------------------------------------------------------------


def test_damaged_lines_of_metrics_are_skipped_and_counted(undisturbed: Path, tmp_path: Path) -> None:
    """Between whole ones, and of what is no row; a last line that is being written does not count."""
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    first, second = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text(f'{first}\n{first[:20]}\n[1, 2]\n\n{second}\n{{"iteration": 7, "lo')
    status = read(folder)
    assert (status.iteration, status.damaged_lines) == (2, 2)
    assert status.loss == json.loads(second)["loss"]
    (folder / "metrics.jsonl").write_text(f"{first}\n{second}")
    assert (read(folder).loss, read(folder).damaged_lines) == (status.loss, 0)


def test_reading_a_run_does_not_import_torch(undisturbed: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from ld3m.reporting.status import read; "
        "read(Path(sys.argv[1])); print([name for name in ('torch', 'diffusers', 'accelerate') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, undisturbed], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
