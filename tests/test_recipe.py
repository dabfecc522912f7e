"""Recipes: what is shipped, overrides, mistakes, the resolved form, the digest."""

import builtins
import importlib.metadata
import io
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ld3m.distillation.inputs import check_inputs
from ld3m.errors import UserError
from ld3m.recipe import Recipe
from ld3m.recipe.files import digest, digest_with_paths, find_recipe, load, to_yaml
from ld3m.recipe.prior import PriorRecipe

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
MINIMAL: dict[str, Any] = {
    "name": "x",
    "data": {"source": "fashion-mnist-small"},
    "prior": {"source": "fashion-mnist"},
}


@pytest.fixture
def minimal(tmp_path: Path) -> str:
    """A recipe with nothing but what must be there."""
    path = tmp_path / "minimal.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return str(path)


def mistakes(name: str, *overrides: str, kind: Any = Recipe) -> list[str]:
    """The lines that loading fails with."""
    with pytest.raises(UserError) as caught:
        load(kind, name, list(overrides))
    return [line.removeprefix(f"{name}: ") for line in caught.value.lines]


# --- shipped recipes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_and_say_how_they_are_run(path: Path) -> None:
    text = path.read_text()
    kind, command = (PriorRecipe, "train-prior") if "denoiser" in yaml.safe_load(text) else (Recipe, "distill")
    recipe = load(kind, str(path))
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    assert re.search(rf"{command} (recipes/{path.stem}\.yaml|{path.stem})\s", header)
    assert recipe.name in path.stem


@pytest.mark.parametrize(("name", "steps", "depth"), [("imagenet128", 10, 5), ("imagenet256", 20, 6)])
def test_the_imagenet_recipes_have_the_papers_settings(name: str, steps: int, depth: int) -> None:
    """T = 10 and ConvNet-5 at 128 px, T = 20 and ConvNet-6 at 256 px; the rest are the authors' defaults."""
    recipe = load(Recipe, name)
    assert (recipe.prior.steps, recipe.network.depth) == (steps, depth)
    assert recipe.data.resolution == int(name.removeprefix("imagenet"))
    assert (recipe.prior.guidance, recipe.distill.real_batch, recipe.distill.momentum) == (3, 256, 0.5)
    assert (recipe.distill.lr_latents, recipe.distill.lr_conditioning) == (1, 1)
    assert load(Recipe, name, ["data.subset=b"]).data.subset == "b"


def test_a_name_means_the_file_below_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("quickstart").samefile(RECIPES[0].parent / "quickstart.yaml")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "quickstart.yaml").write_text("name: mine")
    assert find_recipe("quickstart").samefile(tmp_path / "recipes" / "quickstart.yaml")  # the user's own comes first
    (tmp_path / "quickstart").mkdir()
    assert find_recipe("quickstart").samefile(tmp_path / "recipes" / "quickstart.yaml")  # a folder is no recipe
    with pytest.raises(UserError, match=r"or one of .*quickstart"):
        find_recipe("quickstar")


# --- the resolved form -------------------------------------------------------------------------------------

CLASS_NAMES = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=8)
OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        "name": st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,12}\Z"),
        "seed": st.integers(0, 2**63 - 1),
        "output": CLASS_NAMES,
        "data.subset": st.lists(CLASS_NAMES, min_size=1, max_size=4),
        "data.test_share": st.floats(0, 1, exclude_min=True, exclude_max=True),
        "prior.guidance": st.floats(-1000, 1000),
        "prior.keep_graph_steps": st.integers(0, 50) | st.sampled_from(["all", "auto"]),
        "prior.micro_batch": st.integers(1, 50) | st.just("auto"),
        "distill.lr_latents": st.floats(0, 1e9, exclude_min=True),
        "distill.dm.augment": st.booleans(),
        "evaluate.lr": st.none() | st.floats(1e-12, 1),
        "hub.private": st.booleans(),
    },
)


@settings(max_examples=60)
@given(overrides=OVERRIDES)
def test_the_resolved_recipe_loads_to_an_equal_one(
    overrides: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever a recipe says, and however YAML would read it bare: `no`, `1e5`, `0x10`, `~`, dates."""
    path = tmp_path_factory.mktemp("resolved") / "recipe.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    # one line of flow style, as a shell would pass it
    written = [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in overrides.items()]
    recipe = load(Recipe, str(path), written)
    for key, value in overrides.items():
        resolved: Any = recipe
        for part in key.split("."):
            resolved = getattr(resolved, part)
        assert resolved == value
    path.write_text(to_yaml(recipe), encoding="utf-8")
    assert load(Recipe, str(path)) == recipe


def test_the_resolved_recipe_writes_every_default_out(minimal: str) -> None:
    resolved = yaml.safe_load(to_yaml(load(Recipe, minimal)))
    assert set(resolved) == set(Recipe.model_fields)
    assert resolved["distill"]["momentum"] == 0.5
    assert resolved["distill"]["lgm"] == {"augment": True}
    assert resolved["prior"]["keep_graph_steps"] == "all"
    assert resolved["data"]["subset"] is None


# --- overrides ---------------------------------------------------------------------------------------------


def test_overrides_have_dots_in_keys_and_yaml_in_values(minimal: str) -> None:
    recipe = load(
        Recipe,
        minimal,
        [
            "distill.iterations=7",
            "distill.dm.augment=no",
            "distill.lr_latents=1e-3",  # a string to YAML 1.1, which wants 1.0e-3
            "data.subset=[Bag, Coat]",
            "evaluate.arch=[convnet, resnet18]",
            "evaluate.lr=",
            "output=a=b",
            "prior.keep_graph_steps=2",
        ],
    )
    assert recipe.distill.iterations == 7
    assert recipe.distill.dm.augment is False
    assert recipe.distill.lr_latents == 0.001
    assert recipe.data.subset == ["Bag", "Coat"]
    assert recipe.evaluate.arch == ["convnet", "resnet18"]
    assert recipe.evaluate.lr is None
    assert recipe.output == "a=b"
    assert recipe.prior.keep_graph_steps == 2


def test_the_last_override_of_a_key_counts(minimal: str) -> None:
    assert load(Recipe, minimal, ["seed=1", "seed=2"]).seed == 2


def test_classes_named_by_numbers_need_no_quotes(minimal: str) -> None:
    assert load(Recipe, minimal, ["data.subset=[3, 10]"]).data.subset == ["3", "10"]


def test_a_file_of_classes_is_read_into_the_recipe(minimal: str, tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("n01440764\n\n  n02102040 \n")
    (tmp_path / "some.json").write_text('["n01440764", 217]')
    assert load(Recipe, minimal, [f"data.subset={tmp_path}/some.txt"]).data.subset == ["n01440764", "n02102040"]
    assert load(Recipe, minimal, [f"data.subset={tmp_path}/some.json"]).data.subset == ["n01440764", "217"]
    for name, content in (("some.json", "[1,"), ("some.json", "{}"), ("some.txt", "\n")):
        (tmp_path / name).write_text(content)
        (line,) = mistakes(minimal, f"data.subset={tmp_path / name}")
        assert line.startswith(f"override data.subset={tmp_path / name}: ")


def test_an_override_fills_a_section_left_empty(minimal: str) -> None:
    path = Path(minimal)
    path.write_text(path.read_text() + "distill:\n")
    assert load(Recipe, minimal, ["distill.iterations=3"]).distill.iterations == 3


def test_a_recipe_is_found_to_live_where_it_says(minimal: str) -> None:
    assert load(Recipe, minimal).folder == Path("runs/x")
    assert load(Recipe, minimal, ["output=elsewhere"]).folder == Path("elsewhere")


# --- mistakes ----------------------------------------------------------------------------------------------


def test_all_mistakes_are_reported_at_once(minimal: str) -> None:
    lines = mistakes(
        minimal,
        "steps=5",
        "prior.skipp=paper",
        "prior.keep_graph_steps=-1",
        "distill.images_per_class=0",
        "evaluate.epochs=many",
        "nonsense",
        "name.first=x",
    )
    assert lines[:2] == [
        "override nonsense: must have the form KEY=VALUE, such as distill.iterations=200",
        "override name.first=x: name is a value, not a section with keys of its own",
    ]
    assert {line.split(": ")[0] for line in lines[2:]} == {
        "override steps=5",
        "override prior.skipp=paper",
        "override prior.keep_graph_steps=-1",
        "override distill.images_per_class=0",
        "override evaluate.epochs=many",
    }
    assert len(lines) == 7
    assert not any("\n" in line for line in lines)


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("prior.skipp=none", "unknown key; did you mean prior.skip?"),
        ("distill.dm.augmnet=no", "unknown key; did you mean distill.dm.augment?"),
        ("sed=1", "unknown key; did you mean seed?"),
        # in another section: the key is right, its place is not
        ("iterations=5", "unknown key; did you mean distill.iterations?"),
        (
            "network.resolution=32",
            "unknown key; did you mean data.resolution or prior.resolution or teacher.resolution?",
        ),
        (
            "epochs=3",
            "unknown key; did you mean data.scorer.epochs or experts.epochs or evaluate.epochs or teacher.epochs?",
        ),
        ("hub.zzz=1", "unknown key; known are repo_id, private, licence"),
    ],
)
def test_unknown_keys_are_answered_with_the_nearest(minimal: str, override: str, answer: str) -> None:
    assert mistakes(minimal, override) == [f"override {override}: {answer}"]


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("name=a/b", ["'a/b'", "pattern"]),
        ("seed=-1", ["-1", "greater than or equal to 0"]),
        ("seed=1.5", ["1.5", "integer"]),
        ("distill=5", ["5", "iterations"]),
        ("distill.iterations=yes", ["True"]),
        ("distill.lr_latents=.inf", ["inf", "finite"]),
        ("distill.lr_latents=nan", ["'nan'", "finite"]),
        ("distill.momentum=1", ["1", "less than 1"]),
        ("distill.dm.augment=maybe", ["'maybe'", "boolean"]),
        ("prior.skip=Paper", ["'Paper'", "'paper', 'reference' or 'none'"]),
        ("prior.keep_graph_steps=some", ["'some'", "0 or more, or all"]),
        ("prior.keep_graph_steps=2.5", ["2.5", "0 or more, or all"]),
        ("data.subset=5", ["5", "list of at least 1 class"]),
        ("data.subset=none.txt", ["'none.txt' is missing", "list of classes"]),
        ("data.root=/tmp", ["'/tmp'", "only for data.source=imagenet"]),
        ("data.subset=[]", ["[]", "at least 1"]),
        ("data.subset=[yes]", ["True", "a string or a number"]),
        ("data.channels=2", ["2", "1 or 3"]),
        ("evaluate.arch=[]", ["[]", "at least 1"]),
        ("network.depth=9", ["9", "32 pixels", "5 or fewer"]),
        ("data.source=2024-13-45", ["data.source=2024-13-45", "not a YAML value"]),
        ("data.subset=[a", ["data.subset=[a", "not a YAML value"]),
    ],
)
def test_a_wrong_value_is_one_line_with_key_value_and_what_is_right(
    minimal: str, override: str, parts: list[str]
) -> None:
    (line,) = mistakes(minimal, override)
    assert line.startswith(f"override {override}: ")
    assert all(part in line for part in parts), line


def test_groups_of_the_norm_divide_the_width(minimal: str) -> None:
    (line,) = mistakes(minimal, "network.norm=group", "network.width=6")
    assert line == "override network.width=6: 6 is not a multiple of 4, the groups of norm group"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("autoencoder.channels=[0, 32]", ["autoencoder.channels.0: 0 is invalid", "greater than 0"]),
        ("autoencoder.channels=[24]", ["24", "multiple of 16"]),
        ("denoiser.channels=[64, 100]", ["100", "multiple of 16"]),
        ("denoiser.attention=[true]", ["1 entries for 2"]),
        ("denoiser.attention=[false, false]", ["at least one level"]),
        ("data.resolution=30", ["30", "halved 3 times"]),
        ("prior=x", ["unknown key"]),
    ],
)
def test_mistakes_of_a_prior_recipe(tmp_path: Path, override: str, parts: list[str]) -> None:
    path = tmp_path / "prior.yaml"
    path.write_text("{name: x, data: {source: fashion-mnist-small}}")
    (line,) = mistakes(str(path), override, kind=PriorRecipe)
    assert line.startswith(f"override {override}: ")
    assert all(part in line for part in parts), line


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bare.yaml"
    path.write_text("data: {resolution: 16}")
    assert mistakes(str(path)) == ["name: is missing", "data.source: is missing", "prior: is missing"]


def test_a_mistake_is_blamed_on_who_made_it(minimal: str, tmp_path: Path) -> None:
    """The file that has the key, or the override; also if a key of a file does not fit the override."""
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(MINIMAL | {"network": {"depth": 5}, "seed": -1}))
    top = tmp_path / "top.yaml"
    top.write_text("{extends: base, prior: {skipp: none}}")
    assert mistakes(str(top), "evaluate.seeds=0") == [
        f"{tmp_path / 'base.yaml'}: seed: -1 is invalid: input should be greater than or equal to 0",
        "prior.skipp: unknown key; did you mean prior.skip?",  # in top.yaml itself
        "override evaluate.seeds=0: 0 is invalid: input should be greater than or equal to 1",
    ]
    top.write_text("{extends: base, seed: 0}")
    (line,) = mistakes(str(top), "tf32=true", "data.resolution=16")
    assert line.startswith("override data.resolution=16: network.depth: 5 blocks halve 16 pixels to nothing")
    top.write_text("{extends: base, seed: 0, data: {resolution: 16}}")
    (line,) = mistakes(str(top), "tf32=true")
    assert line.startswith(f"{tmp_path / 'base.yaml'}: network.depth: 5 blocks halve 16 pixels")


# --- purity ------------------------------------------------------------------------------------------------


@pytest.fixture
def no_disk_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks the disk or the network fails; pydantic would take a ValueError for a mistake of the recipe."""

    def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise RuntimeError("validation asked for a file or the network")

    for module, names in (
        (os, ("stat", "lstat", "open", "listdir", "scandir", "access", "readlink")),
        (os.path, ("exists", "isfile", "isdir", "realpath")),
        (Path, ("stat", "exists", "is_file", "is_dir", "open", "read_text", "read_bytes", "glob", "rglob", "iterdir")),
        (builtins, ("open",)),
        (io, ("open",)),
        (socket, ("socket", "getaddrinfo", "create_connection")),
        (importlib.metadata, ("entry_points",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, refuse)


def test_validation_asks_neither_disk_nor_network(request: pytest.FixtureRequest) -> None:
    """Every shipped recipe, and one whose files are nowhere."""
    contents = [
        (PriorRecipe if "denoiser" in content else Recipe, content)
        for content in (resolved_content(path) for path in [*RECIPES, *RECIPES[0].parent.glob("baselines/*.yaml")])
    ]
    nowhere = {"source": "imagenet", "root": "/no/such/folder", "subset": "/no/such/list.txt"}
    contents.append(
        (
            Recipe,
            {
                "name": "x",
                "data": nowhere,
                "prior": {"source": "/no/such/prior"},
                "distill": {"init": "/no/such/run", "objective": "mine"},
                "network": {"arch": "theirs"},
                "experts": {"folder": "/no/such/experts"},
            },
        )
    )
    assert len(contents) > 20
    request.getfixturevalue("no_disk_no_network")
    with pytest.raises(RuntimeError, match="asked for a file"):  # the traps work
        Path("anything").exists()
    resolved = [kind.model_validate(content) for kind, content in contents]
    assert resolved[-1].data.root == "/no/such/folder"


def resolved_content(path: Path) -> dict[str, Any]:
    """A shipped recipe with those it extends, as `model_validate` takes it."""
    kind = PriorRecipe if "denoiser" in yaml.safe_load(path.read_text()) else Recipe
    content = yaml.safe_load(path.read_text())
    return load(kind, str(path)).model_dump(mode="json") if "extends" in content else content


def test_a_recipe_loads_whose_files_are_nowhere(minimal: str) -> None:
    recipe = load(Recipe, minimal, ["data.source=/no/data", "prior.source=/no/prior", "distill.init=/no/run"])
    assert (recipe.data.source, recipe.prior.source, recipe.distill.init) == ("/no/data", "/no/prior", "/no/run")
    with pytest.raises(UserError) as caught:
        check_inputs(recipe)
    assert [line.split(": ")[0] for line in caught.value.lines] == ["data.source", "prior.source", "distill.init"]


# --- bits that do not depend on processes --------------------------------------------------------------------


def test_reproducible_batches_hold_images_of_one_class(minimal: str) -> None:
    """Classes lie one after the other, so that batches of a divisor of a class's images never mix two."""
    for images, factor, most, batch in (
        (1, 1, 64, 1),
        (10, 1, 64, 10),
        (10, 2, 64, 40),
        (50, 1, 25, 25),
        (4, 1, 2, 2),
    ):
        keys = [f"distill.images_per_class={images}", f"distill.factor={factor}", f"prior.micro_batch={most}"]
        assert load(Recipe, minimal, [*keys, "reproducible=true"]).prior.micro_batch == batch
        assert load(Recipe, minimal, keys).prior.micro_batch == most


@pytest.mark.parametrize(
    ("most", "why"), [("auto", "auto depends on free memory"), ("4", "4 does not divide the 10 images of a class")]
)
def test_other_batches_cannot_be_reproducible(minimal: str, most: str, why: str) -> None:
    overrides = ["reproducible=true", "distill.images_per_class=10", f"prior.micro_batch={most}"]
    with pytest.raises(UserError, match=rf"prior.micro_batch={most}: {why}, as .* needs; give a divisor of 10"):
        load(Recipe, minimal, overrides)


# --- what only one value fits ------------------------------------------------------------------------------


def test_without_a_denoiser_only_one_value_fits_and_is_written_out(minimal: str) -> None:
    pixels = load(Recipe, minimal, ["prior.source=pixels"])
    assert (pixels.prior.steps, pixels.prior.guidance, pixels.distill.learn) == (0, 1.0, "latents")
    stated = ["prior.source=pixels", "prior.steps=0", "prior.guidance=1", "distill.learn=latents"]
    assert to_yaml(pixels) == to_yaml(load(Recipe, minimal, stated))
    alone = load(Recipe, minimal, ["prior.steps=0"])
    assert (alone.prior.guidance, alone.distill.learn) == (3.0, "latents")
    assert to_yaml(alone) == to_yaml(load(Recipe, minimal, ["prior.steps=0", "distill.learn=latents"]))
    assert load(Recipe, minimal).distill.learn == "both"
    for recipe in (pixels, alone):
        check_inputs(recipe)


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (["prior.steps=0", "distill.learn=both"], ["distill.learn: 'both', but prior.steps=0 leaves the denoiser out"]),
        (
            ["prior.source=pixels", "prior.guidance=3", "distill.learn=conditioning"],
            [
                "prior.guidance: 3, but prior.source=pixels has no classes to guide to",
                "distill.learn: 'conditioning', but prior.source=pixels leaves the denoiser out",
            ],
        ),
        (
            ["prior.source=pixels", "prior.scaling_factor=2"],
            ["prior.scaling_factor: 2, but prior.source=pixels encodes nothing"],
        ),
    ],
)
def test_what_contradicts_is_refused_before_anything_is_opened(
    minimal: str, overrides: list[str], lines: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        check_inputs(load(Recipe, minimal, overrides))
    assert len(caught.value.lines) == len(lines)
    assert all(line.startswith(start) for line, start in zip(caught.value.lines, lines, strict=True))


@pytest.mark.parametrize("name", ["quickstart", "imagenet128", "baselines/conditioning"])
def test_an_override_by_pixels_leaves_nothing_of_the_denoiser(name: str) -> None:
    """These recipes state steps, guidance, a resolution of the prior, or that c alone is learnt."""
    recipe = load(Recipe, name, ["prior.source=pixels"])
    assert (recipe.prior.steps, recipe.prior.guidance, recipe.prior.resolution) == (0, 1.0, None)
    assert recipe.distill.learn == "latents"
    check_inputs(recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": "digits", "root": None})}))


@pytest.mark.parametrize("override", ["prior.steps=5", "prior.resolution=16"])
def test_pixels_have_neither_steps_nor_size(minimal: str, override: str) -> None:
    (line,) = mistakes(minimal, "prior.source=pixels", override)
    assert line.startswith("override prior.source=pixels: pixels has neither denoiser nor size; set prior.steps=0")


def test_the_digests_of_runs_in_pixel_space_and_of_the_autoencoder_stay() -> None:
    """As they were when recipes had to state these keys."""
    assert digest_with_paths(load(Recipe, "baselines/pixels")) == "6514871fcdedb178"
    assert digest_with_paths(load(Recipe, "baselines/autoencoder")) == "c08a33f3609593ff"
    found = [
        digest_with_paths(load(Recipe, "baselines/pixels", overrides))
        for overrides in (
            [],
            ["distill.dm.phase=0.1", "distill.lgm.augment=false"],  # neither is read
            ["distill.dc.match=orthogonal"],
            ["distill.dm.match=characteristic"],
            ["distill.dm.match=characteristic", "distill.dm.phase=0.1"],
            ["distill.objective=lgm"],
            ["distill.objective=lgm", "distill.lgm.augment=false"],
        )
    ]
    assert found[0] == found[1]
    assert len(set(found)) == 6


# --- keys that went ----------------------------------------------------------------------------------------


def test_a_key_that_went_is_ignored_in_old_recipes_and_refused_as_an_override(
    minimal: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = load(Recipe, minimal)
    Path(minimal).write_text(yaml.safe_dump(MINIMAL | {"data": {**MINIMAL["data"], "workers": None}}))
    assert load(Recipe, minimal) == plain
    assert capsys.readouterr().err == ""  # as every run before wrote it out: nothing that anybody asked for is ignored
    Path(minimal).write_text(yaml.safe_dump(MINIMAL | {"data": {**MINIMAL["data"], "workers": 4}}))
    assert load(Recipe, minimal) == plain
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{minimal}: data.workers is ignored: there is no such key any more; as many threads")
    assert Recipe.model_validate(yaml.safe_load(Path(minimal).read_text())) == plain
    (line,) = mistakes(minimal, "data.workers=4")
    assert line.startswith("override data.workers=4: there is no such key any more; as many threads read images as")
    Path(minimal).write_text("{name: x, data: {source: digits}, evaluate: {classifier_width: 8}}")
    load(PriorRecipe, minimal)
    assert "evaluate.classifier_width is ignored" in capsys.readouterr().err


# --- the digest --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("override", ["network.pooling=none", "network.arch=resnet18"])
def test_depth_is_bound_where_blocks_halve(minimal: str, override: str) -> None:
    assert load(Recipe, minimal, ["network.depth=9", override]).network.depth == 9


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "data.subset=[Bag]",
        "data.resolution=16",
        "data.validation_share=0.1",
        "prior.skip=paper",
        "prior.steps=3",
        "prior.start=0.5",
        "prior.guidance=1",
        "prior.noise=fixed",
        "prior.dtype=bfloat16",
        "distill.images_per_class=2",
        "distill.init=noise",
        "distill.learn=latents",
        "distill.lr_latents=2",
        "distill.lr_conditioning=2",
        "distill.momentum=0",
        "distill.real_batch=8",
        "distill.dm.augment=false",
        "network.width=64",
        "network.depth=2",
        "network.norm=batch",
        "network.pooling=max",
        "network.dtype=bfloat16",
        "tf32=true",
    ],
)
def test_the_digest_changes_with_what_decides_the_result(minimal: str, override: str) -> None:
    assert digest(load(Recipe, minimal, [override])) != digest(load(Recipe, minimal))


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "output=elsewhere",
        "distill.iterations=7",
        "distill.checkpoint_every=7",
        "distill.log_every=7",
        "data.source=fashion-mnist",
        "data.on_corrupt=skip",
        "data.scorer.source=weights.safetensors",
        "prior.source=digits",
        "prior.micro_batch=7",
        "prior.keep_graph_steps=0",
        "prior.compile=true",
        "reproducible=true",
        "evaluate.epochs=7",
        "hub.private=true",
    ],
)
def test_the_digest_stays_with_what_does_not(minimal: str, override: str) -> None:
    assert digest(load(Recipe, minimal, [override])) == digest(load(Recipe, minimal))


def test_the_digest_does_not_depend_on_how_the_recipe_was_written(minimal: str, tmp_path: Path) -> None:
    recipe = load(Recipe, minimal)
    (tmp_path / "resolved.yaml").write_text(to_yaml(recipe))
    assert digest(load(Recipe, str(tmp_path / "resolved.yaml"))) == digest(recipe)
    assert re.fullmatch("[0-9a-f]{16}", digest(recipe))


# --- recipes that extend others ----------------------------------------------------------------------------


def test_a_recipe_may_extend_another(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(MINIMAL | {"distill": {"iterations": 7, "momentum": 0.25}}))
    (tmp_path / "middle.yaml").write_text("{extends: base, name: middle, distill: {iterations: 8}}")
    (tmp_path / "top.yaml").write_text("{extends: middle.yaml, prior: {steps: 3}}")
    recipe = load(Recipe, str(tmp_path / "top.yaml"), ["distill.real_batch=5"])
    assert (recipe.name, recipe.prior.steps, recipe.data.source) == ("middle", 3, "fashion-mnist-small")
    assert (recipe.distill.iterations, recipe.distill.momentum, recipe.distill.real_batch) == (8, 0.25, 5)
    (tmp_path / "resolved.yaml").write_text(to_yaml(recipe))  # all keys written out: it stands by itself
    assert load(Recipe, str(tmp_path / "resolved.yaml")) == recipe
    (tmp_path / "named.yaml").write_text("{extends: quickstart, name: named}")
    assert load(Recipe, str(tmp_path / "named.yaml")).data == load(Recipe, "quickstart").data


@pytest.mark.parametrize(
    ("base", "message"), [("missing", "missing: there is no such recipe"), ("top", "top extends this recipe itself")]
)
def test_what_cannot_be_extended_is_refused(tmp_path: Path, base: str, message: str) -> None:
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"extends": base}))
    (tmp_path / "top.yaml").write_text("extends: other")
    with pytest.raises(UserError, match=message):
        load(Recipe, str(tmp_path / "top.yaml"))
