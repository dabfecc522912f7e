"""Several sets in one table: statistics as scipy has them, what is shown and said, and a comparison from end to end."""

import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CLASSES, Outcome, distilled
from PIL import Image

from ld3m.comparison import page, table
from ld3m.comparison.named_sets import sets_and_recipe
from ld3m.comparison.published import Figure, read_figures
from ld3m.comparison.rows import same_content, shared_protocol, varying, with_accuracies
from ld3m.comparison.sets import Measured, folder_of, names_of
from ld3m.comparison.significance import interval, pairwise
from ld3m.errors import UserError
from ld3m.evaluation.rows import figures

ACCURACIES = {
    "set a": [61.2, 62.5, 60.8, 61.9, 62.1],
    "set b": [59.4, 60.1, 59.9, 60.6, 59.2],
    "set c": [61.0, 62.9, 60.1, 61.5, 62.6],
    "random": [55.0, 58.0, 51.0, 57.0, 54.0],
}
DIFFERENCES = {
    ("a", "b"): (1.86, 0.04055503502, 0.1069124, 3.6130876),
    ("a", "c"): (0.08, 1, -1.0409924, 1.2009924),
    ("a", "random"): (6.7, 0.01534801953, 1.8611343, 11.5388657),
    ("b", "c"): (-1.78, 0.23598655003, -4.6433280, 1.0833280),
    ("b", "random"): (4.84, 0.07850312644, -0.6752361, 10.3552361),
    ("c", "random"): (6.62, 0.01318102311, 2.0297052, 11.2102948),
}
"""Of the above: mean, p, and interval by scipy 1.17's `stats.ttest_rel`, p times 6 and the level 1 − 0.05 / 6."""


def measured(name: str, group: int = 0, count: int = 10) -> Measured:
    kind = "run" if name.startswith("set ") else "real images"
    return Measured(name, name.removeprefix("set "), kind, group, 3 * count, (count, count), 3 * count * 256)


def row(name: str, accuracies: list[float], arch: str = "convnet", **protocol: Any) -> dict[str, Any]:
    about = {"trained_on": name, "arch": arch, "split": "test", "tested_on": 1000, "images": 30, "content": name}
    how = {"epochs": 100, "batch": 64, "lr": 0.01, "ema": 0.9, "augment": True, **protocol}
    return {**about, **figures(accuracies), "protocol": how}


ROWS = [row(name, accuracies) for name, accuracies in ACCURACIES.items()]
SETS = [measured(name) for name in ACCURACIES]
FIGURES = [
    Figure(
        name="Minimax | *x*",
        arch="convnet",
        accuracy=48.9,
        std=0.6,
        networks=5,
        protocol="300 epochs, <b>",
        source="Table 1",
    ),
    Figure(name="Minimax | *x*", arch="resnet18", accuracy=45.25, images_per_class=10, protocol="other", source="S"),
]


def report_of(rows: list[dict[str, Any]], sets: list[Measured]) -> dict[str, Any]:
    return {
        "command": "ld3m compare a b",
        "data": "shapes",
        "classes": 3,
        "split": "test",
        "tested_on": 1000,
        "protocol": shared_protocol(rows),
        "sets": with_accuracies(sets, rows),
        "published": [figure.model_dump() for figure in FIGURES],
        "differences": pairwise(sets, rows),
        "notes": varying(rows),
    }


# --- statistics --------------------------------------------------------------------------------------------


def test_differences_are_scipys_corrected_for_their_number() -> None:
    found = {(each["set"], each["against"]): each for each in pairwise(SETS, ROWS)}
    assert list(found) == list(DIFFERENCES)
    for pair, (mean, p, low, high) in DIFFERENCES.items():
        each = found[pair]
        assert (each["mean"], each["p"]) == pytest.approx((mean, p))
        assert (each["low"], each["high"]) == pytest.approx((low, high), abs=0.0051)  # which are rounded
        assert each["holds"] == (p < 0.05) == (low > 0 or high < 0)


def test_only_pairs_of_interest_are_compared_and_only_tests_are_counted() -> None:
    """A baseline is compared with the sets that it has as many images as; without three pairs there is no test."""
    sets = [measured("set a"), measured("set b", 1), measured("random"), measured("random, as many as b", 1)]
    sets.append(measured("full"))
    rows = [row(each.trained_on, ACCURACIES["set a" if each.group else "random"]) for each in sets]
    pairs = [("a", "b"), ("a", "random"), ("a", "full"), ("b", "random, as many as b"), ("b", "full")]
    found = pairwise(sets, rows)
    assert [(each["set"], each["against"]) for each in found] == pairs
    alone = pairwise(SETS[:2], ROWS[:2])[0]["p"]
    assert [
        each["p"] for each in pairwise(SETS[:2], [*ROWS[:2], *(row(n, [1.0, 2.0], "vit") for n in ("set a", "set b"))])
    ] == [alone, None]
    assert alone == pytest.approx(0.006759172503)  # scipy's, uncorrected


def test_intervals_of_means_are_scipys() -> None:
    """`stats.t.interval` of what is measured; of a published figure with the standard error 0.6 / √4."""
    assert interval(ACCURACIES["set a"]) == pytest.approx((60.8442421, 62.5557579))
    assert interval([61.0, 62.0]) is None
    assert FIGURES[0].interval() == pytest.approx((48.0670665, 49.7329335))
    assert FIGURES[1].interval() is None
    beyond = [
        Figure(name="m", arch="a", accuracy=mean, std=3, networks=3, protocol="p", source="s") for mean in (1, 99)
    ]
    margin = 4.302652730 * 3 / math.sqrt(2)  # t of 2 degrees of freedom
    assert [each.interval() for each in beyond] == [
        (0, pytest.approx(1 + margin)),
        (pytest.approx(99 - margin), 100),
    ]
    assert interval([0.0, 0.0, 3.0]) == (0, pytest.approx(1 + 4.302652730)), "an accuracy is not below 0"


def test_sets_of_unlike_numbers_of_networks_are_paired_by_seed() -> None:
    """The first of each have the same seeds; a further one has no counterpart."""
    ours, theirs = ACCURACIES["set a"], [*ACCURACIES["set b"], 99.0]
    (found,) = pairwise(SETS[:2], [row("set a", ours), row("set b", theirs)])
    assert found["differences"] == pytest.approx([a - b for a, b in zip(ours, theirs, strict=False)])
    assert len(found["differences"]) == 5


# --- tables ------------------------------------------------------------------------------------------------


def cells(markdown: str) -> list[list[list[str]]]:
    """The tables of a page, cell by cell."""
    blocks = re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)
    return [[[c.strip() for c in line.strip("|\n").split(" | ")] for line in block.splitlines()] for block in blocks]


def test_the_page_the_text_and_the_chart_have_the_same_figures() -> None:
    report = report_of(ROWS, SETS)
    text, html = table.markdown(report), page.html(report)
    accuracies, differences = cells(text)
    assert accuracies[0] == ["set", "kind", "images per class", "bytes", "convnet", "resnet18"]
    assert accuracies[2] == ["a", "run", "10", "7,680", "61.7 ± 0.6 (5)", ""]
    assert accuracies[-1][1:] == ["published", "10", "", "48.9 ± 0.6 (5)", "45.2"]
    assert differences[2] == ["a", "b", "convnet", "+1.9", "[+0.1, +3.6]", "0.041", "yes"]
    assert differences[3][3:] == ["+0.1", "[-1.0, +1.2]", "1", "no"]
    assert "corrected for 6 comparisons by Bonferroni" in text
    assert "*x*" not in text
    assert "<b>" not in html
    for figure in ("61.7 ± 0.6 (5)", "[+0.1, +3.6]", "48.9 ± 0.6 (5)", "published in Table 1"):
        assert figure in html
    drawing = ET.fromstring(page.draw(report))
    marks = [each.find("{*}title").text for each in drawing.iter() if "mark" in (each.get("class") or "").split()]
    assert marks == [
        "a: 61.7 ± 0.6 (5)",
        "b: 59.8 ± 0.5 (5)",
        "c: 61.6 ± 1.0 (5)",
        "random: 55.0 ± 2.5 (5)",  # 2.449, of which results keep 2.45
        "Minimax | *x* (published): 48.9 ± 0.6 (5)",
        "Minimax | *x* (published): 45.2",
    ]


def test_two_networks_are_not_tested_and_what_would_be_is_said() -> None:
    two = [row(name, accuracies[:2]) for name, accuracies in ACCURACIES.items()]
    text = table.markdown(report_of(two, SETS))
    assert "not tested: fewer than three pairs" in text
    assert "give --seeds 3 or more" in text


def test_what_was_trained_unlike_is_said_and_what_has_the_same_images() -> None:
    rows = [row("set a", [1.0]), row("set b", [1.0], epochs=50), row("set a", [1.0], "vgg11", lr=0.001)]
    rows.append(row("set b", [1.0], "vgg11", lr=0.001, epochs=50))
    assert shared_protocol(rows) == {"batch": 64, "ema": 0.9, "augment": True}
    assert varying(rows) == ["epochs: 100 (a), 50 (b).", "lr: 0.01 (convnet), 0.001 (vgg11)."]
    assert same_content([rows[0], rows[1] | {"content": "set a"}]) == ["b has the same images as a."]


def test_sets_are_called_by_the_end_of_their_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("one/x", "two/x", "y"):
        (tmp_path / folder).mkdir(parents=True)
    assert names_of(["one/x", "two/x/", "y", "hub:user/name"]) == ["one/x", "two/x", "y", "user/name"]
    with pytest.raises(UserError, match=r"SET: y is named twice"):
        names_of(["y", "./y"])
    assert folder_of(["one/x", "y"]) == Path("comparisons/one-x-y")
    assert len(folder_of(["long" * 50]).name) == 109


# --- published figures -------------------------------------------------------------------------------------


def test_published_figures_are_read_as_yaml_and_json(tmp_path: Path) -> None:
    path = tmp_path / "published.yaml"
    path.write_text("- {name: A, arch: convnet, accuracy: 45, std: 0.3, protocol: p, source: s}\n")
    (figure,) = read_figures(path, [])
    assert (figure.accuracy, figure.std, figure.networks) == (45, 0.3, None)
    path.write_text(json.dumps([figure.model_dump()]))
    assert read_figures(path, ["B"]) == [figure]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "has no figures; give a list of entries such as {name: Minimax"),
        ("name: A", "it: Input should be a valid list"),
        ("- {name: A, arch: vit, accuracy: 45, protocol: p}", "entry 1: source: Field required"),
        ("- {name: A, arch: vit, accuracy: 145, protocol: p, source: s}", "entry 1: accuracy: Input should be less"),
        ("- {name: A, arch: vit, accuracy: '45', protocol: p, source: s}", "entry 1: accuracy: Input should be a"),
        ("- {name: A, arch: vit, accuracy: .nan, protocol: p, source: s}", "entry 1: accuracy: Input should be a f"),
        ("- {name: A, n: 3, arch: vit, accuracy: 4, protocol: p, source: s}", "entry 1: n: Extra inputs are not"),
        ("- {name: set, arch: vit, accuracy: 45, protocol: p, source: s}", "'set' is the name of a set too"),
        ("- &a {name: A, arch: vit, accuracy: 45, protocol: p, source: s}\n- *a", "'A' has two figures for vit"),
        ("- [", "cannot be read as YAML"),
        ("", "is empty"),
    ],
)
def test_a_wrong_file_of_figures_is_one_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        read_figures(path, ["set"])
    assert len(caught.value.lines) == 1
    assert str(caught.value).startswith(f"--published: {path}")
    assert said in str(caught.value)


# --- from end to end ---------------------------------------------------------------------------------------


def set_of_images(folder: Path, per_class: int, seed: int, names: list[str] = CLASSES) -> Path:
    """Somebody's set: images of noise by class."""
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(folder / name / f"{index}.png")
    return folder


def test_a_comparison_resumes_from_what_others_measured(
    ld3m: Callable[..., Outcome], recipe_file: Path, tmp_path: Path
) -> None:
    """The second one trains the new set alone, whose numbers of images ask for another baseline, too."""
    one, two = (set_of_images(tmp_path / name, 1, seed) for seed, name in enumerate(["one", "two"]))
    other = set_of_images(tmp_path / "three", 2, 2)
    own_seed = "seed=31"  # by which no other test has kept baselines in the cache
    options = ("--recipe", recipe_file, "--seeds", "3", "--against", "random", "evaluate.epochs=1", own_seed)
    first = ld3m("compare", one, two, *options)
    assert first.code == 0, first.err
    assert "9 networks to train" in first.err
    assert "written to comparisons/one-two/comparison.html" in first.err
    before = json.loads(Path("comparisons/one-two/comparison.json").read_text())
    assert first.out == table.markdown(before) == Path("comparisons/one-two/comparison.md").read_text()
    assert "\nNetworks: glad, but epochs 1, not 1000" in first.out
    assert "\nname: glad\nepochs: 1\n" in first.out
    second = ld3m("compare", two, one, other, *options, "-o", "elsewhere", "--json")
    assert second.code == 0, second.err
    assert second.err.count(" to train") == 1  # sets of both sizes are told in one line
    assert "6 networks to train; convnet on set three, random; 1 epoch by glad; about" in second.err
    assert "(9 are measured already)" in second.err
    after = json.loads(second.out)
    assert after == json.loads(Path("elsewhere/comparison.json").read_text())
    kept = {each["name"]: each["accuracies"] for each in before["sets"]}
    now = {each["name"]: each["accuracies"] for each in after["sets"]}
    assert list(now) == ["two", "one", "three", "random, as many as two", "random, as many as three"]
    assert (now["one"], now["two"], now["random, as many as two"]) == (kept["one"], kept["two"], kept["random"])
    assert [each["images_per_class"] for each in after["sets"]] == [[1, 1], [1, 1], [2, 2], [1, 1], [2, 2]]
    assert str(tmp_path) not in Path("comparisons/one-two/comparison.json").read_text().replace(before["command"], "")


def test_the_recipe_of_a_run_of_several_in_one_measures_others(recipe_file: Path, tmp_path: Path) -> None:
    """As `ld3m auto` makes them of one image per class: matched by moments, which a single image has not."""
    several = ("distill.factor=2", "distill.dm.match=moments", "prior.source=pixels", "distill.iterations=1")
    run, other = distilled(recipe_file, tmp_path / "run", *several), set_of_images(tmp_path / "other", 1, 0)
    sets, recipe = sets_and_recipe([str(other), str(run)], None, ["evaluate.epochs=3"])
    assert sets["run"] == (str(run), run)
    assert (recipe.distill.factor, recipe.evaluate.epochs, recipe.prior.source) == (1, 3, "pixels")


def test_what_cannot_be_compared_is_one_line(ld3m: Callable[..., Outcome], recipe_file: Path, tmp_path: Path) -> None:
    one = set_of_images(tmp_path / "one", 1, 0)
    few = set_of_images(tmp_path / "few", 1, 1, CLASSES[:2])
    options = ("--recipe", recipe_file)
    for arguments, said in [
        ((one, one), f"SET: {one} is named twice; name each set once"),
        ((one,), "SET: give two or more, or one with --against random or --published FILE"),
        ((one, "--against", "nobody"), "--against: 'nobody' is not known; known are random, "),
        ((one, few), f"RUN: {few} has no images of class 'square'"),
        ((one, "--against", "random", "evaluate.lr=learnt"), "evaluate.lr: learnt is a rate of each set's own"),
        (
            (one, "--published", tmp_path / "none.yaml"),
            f"--published: {tmp_path / 'none.yaml'} is missing; give a list",
        ),
    ]:
        outcome = ld3m("compare", *arguments, *options)
        assert outcome.code == 2, outcome.out
        assert outcome.err.splitlines()[-1].startswith(f"ld3m: {said}")
    small = ld3m("compare", one, "--against", "random", *options, "data.subset=[circle, cross]")
    assert small.code == 2
    assert "is of class 'square', which the recipe leaves out" in small.err
