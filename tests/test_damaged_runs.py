"""Files of a run that are damaged, edited or of another kind: each is one line, or is passed over with one."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import CLASSES, Outcome, noted
from torch import Tensor

from ld3m.errors import UserError
from ld3m.files import write_bytes, write_json
from ld3m.machine.processes import Processes
from ld3m.recipe import Recipe
from ld3m.recipe.files import load, to_yaml
from ld3m.runs import checkpoints, manifests, metrics, resume, sources
from ld3m.runs.folder import iterations_saved, metadata
from ld3m.runs.result import read_images, read_latents, write_images, write_result

PRIOR = {"source": "p", "kind": "k", "revision": None, "sha256": "0" * 64, "licence": None}
DATA = {"source": "d", "classes": {name: {"images": 12, "sha256": "f" * 16} for name in CLASSES}, "scorer": None}
ROW = {"iteration": 0, "loss": 1.5, "grad_z": 1.0, "grad_c": 0.5, "peak_memory": 9, "seconds": {"render": 0.25}}


def states() -> list[dict[str, Tensor]]:
    """Of three classes with two latents each, as checkpoints keep them."""
    draws = torch.Generator().manual_seed(0)
    shapes = {"z": (2, 3, 8, 8), "c": (2, 1, 16), "z_momentum": (2, 3, 8, 8), "c_momentum": (2, 1, 16)}
    return [{name: torch.randn(shape, generator=draws) for name, shape in shapes.items()} for _ in CLASSES]


@pytest.fixture
def recipe(recipe_file: Path, tmp_path: Path) -> Recipe:
    return load(Recipe, str(recipe_file), [f"output={tmp_path / 'run'}"])


@pytest.fixture
def run(recipe: Recipe) -> Path:
    """A finished run of four iterations, written by hand: nothing is learnt and nothing is rendered."""
    folder = recipe.folder
    folder.mkdir()
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    sources.write(folder, sources.Sources(PRIOR, DATA))
    for iteration in (2, 4):
        checkpoints.save(recipe, iteration, dict(enumerate(states())), {}, Processes(torch.device("cpu")))
    for name in CLASSES:
        write_images(folder, name, torch.zeros(2, 1, 16, 16, dtype=torch.uint8))
    write_result(recipe, dict(zip(CLASSES, (0, 1, 2), strict=True)), states(), 4, {})
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(ROW | {'iteration': i})}\n" for i in range(4)))
    return folder


def one_line(read: Callable[[], object], *parts: str) -> None:
    with pytest.raises(UserError) as error:
        read()
    (line,) = error.value.lines
    assert "\n" not in line
    assert len(line) < 400
    assert all(part in line for part in parts), line


# --- latents -----------------------------------------------------------------------------------------------


def rewritten(run: Path, tensors: dict[str, Tensor | None], **notes: object) -> None:
    """The latents with some tensors or notes replaced; those that are None are left out."""
    path = run / "latents.safetensors"
    about = {name: value for name, value in (noted(run) | {"sha256": None} | notes).items() if value != "left out"}
    content = {name: each for name, each in (safetensors.torch.load_file(path) | tensors).items() if each is not None}
    path.write_bytes(safetensors.torch.save(content, {"ld3m": json.dumps(about)}))


def test_equal_runs_have_equal_files(recipe: Recipe, run: Path) -> None:
    """Several keys of metadata would come out in random order: of ten files hardly any two were equal."""
    before = (run / "latents.safetensors").read_bytes()
    for _ in range(10):
        for name in CLASSES:
            write_images(run, name, torch.zeros(2, 1, 16, 16, dtype=torch.uint8))
        write_result(recipe, dict(zip(CLASSES, (0, 1, 2), strict=True)), states(), 4, {})
        assert (run / "latents.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("tensors", "notes", "part"),
    [
        ({"z": None}, {}, "it holds c of torch.float32, labels of torch.int64, not"),
        ({"extra": torch.zeros(6)}, {}, "extra of torch.float32"),
        ({"z": torch.zeros(6, 3, 8, 8).half()}, {}, "z of torch.float16"),
        ({"labels": torch.zeros(6)}, {}, "labels of torch.float32"),
        ({"z": torch.zeros(5, 3, 8, 8)}, {}, "z [5, 3, 8, 8], not a row of each for every image"),
        ({"z": torch.zeros(6)}, {}, "not a row of each"),
        ({"c": torch.tensor(1.0)}, {}, "not a row of each"),
        ({"labels": torch.tensor([0, 0, 1, 1, 2, 7])}, {}, "its labels are not as many of each of 3 classes"),
        ({"c": torch.full((6, 1, 16), torch.nan)}, {}, "c has values that are not finite"),
        ({}, {"classes": ["circle"] * 3}, "classes must be different"),
        ({}, {"classes": "circle"}, "classes: "),
        ({}, {"class_ids": [1]}, "one of class_ids each"),
        ({}, {"iteration": "4"}, "iteration: "),
        ({}, {"noise_iteration": "left out"}, "noise_iteration: Field required"),
        ({}, {"sha256": "0" * 64}, "its tensors have another digest"),
    ],
)  # fmt: skip
def test_latents_of_another_kind(run: Path, tensors: dict[str, Tensor | None], notes: dict, part: str) -> None:
    rewritten(run, tensors, **notes)
    one_line(lambda: read_latents(run), f"{run / 'latents.safetensors'} is damaged (", part, "; remove it, and ld3m")


def test_latents_that_are_no_safetensors_or_have_a_flipped_bit(run: Path) -> None:
    path = run / "latents.safetensors"
    whole = path.read_bytes()
    flipped = whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:]
    for content in (b"", whole[:20], whole[:-1], b"\xff" * 100, b"{}", flipped):
        path.write_bytes(content)
        one_line(lambda: read_latents(run), str(path), "; remove it, and ld3m distill makes it again")


def test_latents_of_older_versions_are_read(run: Path) -> None:
    """They had a key for each part, some of them JSON; the oldest neither class_ids nor versions."""
    about, path = noted(run), run / "latents.safetensors"
    texts = {name: about[name] for name in ("format", "recipe", "noise")}
    numbers = {name: str(about[name]) for name in ("iteration", "noise_iteration", "seed")}
    older = texts | numbers | {"classes": json.dumps(CLASSES), "learnt": '{"step_size": 0.5}'}
    path.write_bytes(safetensors.torch.save(safetensors.torch.load_file(path), older))
    read = metadata(run)
    assert (read.iteration, read.noise, read.noise_iteration, read.seed) == (4, "fresh", 4, 0)
    assert read.ids == {"circle": 0, "cross": 1, "square": 2}
    assert read.learnt == {"step_size": 0.5}
    assert len(read_latents(run)[0]["z"]) == 6


# --- checkpoints -------------------------------------------------------------------------------------------


def test_a_flipped_bit_of_a_manifest_is_noticed(run: Path) -> None:
    """Wherever it is, the manifest is damaged or says what it said: line breaks may be other white space."""
    folder = run / "checkpoints" / "000004"
    path = folder / "manifest.json"
    whole, said = path.read_bytes(), manifests.check(folder, "")
    unnoticed = []
    for position in range(0, len(whole), 3):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 7
        path.write_bytes(bytes(flipped))
        with suppress(UserError):
            unnoticed.append(manifests.check(folder, ""))
    assert len(unnoticed) < len(whole) / 30
    assert all(each == said for each in unnoticed)


def spoil_class(newest: Path) -> None:
    (newest / "class-0001.safetensors").write_bytes(b"")


def lose_class(newest: Path) -> None:
    (newest / "class-0001.safetensors").unlink()


def folder_for_class(newest: Path) -> None:
    lose_class(newest)
    (newest / "class-0001.safetensors").mkdir()


def other_json(newest: Path) -> None:
    (newest / "manifest.json").write_text("[1, 2]")


def no_manifest_file(newest: Path) -> None:
    (newest / "manifest.json").unlink()
    (newest / "manifest.json").mkdir()


def other_iteration(newest: Path) -> None:
    """As older versions wrote it: without a digest."""
    about = json.loads((newest / "manifest.json").read_text())
    write_json(newest / "manifest.json", about | {"iteration": 3, "sha256": None})


def renamed(newest: Path) -> None:
    newest.rename(newest.with_name("000099"))


@pytest.mark.parametrize(
    "spoil", [spoil_class, lose_class, folder_for_class, other_json, no_manifest_file, other_iteration, renamed]
)
def test_a_damaged_newest_checkpoint_yields_to_the_one_before(run: Path, spoil: Callable[[Path], None]) -> None:
    said: list[str] = []
    spoil(run / "checkpoints" / "000004")
    assert manifests.newest(run, said.append) == run / "checkpoints" / "000002"
    (line,) = said
    assert str(run / "checkpoints" / "0000") in line
    assert line.endswith("; going back to the checkpoint before it")


def test_folders_with_odd_names_are_nobodys_checkpoints(run: Path, recipe: Recipe) -> None:
    """A copy that somebody made is neither read nor removed."""
    parent = run / "checkpoints"
    for name in ("000004.bak", "1e3", "²", "-5"):
        shutil.copytree(parent / "000004", parent / name)
    write_bytes(parent / "notes.txt", b"mine")
    assert iterations_saved(run) == 4
    checkpoints.save(recipe, 1_000_000, dict(enumerate(states())), {}, Processes(torch.device("cpu")))
    assert iterations_saved(run) == 1_000_000
    names = {path.name for path in parent.iterdir()}
    assert names == {"000004", "1000000", "000004.bak", "1e3", "²", "-5", "notes.txt"}


# --- metrics and notes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        '{"iteration": "1", "loss": 1}', '{"iteration": 1, "loss": "low"}', '{"iteration": 1}', '{"loss": 1}',
        '{"iteration": -1, "loss": 1}', '{"iteration": true, "loss": 1}', '{"iteration": 1, "loss": NaN}',
        '{"iteration": 1, "loss": 1, "seconds": 3}', '{"iteration": 1, "loss": 1, "seconds": {"render": "3"}}',
        '{"iteration": 1, "loss": 1, "step_size": [1]}', '{"iteration": 0, "loss": 1}', "7", "null", "[" * 10**5,
        '{"iteration": 1' + "0" * 5000 + ', "loss": 1}',
    ],
    ids=lambda line: line[:40],
)  # fmt: skip
def test_a_damaged_line_of_metrics_is_skipped_and_counted(tmp_path: Path, line: str) -> None:
    later = ROW | {"iteration": 2, "step_size": 0.5}
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(ROW)}\n{line}\n{json.dumps(later)}\n")
    assert metrics.read(tmp_path) == metrics.Metrics([ROW, later], 1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("prior.json", "[]"), ("prior.json", "{}"), ("prior.json", json.dumps(PRIOR | {"sha256": 1})),
        ("data.json", ""), ("data.json", "{"), ("data.json", json.dumps(DATA | {"classes": ["circle"]})),
        ("data.json", json.dumps(DATA | {"classes": {"circle": {"images": "12", "sha256": "f"}}})),
    ],
)  # fmt: skip
def test_damaged_notes_are_one_line(run: Path, name: str, content: str) -> None:
    (run / name).write_text(content)
    one_line(lambda: sources.read(run), str(run / name), "; move it away to continue without it")


def test_images_that_changed_are_noticed_as_far_as_they_were_noted(
    recipe: Recipe, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two that changed places too; a note of an older version, a histogram, says too little, which is said."""
    given = (recipe, sources.Sources(PRIOR, DATA), *sources.read(run), run, "stop")
    sources.check(*given)
    assert capsys.readouterr().out == ""
    other = DATA["classes"] | {"cross": {"images": 12, "sha256": "0" * 16}}
    write_json(run / "data.json", DATA | {"classes": other})
    changed = (*given[:2], *sources.read(run), run, "stop")
    one_line(lambda: sources.check(*changed), "data.source: ", "class 'cross' has other training images; stop")
    older = {name: {"images": 12, "pixels": "1" * 16} for name in CLASSES}
    write_json(run / "data.json", DATA | {"classes": older})
    sources.check(*given[:2], *sources.read(run), run, "stop")
    assert "noted too little of its images to check that they are the same" in capsys.readouterr().out


# --- what a kill leaves ----------------------------------------------------------------------------------------


def test_half_written_files_are_swept_and_others_stay(recipe: Recipe, run: Path) -> None:
    left = [".latents.safetensors.0123abcd.tmp", "checkpoints/000004/.class-0000.safetensors.89abcdef.tmp"]
    mine = [".notes.tmp", "evolution/.tmp", "checkpoints/x.0123abcd.tmp"]
    for name in left + mine:
        write_bytes(run / name, b"half")
    (run / ".images.0123abcd.tmp" / "circle").mkdir(parents=True)
    with resume.claim(recipe, sources.Sources(PRIOR, DATA)):
        assert not [name for name in left if (run / name).exists()]
        assert not (run / ".images.0123abcd.tmp").exists()
        assert all((run / name).exists() for name in mine)
    assert len(read_latents(run)[0]["z"]) == 6


def test_a_run_that_was_killed_at_its_first_file_begins_again(recipe: Recipe) -> None:
    write_bytes(recipe.folder / ".recipe.yaml.0123abcd.tmp", b"name: sha")
    with resume.claim(recipe, sources.Sources(PRIOR, DATA)):
        assert load(Recipe, str(recipe.folder / "recipe.yaml")) == recipe


def test_a_run_that_failed_at_its_start_leaves_nothing_in_the_way(recipe: Recipe, run: Path) -> None:
    """Its folder holds a recipe and notes alone; anything more is kept from another recipe."""
    other = recipe.model_copy(update={"seed": 1})
    made_from = sources.Sources(PRIOR, DATA)
    one_line(lambda: resume.check_resumable(other), f"output: {run} holds a run of another recipe (seed differ)")
    for name in ("images", "checkpoints"):
        shutil.rmtree(run / name)
    for name in ("latents.safetensors", "metrics.jsonl"):
        one_line(lambda: resume.check_resumable(other), "holds a run of another recipe")
        (run / name).unlink()
    with resume.claim(other, made_from):
        assert load(Recipe, str(run / "recipe.yaml")) == other


# --- runs that are finished ----------------------------------------------------------------------------------


def test_a_finished_run_is_left_as_it_is(ld3m: Callable[..., Outcome], recipe_file: Path, run: Path) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.rglob("*") if path.is_file()}
    outcome = ld3m("distill", recipe_file, "-o", run, "log_with=tensorboard", "evaluate.seeds=3")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(f"{run} is finished (ignored, as nothing is written: log_with, evaluate.seeds); ")
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.rglob("*") if path.is_file()}


def test_images_that_are_missing_are_rendered_again(
    recipe: Recipe, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "images" / "cross" / "1.png").unlink()
    assert resume.nothing_left(recipe) is None
    assert capsys.readouterr().out == f"{run / 'images' / 'cross'}: images are missing; all are rendered again\n"
    shutil.rmtree(run / "checkpoints")
    one_line(lambda: resume.nothing_left(recipe), "has no checkpoints any more")


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("cross/1.png", b"", "cannot read {}/images/cross/1.png ("),
        ("cross/1.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "cannot read {}/images/cross/1.png ("),
        ("holiday.jpg", b"x", "{}/images/holiday.jpg is none of the recipe's classes: circle, cross, square"),
    ],
)
def test_damaged_images_are_one_line(run: Path, name: str, content: bytes, part: str) -> None:
    for hidden in (".DS_Store", ".thumbnails"):  # of file managers
        write_bytes(run / "images" / hidden, b"x")
    assert len(read_images(run, CLASSES, 1, 16)[0]) == 6
    (run / "images" / name).write_bytes(content)
    one_line(lambda: read_images(run, CLASSES, 1, 16), part.format(run))


def test_a_finished_run_without_checkpoints_is_not_begun_again(recipe_file: Path, run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    more = load(Recipe, str(recipe_file), [f"output={run}", "distill.iterations=9"])
    one_line(lambda: resume.nothing_left(more), f"output: {run} has no checkpoints any more", "--no-resume")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("distill.images_per_class=3", "distill.images_per_class: 3, but the latents of {} were learnt with 2; "),
        ("distill.factor=2", "distill.factor: 2, but the latents of {} were learnt with 1; "),
        ("seed=1", "seed: 1, but the latents of {} were learnt with 0; "),
        ("data.subset=[circle]", "data.subset"),
        ("prior.source=/nowhere", "prior.source: '/nowhere' is not here; give where the prior of {} is: "),
    ],
)
def test_render_refuses_what_the_latents_are_not(
    ld3m: Callable[..., Outcome], run: Path, override: str, line: str
) -> None:
    outcome = ld3m("render", run, override, "-o", "other")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert outcome.err.startswith(f"ld3m: {line.format(run)}")
    assert not Path("other").exists()


def test_render_says_that_the_prior_has_changed(ld3m: Callable[..., Outcome], run: Path, prior_folder: Path) -> None:
    """The note on the prior is of other weights than those in its folder."""
    outcome = ld3m("render", run, "--steps", "1", "-o", "other")
    assert outcome.code == 0, outcome.err
    changed, done = outcome.out.splitlines()
    assert changed.startswith(f"prior.source: {prior_folder} has other weights than the prior that {run} was made with")
    assert done == "other: 6 images in images/, shown in grid.png"
    shutil.copyfile("other/prior.json", run / "prior.json")
    assert ld3m("render", run, "--steps", "1", "-o", "other").out.splitlines() == [done]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("distill.objective=dmm", "distill.objective: 'dmm' is not known; known are dm, dc, mtt"),
        ("network.arch=lenet", "network.arch: 'lenet' is not known; known are convnet"),
        ("evaluate.arch=[vgg11]", "data.resolution: 16"),
        ("log_with=notebook", "log_with: 'notebook' is not known; known are"),
        ("output=run", "output: run is not empty and not a run; give another --output"),
    ],
)
def test_a_dry_run_refuses_what_the_run_refuses(
    ld3m: Callable[..., Outcome], recipe_file: Path, override: str, line: str
) -> None:
    write_bytes(Path("run") / "thesis.tex", b"years of work")
    for options in ((), ("--dry-run",)):
        outcome = ld3m("distill", recipe_file, override, *options)
        assert (outcome.code, outcome.out) == (2, "")
        assert outcome.err.startswith(f"ld3m: {line}")


def test_a_dry_run_looks_at_the_run_that_is_there(ld3m: Callable[..., Outcome], recipe_file: Path, run: Path) -> None:
    given = ("distill", recipe_file, "-o", run, "distill.momentum=0.1")
    for options in ((), ("--dry-run",)):
        outcome = ld3m(*given, *options)
        assert outcome.err.startswith(f"ld3m: output: {run} holds a run of another recipe (distill.momentum differ); ")
    assert ld3m(*given, "--dry-run", "--no-resume").code == 0
