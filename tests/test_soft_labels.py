"""Soft labels: made by a teacher as batches come, or stored with a set for others; the same figure either way."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import CLASSES, Outcome
from test_teachers import recipe_of
from torch import Tensor

from ld3m.data.prepared import ImageSet, prepare
from ld3m.data.selection.mosaics import Judge, mosaics
from ld3m.errors import UserError
from ld3m.evaluation.evaluate import matching_row
from ld3m.evaluation.label import label
from ld3m.evaluation.options import Kept
from ld3m.evaluation.protocols import Task, protocol
from ld3m.evaluation.protocols.details import Protocol
from ld3m.evaluation.soft_labels import Labels, OfEpochs, OfImages, Online, SoftLabels
from ld3m.evaluation.tables import accuracy_table
from ld3m.evaluation.together import Share
from ld3m.evaluation.training import epoch_draws, shown_in_epoch, train
from ld3m.files import cache_folder, cache_key
from ld3m.images.transforms import CutMix
from ld3m.machine.processes import Processes
from ld3m.networks.training import divergence
from ld3m.recipe import Recipe
from ld3m.recipe.files import to_yaml
from ld3m.runs import labels as stored
from ld3m.runs.folder import note_classes
from ld3m.runs.training_set import stored_digest, stored_set
from ld3m.teachers.loading import load
from ld3m.teachers.train import train_teacher

CPU = torch.device("cpu")
EVALUATE = {"protocol": "rd3", "epochs": 3, "arch": ["convnet"], "seeds": 1, "batch": 4}


@pytest.fixture(scope="module")
def recipe(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe whose teacher is trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ld3m.training.fit.curves", lambda *_: None)
        own = recipe_of(shapes, tmp_path_factory.mktemp("teachers") / "shapes")
        train_teacher(own)
    return Recipe.model_validate(own.model_dump() | {"evaluate": EVALUATE})


@pytest.fixture(scope="module")
def images(recipe: Recipe) -> ImageSet:
    return prepare(recipe.data, progress=False)


@pytest.fixture
def run(recipe: Recipe, shapes: Path, tmp_path: Path) -> Path:
    """A set of three images of each class, in the layout of a run."""
    folder = tmp_path / "set"
    for name in CLASSES:
        (folder / "images" / name).mkdir(parents=True)
        for index in range(3):
            shutil.copy(shapes / "train" / name / f"{index}.png", folder / "images" / name)
            resize(folder / "images" / name / f"{index}.png", recipe.data.resolution)
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    note_classes(folder, {name: index for index, name in enumerate(CLASSES)})
    return folder


def resize(path: Path, size: int) -> None:
    from PIL import Image

    Image.open(path).resize((size, size)).save(path)


def how(recipe: Recipe, **changes: object) -> Protocol:
    settings = recipe.evaluate.model_copy(update=changes)
    return protocol(settings, Task("convnet", 3, 9, 16))


def trained(run: Path, images: ImageSet, how: Protocol, seed: int, labels: object) -> dict[str, Tensor]:
    network = train("convnet", *stored_set(run), images, how, (0, seed), CPU, labels)  # type: ignore[arg-type]
    return network.state_dict()


def test_stored_labels_of_epochs_train_as_the_teacher_does(run: Path, recipe: Recipe, images: ImageSet) -> None:
    """Patches shuffled, crops, flips and CutMix: each label is for the same view, so that weights are equal."""
    protocol = how(recipe)
    assert protocol.cutmix == 1
    assert [name for name, _ in protocol.augment] == ["shuffle", "crop", "flip"]
    label(run, recipe, Kept(epochs=3, dtype="float32"))
    note = stored.read_note(run)
    online = trained(run, images, protocol, 0, Online(load(recipe, images, CPU, say=False)))
    kept = trained(run, images, protocol, 0, OfEpochs(run, note))
    assert all(torch.equal(online[name], kept[name]) for name in online)
    longer = OfEpochs(run, note)
    assert longer.view((5, 3, 7)) == (0, 0, 1), "all networks see the views of seed 0, which come round again"
    assert [longer.view((0, 0, epoch))[2] for epoch in range(5)] == [0, 1, 2, 0, 1]


def test_what_is_stored_is_what_the_note_says(run: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    label(run, recipe, Kept(epochs=2))
    note = stored.read_note(run)
    teacher = json.loads((Path(str(recipe.teacher.source)) / "teacher.json").read_text())
    assert (note.teacher, note.accuracy, note.weights) == (
        "shapes (convnet)",
        teacher["accuracy"],
        teacher["sha256"][:16],
    )
    assert (note.classes, note.images, note.epochs, note.content) == (CLASSES, 9, 2, stored_digest(run))
    assert note.views == {
        "augment": {"shuffle": 2.0, "crop": [0.5, 1.0], "flip": 0.5}, "cutmix": 1.0, "batch": 4, "seed": 0
    }  # fmt: skip
    files = [run / "labels" / f"{view}.safetensors" for view in range(2)]
    tensors = [tensor for path in files for tensor in safetensors.torch.load_file(path).values()]
    assert note.size == sum(tensor.numel() * tensor.element_size() for tensor in tensors) == 2 * 9 * 3 * 2
    assert f"{run / 'labels'}: 2 epochs, 3 classes, float16, 108 bytes, of shapes (convnet)" in capsys.readouterr().out
    files[1].unlink()
    before = files[0].stat().st_mtime_ns
    with pytest.raises(UserError, match=r"has labels of 1 of 2 views; the command that began it, ld3m label, makes"):
        stored.check_complete(run, note)
    label(run, recipe, Kept(epochs=2))
    assert torch.equal(safetensors.torch.load_file(files[1])["logits"], tensors[1])
    assert files[0].stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"has labels with epochs 2, not 3; ld3m label with --again replaces them"):
        label(run, recipe, Kept(epochs=3))
    label(run, recipe, Kept(), again=True)
    assert sorted(path.name for path in (run / "labels").glob("[!.]*")) == ["0.safetensors", "labels.json"]


def test_one_label_for_each_image_is_mixed_by_area(run: Path, recipe: Recipe, images: ImageSet) -> None:
    teacher = load(recipe, images, CPU, say=False)
    label(run, recipe, Kept(dtype="float32"))
    labels = OfImages(run, stored.read_note(run), 20.0)
    pixels, _ = stored_set(run)
    expected = teacher(images.normalise(pixels.float() / 255))
    indices = torch.tensor([4, 0, 7])
    assert torch.allclose(labels(torch.zeros(3, 1, 16, 16), indices, 0, None), expected[indices], atol=1e-5)
    mix = CutMix(torch.tensor([2, 0, 1]), (0, 8, 0, 8), 16)  # a quarter of each image
    mixed = (labels(torch.zeros(3, 1, 16, 16), indices, 0, mix) / 20).softmax(1)
    shares = (expected[indices] / 20).softmax(1)
    assert torch.allclose(mixed, 0.75 * shares + 0.25 * shares[[2, 0, 1]], atol=1e-6)
    asked = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"source": "stored"})})
    found = Labels(asked, images, {"distilled": run}, CPU).of(
        "distilled", stored_digest(run), how(recipe, soft_loss="squared")
    )
    linear = 0.75 * expected[indices] + 0.25 * expected[indices][[2, 0, 1]]
    assert torch.allclose(found(torch.zeros(3, 1, 16, 16), indices, 0, mix), linear, atol=1e-5), "of a squared error"


@pytest.mark.parametrize("kind", ["online", "image", "epoch"])
def test_processes_label_their_share_as_one_would(run: Path, recipe: Recipe, images: ImageSet, kind: str) -> None:
    """Of a last batch, too, that has fewer images than processes: one without an image labels one that counts 0."""
    wanted = how(recipe, batch=4)
    if kind == "online":
        labels: SoftLabels = Online(load(recipe, images, CPU, say=False))
    else:
        label(run, recipe, Kept(epochs=2 if kind == "epoch" else 0, dtype="float32"))
        note = stored.read_note(run)
        labels = OfEpochs(run, note) if kind == "epoch" else OfImages(run, note, wanted.temperature)

    def epoch(share: Share | None) -> list[tuple[Tensor, Tensor]]:
        draws = epoch_draws(labels.view((0, 0, 1)))
        shown = shown_in_epoch(*stored_set(run), images, wanted, draws, 1, labels, share)
        return [shown(indices) for indices in torch.arange(9).split(4)]

    whole = epoch(None)
    for rank in range(3):
        for (seen, given), (all_seen, all_given) in zip(epoch(Share(Processes(CPU, rank, 3))), whole, strict=True):
            own = torch.arange(len(all_seen))[rank::3]
            own = own if len(own) else torch.zeros(1, dtype=torch.long)
            assert torch.allclose(seen, all_seen[own], atol=1e-6)
            assert torch.allclose(given, all_given[own], atol=1e-5)


def test_the_top_classes_keep_their_shares_and_the_others_what_is_left() -> None:
    logits = torch.tensor([[3.0, -1.0, 0.5, 2.0, -4.0]])
    note = stored.Note(
        teacher="t", accuracy=50, weights="0", classes=list("abcde"), content="c", images=1, epochs=0,
        dtype="float32", top=2, temperature=4,
    )  # fmt: skip
    packed = stored.packed(logits, note)
    assert (packed["classes"].tolist(), packed["logits"].tolist()) == ([[0, 3]], [[3.0, 2.0]])
    whole, kept = (logits / 4).softmax(1)[0], (stored.unpacked(packed, note) / 4).softmax(1)[0]
    assert torch.allclose(kept[[0, 3]], whole[[0, 3]], atol=1e-6)
    assert torch.allclose(kept[[1, 2, 4]], whole[[1, 2, 4]].sum().expand(3) / 3, atol=1e-6)
    assert note.size == sum(tensor.numel() * tensor.element_size() for tensor in packed.values())


def test_labels_that_do_not_fit_are_refused(run: Path, recipe: Recipe, images: ImageSet) -> None:
    def find(
        name: str = "distilled", content: str = stored_digest(run), source: str | None = "stored", **changes: object
    ):
        asked = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"source": source})})
        return Labels(asked, images, {"distilled": run}, CPU).of(name, content, how(recipe, **changes))

    with pytest.raises(UserError, match=r"^teacher.source: .*set has no stored labels; ld3m label .* stores some"):
        find()
    label(run, recipe, Kept(epochs=2, top=2))
    assert isinstance(find(), OfEpochs)
    assert isinstance(find(source=None), OfEpochs), "a set's own labels go first"
    for arguments, line in (
        (
            {"name": "random"},
            r"^teacher.source: stored labels are of a set's own images, and random has none; ",
        ),
        (
            {"content": "others"},
            r"^teacher.source: .* has labels of other images than .* has now; ld3m label with",
        ),
        ({"batch": 5}, r"^evaluate.batch: 5, but the labels of .* are of views with 4; give evaluate.batch=4, or"),
        ({"cutmix_share": 0.5}, r"^evaluate.cutmix_share: 0.5, but the labels of .* are of views with 1.0"),
        ({"cutmix": 0.0}, r"^evaluate.cutmix: 0.0, but the labels of .* are of views with 1.0"),
        ({"temperature": 4.0}, r"^evaluate.temperature: 4, but the stored labels have their top 2 classes and what is"),
    ):
        with pytest.raises(UserError, match=line):
            find(**arguments)
    path = run / "labels" / "1.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    with pytest.raises(UserError, match=r"1.safetensors is damaged \(it has another digest.*; ld3m label with --again"):
        stored.read_view(run, stored.read_note(run), 1)
    with pytest.raises(UserError, match=r"^--top: 3 of 3 classes are all of them"):
        label(run, recipe, Kept(top=3), again=True)


def test_the_divergence_is_that_of_torch_and_its_square_is_the_temperatures() -> None:
    """Against the definition: the mean over the batch of Σ p log(p/q), both at the temperature."""
    ours, theirs = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), torch.randn(3, 5)
    p, q = (theirs / 20).softmax(1), (ours / 20).softmax(1)
    expected = (p * (p / q).log()).sum() / 3
    assert torch.allclose(divergence(20, False)(ours, theirs), expected, atol=1e-7)
    assert torch.allclose(divergence(20, True)(ours, theirs), 400 * expected, atol=1e-4)


def test_hard_and_soft_figures_stand_side_by_side(
    run: Path, recipe: Recipe, ld3m: Callable[..., Outcome], tmp_path: Path
) -> None:
    """Through the command line: hard labels, a teacher's, and those that are stored; what is known is not repeated."""
    assert ld3m("label", run, "--epochs", 2, "--dtype", "float32").code == 0
    source = f"teacher.source={recipe.teacher.source}"
    for override in ("evaluate.labels=hard", source, "teacher.source=stored"):
        outcome = ld3m("evaluate", run, override, "evaluate.epochs=2", "--seeds", 2)
        assert outcome.code == 0, outcome.err
    report = json.loads((run / "evaluation.json").read_text())
    hard, online, kept = (
        next(row for row in report["results"] if wanted(row["protocol"]))
        for wanted in (
            lambda how: how["labels"] == "hard",
            lambda how: how["labels"] == "soft" and "stored" not in how["teacher"],
            lambda how: how["labels"] == "soft" and "stored" in how["teacher"],
        )
    )
    assert "teacher" not in hard["protocol"]
    assert online["accuracies"][0] == kept["accuracies"][0], "seed 0 sees the views that are stored"
    assert kept["protocol"]["teacher"] == online["protocol"]["teacher"] | {
        "stored": True, "per": "epoch", "epochs": 2, "dtype": "float32", "bytes": 2 * 9 * 3 * 4
    }  # fmt: skip
    table = accuracy_table(report)
    assert table.count("accuracy in %") == 1, "one table"
    assert "convnet, hard labels" in table
    assert "convnet, soft labels of shapes (convnet) at temperature 20" in table
    assert "convnet, soft labels of shapes (convnet), stored per epoch at temperature 20" in table
    accuracy = online["protocol"]["teacher"]["accuracy"]
    said = f"soft labels of shapes (convnet), {accuracy:.1f} % of the test images correct; "
    assert f"{said}made for each batch\n" in table
    assert f"{said}stored: 2 epochs, float32, 216 bytes\n" in table
    published = ("--protocol", "rd3")  # whatever the recipe changes for its own, as evaluate takes it
    assert ld3m("label", run, source, *published, "--epochs", 1, "--again").code == 0
    outcome = ld3m("evaluate", run, *published, "teacher.source=stored", "evaluate.epochs=1", "--seeds", 1)
    assert outcome.code == 0, outcome.err
    again = ld3m("evaluate", run, source, "evaluate.epochs=2", "--seeds", 2)
    assert "all 2 networks are measured already" in again.err
    refused = ld3m("evaluate", run, "teacher.source=gone", "evaluate.epochs=2")
    assert refused.err.endswith("; or take those stored with the set: teacher.source=stored\n")


def test_a_teacher_chooses_the_crops_of_mosaics_where_labels_are_soft(
    run: Path, recipe: Recipe, images: ImageSet, ld3m: Callable[..., Outcome]
) -> None:
    """As in RDED: the crops of lowest cross-entropy by the teacher, which another judge would not choose."""
    outcome = ld3m("evaluate", run, "--against", "rded", "evaluate.epochs=1", "--json")
    assert outcome.code == 0, outcome.err
    row = next(row for row in json.loads(outcome.out)["results"] if row["trained_on"] == "rded")
    weights = row["protocol"]["teacher"]["weights"]
    assert row["mosaics"] == {
        "images": 300, "crops": 5, "factor": 1, "judge": "shapes (convnet)", "weights": weights
    }  # fmt: skip
    assert "scorer" not in row
    assert "rded (crops chosen by shapes (convnet)), 9 images" in accuracy_table({"results": [row]})
    assert outcome.err.count("teacher shapes (convnet): ") == 1, "it is loaded once"
    teacher = load(recipe, images, CPU, say=False)
    judge = Judge(teacher, images.normalise, f"teacher {teacher.classifier.digest}", CPU)
    made = mosaics(images, [3, 3, 3], 1, judge, 0)
    assert row["content"] == cache_key([0, 0, 0, 1, 1, 1, 2, 2, 2], torch.cat(made).numpy().data)
    refused = ld3m("evaluate", run, "--against", "rded", "teacher.source=stored").err
    assert refused.startswith("ld3m: evaluate.mosaics: stored labels say nothing of crops of real images; name their ")


def test_a_teacher_that_is_missing_is_missed_before_anything_is_made(
    run: Path, recipe: Recipe, ld3m: Callable[..., Outcome], tmp_path: Path
) -> None:
    """Not after the images, the scorer that herding wants, or a distillation of hours."""
    soft = ("evaluate.labels=soft", "teacher.source=gone", "evaluate.epochs=1")
    cache = cache_folder()
    before = sorted(cache.rglob("*"))
    for command in (
        ("evaluate", run, "--against", "herding"),
        ("compare", run, "--recipe", run / "recipe.yaml", "--against", "herding"),
        ("ablate", run / "recipe.yaml", "data.keep=0.9", "--output", "ablation"),
    ):
        refused = ld3m(*command, *soft)
        assert refused.code == 2
        assert "teacher.source: there is no gone; ld3m train-teacher with the same recipe trains one" in refused.err
    assert sorted(cache.rglob("*")) == before
    assert not list(tmp_path.glob("ablation/*/*/latents*"))


def test_a_set_of_numbers_is_labelled_in_the_order_that_is_said(
    run: Path, ld3m: Callable[..., Outcome], tmp_path: Path
) -> None:
    for number, name in enumerate(reversed(CLASSES)):
        shutil.copytree(run / "images" / name, tmp_path / "theirs" / f"new{number:03d}")
    (tmp_path / "order.txt").write_text("\n".join(reversed(CLASSES)))
    outcome = ld3m("label", "theirs", "--recipe", run / "recipe.yaml", "--class-order", "order.txt", "--top", 2)
    assert outcome.code == 0, outcome.err
    (folder,) = (tmp_path / "imported").glob("theirs-*")
    assert stored_digest(folder) == stored_digest(run)
    assert stored.read_note(folder).classes == CLASSES


def test_a_set_is_pushed_with_its_labels(run: Path, recipe: Recipe) -> None:
    from ld3m.publishing.card import Section
    from ld3m.publishing.options import Destination
    from ld3m.publishing.push import push

    label(run, recipe, Kept(epochs=2))
    images = 3
    z = torch.zeros(9, 1, 16, 16)
    metadata = {
        "iteration": 0, "classes": CLASSES, "noise": "fixed", "noise_iteration": 0, "seed": 0, "format": "x"
    }  # fmt: skip
    rows = {"z": z, "c": torch.zeros(9, 1), "labels": torch.arange(3).repeat_interleave(images)}
    safetensors.torch.save_file(rows, run / "latents.safetensors", {"ld3m": json.dumps(metadata)})
    text = to_yaml(recipe.model_copy(update={"distill": recipe.distill.model_copy(update={"images_per_class": 3})}))
    (run / "recipe.yaml").write_text(text)
    push(run, Destination(to="me/shapes"), dry_run=True)
    sent = run / "hub" / "ipc3-16px" / "labels"
    assert sorted(path.name for path in sent.iterdir()) == ["0.safetensors", "1.safetensors", "labels.json"]
    assert all(path.read_bytes() == (run / "labels" / path.name).read_bytes() for path in sent.iterdir())
    card = (run / "hub" / "README.md").read_text()
    note = stored.read_note(run)
    assert f"2 epochs, 3 classes, float16, 108 bytes, of shapes (convnet) ({note.accuracy:.1f} %)" in card
    assert str(recipe.teacher.source) not in card + (sent / "labels.json").read_text()
    shutil.copy(run / "images" / "circle" / "0.png", run / "images" / "circle" / "1.png")
    with pytest.raises(UserError, match="has labels of other images than"):
        Section.of(run)


def test_what_was_measured_is_found_again_without_the_teacher(recipe: Recipe, run: Path) -> None:
    """As an ablation asks, which loads none: the row of the teacher that the recipe names, and of no other."""
    folder = Path(str(recipe.teacher.source))
    weights = json.loads((folder / "teacher.json").read_text())["sha256"][:16]
    online = {"teacher": "shapes (convnet)", "accuracy": 90.0, "weights": weights}
    kept = online | {"stored": True, "per": "image", "dtype": "float16", "bytes": 54}
    protocol = how(recipe)

    def found(about: dict[str, object], source: object) -> bool:
        asked = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"source": source})})
        row = {
            "trained_on": "distilled", "arch": "convnet", "split": "test", "accuracies": [50.0], "seed": 0,
            "protocol": replace(protocol, teacher=about).row(),
        }  # fmt: skip
        return matching_row([row], asked, protocol, "distilled", "convnet", "test") is not None

    assert found(online, str(folder))
    assert not found(online | {"weights": "0123456789abcdef"}, str(folder)), "it was trained again since"
    assert not found(kept, str(folder))
    assert found(kept, "stored")
    assert not found(online, "stored")
    assert found(online | {"teacher": "torchvision/resnet18@IMAGENET1K_V1"}, "torchvision/resnet18")
    assert not found(online | {"teacher": "torchvision/resnet34@IMAGENET1K_V1"}, "torchvision/resnet18")


def test_mosaics_of_another_judge_are_not_taken_for_those_asked_for(recipe: Recipe) -> None:
    """As an ablation finds rows: who judged, what weights it had and how many crops an image holds must be the same."""
    weights = json.loads((Path(str(recipe.teacher.source)) / "teacher.json").read_text())["sha256"][:16]
    by_scorer = {"images": 300, "crops": 5, "factor": 1}
    judged = by_scorer | {"judge": "shapes (convnet)", "weights": weights}

    def found(made: dict[str, object], **changes: object) -> bool:
        settings = recipe.evaluate.model_copy(update=changes)
        asked = recipe.model_copy(update={"evaluate": settings})
        task = Task("convnet", 3, 6, recipe.data.resolution)
        protocol_asked = protocol(settings, task, "rded")
        row = {
            "trained_on": "rded", "arch": "convnet", "split": "test", "accuracies": [50.0], "seed": 0, "mosaics": made,
            "protocol": protocol_asked.row(),
        }  # fmt: skip
        return matching_row([row], asked, protocol_asked, "rded", "convnet", "test") is not None

    assert found(judged)
    assert not found(by_scorer), "labels are soft, so that the teacher judges"
    assert not found(judged | {"weights": "0123456789abcdef"}), "it was trained again since"
    assert not found(by_scorer | {"judge": "shapes (convnet)"}), "an older version did not say which weights"
    assert not found(judged | {"factor": 2})
    assert found(by_scorer, labels="hard")
    assert not found(judged, labels="hard")
    assert found(judged, labels="hard", mosaics="teacher")
    assert found(by_scorer, mosaics="scorer")
