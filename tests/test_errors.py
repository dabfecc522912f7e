"""A user's mistake: one line on stderr with the key or file and what would be right, exit code 2, nothing written."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import yaml
from conftest import CLASSES
from PIL import Image

from ld3m.distillation.loop import distill
from ld3m.networks import ConvNet, Shape
from ld3m.recipe import Recipe
from ld3m.recipe.files import load

Command = Callable[..., tuple[int, str, str]]
"""Exit code, stdout, stderr."""
Refusal = Callable[..., list[str]]


def contents(folder: Path) -> dict[str, bytes | None]:
    """All that is below a folder."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture(autouse=True)
def arrow_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow copies of Parquet go nowhere near the user's cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("arrow"))


@pytest.fixture
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a test's bad input lies, outside the working folder."""
    return tmp_path_factory.mktemp("given")


@pytest.fixture
def refused(ld3m: Command, tmp_path: Path, given: Path) -> Refusal:
    """Runs a command that must fail as the user is promised, and gives the lines it says."""

    def run(*arguments: object, parts: tuple[str, ...] = ()) -> list[str]:
        before = contents(given)
        code, out, err = ld3m(*arguments)
        assert "Traceback" not in err
        assert code == 2, err
        lines = err.removesuffix("\n").split("\n")
        assert all(line.startswith("ld3m: ") for line in lines), err
        for part in parts:
            assert part in err
        assert out == ""
        assert list(tmp_path.rglob("*")) == [], "the working folder is not empty"
        assert contents(given) == before
        return lines

    return run


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
"""A billion values in twelve lines, each of which repeats the one before nine times."""
OVERRIDE = re.compile(r" (?=[\w.]+=)")
"""Between two overrides."""

# --- the recipe --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        # keys
        ("iteration=5", ("override iteration=5: unknown key",)),
        ("distill.iteration=5", ("override distill.iteration=5: unknown key", "did you mean distill.iterations?")),
        ("iterations=5", ("override iterations=5: unknown key", "did you mean distill.iterations?")),
        ("distill.dm.augmentation=no", ("did you mean distill.dm.augment?",)),
        # form
        ("distill.iterations", ("distill.iterations", "KEY=VALUE")),
        ("=5", ("=5", "KEY=VALUE")),
        ("distill.iterations.now=5", ("iterations is a value, not a section",)),
        ("data.subset=[circle", ("data.subset=[circle", "not a YAML value")),
        ("output=2024-13-45", ("2024-13-45", "not a YAML value")),
        # types
        ("distill=5", ("override distill=5: 5 is invalid", "section")),
        ("distill.iterations=many", ("override distill.iterations=many: 'many' is invalid", "integer")),
        ("distill.iterations=1.5", ("override distill.iterations=1.5: 1.5 is invalid", "integer")),
        ("distill.iterations=yes", ("override distill.iterations=yes: True is invalid",)),
        ("distill.dm.augment=perhaps", ("override distill.dm.augment=perhaps: 'perhaps' is invalid", "boolean")),
        ("data.subset=circle", ("data.subset: 'circle' is not a known subset", "list")),
        ("prior.micro_batch=some", ("override prior.micro_batch=some: 'some' is invalid", "1 or more, or auto")),
        ("prior.micro_batch=0", ("override prior.micro_batch=0: 0 is invalid", "1 or more, or auto")),
        (
            "prior.keep_graph_steps=some",
            ("override prior.keep_graph_steps=some: 'some' is invalid", "0 or more, or all"),
        ),
        # ranges
        ("distill.iterations=-1", ("override distill.iterations=-1: -1 is invalid", "greater than or equal to 0")),
        (
            "distill.images_per_class=0",
            ("override distill.images_per_class=0: 0 is invalid", "greater than or equal to 1"),
        ),
        ("distill.real_batch=0", ("override distill.real_batch=0: 0 is invalid",)),
        ("distill.lr_latents=0", ("override distill.lr_latents=0: 0 is invalid", "greater than 0")),
        ("distill.lr_latents=-1.5", ("override distill.lr_latents=-1.5: -1.5 is invalid", "greater than 0")),
        ("distill.lr_latents=.nan", ("override distill.lr_latents=.nan: nan is invalid", "finite")),
        ("distill.lr_conditioning=inf", ("override distill.lr_conditioning=inf: 'inf' is invalid", "finite")),
        ("prior.guidance=.inf", ("override prior.guidance=.inf: inf is invalid", "finite")),
        ("prior.keep_graph_steps=-1", ("override prior.keep_graph_steps=-1: -1 is invalid", "0 or more, or all")),
        ("prior.steps=-1", ("override prior.steps=-1: -1 is invalid", "greater than or equal to 0")),
        ("prior.steps=1001", ("override prior.steps=1001: 1001 is invalid", "less than or equal to 1000")),
        ("data.resolution=7", ("override data.resolution=7: 7 is invalid", "greater than or equal to 8")),
        ("data.keep=0", ("override data.keep=0: 0 is invalid", "greater than 0")),
        ("data.keep=60", ("override data.keep=60: 60 is invalid", "less than or equal to 1")),
        ("data.scorer.epochs=0", ("override data.scorer.epochs=0: 0 is invalid",)),
        ("data.test_share=1", ("override data.test_share=1: 1 is invalid", "less than 1")),
        ("data.subset=[]", ("override data.subset=[]: [] is invalid", "at least 1")),
        ("seed=-1", ("override seed=-1: -1 is invalid", "greater than or equal to 0")),
        ("network.depth=9", ("override network.depth=9: 9 blocks", "16 pixels", "give 4 or fewer")),
        ("network.pooling=min", ("override network.pooling=min: 'min' is invalid", "'avg', 'max' or 'none'")),
        ("name=a/b", ("override name=a/b: 'a/b' is invalid", "[A-Za-z0-9]")),
        ("name=..", ("override name=..: '..' is invalid", "[A-Za-z0-9]")),
        # no machine has so much
        (f"distill.iterations={10**30}", ("less than or equal to 100000000",)),
        (f"distill.images_per_class={10**30}", ("less than or equal to 100000",)),
        (f"evaluate.seeds={10**30}", ("less than or equal to 10000",)),
        (f"seed={2**63}", ("less than 9223372036854775808",)),
        (f"seed={'9' * 5000}", ("999…' is not a YAML value", "4300 digits")),
        ("distill.lr_latents=1e300", ("less than or equal to 1" + 38 * "0",)),
        (f"name={'n' * 101}", ("at most 100 characters",)),
        (f"output={'n' * 5000}", ("…: 'nnnnnnnnnnnnnnnnnnnn'… is invalid: give at most 4,096 characters",)),
        ('output="a\\0b"', ("'a\\x00b' is invalid: give at most 4,096 characters, none of them NUL",)),
        ("prior.prompt='{:>1000000000}'", ("has not one {} for the name of the class",)),
        ("prior.prompt='{0.__class__}'", ("has not one {} for the name of the class",)),
        ('evaluate.arch=["a\\0b"]', ("none of them NUL",)),
        (f"data.subset={'[' * 100}", ("more than 20 sections or lists",)),
        # names
        ("prior.skip=half", ("override prior.skip=half: 'half' is invalid", "'paper', 'reference' or 'none'")),
        ("prior.noise=pink", ("override prior.noise=pink: 'pink' is invalid", "'fresh' or 'fixed'")),
        (
            "prior.dtype=float8",
            ("override prior.dtype=float8: 'float8' is invalid", "'float32', 'bfloat16' or 'float16'"),
        ),
        ("distill.init=fake", ("distill.init: 'fake' is invalid", "real, noise, prototype")),
        (
            "distill.learn=nothing",
            ("override distill.learn=nothing: 'nothing' is invalid", "'both', 'latents' or 'conditioning'"),
        ),
        ("network.norm=spectral", ("override network.norm=spectral: 'spectral' is invalid", "'instance'")),
        ("data.keep_order=soft", ("override data.keep_order=soft: 'soft' is invalid", "'easy', 'hard', 'random'")),
        ("data.on_corrupt=ignore", ("override data.on_corrupt=ignore: 'ignore' is invalid", "'error' or 'skip'")),
        ("experts.dtype=int8", ("override experts.dtype=int8: 'int8' is invalid", "'float32' or 'float16'")),
        ("evaluate.lr=fast", ("override evaluate.lr=fast: 'fast' is invalid", "greater than 0, or learnt")),
        ("distill.dc.outer=0", ("override distill.dc.outer=0: 0 is invalid", "greater than or equal to 1")),
        ("distill.mtt.step_size=0", ("override distill.mtt.step_size=0: 0 is invalid", "greater than 0")),
        ("distill.objective=kip", ("distill.objective: 'kip'", "dm, dc, mtt")),
        ("network.arch=lenet", ("network", "'lenet'", "convnet")),
        # what is not there
        ("data.source=/no/such/images", ("data.source: '/no/such/images' is not there", "fashion-mnist")),
        ("data.source=/no/such/train.parquet", ("data.source: '/no/such/train.parquet' is not there",)),
        ("data.source=/no/such/*.parquet", ("data.source: no file matches /no/such/*.parquet",)),
        ("prior.source=/no/such/prior", ("prior.source: '/no/such/prior'", "model_index.json", "train-prior")),
        # what does not fit
        ("data.subset=[circle, star]", ("data.subset: 'star'", "circle, cross, square")),
        ("data.subset=[circle, circle]", ("data.subset", "twice")),
        ("data.subset=[circle, 0]", ("data.subset: names the class 'circle' twice",)),
        ("data.subset=[0, 3]", ("data.subset: 3 is not the number of a class", "0 to 2")),
        ("data.subset=[-1]", ("data.subset: -1 is not the number of a class",)),
        ("data.channels=3", ("data.channels: 3", "data.channels=1")),
        ("network.arch=vgg11", ("data.resolution: 16", "vgg11", "32 or more")),
        ("evaluate.arch=[convnet, lenet]", ("evaluate.arch: 'lenet' is not known", "vgg11")),
        ("distill.images_per_class=13 distill.init=prototype", ("class 'circle' has only 12 training images",)),
        ("distill.images_per_class=8 data.keep=0.6", ("'circle' has only 7", "12 before data.keep=0.6", "keep more")),
        ("data.keep=0.5 data.scorer.arch=lenet", ("data.scorer.arch: 'lenet'", "convnet")),
        ("data.keep=0.5 data.scorer.source=/no/weights", ("data.scorer.source: /no/weights is missing",)),
        ("distill.images_per_class=13", ("distill.images_per_class: 13", "only 12 training images", "init=noise")),
    ],
)
def test_overrides(refused: Refusal, recipe_file: Path, override: str, parts: tuple[str, ...]) -> None:
    assert len(refused("distill", recipe_file, *OVERRIDE.split(override), parts=parts)) == 1


def test_several_mistakes_are_a_line_each(refused: Refusal, recipe_file: Path) -> None:
    lines = refused("distill", recipe_file, "seed=-1", "prior.skipp=none", "distill.objective=", "name.x=1", "distill")
    assert lines[0].startswith("ld3m: override name.x=1: name is a value")
    assert lines[1].startswith("ld3m: override distill: must have the form KEY=VALUE")
    blamed = {line.split(": ")[1] for line in lines[2:]}
    assert blamed == {"override seed=-1", "override prior.skipp=none", "override distill.objective="}
    assert len(lines) == 5


MISSING = ("data.source=/no/data", "prior.source=/no/prior", "distill.init=/no/run")
"""What a distillation reads and is not there."""


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("distill",), ["data.source", "prior.source", "distill.init"]),
        (("distill", "--dry-run"), ["data.source", "prior.source", "distill.init"]),
        (("distill", "--profile"), ["data.source", "prior.source", "distill.init"]),
        (("plan",), ["data.source", "prior.source", "distill.init"]),
        (("plan", "--device", "a100-40gb"), ["data.source", "prior.source", "distill.init"]),
        (("ablate",), ["data.source", "prior.source", "distill.init"]),
        (("ablate", "--dry-run"), ["data.source", "prior.source", "distill.init"]),
        (("experts",), ["data.source"]),
        (("experts", "--dry-run"), ["data.source"]),
    ],
)
def test_files_that_are_not_there_are_reported_at_once(
    refused: Refusal, recipe_file: Path, command: tuple[str, ...], expected: list[str]
) -> None:
    """By every command that reads them, a dry run included, before anything is made."""
    name, *options = command
    lines = refused(name, recipe_file, *MISSING, *options)
    assert [line.split(": ")[1] for line in lines] == expected


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_a_prior_is_not_trained_on_images_that_are_not_there(
    refused: Refusal, given: Path, options: tuple[str, ...]
) -> None:
    (given / "prior.yaml").write_text("{name: x, data: {source: /no/data}}")
    parts = ("ld3m: data.source: '/no/data' is not there; give a folder, Parquet files, hub:<id>, or one of digits",)
    assert len(refused("train-prior", given / "prior.yaml", *options, parts=parts)) == 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["data.subset=[circle,hexagon]"],
            "data.subset: 'hexagon' is not a class; the classes are circle, cross",
        ),
        (["data.source=digits"], "the prior does not know the class '0', only circle, cross, square"),
        (["data.source=imagenet", "data.subset=imagenotte"], "data.subset: 'imagenotte' is not a known subset"),
        (["prior.source=of-another-kind"], "'KandinskyPipeline' is not known"),
    ],
    ids=["subset", "classes", "ImageNet", "kind"],
)
def test_a_dry_run_looks_at_classes(
    ld3m: Command, recipe_file: Path, tmp_path: Path, overrides: list[str], said: str
) -> None:
    """Names of folders and the prior's configurations tell, before anything is opened."""
    (tmp_path / "of-another-kind").mkdir()
    (tmp_path / "of-another-kind" / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    code, out, err = ld3m("distill", recipe_file, *overrides, "--dry-run")
    assert (code, out) == (2, "")
    assert re.search(said, err), err


def test_a_name_that_breaks_lines_or_colours_them_is_spelt_out(
    refused: Refusal, recipe_file: Path, given: Path
) -> None:
    (given / "broken\n\x1b[31mname").write_text("")
    lines = refused("distill", recipe_file, f'data.source="{given}/broken\\n\\e[31mname"', "--dry-run")
    assert lines == [
        rf"ld3m: data.source: {given}/broken\n\x1b[31mname is neither a folder nor a .parquet or .arrow file"
    ]


def test_a_dry_run_says_what_it_did_not_look_at(ld3m: Command, recipe_file: Path) -> None:
    plain = ld3m("distill", recipe_file, "data.subset=[circle,square]", "--dry-run")
    assert plain.out.endswith("\n# Not looked at: images, weights\n")
    outside = ld3m("distill", recipe_file, "data.source=hub:a/b", "--dry-run")
    assert outside.out.endswith("\n# Not looked at: images, weights, the classes of hub:a/b\n")


def test_what_contradicts_a_prior_without_denoiser(refused: Refusal, recipe_file: Path) -> None:
    parts = ("ld3m: distill.learn: 'both', but prior.steps=0 leaves the denoiser out", "set distill.learn=latents")
    for options in ((), ("--dry-run",)):
        given = ("distill", recipe_file, "prior.steps=0", "distill.learn=both", *options)
        assert len(refused(*given, parts=parts)) == 1


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"name: [x", ("cannot be read as YAML", "line 1")),
        (b"name: x\n\tseed: 1", ("cannot be read as YAML", "line 2")),
        (b"name: \xff\xfe", ("is damaged (not UTF-8 at byte 6)",)),
        (b"name: 2024-13-45", ("cannot be read as YAML",)),
        (b"- name: x", ("has no keys", "name: my-run")),
        (b"just words", ("has no keys", "name: my-run")),
        (b"", ("is empty; give a YAML file",)),
        (b"name: x\nseed: 1\nname: y", ("cannot be read as YAML: name is given twice, the first time in line 1",)),
        (b"name: x\ndistill: {seed: 1, seed: 2}", ("seed is given twice",)),
        (b"1: x", ("the key 1 is no text",)),
        (b"seed: 010", ("010 is 8 to YAML; put a name in quotes",)),
        (b"data: {subset: [1:30]}", ("1:30 is 90 to YAML",)),
        (b"name: 2024-01-01", ("2024-01-01 is a date to YAML; put it in quotes",)),
        (b"name: !!binary aGk=", ("is a bytes to YAML",)),
        (b"name: !!python/object:os.system {}", ("could not determine a constructor",)),
        (b"name: " + b"[" * 10**4, ("more than 20 sections or lists",)),
        (b"name: " + b"[" * 21 + b"]" * 21, ("more than 20 sections or lists",)),
        (b"name: &a [*a]", ("more than 20 sections or lists",)),
        (BOMB.encode(), ("more than 100,000 values",)),
        (b"seed: 0x" + b"f" * 10**4, ("a number of more than 100 digits",)),
        (b"name: a\x00b", ("cannot be read as YAML", "special characters are not allowed")),
        (b"# nothing but a comment\n", ("has no keys", "name: my-run")),
    ],
)
def test_files_that_are_no_recipe(refused: Refusal, given: Path, content: bytes, parts: tuple[str, ...]) -> None:
    (given / "mine.yaml").write_bytes(content)
    (line,) = refused("distill", given / "mine.yaml", parts=parts)
    assert line.startswith(f"ld3m: {given / 'mine.yaml'}")
    assert len(line) < 400


def test_a_recipe_that_is_not_there(refused: Refusal, given: Path) -> None:
    for name in ("quickstrat", given / "none.yaml", given):  # a folder is none either
        (line,) = refused("distill", name)
        assert line.startswith(f"ld3m: {name}: there is no such recipe; give a YAML file or one of")
        assert "quickstart" in line


def test_a_recipe_of_the_other_kind(refused: Refusal, recipe_file: Path) -> None:
    lines = refused("train-prior", recipe_file)
    assert {line.split(": ")[2] for line in lines} == {"prior", "distill", "network", "evaluate.arch"} | {
        "evaluate.seeds",
        "evaluate.epochs",
    }


def test_mistakes_in_a_prior_recipe(refused: Refusal, given: Path, shapes: Path) -> None:
    path = given / "prior.yaml"
    path.write_text(yaml.safe_dump({"name": "x", "data": {"source": str(shapes), "resolution": 18}}))
    refused("train-prior", path, parts=("data.resolution: 18 cannot be halved 3 times",))
    refused("train-prior", path, "autoencoder.channels=[0]", parts=("autoencoder.channels.0: 0", "greater than 0"))
    refused("train-prior", path, "denoiser.stepz=1", parts=("did you mean denoiser.steps?",))


# --- the data ----------------------------------------------------------------------------------------------


def refuse_data(refused: Refusal, recipe_file: Path, source: Path, *parts: str) -> None:
    (line,) = refused("distill", recipe_file, f"data.source={source}", parts=("data.", *parts))
    assert str(source) in line


@pytest.fixture
def images(given: Path, shapes: Path) -> Path:
    """A copy of the shapes, to be spoilt."""
    return Path(shutil.copytree(shapes, given / "images"))


def test_a_class_without_training_images(refused: Refusal, recipe_file: Path, images: Path) -> None:
    (images / "train" / "star").mkdir()
    refuse_data(refused, recipe_file, images, "class 'star' has too few images", "0 train")


def test_a_class_without_test_images(refused: Refusal, recipe_file: Path, images: Path) -> None:
    for path in (images / "test" / "cross").iterdir():
        path.unlink()
    refuse_data(refused, recipe_file, images, "class 'cross' has too few images", "12 train, 0 test")
    (images / "test" / "cross").rmdir()
    refuse_data(refused, recipe_file, images, "class 'cross' has too few images", "12 train, 0 test")


def test_a_class_that_only_the_test_split_has(refused: Refusal, recipe_file: Path, images: Path) -> None:
    (images / "test" / "star").mkdir()
    refuse_data(refused, recipe_file, images, f"{images / 'test' / 'star'} is a class that {images / 'train'}")


def test_an_image_that_cannot_be_read(refused: Refusal, recipe_file: Path, images: Path) -> None:
    path = images / "train" / "cross" / "3.png"
    path.write_bytes(path.read_bytes()[:40])
    refuse_data(refused, recipe_file, images, f"cannot read {path}", "data.on_corrupt=skip")


def test_a_folder_without_classes(refused: Refusal, recipe_file: Path, given: Path) -> None:
    Image.new("L", (8, 8)).save(given / "0.png")
    refuse_data(refused, recipe_file, given, "has no class folders", "<class>/")


def test_a_file_that_is_no_data(refused: Refusal, recipe_file: Path, given: Path) -> None:
    (given / "images.zip").write_bytes(b"PK")
    refuse_data(refused, recipe_file, given / "images.zip", "neither a folder nor a .parquet or .arrow file")


def test_a_parquet_file_that_is_none(refused: Refusal, recipe_file: Path, given: Path) -> None:
    (given / "train.parquet").write_text("not at all")
    refuse_data(refused, recipe_file, given / "train.parquet", "is not readable as Parquet")


def test_parquet_without_labels(refused: Refusal, recipe_file: Path, given: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"], "caption": ["y"]}), given / "train.parquet")
    why = "data.label_column: no column has the type or a usual name"
    refuse_data(refused, recipe_file, given, why, "has image, caption")


def test_parquet_with_test_files_only(refused: Refusal, recipe_file: Path, given: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"], "label": ["y"]}), given / "test.parquet")
    refuse_data(refused, recipe_file, given, "has no train split, only test; call that of training train")


def test_columns_that_are_not_there(refused: Refusal, recipe_file: Path, given: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"], "label": ["y"]}), given / "train.parquet")
    for key in ("image_column", "label_column"):
        override = f"data.{key}=picture"
        parts = (f"data.{key}: there is no column 'picture'", "has image, label")
        assert len(refused("distill", recipe_file, f"data.source={given}", override, parts=parts)) == 1


@pytest.fixture
def imagenet(given: Path) -> Path:
    """Two classes of ImageNet in the usual layout."""
    for name in ("n01440764", "n01443537"):
        for split in ("train", "val"):
            (given / "imagenet" / split / name).mkdir(parents=True)
            Image.new("L", (16, 16)).save(given / "imagenet" / split / name / "0.png")
    return given / "imagenet"


@pytest.mark.parametrize(
    ("subset", "parts"),
    [
        ("[1000]", ("data.subset: 1000 is not the number of a class; numbers are 0 to 999",)),
        ("[-1]", ("data.subset: -1", "0 to 999")),
        ("[tench, 0]", ("data.subset: names the class 'tench' twice",)),
        ("[n01440764, tench]", ("data.subset: names the class 'tench' twice",)),
        ("[goldfsh]", ("data.subset: 'goldfsh' is not a class; did you mean goldfish or",)),
        ("[n00000000]", ("data.subset: 'n00000000' is not a class",)),
        ("bird", ("data.subset: 'bird' is not a known subset", "list of classes", "imagenette", "birds")),
        ("imagenette", ("n02102040", "'English-springer'", "data.subset")),
        ("null", ("n01484850", "'great-white-shark'", "data.subset")),
    ],
)
def test_classes_that_imagenet_does_not_have(
    refused: Refusal, recipe_file: Path, imagenet: Path, subset: str, parts: tuple[str, ...]
) -> None:
    overrides = ("data.source=imagenet", f"data.root={imagenet}", f"data.subset={subset}")
    assert len(refused("distill", recipe_file, *overrides, parts=parts)) == 1


def test_imagenet_in_another_layout(
    refused: Refusal, recipe_file: Path, imagenet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(imagenet / "val")
    (imagenet / "val").mkdir()
    (imagenet / "val" / "ILSVRC2012_val_00000001.JPEG").touch()
    given = ("distill", recipe_file, "data.source=imagenet", "data.subset=[tench]")
    parts = (f"data.root: {imagenet / 'val'} is not sorted by class", f"{imagenet / 'val' / 'n01440764'}")
    assert len(refused(*given, f"data.root={imagenet}", parts=parts)) == 1
    shutil.rmtree(imagenet / "val")
    parts = (f"data.root: {imagenet} has no validation split: val/n01440764/…",)
    assert len(refused(*given, f"data.root={imagenet}", parts=parts)) == 1
    parts = ("data.root: '/no/such/imagenet' is not a folder", "train/ and val/")
    assert len(refused(*given, "data.root=/no/such/imagenet", parts=parts)) == 1
    monkeypatch.setenv("LD3M_IMAGENET", "/no/such/imagenet")
    assert len(refused(*given, parts=("LD3M_IMAGENET: /no/such/imagenet is not a folder",))) == 1


def test_imagenet_nowhere(refused: Refusal, recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a folder it is the Hub's, which wants its terms accepted, and a network."""
    import datasets

    monkeypatch.delenv("LD3M_IMAGENET", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", {}.__getitem__)
    parts = ("cannot load ILSVRC/imagenet-1k from the Hub", "data.root or LD3M_IMAGENET")
    assert len(refused("distill", recipe_file, "data.source=imagenet", parts=parts)) == 1


# --- core-sets ---------------------------------------------------------------------------------------------


def test_weights_of_another_network(refused: Refusal, recipe_file: Path, given: Path) -> None:
    weights = given / "weights.safetensors"
    weights.write_text("not at all")
    options = ["distill.init=herding", f"data.scorer.source={weights}", "data.scorer.width=8"]
    refused(
        "distill", recipe_file, *options, parts=(f"data.scorer.source: {weights}", "give a safetensors file of weights")
    )
    made = [(4, CLASSES), (8, ["star", "moon", "sun"])]
    expected = ["data.scorer.width=8 for these images and 3 classes", "tells star, moon, sun apart, not circle"]
    for (width, classes), part in zip(made, expected, strict=True):
        network = ConvNet(Shape(1, 16, 3), width)
        safetensors.torch.save_file(network.state_dict(), weights, {"classes": json.dumps(classes)})
        assert len(refused("distill", recipe_file, *options, parts=(f"data.scorer.source: {weights}", part))) == 1


def test_a_prior_is_trained_on_all_images(refused: Refusal, recipe_file: Path) -> None:
    assert any(
        "override data.keep=0.5: unknown key" in line for line in refused("train-prior", recipe_file, "data.keep=0.5")
    )


# --- the prior ---------------------------------------------------------------------------------------------


def refuse_prior(refused: Refusal, recipe_file: Path, source: Path, *parts: str) -> None:
    assert len(refused("distill", recipe_file, f"prior.source={source}", parts=parts)) == 1


@pytest.fixture
def prior(given: Path, prior_folder: Path) -> Path:
    """A copy of the prior, to be spoilt."""
    return Path(shutil.copytree(prior_folder, given / "prior"))


WEIGHTS = {
    "vqvae": "diffusion_pytorch_model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "class_embedder": "model.safetensors",
}


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_prior_with_weights_missing(refused: Refusal, recipe_file: Path, prior: Path, part: str) -> None:
    (prior / part / WEIGHTS[part]).unlink()
    refuse_prior(refused, recipe_file, prior, "prior.source", str(prior / part), "not a whole prior", WEIGHTS[part])


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_prior_with_weights_cut_off(refused: Refusal, recipe_file: Path, prior: Path, part: str) -> None:
    path = prior / part / WEIGHTS[part]
    path.write_bytes(path.read_bytes()[:-100])
    refuse_prior(refused, recipe_file, prior, "prior.source", str(prior), part, "not a whole prior")


@pytest.mark.parametrize("part", [*WEIGHTS, "scheduler"])
def test_a_prior_with_a_part_missing(refused: Refusal, recipe_file: Path, prior: Path, part: str) -> None:
    shutil.rmtree(prior / part)
    refuse_prior(refused, recipe_file, prior, "prior.source", str(prior), part, "not a whole prior")


def test_a_folder_that_is_no_prior(refused: Refusal, recipe_file: Path, shapes: Path) -> None:
    refuse_prior(refused, recipe_file, shapes, f"prior.source: '{shapes}'", "model_index.json")


def test_a_class_table_of_another_width(refused: Refusal, recipe_file: Path, prior: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(4, 15)}, prior / "class_embedder" / "model.safetensors")
    refuse_prior(refused, recipe_file, prior, "prior.source", "class_embedder")


def test_a_class_that_the_prior_does_not_know(refused: Refusal, recipe_file: Path, images: Path) -> None:
    for split in ("train", "test"):
        (images / split / "cross").rename(images / split / "star")
    override = f"data.source={images}"
    parts = ("prior.source", "does not know the class 'star'", "circle, cross, square", "train-prior")
    assert len(refused("distill", recipe_file, override, parts=parts)) == 1


def change_scheduler(prior: Path, **settings: object) -> None:
    path = prior / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_more_steps_than_the_prior_was_trained_with(refused: Refusal, recipe_file: Path, prior: Path) -> None:
    change_scheduler(prior, num_train_timesteps=3)
    refuse_prior(refused, recipe_file, prior, "prior.steps: 3 is not between 0 and 2")


def test_a_noise_schedule_that_is_not_known(refused: Refusal, recipe_file: Path, prior: Path) -> None:
    change_scheduler(prior, beta_schedule="sigmoid")
    refuse_prior(refused, recipe_file, prior, "prior.source", "scheduler", "sigmoid")


# --- the output --------------------------------------------------------------------------------------------


def test_an_output_that_is_not_a_run(refused: Refusal, recipe_file: Path, given: Path) -> None:
    (given / "thesis.tex").write_text("years of work")
    for anew in ((), ("--no-resume",)):
        parts = (f"output: {given} is not empty and not a run", "--output")
        assert len(refused("distill", recipe_file, *anew, "--output", given, parts=parts)) == 1


def test_an_output_that_is_a_file(refused: Refusal, recipe_file: Path, given: Path) -> None:
    (given / "thesis.tex").write_text("years of work")
    for output in (given / "thesis.tex", given / "thesis.tex" / "run"):
        assert len(refused("distill", recipe_file, "--output", output, parts=("output", str(output)))) == 1


@pytest.fixture
def finished(given: Path, recipe_file: Path) -> Path:
    """A run of no iterations, which is finished at its start."""
    folder = given / "run"
    distill(load(Recipe, str(recipe_file), ["distill.iterations=0", f"output={folder}"]))
    assert (folder / "latents.safetensors").is_file()
    return folder


def test_an_output_of_another_recipe(refused: Refusal, recipe_file: Path, finished: Path) -> None:
    parts = (f"output: {finished}", "(prior.skip differ)", "--no-resume")
    assert len(refused("distill", recipe_file, "prior.skip=none", "--output", finished, parts=parts)) == 1


def test_fewer_iterations_than_the_run_already_has(refused: Refusal, recipe_file: Path, given: Path) -> None:
    folder = given / "run"
    distill(load(Recipe, str(recipe_file), ["distill.iterations=2", f"output={folder}"]))
    parts = ("distill.iterations: 1", str(folder), "2", "--no-resume")
    assert len(refused("distill", recipe_file, "distill.iterations=1", "--output", folder, parts=parts)) == 1


def test_a_run_folder_whose_recipe_is_spoilt(refused: Refusal, recipe_file: Path, finished: Path) -> None:
    for content in ("[", "", "seed: -1"):
        (finished / "recipe.yaml").write_text(content)
        assert len(refused("distill", recipe_file, "--output", finished, parts=("output", str(finished)))) == 1


@pytest.mark.parametrize("output", ["2024-11-22", "1e3", "007", "~", "[a]", "a: b", "yes", "a #1"])
def test_an_output_means_what_it_says_whatever_yaml_makes_of_it(ld3m: Command, recipe_file: Path, output: str) -> None:
    code, out, err = ld3m("distill", recipe_file, "--output", output, "--dry-run")
    assert code == 0, err
    assert yaml.safe_load(out)["output"] == output


@pytest.mark.parametrize("command", ["distill", "ablate", "tune", "auto", "evaluate"])
def test_an_empty_output_is_not_this_folder(refused: Refusal, recipe_file: Path, command: str) -> None:
    assert refused(command, recipe_file, "--output", "", parts=("--output: is empty; give a folder",))


# --- evaluate ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--arch", "lenet"], ("--arch: 'lenet' is not known", "convnet", "resnet18")),
        (["--arch", "convnet,vgg11"], ("data.resolution: 16", "vgg11", "32 or more")),
        (
            ["--against", "glister"],
            ("--against: 'glister' is not known", "random, easy, hard, herding, k-center, rded, full"),
        ),
        (["--split", "validation"], ("--split", "'validation'", "data.validation_share")),
        (["--split", "holdout"], ("--split", "'holdout'", "train, test")),
        (["--seeds", "0"], ("override evaluate.seeds=0: 0 is invalid", "greater than or equal to 1")),
        (["--arch", ""], ("override evaluate.arch=[]: [] is invalid", "at least 1")),
        (["evaluate.epochs=-1"], ("override evaluate.epochs=-1: -1 is invalid", "greater than or equal to 1")),
        (["epochs=5"], ("override epochs=5: unknown key; did you mean data.scorer.epochs or experts.epochs",)),
        (["another"], ("RUN: give one run, not 2",)),
    ],
)
def test_evaluate_options(refused: Refusal, finished: Path, options: list[str], parts: tuple[str, ...]) -> None:
    assert len(refused("evaluate", finished, *options, parts=parts)) == 1


def test_evaluate_without_any_run(refused: Refusal) -> None:
    refused("evaluate", parts=("RUN", "no finished run below runs/", "ld3m distill"))


def test_evaluate_a_folder_that_is_no_run(refused: Refusal, shapes: Path) -> None:
    refused("evaluate", shapes, parts=(f"RUN: {shapes} has no recipe of its own; give one that says which data",))
    refused("evaluate", shapes / "nowhere", parts=(f"RUN: there is no {shapes / 'nowhere'}",))


def test_evaluate_a_run_with_images_missing(refused: Refusal, finished: Path) -> None:
    shutil.rmtree(finished / "images" / "cross")
    refused("evaluate", finished, parts=("RUN", str(finished / "images" / "cross"), "no images"))


def test_evaluate_a_run_with_an_image_spoilt(refused: Refusal, finished: Path) -> None:
    path = finished / "images" / "cross" / "0.png"
    path.write_bytes(path.read_bytes()[:40])
    refused("evaluate", finished, parts=("RUN", str(path)))


def test_evaluate_a_run_with_an_image_of_another_size(refused: Refusal, finished: Path) -> None:
    path = finished / "images" / "cross" / "0.png"
    Image.new("L", (9, 9)).save(path)
    refused("evaluate", finished, parts=("RUN", str(path), "16"))


def test_evaluate_a_run_whose_data_has_gone(refused: Refusal, recipe_file: Path, given: Path, images: Path) -> None:
    folder = given / "run"
    distill(load(Recipe, str(recipe_file), ["distill.iterations=0", f"data.source={images}", f"output={folder}"]))
    shutil.rmtree(images)
    refused("evaluate", folder, parts=(f"ld3m: data.source: '{images}' is not there: it was a folder of whoever",))
