"""Core-sets: which real images of each class stand best for it, by the losses and features of a trained network."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from ld3m import networks
from ld3m.data.cached import REMOVE, cached
from ld3m.data.layouts.identity import CHEAP
from ld3m.data.prepared import ImageSet
from ld3m.data.selection import scorer
from ld3m.errors import UserError, one_line
from ld3m.files import cache_folder, cache_key, tensors_digest, write_tensors
from ld3m.images.ranges import bytes_to_unit
from ld3m.machine.out_of_memory import in_parts
from ld3m.randomness import generator
from ld3m.reading import Tensors, TensorSpec, parse_json, read_tensors
from ld3m.recipe import DistilledDataRecipe, NetworkRecipe, ScorerRecipe

LAYOUT = 1
"""Version of the layout of cached scores; part of their key."""
DIGEST = "sha256"
"""Key of their metadata that has their digest."""
CHUNK = 100
"""Images scored at a time."""


# --- selections: indices in the order in which they are taken, so that fewer are a beginning of more -------


def easy(losses: Tensor, count: int) -> Tensor:
    """The images of lowest loss, lowest first.

    Moser et al., "Distill the Best, Ignore the Rest" (arXiv 2411.12115).

    Args:
        losses: [n].
        count: how many; all if there are fewer.

    Returns:
        int64 [min(count, n)].
    """
    return losses.argsort(stable=True)[:count]


def hard(losses: Tensor, count: int) -> Tensor:
    """The images of highest loss, highest first: `easy` from its other end, ties included."""
    return losses.argsort(stable=True).flip(0)[:count]


def herding(features: Tensor, count: int) -> Tensor:
    """Greedily the images that bring the mean of those taken nearest to the mean of all (Welling, ICML 2009).

    As iCaRL has it (Rebuffi et al., CVPR 2017), without normalising features and without taking an image twice.

    Args:
        features: [n, d].
        count: how many; all if there are fewer.

    Returns:
        int64 [min(count, n)].
    """
    mean, squares = features.mean(0), features.square().sum(1)
    total = torch.zeros_like(mean)
    chosen: list[int] = []
    for taken in range(1, min(count, len(features)) + 1):
        # ‖mean − (total + f) / taken‖² is least if 2 f·(taken · mean − total) − ‖f‖² is largest
        gain = 2 * (features @ (taken * mean - total)) - squares
        gain[chosen] = -torch.inf
        chosen.append(int(gain.argmax()))
        total += features[chosen[-1]]
    return torch.tensor(chosen)


def k_center(features: Tensor, count: int) -> Tensor:
    """Farthest first: each next image is the one farthest from all taken (Sener and Savarese, ICLR 2018).

    Starts at the image nearest to the mean. Covers the class within at most twice the least radius that as many
    images can (Gonzalez, 1985). Arguments and result as `herding`'s.
    """
    mean, squares = features.mean(0), features.square().sum(1)
    chosen = [int((squares - 2 * (features @ mean)).argmin())]
    distances = torch.full_like(squares, torch.inf)
    for _ in range(1, min(count, len(features))):
        newest = chosen[-1]
        distances = torch.minimum(distances, squares - 2 * (features @ features[newest]) + squares[newest])
        distances[chosen] = -torch.inf  # an image is not taken twice, even if others equal it
        chosen.append(int(distances.argmax()))
    return torch.tensor(chosen)


SELECTIONS: dict[str, tuple[str, Callable[[Tensor, int], Tensor]]] = {
    "easy": ("losses", easy),
    "hard": ("losses", hard),
    "herding": ("features", herding),
    "k-center": ("features", k_center),
}
"""What a selection looks at, and its function; "random" looks at nothing."""


# --- the set they are taken from ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Coreset(ImageSet):
    """Prepared images of which some or all training images are kept; mean and std stay those of all of them.

    `images("train", label)` holds the kept images of a class in memory, and maps them if all are kept.
    """

    kept: Callable[[int], Tensor | slice]
    """The indices of the kept training images of a class."""
    scores: Path | None
    """The folder of losses and features of all training images, if a selection looks at them."""

    def images(self, split: str, label: int) -> Tensor:
        images = super().images(split, label)
        return images[self.kept(label)] if split == "train" else images

    def select(self, name: str, label: int, count: int, draws: torch.Generator) -> Tensor:
        """Indices int64 [at most count] into the kept training images of a class.

        Args:
            name: "random", "full" for all, or one of `SELECTIONS` if the set was opened for it.
            count: how many; all if there are fewer.
            draws: decides "random"; the others draw nothing.
        """
        if name == "random":
            return torch.randperm(self.counts["train"][label], generator=draws)[:count]
        if name == "full":
            return torch.arange(self.counts["train"][label])
        measure, selection = SELECTIONS[name]
        return selection(self.scored(measure, label), count)

    def scored(self, measure: str, label: int) -> Tensor:
        """`losses` [n] or `features` [n, d] of the kept training images of a class, as the scorer sees them.

        Raises:
            UserError: if they are not finite.
        """
        assert self.scores, "the set was not opened for scores"
        values = _read_scores(self.scores, label)[measure]
        if not values.isfinite().all():  # of the network, or damaged; an order would mean nothing
            raise UserError(f"the {measure} of class {self.classes[label]!r} in {self.scores} are not finite; {REMOVE}")
        return values[self.kept(label)]


def open_whole(
    images: ImageSet, recipe: DistilledDataRecipe, selections: Iterable[str], device: torch.device
) -> Coreset:
    """All images, ready for selections by these names; scores them if that was not done before."""
    scores = score(images, recipe.scorer, device) if any(name in SELECTIONS for name in selections) else None
    return Coreset(**vars(images), kept=lambda label: slice(None), scores=scores)


def open_kept(
    images: ImageSet, recipe: DistilledDataRecipe, seed: int, selections: Iterable[str], device: torch.device
) -> Coreset:
    """The images that the recipe keeps, in the order of the prepared ones; else as `open_whole`."""
    if recipe.keep == 1:
        return open_whole(images, recipe, selections, device)
    whole = open_whole(images, recipe, [recipe.keep_order, *selections], device)
    counts = [kept_count(recipe, count) for count in images.counts["train"]]

    @cache  # a process looks at its own classes only, but more than once
    def kept(label: int) -> Tensor:
        draws = generator(seed, "keep", label)
        return whole.select(recipe.keep_order, label, counts[label], draws).sort().values

    return Coreset(**{**vars(whole), "kept": kept, "counts": {**images.counts, "train": counts}})


def kept_count(recipe: DistilledDataRecipe, count: int) -> int:
    """How many of a class's training images are kept."""
    return max(1, round(recipe.keep * count))


# --- scores ------------------------------------------------------------------------------------------------


def score(images: ImageSet, recipe: ScorerRecipe, device: torch.device) -> Path:
    """The cached folder of scores of all training images, made if it is not there.

    For each class `<label>.safetensors` holds `losses` float32 [n], cross-entropies of the unaugmented images, and
    `features` float32 [n, d], what the network's classifier sees; one class is in memory at a time. The weights,
    `scorer.safetensors`, may be another recipe's `source`.

    Raises:
        UserError: for an unknown network, or given weights that are not its.
    """
    networks.check(recipe.arch, images.shape, NetworkRecipe(width=recipe.width), "data.scorer.arch")
    settings = recipe.model_dump(exclude={"source", "epochs", "seed"} if recipe.source else {"source"})
    weights = None
    if recipe.source:
        _given_weights(recipe.source)  # before its bytes are read: it is a sound file then
        weights = hashlib.sha256(Path(recipe.source).read_bytes()).hexdigest()
    folder = cache_folder() / "scores" / cache_key([LAYOUT, images.folder.name, settings, weights])

    def fill(target: Path) -> None:
        _score_into(target, _scorer(images, recipe, device), images, device)

    return cached(folder, lambda: _checked(folder, images), fill, "scores")


def scoring_network(scores: Path, images: ImageSet, recipe: ScorerRecipe, device: torch.device) -> Any:
    """The network that made a folder of scores, in evaluation mode."""
    network = scorer.build(recipe.arch, recipe.width, images, recipe.seed)
    network.load_state_dict(read_tensors(scores / "scorer.safetensors", REMOVE).tensors)
    return network.to(device).eval()


def _checked(folder: Path, images: ImageSet) -> Path:
    """A folder of scores, if nothing is wrong with it; values of large ones are looked at when they are used."""
    large = sum(path.stat().st_size for path in folder.glob("*.safetensors")) > CHEAP
    for label, count in enumerate(images.counts["train"]):
        _read_scores(folder, label, count, values=not large)
    return folder


def _read_scores(folder: Path, label: int, count: int = -1, values: bool = True) -> dict[str, Tensor]:
    """Losses and features of a class; UserError if they are not of so many images, or `values` that were written."""
    expected = {"losses": TensorSpec(torch.float32, (count,)), "features": TensorSpec(torch.float32, (count, -1))}
    path = folder / f"{label}.safetensors"
    tensors, metadata = read_tensors(path, REMOVE, expected, finite=False)
    digest = metadata.get(DIGEST) if values else None
    if digest and digest != tensors_digest(tensors):  # older versions did not write it
        raise UserError(f"{path} is damaged (it has another digest than it says); {REMOVE}")
    return tensors


def _scorer(images: ImageSet, recipe: ScorerRecipe, device: torch.device) -> Any:
    """The given network, or one trained on all training images."""
    network = scorer.build(recipe.arch, recipe.width, images, recipe.seed)
    if recipe.source is None:
        scorer.train(network, images, recipe.epochs, recipe.seed, device, "training the scorer of real images")
        return network
    given = _given_weights(recipe.source)
    try:
        classes = parse_json(given.metadata.get("classes", "[]"), list[str])
        network.load_state_dict(given.tensors)
    except (RuntimeError, ValueError) as error:
        width = f" of data.scorer.width={recipe.width}" if recipe.arch == "convnet" else ""
        raise UserError(
            f"data.scorer.source: {recipe.source} does not hold the weights of a {recipe.arch}{width} "
            f"for these images and {len(images.classes)} classes ({one_line(error)})"
        ) from None
    if classes and classes != images.classes:
        raise UserError(
            f"data.scorer.source: {recipe.source} tells {', '.join(classes)} apart, not {', '.join(images.classes)}; "
            "give weights for these classes in this order"
        )
    return network.to(device).eval()


def _given_weights(source: str) -> Tensors:
    """What a file of weights holds."""
    advice = "give a safetensors file of weights"
    return read_tensors(Path(source), advice, name=f"data.scorer.source: {source}")


@torch.no_grad()
def _score_into(target: Path, network: Any, images: ImageSet, device: torch.device) -> None:
    def look(chunk: Tensor, label: int) -> Tensor:
        """[n, 1 + d], the loss and the features of each image."""
        features = network.embed(images.normalise(bytes_to_unit(chunk.to(device))))
        targets = torch.full((len(chunk),), label, device=device)
        losses = functional.cross_entropy(network.classifier(features), targets, reduction="none")
        return torch.cat([losses[:, None], features], 1).float().cpu()

    advice = (
        "data.scorer.width: memory ran out while scoring a single image; give a smaller network or data.resolution, "
        "or more memory"
    )
    for label in tqdm(range(len(images.classes)), "scoring real images"):
        rows = in_parts(partial(look, label=label), images.images("train", label), CHUNK, advice)
        scores = {"losses": rows[:, 0].contiguous(), "features": rows[:, 1:].contiguous()}
        write_tensors(target / f"{label}.safetensors", scores, {DIGEST: tensors_digest(scores)})
    metadata = {"classes": json.dumps(images.classes)}
    write_tensors(target / "scorer.safetensors", network.state_dict(), metadata)
