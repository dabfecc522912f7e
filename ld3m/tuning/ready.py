"""Axes that come ready, for a recipe's objective, skip, prior and images per class; the ranges are what was measured.

`recipes/results/README.md` has the learning rates by skip (`dm` at one image per class), `recipes/OBJECTIVES.md` those
of objectives. A rate of SGD grows with the images of a class, of which each has its share of the gradient.
"""

from collections.abc import Collection, Iterator

from ld3m.errors import UserError
from ld3m.recipe import Recipe
from ld3m.recipe.objectives import LEARNING_RATES
from ld3m.recipe.varied import value_of
from ld3m.tuning.axes import among, parse_axis

NAMES = ("rates", "all")
SMALLEST = 8
"""Pixels of a side below which images are not put several into one."""
OF_Z = {"reference": (0.03, 3), "none": (0.3, 100), "paper": (5, 2000)}
OF_C = {"reference": (0.03, 3), "none": (0.02, 2), "paper": (0.1, 500)}
"""Rates of SGD by skip, for `dm` and one image per class; without a denoiser Z has those of `reference`."""
OF_OTHERS = {"adam": (0.003, 0.3), "lars": (0.01, 1)}
"""Rates of the optimisers whose steps do not depend on how large a gradient is."""


def ready_axes(name: str, recipe: Recipe, varied: Collection[str] = ()) -> list[str]:
    """Axes by the name of their group, as `--axis` takes them.

    Args:
        name: "rates" (learning rates of what is learnt) or "all" (optimiser, schedule, start, several in one, skip,
            noise, keys of the objective; and the rates that suit each).
        varied: keys of other axes, on which the rates depend then.

    Raises:
        UserError: if there is no such group.
    """
    if name not in NAMES:
        raise UserError(f"--axes: {name!r} is not known; known are {', '.join(NAMES)}")
    if not recipe.distill.iterations:
        raise UserError(
            f"--axes {name}: distill.iterations is 0, so nothing is learnt; give --axis, such as sample.guidance=1..8"
        )
    others = [each for each in (_others(recipe) if name == "all" else ()) if parse_axis(each).key not in varied]
    keys = {*varied, *(parse_axis(each).key for each in others)}
    rates = [each for each in _rates(recipe) if parse_axis(each).key not in varied]
    return [short for each in (*others, *rates) if (short := _as_far_as_needed(each, recipe, keys))]


def _others(recipe: Recipe) -> Iterator[str]:
    """What is not a rate."""
    yield "distill.optimiser=sgd,adam,lars"
    yield "distill.schedule=constant,cosine"
    if recipe.distill.init in (starts := ("real", "prototype", "herding")):
        yield f"distill.init={','.join(starts)}"
    halved = recipe.data.resolution % 2 == 0 and recipe.data.resolution >= 2 * SMALLEST
    factors = {1, recipe.distill.factor, *([2] if halved else [])}
    one_is_enough = recipe.distill.images_per_class > 1 or recipe.distill.dm.match != "moments"
    factors -= set() if one_is_enough else {1}  # one image has no deviation
    if len(factors) > 1:
        yield f"distill.factor={_listed(factors)}"
    if recipe.prior.steps:
        yield "prior.skip=none,reference,paper"
        yield "prior.noise=fresh,fixed"
    several = "" if recipe.distill.images_per_class > 1 else f"distill.factor={_listed(factors - {1})}:"
    if recipe.distill.images_per_class > 1 or factors - {1}:
        yield f"distill.objective=dm:{several}distill.dm.match=mean,moments"
    yield "distill.objective=dc:distill.dc.match=rows,orthogonal"


def _rates(recipe: Recipe) -> Iterator[str]:
    """Learning rates of Z and c for all optimisers, objectives and skips."""
    learnt = {"both": (0, 1), "latents": (0,), "conditioning": (1,)}[recipe.distill.learn]
    objectives = LEARNING_RATES | {recipe.distill.objective: LEARNING_RATES.get(recipe.distill.objective, 1.0)}
    for index in learnt:
        key, by_skip = (("distill.lr_latents", OF_Z), ("distill.lr_conditioning", OF_C))[index]
        yield from (f"distill.optimiser={name}:{key}={_range(*ends)}" for name, ends in OF_OTHERS.items())
        for objective, rate in objectives.items():
            for skip, (low, high) in by_skip.items() if recipe.prior.steps else [("", by_skip["reference"])]:
                conditions = f"distill.optimiser=sgd:distill.objective={objective}:" + f"prior.skip={skip}:" * bool(
                    skip
                )
                yield f"{conditions}{key}={_range(low * rate, high * rate * recipe.distill.images_per_class)}"


def _listed(numbers: Collection[int]) -> str:
    return ",".join(map(str, sorted(numbers)))


def _range(low: float, high: float) -> str:
    return f"{low:.6g}..{high:.6g}"


def _as_far_as_needed(option: str, recipe: Recipe, varied: Collection[str]) -> str | None:
    """An axis without conditions that always hold; None if one never does."""
    axis, kept = parse_axis(option), ""
    for key, values in axis.when:
        if key in varied:
            kept += f"{key}={','.join(values)}:"
        elif not among(values, value_of(recipe, key)):
            return None
    return kept + f"{axis.key}={option.rpartition('=')[2]}"
