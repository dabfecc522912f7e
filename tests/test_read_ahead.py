"""What a GPU is spared: waiting for real images, and for the loop to look at a number."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import make_prior

from ld3m import objectives
from ld3m.data.prepared import ImageSet
from ld3m.distillation.latents import LearntLatents
from ld3m.errors import UserError
from ld3m.files import write_tensors
from ld3m.images import augment
from ld3m.machine.processes import Processes
from ld3m.objectives import draws as module
from ld3m.objectives.draws import Draws, RealBatches
from ld3m.recipe import DistillRecipe, NetworkRecipe, Recipe
from ld3m.recipe.files import load
from ld3m.sampling import Schedule
from ld3m.sampling.memory_budget import MemoryBudget
from ld3m.sampling.noise import Noise
from ld3m.sampling.synthetic import SyntheticImages


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    """Three classes of noise, as they lie on disk."""
    draws = torch.Generator().manual_seed(0)
    for label in range(3):
        pixels = torch.randint(256, (12, 1, 16, 16), generator=draws, dtype=torch.uint8)
        write_tensors(tmp_path / "train" / f"{label}.safetensors", {"images": pixels})
    return ImageSet(
        classes=["one", "two", "three"],
        mean=torch.tensor([0.5]),
        std=torch.tensor([0.25]),
        counts={"train": [12] * 3},
        ids=[0, 1, 2],
        fingerprints=[(12, "")] * 3,
        folder=tmp_path,
        resolution=16,
    )


def draws_of(images: ImageSet) -> Draws:
    """Those of eight images a class, on the CPU."""
    return Draws(0, images, NetworkRecipe(), 8, torch.device("cpu"))


# --- real images -------------------------------------------------------------------------------------------


def read_by(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, bool]]:
    """The batches that are read from here on: iteration, class, and whether the main thread reads them."""
    read: list[tuple[int, int, bool]] = []
    choose = Draws.choose

    def noted(draws: Draws, images: torch.Tensor, iteration: int, label: int) -> torch.Tensor:
        read.append((iteration, label, threading.current_thread() is threading.main_thread()))
        return choose(draws, images, iteration, label)

    monkeypatch.setattr(Draws, "choose", noted)
    return read


@pytest.mark.parametrize("held", [2**30, 2 * 8 * 16 * 16, 1])
def test_what_is_read_ahead_is_what_would_be_drawn(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    """Whether all, two or one of the next three batches may be held, and if a run resumes or repeats an iteration."""
    monkeypatch.setattr(module, "AHEAD", held)
    draws = draws_of(images)
    asked = [(iteration, label) for iteration in (0, 1, 1, 7, 8) for label in (2, 0, 1)]
    expected = [draws.real(images.images("train", label), iteration, label) for iteration, label in asked]
    batches, read = RealBatches(draws, [2, 0, 1], ahead=True), read_by(monkeypatch)
    for key, batch in zip(asked, expected, strict=True):
        assert torch.equal(batches.draw(*key), batch)
        assert len(batches.begun) == {2**30: 3, 2 * 8 * 16 * 16: 2, 1: 1}[held]
    for future in batches.begun.values():
        future.result()
    own = [read[:2] for read in read if read[2]]
    assert own == [(0, 2), (1, 2), (7, 2)], "the first one, that of the iteration again, and that after a jump"


def test_what_cannot_be_read_is_said_by_who_asks(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(draws: Draws, images: torch.Tensor, iteration: int, label: int) -> torch.Tensor:
        if label:
            raise UserError("train/1.safetensors: damaged")
        return images[:2]

    monkeypatch.setattr(Draws, "choose", broken)
    batches = RealBatches(draws_of(images), [0, 1], ahead=True)
    assert len(batches.draw(0, 0)) == 2
    with pytest.raises(UserError, match=r"^train/1\.safetensors: damaged$"):
        batches.draw(0, 1)


# --- numbers -----------------------------------------------------------------------------------------------


def chain(device: torch.device) -> Callable[[], object]:
    """A step of a small prior's chain and back, with the noise of a run and the optimiser's step."""
    prior = make_prior()
    for network in (prior.autoencoder, prior.denoiser):
        network.to(device)
    prior.table, prior.null_embedding = prior.table.to(device), prior.null_embedding.to(device)
    synthetic = SyntheticImages(
        prior=prior,
        schedule=Schedule.of(prior.noise_schedule, 1, "reference", 3.0),
        noise=Noise(0, True, 1, prior.latent_shape),
        labels=[1],
        resolution=16,
        budget=MemoryBudget(1, 0),
    )
    z, c = torch.zeros(1, 1, *prior.latent_shape, device=device), prior.table[1].view(1, 1, 1, -1)
    latents = LearntLatents(z, c, torch.zeros_like(z), torch.zeros_like(c))

    def run() -> object:
        pixels, pull_back = synthetic.render(latents.z, latents.c, 0)
        return latents.step(0, *pull_back(pixels), DistillRecipe())

    return run


def matches(images: ImageSet, device: torch.device, objective: str) -> Callable[[], object]:
    """Two iterations of an objective on one class; those of dc have its inner loop between."""
    settings = [
        "network.width=4",
        "network.depth=1",
        "distill.real_batch=8",
        "distill.dc.inner=1",
        "distill.dc.outer=2",
    ]
    recipe = load(Recipe, "quickstart", [f"distill.objective={objective}", *settings])
    matched = objectives.build(recipe, images, [1] if objective == "dm" else [0, 1, 2], Processes(device))
    pixels = torch.zeros(1 if objective == "dm" else 3, 1, 1, 16, 16, device=device)
    return lambda: [matched.match(i, pixels) for i in range(2)]


def augmentations(device: torch.device) -> Callable[[], object]:
    """Each of them on images that want a gradient, of one draw for all and of a draw each."""
    shown = torch.zeros(3, 1, 16, 16, device=device, requires_grad=True)

    def run() -> object:
        draws = (augment.draw(torch.Generator().manual_seed(seed), 16, count) for seed in range(40) for count in (1, 3))
        chosen = {(each.operation, len(each.draws[0])): each for each in draws}
        assert len(chosen) == 12
        return [torch.autograd.grad(each(shown).sum(), shown) for each in chosen.values()]

    return run


def works(images: ImageSet, device: torch.device, name: str) -> Callable[[], object]:
    """What an iteration does on a device."""
    return {"chain": chain, "augmentations": augmentations}.get(name, lambda on: matches(images, on, name))(device)


@pytest.mark.parametrize("name", [pytest.param("chain", marks=pytest.mark.slow), "dm", "dc", "augmentations"])
def test_no_number_of_an_iteration_is_looked_at(name: str, images: ImageSet) -> None:
    """Tensors on the meta device have none: what would wait for a GPU, `.item()` or a copy to the CPU, raises there."""
    meta = torch.device("meta")
    works(images, meta, name)()
    with pytest.raises(RuntimeError, match="meta"):
        torch.zeros(1, device=meta).item()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and LD3M_TEST_GPU=1")
@pytest.mark.parametrize("name", ["chain", "dm", "dc", "augmentations"])
def test_an_iteration_does_not_wait_for_a_gpu(name: str, images: ImageSet) -> None:
    run = works(images, torch.device("cuda"), name)
    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
