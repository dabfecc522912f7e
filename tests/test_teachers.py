"""Teachers: whose outputs are whose classes, what they see, how good they are, and how one is trained."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from conftest import CLASSES, Outcome, relative
from torch import Tensor, nn

from ld3m import networks
from ld3m.data.known import imagenet
from ld3m.data.prepared import ImageSet, prepare
from ld3m.data.selection import testing
from ld3m.errors import UserError
from ld3m.networks import Shape
from ld3m.recipe import NetworkRecipe, Recipe
from ld3m.teachers.loading import load
from ld3m.teachers.teacher import Classifier, Teacher
from ld3m.teachers.train import train_teacher

CPU = torch.device("cpu")
COUNTER = {"n_averaged": torch.tensor(3)}
"""What AveragedModel of PyTorch adds."""


@pytest.fixture(autouse=True, scope="module")
def without_pictures() -> Iterator[None]:
    """Curves take longer than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ld3m.training.fit.curves", lambda *_: None)
        yield


def recipe_of(shapes: Path, folder: Path | str | None, **teacher: object) -> Recipe:
    small = {"arch": "convnet", "width": 16, "depth": 2, "epochs": 10, "batch": 12, "lr": 0.01, "augment": False}
    return Recipe.model_validate(
        {
            "name": "shapes",
            "data": {"source": str(shapes), "resolution": 16, "channels": 1},
            "prior": {"source": "pixels"},
            "teacher": {**small, "source": None if folder is None else str(folder), **teacher},
        }
    )


@pytest.fixture(scope="module")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_teacher(recipe_of(shapes, tmp_path_factory.mktemp("teachers") / "shapes"))


@pytest.fixture
def images(shapes: Path) -> ImageSet:
    return prepare(recipe_of(shapes, None).data, progress=False)


def weights(folder: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / "weights.safetensors")


def network_of(folder: Path) -> nn.Module:
    """The teacher's network, built and filled without its loader."""
    built = networks.build(
        "convnet", Shape(1, 16, 3), NetworkRecipe(width=16, depth=2, norm="batch"), torch.Generator()
    )
    built.load_state_dict(weights(folder))
    return built.eval()


# --- one that is trained here ------------------------------------------------------------------------------


def test_its_folder_says_what_it_is_and_how_good(trained: Path, images: ImageSet, shapes: Path) -> None:
    note = json.loads((trained / "teacher.json").read_text())
    assert note["classes"] == CLASSES
    assert note["images"] == {name: list(each) for name, each in zip(CLASSES, images.fingerprints, strict=True)}
    assert (note["arch"], note["epochs"], note["resolution"], note["channels"]) == ("convnet", 10, 16, 1)
    assert note["mean"] == images.mean.tolist()
    assert note["accuracy"] == round(testing.tested(network_of(trained), images, "test", CPU).accuracy, 2)
    assert note["accuracy"] > 60
    assert note["tested_on"] == 18
    steps = [json.loads(line)["step"] for line in (trained / "training" / "teacher.jsonl").read_text().splitlines()]
    assert steps[-1] == 10 * 36 // 12 - 1  # 36 images, each once in an epoch


def test_it_labels_as_its_network_does(
    trained: Path, images: ImageSet, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = load(recipe_of(shapes, trained), images, CPU)
    batch = torch.randn(5, 1, 16, 16)
    assert relative(teacher(batch), network_of(trained)(batch).detach()) < 1e-5  # it rounds otherwise
    note = json.loads((trained / "teacher.json").read_text())
    assert teacher.about == {
        "teacher": "shapes (convnet)", "accuracy": note["accuracy"], "weights": note["sha256"][:16]
    }  # fmt: skip
    said = capsys.readouterr().err
    assert "teacher shapes (convnet): its 3 classes matched by name (circle, cross, square)" in said
    assert f"{note['accuracy']:.1f} % of 18 test images are classified correctly" in said


def test_killed_and_interrupted_it_ends_at_the_same_weights(
    trained: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal at step 7 saves there; a kill at step 25 loses what is after the checkpoint of step 20."""
    recipe = recipe_of(shapes, tmp_path / "cut", checkpoint_every=10)
    seen: list[int] = []

    def at(step: int, react: Callable[[], None]) -> None:
        def watched(optimiser: torch.optim.Optimizer, *arguments: object, **keys: object) -> object:
            seen.append(len(seen))
            if len(seen) == step:
                react()
            return real(optimiser, *arguments, **keys)

        monkeypatch.setattr(torch.optim.AdamW, "step", watched)

    real = torch.optim.AdamW.step
    at(7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stop:
        train_teacher(recipe)
    assert stop.value.code == 128 + signal.SIGTERM
    assert not (tmp_path / "cut" / "teacher.json").exists()

    def die() -> None:
        raise RuntimeError("killed")

    at(25, die)
    with pytest.raises(RuntimeError, match="killed"):
        train_teacher(recipe)
    monkeypatch.setattr(torch.optim.AdamW, "step", real)
    with pytest.raises(UserError, match="is unfinished; the command that began it resumes"):
        load(recipe, prepare(recipe.data, progress=False), CPU)
    train_teacher(recipe)
    whole, resumed = weights(trained), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_it_saves_by_the_clock_where_steps_take_long(
    trained: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at step 4, long before the first checkpoint of steps, it resumes at step 3, to the same weights."""
    recipe, real, seen = recipe_of(shapes, tmp_path / "slow"), torch.optim.AdamW.step, []

    def dying(optimiser: torch.optim.Optimizer, *arguments: object, **keys: object) -> object:
        seen.append(1)
        if len(seen) == 4:
            raise RuntimeError("killed")
        return real(optimiser, *arguments, **keys)

    with monkeypatch.context() as patch:
        patch.setattr("ld3m.training.fit.SAVE_EVERY", 0.0)
        patch.setattr(torch.optim.AdamW, "step", dying)
        with pytest.raises(RuntimeError, match="killed"):
            train_teacher(recipe)
    with safetensors.safe_open(tmp_path / "slow" / "training" / "teacher.safetensors", "pt") as file:
        assert file.metadata()["step"] == "3"
    train_teacher(recipe)
    whole, resumed = weights(trained), weights(tmp_path / "slow")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_command_repeats_nothing_and_refuses_what_is_another(
    trained: Path, shapes: Path, tmp_path: Path, ld3m: Callable[..., Outcome]
) -> None:
    folder = shutil.copytree(trained, tmp_path / "copy")
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe_of(shapes, folder).model_dump(mode="json")))
    note = json.loads((trained / "teacher.json").read_text())
    before = (folder / "weights.safetensors").stat().st_mtime_ns
    done = ld3m("train-teacher", file)
    assert (done.code, done.out) == (
        0, f"{folder}: convnet of 3 classes, {note['accuracy']:.2f} % of 18 test images after 10 epochs\n"
    )  # fmt: skip
    assert (folder / "weights.safetensors").stat().st_mtime_ns == before
    for override, line in {
        "teacher.epochs=11": f"teacher.source: {folder} holds a teacher of another recipe",
        "teacher.source=torchvision/resnet18": "teacher.source: 'torchvision/resnet18' is trained already",
        "teacher.source=mine.pt": "teacher.source: 'mine.pt' is trained already",
        f"teacher.source={shapes}": f"teacher.source: {shapes} is not empty and not a teacher of ld3m train-teacher",
        "teacher.arch=torchvision/resnet18": "teacher.arch: 'torchvision/resnet18' is read from files alone",
    }.items():
        refused = ld3m("train-teacher", file, override)
        assert refused.code == 2
        assert refused.err.startswith(f"ld3m: {line}")
        assert refused.err.count("\n") == 1


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda folder: (folder / "teacher.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "weights.safetensors").unlink(), "is missing"),
        (
            lambda folder: safetensors.torch.save_file({"a": torch.ones(1)}, folder / "weights.safetensors"),
            "another digest",
        ),
    ],
)
def test_a_damaged_folder_says_what_to_do(
    trained: Path, shapes: Path, images: ImageSet, tmp_path: Path, spoil: Callable[[Path], object], line: str
) -> None:
    folder = shutil.copytree(trained, tmp_path / "copy")
    spoil(folder)
    with pytest.raises(UserError, match=line) as refusal:
        load(recipe_of(shapes, folder), images, CPU)
    assert str(refusal.value).startswith(f"teacher.source: {folder}")
    assert str(refusal.value).endswith("train it again: ld3m train-teacher with --no-resume")


# --- one of somebody else's --------------------------------------------------------------------------------


def test_permuted_classes_are_matched_by_name(trained: Path, images: ImageSet, shapes: Path, tmp_path: Path) -> None:
    """Its outputs in another order, under other spellings: the labels are the same ones."""
    order = [2, 0, 1]
    permuted = weights(trained)
    for name in ("classifier.weight", "classifier.bias"):
        permuted[name] = permuted[name][order].clone()
    torch.save({"state_dict": {f"module.{name}": value for name, value in permuted.items()}}, tmp_path / "theirs.pt")
    own = {"mean": images.mean.tolist(), "std": images.std.tolist()}
    classes = [f"{order[index]}_{CLASSES[order[index]].upper()}" for index in range(3)]
    teacher = load(recipe_of(shapes, tmp_path / "theirs.pt", classes=classes, **own), images, CPU)
    batch = torch.randn(4, 1, 16, 16)
    assert torch.allclose(teacher(batch), network_of(trained)(batch), atol=1e-6)
    assert teacher.columns.tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    "saved",
    [
        lambda weights: {"net": weights, "acc": 81.3, "epoch": 3},
        lambda weights: {"optimizer": {"state": {0: {"step": torch.ones(1)}}}, "params": weights},
        lambda weights: {"state_dict": {f"model.backbone.{name}": value for name, value in weights.items()}},
        lambda weights: {"model": {f"module.{name}": value for name, value in weights.items()} | COUNTER},
        lambda weights: {f"_orig_mod.module.{name}": value for name, value in weights.items()},
    ],
    ids=["net", "params", "lightning", "averaged", "compiled"],
)
def test_weights_are_found_as_training_scripts_save_them(
    trained: Path, images: ImageSet, shapes: Path, tmp_path: Path, saved: Callable[[dict[str, Tensor]], object]
) -> None:
    torch.save(saved(weights(trained)), tmp_path / "theirs.pth")
    own = {"mean": images.mean.tolist(), "std": images.std.tolist()}
    teacher = load(recipe_of(shapes, tmp_path / "theirs.pth", classes="by-position", **own), images, CPU)
    batch = torch.randn(4, 1, 16, 16)
    assert torch.allclose(teacher(batch), network_of(trained)(batch), atol=1e-6)


def test_a_whole_network_in_a_file_is_named(trained: Path, images: ImageSet, shapes: Path, tmp_path: Path) -> None:
    torch.save(network_of(trained), tmp_path / "theirs.pth")
    line = (
        r"theirs.pth: holds no tensors by name, but objects that are not created \(.*save the model's state_dict\(\)$"
    )
    with pytest.raises(UserError, match=line):
        load(recipe_of(shapes, tmp_path / "theirs.pth", classes="by-position"), images, CPU)


def test_classes_that_are_not_known_are_refused(trained: Path, images: ImageSet, shapes: Path, tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    safetensors.torch.save_file(weights(trained), path)  # without the classes
    with pytest.raises(UserError, match=r"does not say what its 3 outputs are; .* by-position if they are circle"):
        load(recipe_of(shapes, path), images, CPU)
    with pytest.raises(UserError, match=r"^teacher.classes: has 2 classes, and the network 3 outputs"):
        load(recipe_of(shapes, path, classes=["circle", "cross"]), images, CPU)
    with pytest.raises(UserError, match=r"has no class 'square' among its 3 \(circle, cross, star\)"):
        load(recipe_of(shapes, path, classes=["circle", "cross", "star"]), images, CPU)
    by_position = load(recipe_of(shapes, path, classes="by-position"), images, CPU, say=False)
    assert by_position.columns.tolist() == [0, 1, 2]
    with pytest.raises(UserError, match=r"no better than guessing; renamed one for one, 100.0 % would be right"):
        load(recipe_of(shapes, path, classes=["square", "circle", "cross"]), images, CPU)


def test_columns_of_an_imagenet_teacher_go_by_wordnet_id(images: ImageSet, shapes: Path, tmp_path: Path) -> None:
    """A file with 1,000 outputs, of which the set's classes, folders of ids and English names, are three."""
    numbers = [207, 0, 281]
    known = imagenet.classes()
    assert [known[number].wordnet_id for number in numbers] == ["n02099601", "n01440764", "n02123045"]
    named = replace(images, classes=["n02099601", "tench", "n02123045-tabby"])
    torch.manual_seed(0)
    network = networks.build("convnet", Shape(3, 32, 1000), NetworkRecipe(width=4, depth=1), torch.Generator())
    safetensors.torch.save_file(network.state_dict(), tmp_path / "thousand.safetensors")
    settings = {"width": 4, "depth": 1, "norm": "instance", "resolution": 32}
    with pytest.MonkeyPatch.context() as patch:  # random weights are at chance, which is another test
        patch.setattr("ld3m.data.selection.testing.at_chance", lambda *_: False)
        teacher = load(recipe_of(shapes, tmp_path / "thousand.safetensors", **settings), named, CPU)
    assert teacher.columns.tolist() == numbers
    pixels = torch.rand(2, 1, 16, 16)
    seen = torch.nn.functional.interpolate(pixels, (32, 32), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = network.eval()((seen - mean) / std)[:, numbers]
    assert torch.allclose(teacher(images.normalise(pixels)), expected, atol=1e-4)


class SmallResNet(nn.Module):
    """What torchvision's ResNets are to the loader: their stem, under its names, and as many outputs as are wanted."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.conv1, self.maxpool = nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1)
        self.bn1, self.fc = nn.BatchNorm2d(4), nn.Linear(4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.maxpool(self.bn1(self.conv1(images))).mean((2, 3)))


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Stands in for the library, which CI has not: its interface, as of 0.29, with one model of it and its weights."""
    pretrained = SmallResNet().eval()
    preset = SimpleNamespace(crop_size=[24], resize_size=[28], mean=[0.5, 0.25, 0.125], std=[0.5, 0.5, 0.25])
    meta = {"categories": [f"a name of {number}" for number in range(1000)]}
    weights = SimpleNamespace(name="IMAGENET1K_V1", transforms=lambda: preset, meta=meta)

    class Weights(dict[str, object]):  # as an Enum is asked
        DEFAULT = weights
        __members__ = ("IMAGENET1K_V1", "DEFAULT")

    def get_model(name: str, weights: object, **settings: int) -> nn.Module:
        return pretrained if weights else SmallResNet(**settings)

    models = SimpleNamespace(
        list_models=lambda module: ["resnet18", "resnet34"],
        get_model=get_model,
        get_model_weights=lambda name: Weights(IMAGENET1K_V1=weights),
    )
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))  # type: ignore[arg-type]
    monkeypatch.setattr("ld3m.data.selection.testing.at_chance", lambda *_: False)  # of random weights
    return pretrained


def test_a_resnet_of_torchvision_is_read_from_a_file(
    torchvision: nn.Module, images: ImageSet, shapes: Path, tmp_path: Path
) -> None:
    """With the stem for small images that SRe2L and RDED give it."""
    network = SmallResNet(3)
    network.conv1, network.maxpool = nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.Identity()
    network.bn1.running_mean, network.bn1.running_var = torch.randn(4), torch.rand(4) + 0.1
    saved = {name: value for name, value in network.state_dict().items() if name != "bn1.num_batches_tracked"}
    torch.save({"model": saved}, tmp_path / "theirs.pth")  # as PyTorch before 0.4.1 and torchvision's own files
    recipe = recipe_of(shapes, tmp_path / "theirs.pth", arch="torchvision/resnet18", classes="by-position")
    teacher = load(recipe, images, CPU)
    batch = torch.randn(2, 1, 16, 16)
    assert torch.allclose(teacher(batch), network.eval()(batch.expand(-1, 3, -1, -1)), atol=1e-5)


def test_one_of_torchvision_by_name(
    torchvision: nn.Module, images: ImageSet, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its thousand outputs are ImageNet's, whatever their English names; its preset says what it sees."""
    named = replace(images, classes=["n02123045", "goldfish", "tench"])
    teacher = load(recipe_of(shapes, "torchvision/resnet18"), named, CPU)
    assert teacher.columns.tolist() == [281, 1, 0]
    assert (
        "3 of its 1,000 classes matched by name or WordNet id (n02123045, goldfish = n01443537, "
        in capsys.readouterr().err
    )
    pixels = torch.rand(2, 1, 16, 16)
    seen = nn.functional.interpolate(pixels, (24, 24), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in ([0.5, 0.25, 0.125], [0.5, 0.5, 0.25]))
    expected = torchvision((seen - mean) / std)[:, [281, 1, 0]]
    assert torch.allclose(teacher(images.normalise(pixels)), expected, atol=1e-5)
    assert teacher.about["teacher"] == "torchvision/resnet18@IMAGENET1K_V1"
    for source, line in {
        "torchvision/resnet19": "torchvision has no classifier 'resnet19'; near are torchvision/resnet18",
        "torchvision/resnet18@V3": "resnet18 has no weights 'V3'; it has IMAGENET1K_V1, DEFAULT",
    }.items():
        with pytest.raises(UserError, match=f"^teacher.source: {line}"):
            load(recipe_of(shapes, source), named, CPU)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"arch": "resnet18"}, r"^teacher.arch: .* does not hold the weights of a resnet18 \(it lacks "),
        ({"width": 8}, r"does not hold the weights of a convnet \(its .* is \[.*\], not \["),
        ({"classes": "names"}, r"^teacher.classes: 'names' is invalid: give a list of names, a .txt"),
        ({"classes": "no.txt"}, r"^teacher.classes: 'no.txt' is missing"),
        ({"mean": [0.1, 0.2], "std": [1, 1], "classes": "by-position"}, r"^teacher.mean: .* is for 2 channels, and "),
    ],
    ids=["arch", "width", "classes", "file", "mean"],
)
def test_what_does_not_fit_a_file_is_named(
    trained: Path, images: ImageSet, shapes: Path, tmp_path: Path, settings: dict[str, object], line: str
) -> None:
    path = tmp_path / "theirs.safetensors"
    safetensors.torch.save_file(weights(trained), path)
    with pytest.raises(UserError, match=line):
        load(recipe_of(shapes, path, **settings), images, CPU)


def test_what_is_no_teacher_is_refused(images: ImageSet, shapes: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("{}")
    for source, line in {
        None: "teacher.source: there is no teachers/shapes; ld3m train-teacher with the same recipe trains one",
        "missing": "teacher.source: there is no missing; ld3m train-teacher with the same recipe trains one, or give t",
        tmp_path: f"teacher.source: {tmp_path} has no teacher.json; or give torchvision/<model>",
        notes: f"teacher.source: {notes}: is a JSON text; get the file with the weights",
    }.items():
        with pytest.raises(UserError) as refusal:
            load(recipe_of(shapes, source), images, CPU)
        assert str(refusal.value).startswith(line)


def test_libraries_that_are_missing_are_named(images: ImageSet, shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchvision", "timm"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UserError, match=rf"^teacher.source: '{name}/resnet18' needs .*pip install 'ld3m\[timm\]'"):
            load(recipe_of(shapes, f"{name}/resnet18"), images, CPU)


def test_a_teacher_of_other_sizes_and_colours_sees_what_it_was_trained_on(images: ImageSet) -> None:
    """Grey images in three channels, resized, by its own mean and std; its outputs in the set's order."""
    seen: list[Tensor] = []

    class Watching(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(inputs)
            return torch.arange(4.0).expand(len(inputs), 4)

    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 4.0])
    classifier = Classifier("watching", Watching(), list("abcd"), mean, std, 8, "0" * 64)
    teacher = Teacher(classifier, images, torch.tensor([3, 1, 0]))
    assert torch.equal(teacher(images.normalise(torch.full((2, 1, 16, 16), 0.5))), torch.tensor([[3.0, 1.0, 0.0]] * 2))
    (inputs,) = seen
    assert inputs.shape == (2, 3, 8, 8)
    assert torch.allclose(inputs[0, :, 4, 4], torch.tensor([0.4, 0.15, 0.05]), atol=1e-6)
