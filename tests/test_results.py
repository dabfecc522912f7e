"""The pages: their figures are what was measured, their links, commands and paths lead somewhere."""

import itertools
import json
import re
import statistics
import subprocess
from pathlib import Path

import pytest
import yaml
from results import BLOCK, PAGES, RESULTS, ROOT, captions, filled, row

from ld3m.ablation.table import seed_difference
from ld3m.recipe import Recipe
from ld3m.recipe.files import digest, find_recipe, load

MARKDOWN = sorted(
    path for folder in ("", "recipes", "recipes/results", "launch") for path in (ROOT / folder).glob("*.md")
)
SCRIPT = ROOT / "launch" / "results.sh"
ONLY_SAYS = """
ablate() { echo "$1 ld3m ablate ${*:2} --output ablations/$1"; }
compare() { echo "$1 ld3m compare ${*:2} --output comparisons/$1"; }
ld3m() { :; }
chart() { :; }
stack() { :; }
cifar10-images() { :; }
cifar10-parts() { :; }
"""
"""Replaces the script's own functions."""
REPORTS = sorted(RESULTS.glob("*.json"))
ABLATIONS = [path for path in REPORTS if "rows" in json.loads(path.read_text(encoding="utf-8"))]
COMPARISONS = [path for path in REPORTS if "sets" in json.loads(path.read_text(encoding="utf-8"))]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


# --- figures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_tables_are_those_of_their_json(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert filled(text) == text  # python tests/results.py regenerates them


def test_every_result_is_shown() -> None:
    blocks = [block[1] for page in PAGES for block in BLOCK.findall(page.read_text(encoding="utf-8"))]
    assert {file for files in blocks for file in files.split()} == {
        "recipes/results/*.json",
        *(name(path) for path in REPORTS),
    }


def test_captions_stand_once() -> None:
    """Those of tables without any interval are part of the one that stands."""
    text = " ".join((RESULTS / "README.md").read_text(encoding="utf-8").split())
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in ABLATIONS]
    expected = {caption for report in reports for caption in captions(report) if "no interval: " not in caption}
    assert len(expected) == 2
    assert [text.count(caption) for caption in expected] == [1, 1]


@pytest.mark.parametrize(
    ("claim", "files", "ours", "theirs", "arch"),
    [
        ("{:.1f} points over none (95 % interval {:.1f} to {:.1f}", "baselines", "reference", "no-skip", "convnet"),
        (
            "behind with the ConvNet: {:.1f} points ({:.1f} to {:.1f})",
            "baselines",
            "autoencoder",
            "reference",
            "convnet",
        ),
        (
            "on CIFAR-10 with others: {:.1f} ({:.1f} to {:.1f})",
            "cifar10-prior-architectures",
            "autoencoder",
            "reference",
            "cross-architecture",
        ),
        ("{:.1f} points behind it ({:.1f} to {:.1f})", "baselines", "pixels", "reference", "convnet"),
        (
            "the autoencoder is {:.1f} points ahead with other networks ({:.1f} to {:.1f})",
            "cifar10-prior-architectures cifar10-architectures",
            "autoencoder",
            "pixels",
            "cross-architecture",
        ),
    ],
)
def test_the_readmes_claims_are_differences_of_the_json(
    claim: str, files: str, ours: str, theirs: str, arch: str
) -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    names = files.split()
    measured = seed_difference(row(names[0], ours), row(names[-1], theirs), arch)
    mean, low, high = map(float, re.findall(r"[+-]\d+\.\d", measured))
    assert claim.format(mean, low, high) in text


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_figures_are_those_of_the_networks(path: Path) -> None:
    """Means and deviations recomputed from each network's accuracy; and the recipes are there to run again."""
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["done"] == report["cells"]
    assert report["command"].startswith("ld3m ablate ")
    for measured in report["rows"]:
        for figures in measured["accuracies"].values():
            networks = [accuracy for run in figures["by_run"] for accuracy in run]
            assert figures["networks"] == len(networks)
            assert figures["mean"] == pytest.approx(statistics.fmean(networks), abs=0.006)
            assert figures["std"] == pytest.approx(statistics.pstdev(networks), abs=0.006)
    words = report["command"].split()[2:]
    recipes = list(itertools.takewhile(lambda word: "=" not in word and word[0] != "-", words))
    assert recipes
    assert {measured["recipe"] for measured in report["rows"]} <= {find_recipe(name).stem for name in recipes}


@pytest.mark.parametrize(
    ("recipe", "name", "axis"),
    [("fashion-mnist-ipc1", "one", ["distill.factor=4"]), ("fashion-mnist-ipc10", "ten", [])],
)
def test_the_recipes_of_the_best_sets_are_what_was_measured(recipe: str, name: str, axis: list[str]) -> None:
    command = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["command"]
    overrides = [
        word for word in command.split() if re.fullmatch(r"(distill|evaluate)\.\S+=\S+", word) and "," not in word
    ]
    measured, shipped = load(Recipe, "baselines/pixels", [*overrides, *axis]), load(Recipe, recipe)
    assert digest(shipped) == digest(measured)
    how = {"arch", "seeds"}
    assert shipped.evaluate.model_dump(exclude=how) == measured.evaluate.model_dump(exclude=how)


def test_the_script_makes_every_ablation_and_comparison_by_its_command() -> None:
    """All that launch/results.sh would run, word by word, though overrides may stand in another order."""
    text = SCRIPT.read_text(encoding="utf-8")
    defined, _, end = text[text.index("seeds=(") :].partition("(($#))")
    names = re.search(r"set -- (.*?)\nfor name", end, re.DOTALL)[1].replace("\\\n", " ").split()
    elsewhere = {"quickstart", "scores", "precision", "gradient-norms"}
    calls = "\n".join(name for name in names if name not in elsewhere)
    printed = subprocess.run(
        ["bash", "-euc", defined + ONLY_SAYS + calls], capture_output=True, text=True, check=True
    ).stdout
    made = dict(line.split(" ", 1) for line in printed.splitlines())
    commands = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))["command"] for path in [*ABLATIONS, *COMPARISONS]
    }
    assert {name: sorted(made[name].split()) for name in made} == {
        name: sorted(command.split()) for name, command in commands.items()
    }


# --- links, commands, paths --------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", MARKDOWN, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?:", link)]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_launch_file_has_a_row() -> None:
    text = (ROOT / "launch" / "README.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| \[([\w-]+\.yaml)\]", text, re.MULTILINE))
    assert rows == {path.name for path in (ROOT / "launch").glob("*.yaml")}


@pytest.mark.parametrize(("page", "lines"), [("README.md", 130), ("recipes/README.md", 60)])
def test_pages_for_a_first_look_are_short(page: str, lines: int) -> None:
    assert len((ROOT / page).read_text(encoding="utf-8").splitlines()) <= lines


def test_code_that_begins_with_a_recipes_name_is_that_recipe() -> None:
    """On the pages a recipe is named in code with its overrides; all recipes are in the index."""
    paths = sorted((ROOT / "recipes").glob("*.yaml"))
    names = {path.stem for path in paths if "denoiser" not in yaml.safe_load(path.read_text(encoding="utf-8"))}
    code = [line for page in MARKDOWN for line in re.findall("`([^`\n]+)`", page.read_text(encoding="utf-8"))]
    named = [words for line in code if (words := line.split()) and words[0] in names]
    assert len(named) >= 20
    for recipe, *overrides in named:
        load(Recipe, recipe, overrides)
    index = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    assert all(f"({path.name})" in index for path in paths)


def test_paths_that_contributing_names_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`(?:\./)?((?:ld3m|tests|recipes|launch|\.ci)/[\w./-]*|[\w-]+\.(?:py|md|toml|cff))`", text))
    assert len(paths) >= 30
    assert [path for path in sorted(paths) if "NAME" not in path and not (ROOT / path).exists()] == []


def test_contributing_draws_every_room() -> None:
    drawing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("```\nld3m/\n")[1].split("```")[0]
    drawn = set(re.findall(r"(?:^|  )(\w+/|\w+\.py)(?= )", drawing, re.MULTILINE))
    package = [path for path in (ROOT / "ld3m").iterdir() if path.suffix == ".py" or path.is_dir()]
    rooms = {path.name + "/" * path.is_dir() for path in package if not path.name.startswith("__")}
    assert rooms == drawn - {"recipes/", "launch/", "tests/"}
