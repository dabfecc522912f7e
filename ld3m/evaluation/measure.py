"""Networks trained and tested one by one: what that will take, how far it is, and their accuracies kept."""

import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from tqdm import tqdm

from ld3m.data.prepared import ImageSet, buffers
from ld3m.data.selection.testing import Tested, is_permuted, tested
from ld3m.data.whitening import whitening
from ld3m.errors import counted
from ld3m.evaluation.checkpoint import Checkpoint
from ld3m.evaluation.effort import Cost, costs
from ld3m.evaluation.protocols import Protocol, Task, has_own_rate, protocol
from ld3m.evaluation.protocols.details import TESTS
from ld3m.evaluation.rows import figures
from ld3m.evaluation.soft_labels import Labels, SoftLabels
from ld3m.evaluation.together import Share
from ld3m.evaluation.training import train
from ld3m.evaluation.training_sets import BASELINES, TrainingSets
from ld3m.files import ANOTHER_CACHE, cache_folder, cache_key, writable, write_json
from ld3m.images.resample import centre
from ld3m.machine import signals
from ld3m.machine.lock import hold
from ld3m.machine.processes import Processes
from ld3m.reading import read_json_if_whole
from ld3m.recipe import Recipe
from ld3m.runs.metrics import duration

Advance = Callable[[Literal["train", "test"], int], None]
"""Called with the number of images seen since the last call, in training or in testing."""
LAYOUT = 2
"""Version of how networks are trained and tested; part of the key under which accuracies are kept."""


class Training(NamedTuple):
    """One network to train and to test."""

    trained_on: str
    augment: bool
    arch: str
    seed: int

    @property
    def group(self) -> tuple[str, bool, str]:
        """What its row of results is of."""
        return self.trained_on, self.augment, self.arch

    @property
    def is_shared(self) -> bool:
        """Whether other evaluations use its accuracy too: that of real images does not depend on the run."""
        return self.trained_on in BASELINES


@dataclass(frozen=True)
class Evaluation:
    """What the networks of an evaluation have in common."""

    folder: Path
    """Of the run, or for what is measured elsewhere; or the cache, for others to find."""
    images: ImageSet
    split: str
    """Of the images, to test on."""
    sets: TrainingSets
    digests: dict[str, str]
    """Of the sets that networks are trained on, by name."""
    recipe: Recipe
    """Its seed, and what of its protocol does not depend on the set, count."""
    protocols: dict[tuple[str, bool, str], Protocol]
    """How networks are trained and tested, by `Training.group`."""
    soft_labels: dict[tuple[str, bool, str], SoftLabels]
    """Those of the sets whose protocol has soft labels."""
    device: torch.device
    together: Processes | None = None
    """Those that train each network together; None: each process trains networks of its own."""

    @property
    def writes(self) -> bool:
        """Whether this process writes what is kept of its networks."""
        return self.together is None or self.together.is_main_process

    @property
    def instead(self) -> str:
        """What to do if nothing can be written to the folder."""
        elsewhere = "give --output FOLDER, a folder of your own for what is measured"
        return ANOTHER_CACHE if self.folder == cache_folder() else elsewhere

    def is_kept(self, training: Training) -> bool:
        """Whether its accuracy stays in the cache, for other evaluations."""
        return training.is_shared or self.folder == cache_folder()

    @classmethod
    def of(
        cls,
        folder: Path,
        images: ImageSet,
        split: str,
        sets: TrainingSets,
        wanted: Iterable[tuple[str, bool]],
        recipe: Recipe,
        processes: Processes,
    ) -> Self:
        """An evaluation of sets, by name and whether with augmentation, in all architectures that the recipe names."""
        if kind := recipe.evaluate.whitening:
            images = replace(images, shown=whitening(images, kind).apply)
        protocols: dict[tuple[str, bool, str], Protocol] = {}
        digests: dict[str, str] = {}
        soft_labels: dict[tuple[str, bool, str], SoftLabels] = {}
        labels = Labels(recipe, images, sets.folders, processes.device, processes.is_main_process, sets.teacher)
        for name, augment in wanted:
            digests[name] = sets.digest(name)
            for arch in dict.fromkeys(recipe.evaluate.arch):
                task = Task(arch, len(images.classes), len(sets.seen(name, 0)[0]), images.resolution)
                how = protocol(recipe.evaluate, task, name, augment)
                if how.labels == "soft":
                    soft = soft_labels[name, augment, arch] = labels.of(name, digests[name], how)
                    how = replace(how, teacher=soft.about)
                protocols[name, augment, arch] = how
        together = processes if recipe.evaluate.together and processes.num_processes > 1 else None
        return cls(folder, images, split, sets, digests, recipe, protocols, soft_labels, processes.device, together)

    def path(self, training: Training) -> Path:
        """The file that keeps a network's accuracy: in the cache if it is shared, else in the folder."""
        pixels, labels = self.sets.seen(training.trained_on, training.seed)
        description = [
            LAYOUT,
            self.recipe.seed,
            self.images.folder.name,
            self.protocols[training.group].row(),
            training.trained_on if training.is_shared else labels.tolist(),  # a set counts by its content, not its name
            training.arch,
            training.seed,
            self.split,
            *([own.tolist()] if (own := self.sets.weights.get(training.trained_on)) is not None else []),
        ]
        folder = cache_folder() / "baselines" if training.is_shared else self.folder / "evaluating"
        return folder / f"{cache_key(description, *buffers(pixels))}.json"

    def tested(self, training: Training, path: Path, advance: "Advance" = lambda kind, images: None) -> Tested:
        """How a network does: read from its file, or measured and written there; `advance` hears how far that is."""
        how, best = self.protocols[training.group], self.recipe.evaluate.best
        is_awaited = self.writes and self.is_kept(training) and not path.is_file()
        with hold(path.with_suffix(".lock")) if is_awaited else nullcontext():
            known = _kept(path, how, best) if self.writes else None
            if self.together:
                known = self.together.gather([known])[0]
            if known:
                return known
            tests = f"-{how.tests}" if best else ""  # whose accuracies are in it
            checkpoint = Checkpoint(path.with_name(f"{path.stem}{tests}.safetensors"), self.writes)
            measured = self._measured(training, how, best, checkpoint, advance)
            if self.writes:
                write_json(path, Kept(**measured._asdict(), tests=how.tests if best else None).model_dump())
            checkpoint.remove()
            return measured

    def _measured(
        self, training: Training, how: Protocol, best: bool, checkpoint: Checkpoint, advance: "Advance"
    ) -> Tested:
        """Trains a network and tests it after its last epoch, if asked at other test points too."""
        points = TESTS[how.tests](how.epochs) - {how.epochs} if best else set()
        size = how.test_resize or self.images.resolution
        pixels, labels = self.sets.seen(training.trained_on, training.seed)

        def test(network: nn.Module) -> Tested:
            def look(seen: Tensor) -> Tensor:
                advance("test", len(seen))
                logits: Tensor = network(centre(seen, size))
                return logits

            return tested(look, self.images, self.split, self.device, self.together)

        def after_epoch(done: int, network: nn.Module) -> None:
            advance("train", len(pixels))
            if done in points:
                checkpoint.accuracies.append(test(network).accuracy)

        network = train(
            training.arch,
            pixels,
            labels,
            self.images,
            how,
            (self.recipe.seed, training.seed),
            self.device,
            self.soft_labels.get(training.group),
            after_epoch,
            Share(self.together) if self.together else None,
            checkpoint,
            self.sets.weights.get(training.trained_on),
        )
        last = test(network)
        return last._replace(best=max(last.accuracy, *checkpoint.accuracies, 0.0)) if best else last

    def effort(self, training: Training, cost: Cost) -> float:
        """Seconds that a network will take."""
        how, images = self.protocols[training.group], len(self.sets.seen(training.trained_on, 0)[0])
        tests = len(TESTS[how.tests](how.epochs)) if self.recipe.evaluate.best else 1
        seconds = cost.seconds(images, how.epochs, tests * sum(self.images.counts[self.split]))
        return seconds / (self.together.num_processes if self.together else 1)

    def row(self, trained_on: str, augment: bool, arch: str, networks: Sequence[Tested]) -> dict[str, Any]:
        """The row of evaluation.json for networks that differ by their seeds alone."""
        recipe, how = self.recipe, self.protocols[trained_on, augment, arch]
        at_chance = [seed for seed, network in enumerate(networks) if network.at_chance]
        best = [None if network.best is None else round(network.best, 2) for network in networks]
        return {
            "trained_on": trained_on,
            "arch": arch,
            "split": self.split,
            **figures([network.accuracy for network in networks]),
            **({"best": {"tests": how.tests, "accuracies": best}} if any(each is not None for each in best) else {}),
            "images": self.sets.size(trained_on),
            "bytes": {"images": self.sets.size(trained_on) * len(self.images.mean) * self.images.resolution**2},
            "tested_on": sum(self.images.counts[self.split]),
            "classes": cache_key(self.images.classes),
            "protocol": how.row(),
            "seed": recipe.seed,
            "content": self.digests[trained_on],
            **({"own_rate": True} if has_own_rate(recipe.evaluate, arch) else {}),
            **({"at_chance": at_chance} if at_chance else {}),
            **_in_another_order(networks, len(self.images.classes), sum(self.images.counts[self.split])),
            **self.sets.chosen_by(trained_on),
            **self.sets.weighted(trained_on),
        }


def _in_another_order(networks: Sequence[Tested], classes: int, images: int) -> dict[str, Any]:
    """What accuracies would be if classes were renamed, if that is so much more that labels must be permuted."""
    renamed = [network.reassigned or 0.0 for network in networks]
    accuracy = statistics.fmean(network.accuracy for network in networks)
    permuted = is_permuted(accuracy, statistics.fmean(renamed), classes, images)
    return {"reassigned": [round(each, 2) for each in renamed]} if permuted else {}


class Kept(BaseModel):
    """What the file of a network has."""

    accuracy: Annotated[float, Field(ge=0, le=100)]
    at_chance: bool
    best: Annotated[float, Field(ge=0, le=100)] | None = None
    reassigned: Annotated[float, Field(ge=0, le=100)] | None = None
    tests: str | None = None
    """When it was tested for its best."""


def _kept(path: Path, how: Protocol, best: bool) -> Tested | None:
    """How a network did, or None if its file is missing, damaged or lacks its best, and is to be made again."""
    if (kept := read_json_if_whole(path, Kept, "it is measured again")) is None:
        return None
    of_tests = kept.best if kept.tests == how.tests else None
    known = Tested(kept.accuracy, kept.at_chance, of_tests, kept.reassigned)
    return None if best and known.best is None else known


@dataclass(frozen=True)
class Work:
    """This process's networks of an evaluation, before any is trained."""

    evaluation: Evaluation
    own: Mapping[Training, Path]
    """All of them, and the files that keep them meanwhile."""
    left: Sequence[Training]
    """Those without such a file."""
    already: int
    """Networks, of all processes, that are measured already."""
    cost: Mapping[str, Cost]
    """Of an architecture."""

    @classmethod
    def of(cls, evaluation: Evaluation, own: Mapping[Training, Path], already: int, again: bool) -> Self:
        """Looks for what is kept, which `again` removes, and times a step of each architecture.

        Args:
            already: networks whose accuracies are known from rows of results.
        """
        for training, path in own.items():  # before hours of training
            if not path.is_file():
                writable(path.parent, ANOTHER_CACHE if training.is_shared else evaluation.instead)
            elif again and evaluation.is_kept(training) and evaluation.writes:
                path.unlink(missing_ok=True)
        kept = [training for training, path in own.items() if path.is_file()]
        if evaluation.together:  # which must agree
            kept = evaluation.together.gather([kept])[0]
        left = [training for training in own if training not in kept]
        return cls(evaluation, own, left, already + len(kept), _costs(evaluation, left))

    @property
    def seconds(self) -> dict[Training, float]:
        """That the networks which are left will take."""
        return {training: self.evaluation.effort(training, self.cost[training.arch]) for training in self.left}


def measure(processes: Processes, work: Work) -> dict[Training, Tested]:
    """Trains and tests this process's networks; how all processes' networks do."""
    evaluation, own, left, efforts = work.evaluation, work.own, work.left, work.seconds
    done = {training: evaluation.tested(training, path) for training, path in own.items() if training not in efforts}
    hidden = not processes.is_main_process or not left
    shape = "{desc}: {percentage:3.0f}%|{bar}| {postfix} [{elapsed}<{remaining}]"
    bars = tqdm(desc="evaluating", total=sum(efforts.values()), disable=hidden, bar_format=shape)
    with signals.exiting(), bars as bar:
        for index, training in enumerate(left):
            bar.set_postfix_str(f"network {index + 1} of {len(left)}: {training.arch} on {training.trained_on}")
            before = bar.n
            try:
                done[training] = evaluation.tested(
                    training, own[training], _moving(bar, work.cost[training.arch], evaluation)
                )
            except (KeyboardInterrupt, SystemExit) as stop:
                bar.close()
                print(
                    f"interrupted: {len(done)} of {len(own)} networks are measured and kept; the same command resumes",
                    file=sys.stderr,
                )
                raise SystemExit(stop.code if isinstance(stop, SystemExit) else 130) from None
            bar.update(before + efforts[training] - bar.n)  # it may have resumed, or have been measured by others
    return dict(processes.gather(list(done.items())))


def _moving(bar: Any, cost: Cost, evaluation: Evaluation) -> Advance:
    """Moves a bar of seconds on, within what its networks were thought to take."""
    processes = evaluation.together.num_processes if evaluation.together else 1

    def advance(kind: Literal["train", "test"], images: int) -> None:
        share = cost.train / processes if kind == "train" else cost.test  # of a test this one's images are told
        bar.update(min(share * images, bar.total - bar.n))

    return advance


def _costs(evaluation: Evaluation, trainings: Sequence[Training]) -> dict[str, Cost]:
    """What each architecture takes for an image, by a short try."""
    some = {
        training.arch: (*evaluation.sets.seen(training.trained_on, 0), evaluation.protocols[training.group])
        for training in trainings
    }
    soft = {training.arch: labels for training in trainings if (labels := evaluation.soft_labels.get(training.group))}
    return costs(some, evaluation.images, evaluation.device, soft)


def announce(processes: Processes, works: Sequence[Work]) -> None:
    """Says what evaluations will take together, before the first begins."""
    left = [(work.evaluation, training) for work in works for training in work.left]
    measured = sum(work.already for work in works)
    if not left:
        print(f"all {measured} networks are measured already; --again repeats", file=sys.stderr)
        return
    first = works[0].evaluation
    epochs = sorted({evaluation.protocols[training.group].epochs for evaluation, training in left})
    where = f" by {processes.num_processes} processes together" if first.together else " here"
    parts = [
        f"{counted(len(left), 'network')} to train{where if processes.num_processes > 1 else ''}",
        f"{', '.join(dict.fromkeys(training.arch for _, training in left))} "
        f"on {', '.join(dict.fromkeys(training.trained_on for _, training in left))}",
        f"{' and '.join(map(str, epochs))} epoch{'s' * (epochs != [1])} by {first.recipe.evaluate.protocol}",
        f"about {duration(sum(sum(work.seconds.values()) for work in works))}",
    ]
    already = f" ({measured} are measured already)" if measured else ""
    print(f"evaluating: {'; '.join(parts)}{already}", file=sys.stderr)


def clean_up(folder: Path, own: Mapping[Training, Path]) -> None:
    """Removes this process's accuracies from the folder; another evaluation of the run may be under way."""
    for training, path in own.items():
        if not training.is_shared:
            path.unlink(missing_ok=True)
    with suppress(OSError):  # not empty, or another process was first
        (folder / "evaluating").rmdir()
