"""The report: what the page says, how large it is, and, in a real Chromium, how it answers."""

import base64
import io
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import CLASSES, Outcome, distilled
from PIL import Image

from ld3m.errors import UserError
from ld3m.evaluation.protocols import Task, protocol
from ld3m.files import write_json, write_tensors, write_text
from ld3m.images import grids
from ld3m.recipe import Recipe
from ld3m.recipe.files import load
from ld3m.reporting import charts, svg, webp
from ld3m.reporting.report import LARGEST, report
from ld3m.runs.training_set import stored_digest


def make_run(
    folder: Path,
    classes: list[str],
    frames: dict[int, torch.Tensor],
    images_per_class: int = 1,
    iterations: int = 40,
    logged: int = 40,
    finished: bool = True,
) -> Path:
    """A run's folder with what a report reads, of any size; frames are uint8 [classes, each, channels, H, W]."""
    recipe = {
        "name": "made",
        "data": {"source": "digits", "resolution": 32, "subset": classes},
        "prior": {"source": "digits", "skip": "paper", "steps": 5},
        "distill": {"objective": "dm", "images_per_class": images_per_class, "iterations": iterations},
        "network": {"arch": "convnet"},
    }
    write_text(folder / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
    for iteration, pixels in frames.items():
        grids.write_frame(folder, iteration, pixels)
    rows = [
        {"iteration": i, "loss": 100 / (i + 1), "grad_z": 2.0, "grad_c": 1.5, "seconds": {"render": 0.25, "fit": 0.5}}
        for i in range(logged)
    ]
    if rows:
        write_text(folder / "metrics.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    if finished:
        about = {"iteration": iterations, "classes": classes, "noise": "fresh", "noise_iteration": 0, "seed": 0}
        write_tensors(folder / "latents.safetensors", {"z": torch.zeros(1)}, {"ld3m": json.dumps(about)})
    return folder


def noise(classes: int, size: int, each: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (classes, each, 3, size, size), generator=torch.Generator().manual_seed(seed)).byte()


def row(trained_on: str, arch: str, accuracies: list[float]) -> dict[str, Any]:
    """A row as `ld3m evaluate` writes it."""
    return {
        "trained_on": trained_on,
        "arch": arch,
        "split": "test",
        "mean": round(float(np.mean(accuracies)), 2),
        "std": round(float(np.std(accuracies)), 2),
        "accuracies": accuracies,
        "images": 6,
        "tested_on": 18,
        "protocol": {"epochs": 3, "batch": 256, "lr": 0.01, "ema": 0.9, "augment": True},
    }


class Page(HTMLParser):
    """The text of a page, its elements, and what it would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = self.code = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data
        self.code += data

    def handle_endtag(self, tag: str) -> None:
        self.text += " " * (tag in ("td", "th", "dt", "dd"))

    def all(self, tag: str, key: str) -> list[str]:
        return [str(attributes[key]) for name, attributes in self.elements if name == tag and key in attributes]


@pytest.fixture(scope="module")
def finished(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of 6 iterations with accuracies."""
    folder = distilled(recipe_file, tmp_path_factory.mktemp("runs") / "one", "distill.iterations=6")
    results = [row("distilled", "convnet", [61.0, 63.0]), row("random", "convnet", [50.25, 50.75])]
    write_json(folder / "evaluation.json", {"results": results, "cross_architecture": []})
    return folder


@pytest.fixture(scope="module")
def page(finished: Path) -> Page:
    return Page(report(finished))


# --- what the page says ------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_run(finished: Path, page: Page) -> None:
    metrics = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    for measured in metrics:
        for key in ("loss", "grad_z", "grad_c"):
            assert svg.number(measured[key]) in page.text
    spent = sum(sum(measured["seconds"].values()) for measured in metrics)
    took = re.search(r"6 iterations took ([\d.]+) s", page.text)
    assert took
    assert float(took[1]) == pytest.approx(spent, rel=5e-3)  # to three digits
    assert f"Peak memory of a process: {metrics[-1]['peak_memory'] / 2**30:.2f} GiB" in page.text
    prior = json.loads((finished / "prior.json").read_text())
    assert prior["sha256"] in page.text
    assert (finished / "recipe.yaml").read_text() in finished.joinpath("report.html").read_text()
    assert "Finished, 6 iterations" in page.text


def test_accuracies_are_in_a_chart_and_in_a_table(page: Page) -> None:
    assert "convnet, distilled: 62.0 ± 1.0; convnet, random: 50.5 ± 0.2." in page.text  # the chart's description
    assert "distilled 6 62.0 ± 1.0 (2)" in page.text
    assert "random 6 50.5 ± 0.2 (2)" in page.text
    bars = [a for tag, a in page.elements if tag == "rect"]
    widths = [float(str(bar["width"])) for bar in bars]
    assert widths[0] / widths[1] == pytest.approx(62 / 50.5, rel=2e-3)  # coordinates are to a tenth
    dots = [float(str(a["cx"])) for tag, a in page.elements if tag == "circle"]
    assert len(dots) == 4
    assert dots[0] < float(str(bars[0]["x"])) + widths[0] < dots[1]


def test_it_says_how_many_real_images_there_are_and_how_to_repeat_it(finished: Path, page: Page) -> None:
    """The command lines, taken by their word, ask for the protocol that the accuracies were measured by."""
    assert "Real images 36 to train on, 18 to test on" in page.text
    (commands,) = re.findall(r"ld3m distill recipe.yaml --output runs/again.*", page.code)
    assert shlex.split(commands) == ["ld3m", "distill", "recipe.yaml", "--output", "runs/again"]
    (measure,) = (shlex.split(line) for line in re.findall(r"ld3m evaluate .*", page.code))
    assert measure[2:9] == ["one", "--arch", "convnet", "--seeds", "2", "--against", "random"]
    recipe = load(Recipe, str(finished / "recipe.yaml"), measure[9:])
    measured = json.loads((finished / "evaluation.json").read_text())["results"][0]["protocol"]
    assert protocol(recipe.evaluate, Task("convnet", 3, 6, 16)).row() == measured
    (link,) = (link for link in page.all("a", "href") if link.startswith("data:"))
    assert base64.b64decode(link.partition(",")[2]) == (finished / "recipe.yaml").read_bytes()


def test_a_command_for_each_protocol(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a run", ["a"], {0: noise(1, 8)})
    whole = row("full", "convnet", [80.0, 81.0])
    slow = whole["protocol"] | {"epochs": 1000, "lr": 1e-4, "ema": 0.995}
    long = row("distilled", "vgg11", [60.0]) | {"protocol": slow}
    validated = row("random", "convnet", [5.0]) | {"split": "validation"}
    write_json(folder / "evaluation.json", {"results": [row("distilled", "convnet", [61.0]), whole, long, validated]})
    lines = [shlex.split(line) for line in re.findall(r"ld3m evaluate .*", Page(report(folder)).code)]
    changed = ["evaluate.epochs=3", "evaluate.ema=0.9", 'evaluate.lr={"convnet": 0.01}']
    assert [line[2:] for line in lines] == [
        ["a run", "--arch", "vgg11", "--seeds", "1"],
        ["a run", "--arch", "convnet", "--seeds", "2", "--against", "full", *changed],
        ["a run", "--arch", "convnet", "--seeds", "1", "--against", "random", "--split", "validation", *changed],
    ]


def test_a_run_without_a_prior_has_no_skip(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", ["a"], {0: noise(1, 8)})
    assert "Decaying skip paper, 5 steps" in Page(report(folder)).text
    text = (folder / "recipe.yaml").read_text()
    write_text(folder / "recipe.yaml", text.replace("source: digits\n  skip: paper\n  steps: 5", "source: pixels"))
    text = Page(report(folder)).text
    assert "Prior none, pixels are learnt" in text
    assert "Decaying skip" not in text


def test_pictures_of_another_layout(tmp_path: Path) -> None:
    """An older version drew ten columns however few classes there were; what fits neither is left out, and counted."""
    folder = make_run(tmp_path / "run", ["a", "b", "c"], {0: noise(3, 8), 20: noise(3, 8), 40: noise(3, 8)})
    Image.new("RGB", (80, 8)).save(folder / "evolution" / "000020.png")
    (folder / "evolution" / "000004.bak").write_bytes(b"")
    page = Page(report(folder))
    assert list(frames_of(folder / "report.html")) == [0, 40]
    assert "that have another layout and are left out: 1." in page.text
    for iteration in (0, 40):
        Image.new("RGB", (80, 8)).save(folder / "evolution" / f"{iteration:06d}.png")
    assert 'data-columns="10"' in report(folder).read_text()
    (folder / "evolution" / "000020.png").write_bytes(b"\x89PNG\r\n\x1a\n garbage")
    assert "Not shown: cannot read evolution/000020.png (" in Page(report(folder)).text


def test_curves_go_through_the_metrics(finished: Path, page: Page) -> None:
    losses = [json.loads(line)["loss"] for line in (finished / "metrics.jsonl").read_text().splitlines()]
    heights = [float(point.split(",")[1]) for point in page.all("polyline", "points")[0].split()]
    assert len(heights) == 6
    slope, offset = np.polyfit(losses, heights, 1)  # one map for all points: the axis is linear, higher is up
    assert np.allclose(slope * np.array(losses) + offset, heights, atol=0.11)
    assert slope < 0
    readings = [text for _, text in json.loads(page.all("div", "data-values")[0])]
    assert readings[3] == f"iteration 3: loss {svg.number(losses[3])}"


def test_the_page_loads_nothing(page: Page) -> None:
    for tag, attributes in page.elements:
        for key in ("src", "srcset", "data", "poster"):
            assert str(attributes.get(key, "data:")).startswith("data:"), (tag, key)
        if tag == "link":
            assert attributes["href"] == "data:,"
    assert page.all("a", "href")[-1] == "https://arxiv.org/abs/2403.03881"
    assert all(link.startswith(("#", "data:text/yaml;base64,")) for link in page.all("a", "href")[:-1])
    assert "url(" not in page.text
    assert "@import" not in page.text


def test_every_picture_says_what_it_shows(page: Page) -> None:
    labels = page.all("canvas", "aria-label")
    assert {f"{name}, image {index}" for name in CLASSES for index in (1, 2)} <= set(labels)
    assert {f"{name}, image 1, iteration {at}" for name in CLASSES for at in (0, 6)} <= set(labels)
    ids = [str(attributes["id"]) for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [key for _, a in page.elements for key in str(a.get("aria-labelledby") or "").split()]
    assert named
    assert set(named) <= set(ids)


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    nasty = ["<b>bold</b>", "</script><script>alert(1)</script>", "\"quoted\" & 'so'"]
    folder = make_run(tmp_path / "run", nasty, {0: noise(3, 8), 40: noise(3, 8, seed=1)})
    write_json(
        folder / "evaluation.json", {"results": [row("<i>set", "net</script>", [1.0])], "cross_architecture": []}
    )
    path = report(folder)
    page = Page(path)
    assert page.all("canvas", "data-name") == [f"{name}, image 1" for name in nasty]
    assert not {"b", "i"} & {tag for tag, _ in page.elements}
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert path.read_text().count("</script>") == 1


def test_an_unfinished_run_says_how_far_it_is(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", ["a", "b"], {0: noise(2, 8)}, logged=13, finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 13, "lo')  # killed while writing
    text = Page(report(folder)).text
    assert "Iteration 13 of 40, not finished" in text
    assert "There are no pictures of two iterations to compare." in text
    assert "ld3m evaluate run --arch" in text
    assert "13 iterations took 9.75 s, 0.75 s each (1.3 iterations per second)" in text


def test_an_unfinished_run_names_its_classes(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "latents.safetensors").unlink()
    page = Page(report(folder))
    assert [f"{name}, image {i}" for name in CLASSES for i in (1, 2)] == page.all("canvas", "data-name")


def test_what_a_run_lacks_is_left_out_with_a_sentence(tmp_path: Path) -> None:
    text = Page(report(make_run(tmp_path / "bare", ["a", "b"], {}, logged=0, finished=False))).text
    for sentence in ("No pictures of this run", "no metrics.jsonl", "no times in metrics.jsonl", "Not measured yet"):
        assert sentence in text
    assert "Iteration 0 of 40, not finished" in text


def test_a_run_without_evolution_shows_its_images(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    sheet = np.asarray(Image.open(folder / "evolution" / "000006.png").convert("RGB"))
    shutil.rmtree(folder / "evolution")
    frames = frames_of(report(folder))
    assert list(frames) == [6]
    assert np.array_equal(frames[6], sheet)


def frames_of(path: Path) -> dict[int, np.ndarray]:
    """The pictures in a page, by iteration."""
    found = re.findall(r'<img src="data:image/webp;base64,([^"]+)" data-iteration="(\d+)"', path.read_text())
    return {int(at): np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))) for content, at in found}


def test_what_is_not_a_run_is_an_error(tmp_path: Path, ld3m: Callable[..., Outcome]) -> None:
    with pytest.raises(UserError, match=r"is not a run \(it has no recipe\.yaml\)"):
        report(tmp_path)
    (tmp_path / "recipe.yaml").write_text("name: half")
    with pytest.raises(UserError, match=r"recipe\.yaml: data: is missing\n.*recipe\.yaml: prior: is missing"):
        report(tmp_path)
    outcome = ld3m("report", "nowhere")
    assert outcome.code == 2
    assert outcome.err.startswith("ld3m: RUN: there is no nowhere; give a run's folder")


DAMAGED = {
    "evolution/000003.png": "cannot read evolution/000003.png (",
    "real.png": "cannot read real.png (",
    "latents.safetensors": "latents.safetensors is damaged (",
    "metrics.jsonl": None,  # its lines are counted
    "evaluation.json": "evaluation.json is damaged (",
    "prior.json": "prior.json is damaged (",
    "data.json": "data.json is damaged (",
    "origin.json": "origin.json is damaged (",
    "images/cross/1.png": "images/cross has 1 images, not 2",
}


def test_what_cannot_be_read_is_left_out_and_said(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All at once: none hides another, and the pictures that are whole are shown."""
    folder = shutil.copytree(finished, tmp_path / "run")
    for name in DAMAGED:
        (folder / name).write_text("{")
    (folder / "images" / "cross" / "1.png").unlink()
    page = Page(report(folder))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("not shown: ")]
    expected = [start for start in DAMAGED.values() if start]
    assert [sum(line.startswith(f"not shown: {start}") for line in said) for start in expected] == [1] * len(expected)
    assert len(said) == len(expected)
    assert all(f"Not shown: {start}" in page.text for start in expected)
    assert str(tmp_path) not in page.text
    assert list(frames_of(folder / "report.html")) == [0, 1, 2, 4, 5, 6]


def test_figures_of_another_folder_are_those_of_the_run(finished: Path, tmp_path: Path) -> None:
    """`evaluate -o FOLDER` leaves them there, and `report -o FOLDER` shows them, if they are of the same images."""
    elsewhere = tmp_path / "mine"
    elsewhere.mkdir()
    digest = stored_digest(finished)
    mine = row("distilled", "convnet", [71.5, 72.5]) | {"content": digest}
    write_json(elsewhere / "evaluation.json", {"results": [mine]})
    path = report(finished, elsewhere)
    assert path == elsewhere / "report.html"
    assert "72.0 ± 0.5 (2)" in Page(path).text
    assert "72.0 ± 0.5 (2)" not in Page(report(finished)).text
    write_json(elsewhere / "evaluation.json", {"results": [mine | {"content": "0" * 20}]})
    with pytest.raises(UserError, match=r"^--output: .*mine/evaluation\.json has accuracies of other images than "):
        report(finished, elsewhere)


def test_the_command_writes_to_the_given_file(finished: Path, tmp_path: Path, ld3m: Callable[..., Outcome]) -> None:
    outcome = ld3m("report", finished, "-o", tmp_path / "page.html")
    assert outcome.out == f"{tmp_path / 'page.html'}\n"
    assert (tmp_path / "page.html").read_bytes() == report(finished).read_bytes()


# --- how large it is ---------------------------------------------------------------------------------------


def test_small_images_stay_as_they_are(finished: Path) -> None:
    frames = frames_of(finished / "report.html")
    assert list(frames) == [*range(6), 6]
    for iteration, path in grids.frames(finished).items():
        assert np.array_equal(frames[iteration], np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.slow
def test_a_page_of_large_noise_stays_small(tmp_path: Path) -> None:
    """Nothing compresses less: 100 images of 256 pixels at 20 iterations, 300 MB as they are."""
    folder = tmp_path / "run"
    make_run(folder, [f"class {i}" for i in range(100)], {0: noise(100, 256)}, iterations=19, logged=19)
    for iteration in range(1, 20):
        shutil.copyfile(folder / "evolution" / "000000.png", folder / "evolution" / f"{iteration:06d}.png")
    path = report(folder)
    assert path.stat().st_size < LARGEST
    shown = frames_of(path)
    assert {0, 19} <= shown.keys()
    assert len(shown) >= webp.FEWEST
    sizes = {iteration: len(sheet) // 10 for iteration, sheet in shown.items()}
    assert sizes[0] == sizes[19] > max(sizes[iteration] for iteration in sizes if 0 < iteration < 19) >= 64


def test_long_runs_stay_small(tmp_path: Path) -> None:
    frames = {iteration: noise(10, 32, seed=iteration) for iteration in range(0, 3000, 20)}
    folder = make_run(tmp_path / "run", [f"class {i}" for i in range(10)], frames, iterations=30_000, logged=30_000)
    page = Page(report(folder))
    assert (folder / "report.html").stat().st_size < LARGEST
    assert all(len(points.split()) <= charts.MOST_POINTS for points in page.all("polyline", "points"))
    iterations = list(frames_of(folder / "report.html"))
    assert (iterations[0], iterations[-1]) == (0, 2980)
    assert len(iterations) == webp.MOST


def test_thinned_curves_keep_their_peaks() -> None:
    points = [(float(i), 1.0) for i in range(10_000)]
    points[4321] = (4321.0, 99.0)
    points[777] = (777.0, -5.0)
    kept = charts.thinned(points)
    assert {points[0], points[777], points[4321], points[-1]} <= set(kept)
    assert len(kept) <= charts.MOST_POINTS
    assert kept == sorted(kept)


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [(0, 420, [0, 100, 200, 300, 400]), (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (3, 3, [3]), (0, 39, [0, 10, 20, 30])],
)
def test_ticks_are_round_numbers(low: float, high: float, found: list[float]) -> None:
    assert svg.ticks(low, high) == found


# --- in a browser ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Playwright's Chromium where it was installed, or the system's."""
    api = pytest.importorskip("playwright.sync_api", reason="the dev extra brings playwright")
    with api.sync_playwright() as playwright:
        names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chromium-headless-shell")
        found = [playwright.chromium.executable_path, *map(shutil.which, names)]
        there = [path for path in found if path and Path(path).is_file()]
        if not there:
            pytest.skip("no Chromium: apt-get install chromium, or playwright install --with-deps chromium")
        running = playwright.chromium.launch(executable_path=there[0])
        yield running
        running.close()


@pytest.fixture(params=["light", "dark"])
def opened(browser: Any, finished: Path, page: Page, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page of the finished run; at the end, nothing was asked of a network and nothing went wrong."""
    tab = browser.new_page(viewport={"width": 1100, "height": 800}, color_scheme=request.param, reduced_motion="reduce")
    asked: list[str] = []
    wrong: list[str] = []
    tab.on("request", lambda each: asked.append(each.url))
    tab.on("console", lambda each: wrong.append(each.text))
    tab.on("pageerror", lambda each: wrong.append(str(each)))
    tab.goto((finished / "report.html").as_uri())
    tab.wait_for_selector('canvas[aria-label="circle, image 1, iteration 6"]')
    yield tab
    tab.close()
    assert wrong == []
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
    assert sum(url.startswith("file:") for url in asked) == 1


def pixels(tab: Any, selector: str) -> np.ndarray:
    """What a canvas shows, [H, W, 3]."""
    values, width = tab.eval_on_selector(
        selector,
        """c => {
          const copy = new OffscreenCanvas(c.width, c.height).getContext("2d", { willReadFrequently: true });
          copy.drawImage(c, 0, 0);
          return [[...copy.getImageData(0, 0, c.width, c.height).data], c.width];
        }""",
    )
    return np.array(values, dtype=np.uint8).reshape(-1, width, 4)[..., :3]


def in_frame(folder: Path, iteration: int, label: int, index: int) -> np.ndarray:
    """An image of a run of 2 images a class in 16 pixels, as its evolution has it."""
    sheet = np.asarray(Image.open(folder / "evolution" / f"{iteration:06d}.png").convert("RGB"))
    return sheet[16 * label : 16 * label + 16, 16 * index : 16 * index + 16]


def test_the_slider_changes_the_images(opened: Any, finished: Path) -> None:
    tile = 'canvas[data-name="cross, image 2"]'
    assert opened.inner_text("#at") == "6"
    assert np.array_equal(pixels(opened, tile), in_frame(finished, 6, 1, 1))
    assert not np.array_equal(in_frame(finished, 6, 1, 1), in_frame(finished, 4, 1, 1))
    opened.focus("#iteration")
    for _ in range(2):
        opened.keyboard.press("ArrowLeft")
    opened.wait_for_selector('canvas[aria-label="cross, image 2, iteration 4"]')
    assert opened.inner_text("#at") == "4"
    assert opened.get_attribute("#iteration", "aria-valuetext") == "iteration 4"
    assert np.array_equal(pixels(opened, tile), in_frame(finished, 4, 1, 1))
    opened.keyboard.press("Home")
    opened.wait_for_selector('canvas[aria-label="square, image 1, iteration 0"]')
    assert opened.inner_text("#at") == "0"


def test_an_image_is_large_on_click_and_on_enter(opened: Any, finished: Path) -> None:
    opened.click('.tile:has(canvas[data-name="circle, image 2"])')
    assert opened.evaluate("document.querySelector('dialog').open")
    assert opened.inner_text("#large-name") == "circle, image 2"
    assert np.array_equal(pixels(opened, "#large-first"), in_frame(finished, 0, 0, 1))
    assert np.array_equal(pixels(opened, "#large-now"), in_frame(finished, 6, 0, 1))
    real = np.asarray(Image.open(finished / "real.png").convert("RGB"))[:16, 16:]
    assert np.array_equal(pixels(opened, "#large-real"), real)
    assert opened.evaluate("document.querySelector('#large-now').getBoundingClientRect().width") > 300
    opened.keyboard.press("ArrowRight")
    assert opened.inner_text("#large-name") == "cross, image 1"
    opened.keyboard.press("ArrowDown")
    opened.wait_for_selector('#large-now[aria-label="cross, image 1, iteration 5"]')
    assert opened.inner_text("#at") == "5"
    opened.keyboard.press("Escape")
    assert not opened.evaluate("document.querySelector('dialog').open")
    # Focus moves in the dialog's close event, which the browser sends some time after the key.
    opened.wait_for_selector(':focus > [data-name="cross, image 1"]')
    opened.keyboard.press("Enter")
    assert opened.evaluate("document.querySelector('dialog').open")
    opened.click("#close")
    assert not opened.evaluate("document.querySelector('dialog').open")


def test_both_ends_are_side_by_side(opened: Any, finished: Path) -> None:
    opened.wait_for_selector('[data-end][width="1"]', state="detached")
    real = np.asarray(Image.open(finished / "real.png").convert("RGB"))[32:48, :16]
    assert np.array_equal(pixels(opened, '[data-end="real"][data-index="4"]'), real)
    for end, iteration in (("first", 0), ("last", 6)):
        shown = pixels(opened, f'[data-end="{end}"][data-index="4"]')
        assert np.array_equal(shown, in_frame(finished, iteration, 2, 0))


def test_a_curve_tells_its_values(opened: Any, finished: Path) -> None:
    losses = [json.loads(line)["loss"] for line in (finished / "metrics.jsonl").read_text().splitlines()]
    opened.focus("#loss .plot")
    opened.keyboard.press("Home")
    opened.keyboard.press("ArrowRight")
    assert opened.inner_text("#loss-value") == f"iteration 1: loss {svg.number(losses[1])}"
    place = "e => [e.getBoundingClientRect().x, getComputedStyle(e).display]"
    box = opened.locator("#loss svg").bounding_box()
    across = box["x"] + box["width"] * (charts.LEFT + (charts.RIGHT - charts.LEFT) / 5) / charts.WIDTH
    assert opened.eval_on_selector("#loss .guide", place) == [pytest.approx(across, abs=1), "inline"]
    assert opened.eval_on_selector("#gradients .guide", place)[1] == "none"
    opened.mouse.move(box["x"] + box["width"] * charts.RIGHT / charts.WIDTH, box["y"] + box["height"] / 2)
    assert opened.inner_text("#loss-value") == f"iteration 5: loss {svg.number(losses[5])}"


def test_text_stands_out_and_nothing_is_wider_than_a_telephone(opened: Any) -> None:
    """WCAG 2.2 asks for a contrast of 4.5 between text and ground."""
    contrast = """(selector) => {
      const light = (colour) => {
        const [r, g, b] = colour.match(/\\d+/g).map((v) => v / 255)
          .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const of = (name) => light(getComputedStyle(document.querySelector(selector))[name]);
      const ground = light(getComputedStyle(document.body).backgroundColor);
      const [low, high] = [of(selector.includes(".tick") ? "fill" : "color"), ground].sort((a, b) => a - b);
      return (high + 0.05) / (low + 0.05);
    }"""
    for selector in ("body", ".note", ".status", "summary", "nav a", "dt", "caption", ".tick", "output.value"):
        assert opened.evaluate(contrast, selector) >= 4.5, selector
    dark = opened.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)") == dark
    opened.set_viewport_size({"width": 360, "height": 740})
    assert opened.evaluate("document.documentElement.scrollWidth") == 360
    label = "e => getComputedStyle(e, '::before').content"
    assert opened.eval_on_selector("#accuracy tbody td:last-child", label) == '"convnet"'
    wide = "t => t.filter(e => e.scrollWidth > e.clientWidth).length"
    assert opened.eval_on_selector_all(".wide", wide) == 0, "no table must be scrolled to be read"
