"""push-to-hub and the way back: the real clients of huggingface_hub and datasets against a server of this process."""

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow.parquet
import pytest
import safetensors
import safetensors.torch
import torch
import yaml
from conftest import CLASSES, Outcome, distilled, latents, noted
from hub_server import READ_TOKEN, WRITE_TOKEN, Fault, Hub, Repository, serving
from PIL import Image

from ld3m.__main__ import main
from ld3m.evaluation.tables import accuracy_text
from ld3m.runs import labels
from ld3m.runs import weights as image_weights
from ld3m.runs.imported import find_set
from ld3m.runs.training_set import stored_digest

REPO, CONFIG = "me/ld3m-shapes", "ipc2-16px"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def evaluated(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was measured, long enough for its networks to have learnt something."""
    folder = distilled(recipe_file, tmp_path_factory.mktemp("runs") / "shapes")
    settings = ("evaluate.epochs=20", "evaluate.lr=0.02", "evaluate.ema=0.8")
    for options in (("--against", "random,full", "--seeds", "1"), ("--seeds", "5")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["ld3m", "evaluate", str(folder), *settings, *options])
            with pytest.raises(SystemExit) as ended:
                main()
        assert ended.value.code == 0
    return folder


@pytest.fixture
def run(evaluated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(evaluated, tmp_path / "runs" / "shapes"))


class Ld3m(Protocol):
    def __call__(self, *arguments: object, token: str | None = ...) -> Outcome: ...


@pytest.fixture
def ld3m(ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> Ld3m:
    """The command line in this process, logged in as `token` says."""

    def run(*arguments: object, token: str | None = WRITE_TOKEN) -> Outcome:
        with monkeypatch.context() as patch:
            if token:
                patch.setenv("HF_TOKEN", token)
            return outside(*arguments)

    outside = ld3m
    return run


def python(folder: Path, program: str) -> str:
    """What a program of somebody who has the data set prints."""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def errors(outcome: Outcome) -> list[str]:
    """The command's own lines on stderr."""
    return [line for line in outcome.err.splitlines() if line.startswith("ld3m: ")]


def card(hub: Hub) -> str:
    return hub.files(REPO)["README.md"].decode()


def test_nothing_says_where_the_run_was_made(ld3m: Ld3m, run: Path, recipe_file: Path) -> None:
    """Neither the folders of images and prior nor that of a scorer's weights."""
    recipe, measured = run / "recipe.yaml", run / "evaluation.json"
    weights = str(recipe_file.parent / "scorer.safetensors")
    report = json.loads(measured.read_text())
    report["results"][0]["scorer"] = {"arch": "convnet", "source": weights}
    measured.write_text(json.dumps(report))
    content = yaml.safe_load(recipe.read_text())
    content["data"]["scorer"]["source"] = weights
    recipe.write_text(yaml.safe_dump(content))
    assert (outcome := ld3m("push-to-hub", run, "--to", "me/shapes", "--dry-run")).code == 0, outcome.err
    pushed = [path for path in (run / "hub").rglob("*") if path.is_file()]
    assert {"prior.json", "evaluation.json", "recipe.yaml", "README.md"} <= {path.name for path in pushed}
    roots = {str(Path(content[section]["source"]).parent).encode() for section in ("data", "prior")}
    for path in pushed:
        assert not [root for root in roots if root in path.read_bytes()], path
    (pushed_evaluation,) = (run / "hub").glob("*/evaluation.json")
    assert json.loads(pushed_evaluation.read_text())["results"][0]["scorer"]["source"] == "scorer.safetensors"


def test_a_push_needs_neither_the_data_nor_the_prior(ld3m: Ld3m, run: Path) -> None:
    """As on another machine, or after the folders were moved: the same files but for the names of the two."""
    assert ld3m("push-to-hub", run, "--dry-run", "--to", REPO).code == 0
    before = {path.relative_to(run): path.read_bytes() for path in (run / "hub").rglob("*") if path.is_file()}
    content = yaml.safe_load((run / "recipe.yaml").read_text())
    names = {}
    for section in ("data", "prior"):
        names[Path(content[section]["source"]).name] = gone = f"no-{section}-here"
        content[section]["source"] = f"/nowhere/{gone}"
    (run / "recipe.yaml").write_text(yaml.safe_dump(content))
    assert (outcome := ld3m("push-to-hub", run, "--dry-run", "--to", REPO)).code == 0, outcome.err
    for path, old in before.items():
        new = (run / path).read_bytes()
        if path.name not in ("README.md", "recipe.yaml"):
            assert new == old, path
    card = (run / "hub" / "README.md").read_text()
    assert "distilled from `no-data-here` through\nthe prior `no-prior-here`" in card
    assert not [name for name in names if f"`{name}`" in card]


# --- out and back ------------------------------------------------------------------------------------------


def test_images_labels_and_names_come_back_as_they_were(ld3m: Ld3m, hub: Hub, run: Path, tmp_path: Path) -> None:
    """By the three lines of the card, which name no more than the repository."""
    assert (pushed := ld3m("push-to-hub")).code == 0, pushed.err
    assert set(hub.files(REPO)) == {
        "README.md",
        f"latents/{CONFIG}.safetensors",
        *(
            f"{CONFIG}/{name}"
            for name in (
                "train-00000-of-00001.parquet", "recipe.yaml", "evaluation.json", "grid.png", "prior.json",
                "metrics.jsonl",
            )
        ),
    }  # fmt: skip
    program = re.search(r"## How to load it\s+```python\n(.*?)```", card(hub), re.DOTALL)
    assert program
    assert len(program[1].strip().splitlines()) == 4  # three, and an empty one
    save = """
import numpy, json
numpy.save("back.npy", numpy.stack([numpy.asarray(row["image"]) for row in images]))
json.dump([list(images["label"]), images.features["label"].names], open("back.json", "w"))
"""
    python(tmp_path, program[1] + save)
    labels, names = json.loads((tmp_path / "back.json").read_text())
    assert (labels, names) == ([0, 0, 1, 1, 2, 2], CLASSES)
    ours = [np.asarray(Image.open(run / "images" / name / f"{place}.png")) for name in CLASSES for place in (0, 1)]
    assert np.array_equal(np.load(tmp_path / "back.npy"), np.stack(ours))
    assert hub.files(REPO)[f"latents/{CONFIG}.safetensors"] == (run / "latents.safetensors").read_bytes()


def test_what_is_there_is_not_sent_again(ld3m: Ld3m, hub: Hub, run: Path, tmp_path: Path) -> None:
    assert ld3m("push-to-hub").code == 0
    first = len(hub.requests)
    again = ld3m("push-to-hub", run)
    assert again.code == 0, again.err
    assert "nothing changed" in again.out
    assert not [request for request in hub.requests[first:] if re.search("PUT|/commit/", request)]
    assert len(hub.repositories["dataset", REPO].branches["main"]) == 2  # made, and filled
    (run / "evaluation.json").unlink()
    assert ld3m("push-to-hub", run).code == 0
    assert f"{CONFIG}/evaluation.json" not in hub.files(REPO)
    assert "Not measured yet" in card(hub)
    assert not [request for request in hub.requests[first:] if "PUT" in request]


def test_a_dry_run_writes_the_folder_and_asks_nobody(ld3m: Ld3m, hub: Hub, run: Path, tmp_path: Path) -> None:
    outcome = ld3m("push-to-hub", "--dry-run", "--to", REPO, token=None)
    assert outcome.code == 0, outcome.err
    assert hub.requests == []
    there = {path.relative_to(run / "hub").as_posix() for path in (run / "hub").rglob("*") if path.is_file()}
    listed = {line.split()[1] for line in outcome.out.splitlines()[1:]}
    assert listed == there
    assert ld3m("push-to-hub").code == 0
    for name, content in hub.files(REPO).items():
        assert (run / "hub" / name).read_bytes() == content


def test_other_configs_and_what_people_wrote_stay(
    ld3m: Ld3m, hub: Hub, run: Path, recipe_file: Path, tmp_path: Path
) -> None:
    assert ld3m("push-to-hub", run).code == 0
    before = hub.files(REPO)
    mine = card(hub).replace("<!--", "My own words.\n\n<!--", 1).replace("tags:\n", "tags:\n- my-tag\n", 1)
    hub.repositories["dataset", REPO].branches["main"].append({**before, "README.md": mine.encode()})
    other = distilled(recipe_file, tmp_path / "one", "distill.images_per_class=1", "distill.iterations=1")
    assert (pushed := ld3m("push-to-hub", other)).code == 0, pushed.err
    after = hub.files(REPO)
    assert {name: after[name] for name in before if name != "README.md"} == {
        name: content for name, content in before.items() if name != "README.md"
    }
    assert "My own words." in card(hub)
    meta = yaml.safe_load(card(hub).split("---\n")[1])
    assert "my-tag" in meta["tags"]
    assert [each["config_name"] for each in meta["configs"]] == ["ipc1-16px", CONFIG]
    counts = "print(*(len(datasets.load_dataset(*names, split='train')) for names in ({0!r}, {1!r}, {2!r})))"
    names = ((REPO,), (REPO, CONFIG), (REPO, "ipc1-16px"))
    assert python(tmp_path, "import datasets\n" + counts.format(*names)).split() == ["3", "6", "3"]
    unnamed = ld3m("evaluate", REPO)
    assert errors(unnamed) == [f"ld3m: {REPO}: has the configs ipc1-16px, {CONFIG}; name one, as in {REPO}:ipc1-16px"]


def test_branches_and_pull_requests(ld3m: Ld3m, hub: Hub, run: Path, tmp_path: Path) -> None:
    options = ("push-to-hub", "--to", REPO)
    assert ld3m(*options, "--private", "--revision", "try").code == 0
    repository = hub.repositories["dataset", REPO]
    assert repository.private
    assert hub.files(REPO) == {}
    assert f"latents/{CONFIG}.safetensors" in hub.files(REPO, revision="try")
    asked = ld3m(*options, "--create-pr")
    assert asked.code == 0, asked.err
    assert f"{hub.url}/datasets/{REPO}/discussions/1" in asked.out
    assert hub.files(REPO) == {}
    assert hub.files(REPO, revision="refs/pr/1") == hub.files(REPO, revision="try")


def test_somebody_elses_set_from_an_empty_home(
    ld3m: Ld3m, hub: Hub, run: Path, shapes: Path, prior_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluated and rendered as the README says: what was the maker's folder is said to be, and one's own is given."""
    from huggingface_hub import constants

    assert ld3m("push-to-hub", run, "--to", REPO).code == 0
    mine = json.loads((run / "evaluation.json").read_text())["results"][0]
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    for name in ("HOME", "HF_HOME", "LD3M_CACHE"):
        monkeypatch.setenv(name, str(home / ("" if name == "HOME" else name)))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    outcome = ld3m("evaluate", REPO, "--seeds", 1, token=None)
    (line,) = errors(outcome)
    assert outcome.code == 2
    assert line == (
        f"ld3m: data.source: '{shapes.name}' is not there: it was a folder of whoever made this set; "
        "give data.source=YOUR FOLDER of the same images"
    )
    how = [f"evaluate.{key}={mine['protocol'][key]}" for key in ("epochs", "lr", "ema")]
    outcome = ld3m("evaluate", REPO, "--seeds", 5, f"data.source={shapes}", *how, "--json", "--again", token=None)
    assert outcome.code == 0, outcome.err
    theirs = [row for row in json.loads(outcome.out)["results"] if row["trained_on"] == "distilled"]
    assert [row["accuracies"] for row in theirs] == [mine["accuracies"]]
    outcome = ld3m("render", REPO, "-o", "rendered", token=None)
    assert outcome.code == 2
    assert f"prior.source: '{prior_folder.name}' is not here; give where the prior" in outcome.err
    outcome = ld3m("render", REPO, f"prior.source={prior_folder}", "-o", "rendered", token=None)
    assert outcome.code == 0, outcome.err
    for path in (run / "images").rglob("*.png"):
        assert (home / "rendered" / path.relative_to(run)).read_bytes() == path.read_bytes()


# --- the card ----------------------------------------------------------------------------------------------


def test_the_card_says_what_was_measured_and_what_it_is_made_of(
    ld3m: Ld3m, hub: Hub, run: Path, tmp_path: Path
) -> None:
    prior = json.loads((run / "prior.json").read_text()) | {"licence": "cc-by-nc-4.0", "revision": "abc123"}
    (run / "prior.json").write_text(json.dumps(prior))
    assert (pushed := ld3m("push-to-hub")).code == 0, pushed.err
    text = card(hub)
    results = json.loads((run / "evaluation.json").read_text())["results"]
    figures = " | ".join(map(accuracy_text, results))
    assert "| trained from scratch on | these 6 | 6 random real images | all 36 real images |" in text
    assert f"| convnet | {figures} |" in text
    assert text.count("cc-by-nc-4.0") >= 3  # metadata, facts, licence
    assert "**Not for commercial use**: `cc-by-nc-4.0`" in text
    meta = yaml.safe_load(text.split("---\n")[1])
    assert meta["license"] == "cc-by-nc-4.0"
    assert meta["task_categories"] == ["image-classification"]
    assert meta["size_categories"] == ["n<1K"]
    for fact in ("| seed | 0 |", "`abc123`", prior["sha256"], "torch 2.", "| 2 | square | 2 |", "moser2025ld3m"):
        assert fact in text
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])  # type: ignore[index]
    assert recipe["distill"]["images_per_class"] == 2
    assert recipe["prior"]["source"] == Path(prior["source"]).name  # without its folder
    assert str(tmp_path) not in "".join(
        hub.files(REPO)[name].decode() for name in ("README.md", f"{CONFIG}/recipe.yaml")
    )


def test_the_program_of_the_card_trains_as_the_table_says(
    ld3m: Ld3m, hub: Hub, run: Path, shapes: Path, tmp_path: Path
) -> None:
    """Five networks of other draws: their mean is within the standard deviation of the table's five."""
    assert ld3m("push-to-hub").code == 0
    program = re.search(r"## How to train on it.*?```python\n(.*?)```", card(hub), re.DOTALL)
    assert program
    test = f"""
import glob, numpy, statistics
from PIL import Image, ImageOps
right = []
for seed in range(5):
    network = train(seed)
    hits = []
    for label, name in enumerate({CLASSES}):
        for path in glob.glob(f"{shapes}/test/{{name}}/*.png"):
            image = ImageOps.fit(Image.open(path), (16, 16), Image.Resampling.BICUBIC)
            pixels = torch.from_numpy(numpy.array(image))[None, None]
            hits.append(network((pixels / 255 - mean) / std).argmax().item() == label)
    right.append(100 * statistics.fmean(hits))
print(statistics.fmean(right))
"""
    found = float(python(tmp_path, program[1] + test))
    row = json.loads((run / "evaluation.json").read_text())["results"][0]
    assert row["trained_on"] == "distilled"
    assert row["mean"] > 100 / 3
    assert abs(found - row["mean"]) <= row["std"]


def test_a_licence_that_the_hub_does_not_know_is_an_error(ld3m: Ld3m, hub: Hub, run: Path, tmp_path: Path) -> None:
    text = (run / "recipe.yaml").read_text().replace("licence: null", "licence: my-licence")
    (run / "recipe.yaml").write_text(text)
    refused = ld3m("push-to-hub")
    assert refused.code == 2
    assert len(errors(refused)) == 1
    assert "my-licence" in errors(refused)[0]
    assert "hub.licence" in errors(refused)[0]
    assert hub.files(REPO) == {}


# --- what goes wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Fault(r"POST .*/commit/", 503, times=2),
        Fault(r"POST .*/commit/", 409),
        Fault(r"POST .*/commit/", cut=True),
        Fault(r"POST .*/preupload/", 429, headers={"Retry-After": "1"}),
        Fault(r"PUT /large/", 503, times=2),
        Fault(r"PUT /large/", cut=True),
        Fault(r"GET /api/datasets/[^/]+/[^/]+$", 500),
        Fault(r"POST /api/repos/create", 502),
        Fault(r"POST .*/commit/", seconds=3),
    ],
    ids=lambda fault: f"{fault.request}-{fault.status or ('cut' if fault.cut else 'slow')}",
)
def test_a_busy_hub_is_asked_again(ld3m: Ld3m, hub: Hub, run: Path, tmp_path: Path, fault: Fault) -> None:
    hub.faults.append(fault)
    outcome = ld3m("push-to-hub")
    assert outcome.code == 0, outcome.err
    assert fault.times == 0
    assert len(hub.repositories["dataset", REPO].branches["main"]) == 2  # all in one commit
    assert len(hub.files(REPO)) == 8


def test_a_hub_that_stays_away_leaves_nothing_half_visible(ld3m: Ld3m, hub: Hub, run: Path, tmp_path: Path) -> None:
    hub.faults.append(Fault(r"POST .*/commit/", 403, times=9))
    outcome = ld3m("push-to-hub")
    assert outcome.code == 2
    assert errors(outcome) == [
        "ld3m: --to: your token may not write to ld3m-shapes; give a token with write access, or another name"
    ]
    assert hub.files(REPO) == {}
    hub.faults.clear()
    sent = len(hub.asked("PUT"))
    assert sent == 3
    assert ld3m("push-to-hub").code == 0
    assert len(hub.asked("PUT")) == sent, "what was sent before is not sent again"


@pytest.mark.parametrize(
    ("token", "options", "line"),
    [
        (None, (), "push-to-hub: you are not logged in; run hf auth login, or set HF_TOKEN"),
        ("hf_wrong", (), "push-to-hub: the Hub does not accept your token; run hf auth login, or set another HF_TOKEN"),
        (READ_TOKEN, (), "may not write to ld3m-shapes; give a token with write access, or another name"),
        (WRITE_TOKEN, ("--to", "them/shapes"), "may not write to them/shapes"),
        (WRITE_TOKEN, ("--to", "me/a b"), "'me/a b' is not a valid name; give USER/NAME"),
        (WRITE_TOKEN, ("--to", "me/taken"), "me/taken holds other files (data.csv, …) and was not made by ld3m"),
        (WRITE_TOKEN, ("--to", "me/none", "--create-pr"), "me/none does not exist, or you may not see it"),
    ],
)
def test_what_cannot_be_pushed_is_one_line(
    ld3m: Ld3m, hub: Hub, run: Path, tmp_path: Path, token: str | None, options: tuple[str, ...], line: str
) -> None:
    hub.repositories["dataset", "me/taken"] = Repository(branches={"main": [{"data.csv": b"1"}]})
    outcome = ld3m("push-to-hub", *options, token=token)
    assert outcome.code == 2
    assert len(errors(outcome)) == 1
    assert line in errors(outcome)[0]
    assert "Traceback" not in outcome.err


def test_without_a_network_it_is_one_line_at_once(ld3m: Ld3m, hub: Hub, run: Path, tmp_path: Path) -> None:
    hub.shutdown()
    hub.server_close()
    outcome = ld3m("push-to-hub")
    assert outcome.code == 2
    refused = r"ld3m: push-to-hub: http://127\.0\.0\.1:\d+: .*; repeat it with a network, .*; nothing is sent twice"
    assert re.fullmatch(refused, errors(outcome)[0])


def test_a_token_is_neither_shown_nor_kept(ld3m: Ld3m, hub: Hub, run: Path, tmp_path: Path) -> None:
    outcome = ld3m("push-to-hub", "--token", WRITE_TOKEN, token=None)
    assert outcome.code == 0, outcome.err
    wrong = ld3m("push-to-hub", "--token", "hf_wrong_and_secret", token=None)
    assert wrong.code == 2
    for ended in (outcome, wrong):
        assert not re.search("hf_", ended.out + ended.err)
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and WRITE_TOKEN.encode() in path.read_bytes()]
    assert kept == []
    assert not any(WRITE_TOKEN.encode() in content for content in hub.files(REPO).values())


# --- back again --------------------------------------------------------------------------------------------


def test_a_pushed_set_is_measured_as_the_run_is(
    ld3m: Ld3m, hub: Hub, run: Path, recipe_file: Path, tmp_path: Path
) -> None:
    """The same networks on the same images; its recipe has no path to the images, so that one must be given.

    Soft labels that are stored with it go with it, and nobody else needs the teacher.
    """
    note = labels.Note(
        teacher="somebody's", accuracy=90, weights="0123", classes=CLASSES, content=stored_digest(run), images=6,
        epochs=0, dtype="float16", temperature=20,
    )  # fmt: skip
    labels.write_note(run, note)
    labels.write_view(run, note, 0, torch.randn(6, 3, generator=torch.Generator().manual_seed(0)))
    assert ld3m("push-to-hub").code == 0
    how = ("--seeds", "1", "evaluate.epochs=2", "--json")
    here = ld3m("evaluate", run, *how)
    away = ld3m("evaluate", f"hub:{REPO}", "--recipe", recipe_file, *how)
    assert away.code == 0, away.err
    rows = [json.loads(outcome.out)["results"][-1] for outcome in (here, away)]
    assert rows[0] == rows[1]
    assert rows[0]["trained_on"] == "distilled"
    (imported,) = Path("imported").iterdir()
    shutil.rmtree(run / "labels")
    soft = ld3m("evaluate", imported, "--recipe", recipe_file, *how, "evaluate.labels=soft", "teacher.source=stored")
    assert soft.code == 0, soft.err
    (how_soft,) = (row["protocol"] for row in json.loads(soft.out)["results"] if "teacher" in row["protocol"])
    assert how_soft["teacher"] == {
        "teacher": "somebody's", "accuracy": 90, "weights": "0123", "stored": True, "per": "image", "dtype": "float16",
        "bytes": 6 * 3 * 2,
    }  # fmt: skip


def test_weights_go_with_a_set(ld3m: Ld3m, hub: Hub, run: Path, tmp_path: Path) -> None:
    """As a column of the images, a file that `evaluate` reads, and in the card, whose program counts by them."""
    counted = {"circle": [0.5, 1.5], "cross": [1.0, 1.0], "square": [0.25, 1.75]}
    image_weights.write(run, counted)
    report = json.loads((run / "evaluation.json").read_text())
    report["results"][0]["weights"] = [0.25, 1.75]
    (run / "evaluation.json").write_text(json.dumps(report))
    assert ld3m("push-to-hub").code == 0
    table = pyarrow.parquet.read_table(io.BytesIO(hub.files(REPO)[f"{CONFIG}/train-00000-of-00001.parquet"]))
    assert table["weight"].to_pylist() == [value for values in counted.values() for value in values]
    assert "weights from 0.25 to 1.75, 1 on average: column `weight`" in card(hub)
    program = re.search(r"## How to train on it.*?```python\n(.*?)```", card(hub), re.DOTALL)
    assert program
    assert 'weights = torch.stack([*images["weight"]])\n' in program[1]
    weighted = "loss = (weights[chosen] * functional.cross_entropy(network(batch_images), targets[chosen], reduction="
    assert f"{weighted}'none')).mean()" in program[1]
    compile(program[1], "card", "exec")
    back = find_set([f"hub:{REPO}"])
    assert image_weights.of_run(back, CLASSES) == counted
    assert stored_digest(back) == stored_digest(run)


def test_a_run_starts_from_published_latents(
    ld3m: Ld3m, hub: Hub, run: Path, recipe_file: Path, tmp_path: Path
) -> None:
    assert ld3m("push-to-hub").code == 0
    begun = ("distill", recipe_file, f"distill.init=hub:{REPO}:{CONFIG}@main", "distill.iterations=0")
    started = ld3m(*begun, "-o", "again")
    assert started.code == 0, started.err
    again, before = latents(tmp_path / "again"), latents(run)
    assert all(torch.equal(again[name], before[name]) for name in before)
    one = ld3m(*begun, "-o", "one", "distill.images_per_class=1", "data.subset=[square, circle]")
    assert one.code == 0, one.err
    assert torch.equal(latents(tmp_path / "one")["z"], before["z"][[4, 0]])
    many = ld3m(*begun, "-o", "many", "distill.images_per_class=3")
    assert errors(many) == [
        f"ld3m: distill.images_per_class: 3 latents of class 'circle' are wanted, but hub:{REPO}:{CONFIG}@main has 2; "
        "set fewer images per class"
    ]
    nowhere = ld3m("distill", recipe_file, "distill.init=hub:me/nothing", "-o", "nowhere")
    assert nowhere.code == 2
    assert "me/nothing: there is no such data set on the Hub, or it is not yours to see" in errors(nowhere)[0]


def test_published_latents_are_rendered_with_other_settings_and_reported(
    ld3m: Ld3m, hub: Hub, run: Path, prior_folder: Path, shapes: Path
) -> None:
    assert ld3m("push-to-hub").code == 0
    here = (f"prior.source={prior_folder}", f"data.source={shapes}")
    rendered = ld3m("render", REPO, "--steps", "4", "--skip", "none", *here, "-o", "other")
    assert rendered.code == 0, rendered.err
    ld3m("render", run, "--steps", "4", "--skip", "none", "-o", "same")
    for path in Path("same").glob("images/*/*.png"):
        assert (Path("other") / path.relative_to("same")).read_bytes() == path.read_bytes()
    assert len(list(Path("other").glob("images/*/*.png"))) == 6
    page = ld3m("report", REPO)
    assert page.code == 0, page.err
    text = Path(page.out.strip()).read_text()
    row = json.loads((run / "evaluation.json").read_text())["results"][0]
    assert f"{row['mean']:.1f} ± {row['std']:.1f} (5)" in text
    assert "square, image 2" in text


def test_only_what_was_distilled_is_pushed(ld3m: Ld3m, hub: Hub, run: Path, recipe_file: Path) -> None:
    assert ld3m("evaluate", run / "images", "--recipe", recipe_file, "evaluate.epochs=1", "--seeds", "1").code == 0
    folder = next(Path("imported").iterdir())
    refused = ld3m("push-to-hub", folder)
    assert errors(refused) == [f"ld3m: RUN: {folder} has no latents; only what ld3m distill made can be pushed"]
    image, whole = run / "images" / "cross" / "1.png", (run / "images" / "cross" / "1.png").read_bytes()
    image.write_bytes(whole[:60])
    assert f"RUN: cannot read {image} (" in errors(ld3m("push-to-hub", run))[0]
    image.unlink()
    assert f"RUN: {image.parent} has 1 images, not 2; ld3m render" in errors(ld3m("push-to-hub", run))[0]
    image.write_bytes(whole)
    (run / "evaluation.json").write_text("{")
    (line,) = errors(ld3m("push-to-hub", run))
    assert line.endswith("; move it away to continue without it")
    assert f"{run / 'evaluation.json'} is damaged" in line
    assert hub.requests == []


def test_names_of_classes_that_lead_elsewhere_are_refused(ld3m: Ld3m, hub: Hub, run: Path, recipe_file: Path) -> None:
    assert ld3m("push-to-hub").code == 0
    name = f"latents/{CONFIG}.safetensors"
    for classes, line in (
        (["circle", "cross", "../../square"], "the class '../../square' cannot name a folder"),
        (["circle", "cross", "triangle"], "has other classes than the latents"),
    ):
        changed = safetensors.torch.save(latents(run), {"ld3m": json.dumps(noted(run) | {"classes": classes})})
        hub.repositories["dataset", REPO].branches["main"].append({**hub.files(REPO), name: changed})
        refused = ld3m("evaluate", REPO, "--recipe", recipe_file)
        assert refused.code == 2
        assert line in errors(refused)[0]
    assert not list(Path("imported").rglob("*"))
