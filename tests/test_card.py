"""The card: names of others stay what they are, and nothing that people wrote is lost. Read by a Markdown parser."""

import ast
import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest
import yaml
from markdown_it import MarkdownIt

from ld3m import markdown
from ld3m.errors import UserError
from ld3m.publishing import card
from ld3m.recipe import Recipe
from ld3m.recipe.files import load
from ld3m.runs.folder import Metadata

NAMES = [
    "<b>bold</b>", "a|b", "`code`", r"a\|b", "_x_ my_class *y* ~~z~~", "[l](http://x)", "![i](j)", "&amp;", "$x$ # y",
    "<!-- ld3m:end limits -->", "``` ```", "\\", "`", "<script>alert(1)</script>", "{title}", r"\g<0> \1", "Ü 猫",
]  # fmt: skip
"""Names of classes, each of which some part of Markdown would take for its own."""
RESULT = {
    "trained_on": "run <i>a|b</i>",
    "arch": 'timm:x|"y"',
    "split": "test",
    "mean": 50.0,
    "std": 1.0,
    "accuracies": [49.0, 51.0],
    "images": 17,
    "tested_on": 18,
    "protocol": {"epochs": 3, "batch": 8, "lr": 0.01, "ema": 0.9, "augment": True},
}


def recipe(source: str = "digits", subset: list[str] | None = None, prior: str = "digits") -> Recipe:
    values = {"data.source": source, "data.subset": subset, "prior.source": prior}
    steps = ["prior.steps=0", "prior.skip=none"] if prior == "pixels" else []
    return load(Recipe, "digits", [*(f"{key}={json.dumps(value)}" for key, value in values.items()), *steps])


def section(classes: list[str] = NAMES, licence: str = "<i>a|b</i>", source: str = "digits") -> card.Section:
    about = Metadata(iteration=1, classes=classes, recipe="ab", noise="fixed", noise_iteration=0, seed=0)
    results = [RESULT, RESULT | {"trained_on": "distilled"}]
    evaluation = {"results": results, "normalisation": {"mean": [0.5], "std": [0.25]}}
    prior = {"licence": licence, "kind": "<u>"}
    return card.Section("ipc1-8px", classes, len(classes), recipe(source), prior, evaluation, about)


def cells(text: str) -> list[str]:
    """The cells of all tables as a reader sees them."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inline = [after.children for token, after in pairwise(tokens) if token.type in ("td_open", "th_open")]
    return ["".join(part.content for part in parts if part.type != "html_inline") for parts in inline if parts]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_read_as_it_is(name: str) -> None:
    table = markdown.table(["text", "code"], [[markdown.text(name), markdown.code(name)]])
    assert cells(table) == ["text", "code", name, name]


def test_names_of_classes_networks_sets_and_licences_are_read_as_they_are() -> None:
    text = card.merge(None, "me/x", section())
    found = cells(text)
    assert [name for name in NAMES if name not in found] == []
    assert {"run <i>a|b</i>", 'timm:x|"y"'} <= {cell.replace("17 images of the ", "") for cell in found}
    assert "<i>a|b</i>" in found
    assert "<script>" not in text
    program = re.search(r"```python\nimport math\n(.*?)```", text, re.DOTALL)
    assert program
    calls = [node for node in ast.walk(ast.parse(program[1])) if isinstance(node, ast.Call)]
    assert [call.args[0].value for call in calls if ast.unparse(call.func) == "networks.build"] == [RESULT["arch"]]  # type: ignore[attr-defined]


def test_the_recipe_does_not_end_its_own_block_or_part() -> None:
    names = ["```", "<!-- ld3m:end ipc1-8px -->"]
    one = replace(section(), recipe=recipe(subset=names))
    text = card.merge(None, "me/x", one)
    blocks = [token.content for token in MarkdownIt().parse(text) if token.type == "fence" and token.info == "yaml"]
    assert [yaml.safe_load(block)["data"]["subset"] for block in blocks] == [names]
    assert card.merge(text, "me/x", one) == text


def meta_of(text: str) -> dict[str, object]:
    return yaml.safe_load(text.split("---\n")[1])


@pytest.mark.parametrize("begin", ["", "\ufeff", "\r\n", "\n\n"])
@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_one_front_matter_whatever_precedes_it(begin: str, line_break: str) -> None:
    """As the Hub finds it: after a byte order mark, empty lines, with lines of Windows."""
    old = f"{begin}---{line_break}language: de{line_break}---{line_break}Mine.{line_break}"
    text = card.merge(old, "me/x", section())
    assert meta_of(text)["language"] == "de"
    assert text.count("language: de") == 1
    assert "Mine." in text
    assert "\ufeff" not in text


def test_a_single_value_is_a_list_of_one() -> None:
    old = "---\ntags: my-tag\nsource_datasets: original\nsize_categories: n<1K\nlicense: mit\nconfigs:\n---\n"
    meta = meta_of(card.merge(old, "me/x", section(licence="mit", source="fashion-mnist")))
    assert meta["tags"] == ["my-tag", "dataset-distillation", "ld3m", "synthetic", "diffusion", "arxiv:2403.03881"]
    assert meta["source_datasets"] == ["original", "zalando-datasets/fashion_mnist"]
    assert (meta["size_categories"], meta["license"]) == (["n<1K"], "mit")
    assert [each["config_name"] for each in meta["configs"]] == ["ipc1-8px"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("tags: {a: b}", "has tags: {'a': 'b'}, which is no list"),
        ("license: 4", "has license: 4, which is no list"),
        ("configs: [a]", "has a config without a config_name ('a')"),
        ("configs: [{name: a}]", "has a config without a config_name ({'name': 'a'})"),
        ("a: [", "has damaged metadata (ParserError: "),
        ("- a", "has damaged metadata (ValueError: no mapping but ['a'])"),
    ],
)
def test_what_cannot_be_kept_is_refused(lines: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        card.merge(f"---\n{lines}\n---\nMine.\n", "me/x", section())
    (line,) = refused.value.lines
    assert f"--to: README.md there {said}" in line
    assert line.endswith("; mend it first")


@pytest.mark.parametrize(
    ("source", "listed", "shown"),
    [
        ("hub:me/cats", ["me/cats"], "hub:me/cats"),
        ("hub:me/cats:small@v1", ["me/cats"], "hub:me/cats:small@v1"),
        ("hub:mnist", ["mnist"], "hub:mnist"),
        ("hub:/home/ada/cats", None, "cats"),
        ("C:\\Users\\ada\\cats", None, "cats"),
        (r"\\server\ada\cats", None, "cats"),
        ("hub:./cats", None, "hub:./cats"),
        ("/home/ada/cats", None, "cats"),
    ],
)
def test_sources(source: str, listed: list[str] | None, shown: str) -> None:
    """Only data sets of the Hub are its source_datasets, and no folder is named."""
    text = card.merge(None, "me/x", section(source=source))
    assert meta_of(text).get("source_datasets") == listed
    assert f"distilled from `{shown}` through" in text
    assert "ada" not in text


def test_pixels_have_no_chain() -> None:
    pixels = replace(section(), recipe=recipe(prior="pixels"))
    text = card.merge(None, "me/x", pixels)
    assert "skip" not in " ".join(cells(text))
    assert "distilled from `digits` in pixels,\nwithout a prior, with the objective `dm`" in text
    assert "diffusion" not in meta_of(text)["tags"]
    assert "prior" not in " ".join(cells(text))
    assert "prior" in " ".join(cells(card.merge(None, "me/x", section())))
    assert "`reference` skip" in card.merge(None, "me/x", section())
