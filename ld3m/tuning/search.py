"""What is searched: a recipe, axes, a budget, and the runs that a search makes; checked before anything is run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from ld3m.data.prepared import preparation_of
from ld3m.distillation.inputs import check_inputs
from ld3m.errors import UserError
from ld3m.evaluation.protocols import Task, full_ema, protocol
from ld3m.files import cache_key
from ld3m.recipe import Recipe
from ld3m.recipe.files import digest_with_paths, load
from ld3m.recipe.parsing import parse
from ld3m.recipe.varied import load_varied, value_of, value_text
from ld3m.runs.resume import flat
from ld3m.tuning.axes import Axis, Range, among, ordered, parse_axis
from ld3m.tuning.options import Budget
from ld3m.tuning.ready import ready_axes

HELD_OUT = 0.1
"""The share of the training images that is held out if the recipe holds out none."""
NOT_THE_SEARCH = {"name", "output", "log_with", "hub"}
"""Sections and keys of a recipe that may differ when a search is resumed."""
OF_THE_DENOISER = {
    *("prior.skip", "prior.noise", "prior.guidance", "prior.start", "prior.denoiser", "prior.dtype"),
    *("prior.prompt", "prior.pull_back", "prior.differentiated"),
}
"""Keys that are read only if a denoiser is called."""


@dataclass(frozen=True)
class Search:
    """A search; `Search.of` makes and checks one."""

    recipe: str
    """A file, or the name of a shipped recipe."""
    overrides: list[str]
    axes: list[Axis]
    folder: Path
    budget: Budget
    held_out: list[str]
    """Overrides by which candidates are measured on held-out training images, and test images are left alone."""
    base: Recipe
    """The recipe as it is, with its own overrides and these."""

    @classmethod
    def of(
        cls,
        recipe: str,
        overrides: Sequence[str] = (),
        axes: Sequence[str] = (),
        ready: str | None = None,
        folder: Path | None = None,
        budget: Budget | None = None,
    ) -> "Search":
        """A search, with all mistakes that can be found without the data; writes nothing.

        Args:
            axes: as `axes.parse_axis` takes them.
            ready: axes that come ready, "rates" or "all", beside these; None: no others.
            folder: for everything; None: `tunings/<name of the recipe>`.

        Raises:
            UserError: a line for each mistake.
        """
        own = load(Recipe, recipe, list(overrides))
        parsed = [parse_axis(option) for option in axes]
        if ready:
            more = ready_axes(ready, own, {axis.key for axis in parsed})
            parsed += [parse_axis(option) for option in more]
        if not parsed:
            raise UserError("--axis: give one or more, such as distill.lr_latents=0.03..3, or --axes rates")
        given = [override.partition("=")[0] for override in overrides]
        if twice := [axis.key for axis in parsed if axis.key in given]:
            raise UserError(f"--axis: {twice[0]} is an override too; leave one of them out")
        if "output" in given:
            raise UserError("output: each run has a folder of its own; give --output DIR for the folder of them all")
        if "data.read_test" in given:
            raise UserError("data.read_test: is false until the end, whatever is given; leave it out")
        held_out = [
            *([] if own.data.validation_share else [f"data.validation_share={HELD_OUT}"]),
            "data.read_test=false",
        ]
        search = cls(
            recipe=recipe,
            overrides=list(overrides),
            axes=ordered(parsed),
            folder=folder or Path("tunings") / own.name,
            budget=budget or Budget(),
            held_out=held_out,
            base=load(Recipe, recipe, [*overrides, *held_out]),
        )
        search.check()
        return search

    def check(self) -> None:
        """Checks the recipe, and each value of each axis, ends of ranges for all in them."""
        mistakes: list[str] = []
        check_inputs(self.base)
        self._check_rungs()
        for axis in self.axes:
            conditions, wrong, made = [(key, values[0]) for key, values in axis.when], list[str](), list[str]()
            for end in axis.ends:
                try:
                    made.append(self.identify(dict([*conditions, (axis.key, end)])))
                except UserError as error:
                    wrong += error.lines
            mistakes += wrong or self._has_no_effect(axis, made)
        if mistakes:
            raise UserError(*dict.fromkeys(mistakes))

    def _check_rungs(self) -> None:
        """That runs of a rung are longer than those of the one below.

        Raises:
            UserError: if there are too many rungs for that.
        """
        lengths = [self.run(0, {}, rung, 0) for rung in range(self.budget.rungs)]
        steps = [(each.distill.iterations, each.evaluate.epochs) for each in lengths]
        if same := sum(one == other for one, other in pairwise(steps)):
            raise UserError(
                f"--rungs: {self.budget.rungs}, but {same} of them would be as short as the one before; give "
                f"{self.budget.rungs - same}, or more distill.iterations and evaluate.epochs"
            )

    def _has_no_effect(self, axis: Axis, fingerprints: Sequence[str]) -> list[str]:
        """Why an axis would change no figure, in a line; empty if it may.

        Args:
            fingerprints: of the runs that its ends make.
        """
        for key, wanted in axis.when:
            others = [other for other in self.axes if other.key == key]
            texts = {text for other in others if not isinstance(other.values, Range) for text in other.ends}
            reached = [parse(text) for text in texts]
            reached += [each for other in others if isinstance(other.values, Range) for each in other.options or ()]
            if all(other.when for other in others):  # else all candidates that are drawn have one of these
                reached.append(self.base_value(key))
            if not any(among(wanted, value) for value in reached):
                has = "" if others else f" (the recipe has {value_text(self.base_value(key))})"
                return [
                    f"--axis {axis.name}: no candidate has {key}={' or '.join(wanted)}{has}; give --axis {key}= a list "
                    "with it, or leave the condition out"
                ]
        for key, is_read, needed in self._readers(axis.key):
            if not is_read and key not in [other.key for other in self.axes]:
                has = value_text(self.base_value(key))
                return [
                    f"--axis {axis.key}: has no effect, as {key} is {has}; give {key}={needed} too, or leave it out"
                ]
        if len(fingerprints) > 1 and len(set(fingerprints)) == 1:
            return [f"--axis {axis.name}: no accuracy depends on it; leave it out"]
        return []

    def _readers(self, key: str) -> Iterator[tuple[str, bool, str]]:
        """Other keys that decide whether a key is read: whether they do so, and a value with which it would be."""
        base, parts = self.base, key.split(".")
        if parts[0] == "sample":
            yield "distill.init", base.samples, "sample"
        if parts[0] == "distill" and len(parts) > 2:
            yield "distill.objective", parts[1] == base.distill.objective, parts[1]
        if key in OF_THE_DENOISER:
            yield "prior.source", base.prior.source != "pixels", "PRIOR"
            yield "prior.steps", bool(base.prior.steps) or base.samples, "10"
        if key in ("distill.lr_latents", "distill.lr_conditioning"):
            own = key.removeprefix("distill.lr_")
            yield "distill.learn", base.distill.learn in (own, "both"), "both"

    @property
    def about(self) -> dict[str, Any]:
        """What a search in the same folder must have in common to be resumed."""
        recipe = flat(self.base.model_dump(mode="json", exclude=NOT_THE_SEARCH))
        axes = [f"{axis.name}={axis.values}" for axis in self.axes]
        return {**recipe, "--axis": axes, "--rungs": self.budget.rungs, "--eta": self.budget.eta}

    def base_value(self, key: str) -> Any:
        """The value of a key of the recipe as it is; None if it has no such key."""
        try:
            return value_of(self.base, key)
        except (KeyError, TypeError):
            return None

    def share(self, rung: int) -> float:
        """The part of the iterations and epochs that runs of a rung have."""
        return float(self.budget.eta) ** (rung - self.budget.rungs + 1)

    # --- runs ----------------------------------------------------------------------------------------------

    def identify(self, settings: Mapping[str, str]) -> str:
        """The same for settings whose runs have the same figures.

        Raises:
            UserError: if they make no run, since they do not fit each other.
        """
        recipe = self._resolved(settings, self.held_out)
        check_inputs(recipe)
        measured_by = [recipe.evaluate.model_dump(mode="json"), recipe.teacher.model_dump(mode="json")]
        return cache_key([digest_with_paths(recipe), recipe.distill.iterations, measured_by])

    def run(self, number: int, settings: Mapping[str, str], rung: int, seed: int) -> Recipe:
        """A candidate's run of a rung, on held-out images.

        Args:
            rung: from 0.
            seed: distillation seed, counted from the recipe's.
        """
        recipe = self._resolved(settings, self.held_out)
        folder = self.folder / "trials" / f"{number:04}" / f"rung-{rung + 1}-seed-{recipe.seed + seed}"
        return self._shortened(_in_folder(recipe, folder, seed), self.share(rung))

    def full_run(self, number: int, settings: Mapping[str, str], seed: int) -> Recipe:
        """A candidate's run on all training images of the recipe, to be measured on test images."""
        recipe = self._resolved(settings, [])
        return _in_folder(recipe, self.folder / "final" / f"{number:04}" / f"seed-{recipe.seed + seed}", seed)

    def best_recipe(self, settings: Mapping[str, str]) -> Recipe:
        """A recipe of its own, as best.yaml has it."""
        recipe = self._resolved(settings, [])
        return recipe.changed({"name": f"{recipe.name[:94]}-tuned", "output": None})

    def _resolved(self, settings: Mapping[str, str], more: Sequence[str]) -> Recipe:
        return load_varied(self.recipe, [*self.overrides, *more], list(settings.items()))

    def _shortened(self, recipe: Recipe, share: float) -> Recipe:
        """A run with a part of the iterations and epochs; averages of weights cover the same part of a training."""
        if share == 1:
            return recipe
        asked, iterations = recipe.evaluate.before_a_run, recipe.distill.iterations
        seen = self._classes * recipe.distill.latents_per_class
        hows = [protocol(asked, Task(arch, self._classes, seen, recipe.data.resolution)) for arch in asked.arch]
        longest = max(hows, key=lambda how: how.epochs)
        epochs = max(1, round(share * longest.epochs))
        return recipe.changed(
            {
                "evaluate.epochs": epochs,
                "evaluate.ema": full_ema(longest.ema, longest.epochs, epochs),
                "distill.iterations": min(iterations, max(1, round(share * iterations))),
            }
        )

    @cached_property
    def _classes(self) -> int:
        """How many there are; no image is read."""
        return len(preparation_of(self.base.data, progress=False).chosen)


def _in_folder(recipe: Recipe, folder: Path, seed: int) -> Recipe:
    """A run in a folder, with another distillation seed, without pictures and trackers."""
    own = {"output": str(folder), "seed": recipe.seed + seed, "log_with": [], "distill.pictures": 0}
    return recipe.changed(own)
