"""What is worth a pilot for some images: starting recipes, each with its reason, the most promising first.

What is known is in recipes/results/README.md and tried.md: several small images in each image gained most, matched by
mean and deviation, from k-means starts; and the rate matters more than most else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ld3m.automatic.look import Look
from ld3m.priors.known import KNOWN

RATE = 0.075
"""Rate of Z for each latent of a class: 3 for the 40 of recipes/fashion-mnist-ipc10.yaml. Each has that share of the
gradient."""
FACTORS = (1, 2, 4)
"""Smaller images on a side of each image."""
SMALLEST = 4
"""Pixels of the smallest ones."""
RECOGNISABLE = 8
"""Pixels from which they were tried, and helped."""
PACKAGED = {"digits": "digits", "fashion-mnist": "fashion-mnist", "fashion-mnist-small": "fashion-mnist"}
"""Priors that come with the package, by the data that they know."""
GRADIENT_BATCH = 64
"""Real images of each class in an iteration that matches gradients."""
CHAIN_STEPS = 5
"""Of the chain: not significantly worse than ten, in half the time."""


@dataclass(frozen=True)
class Candidate:
    """A recipe that may be the best."""

    name: str
    why: str
    overrides: tuple[str, ...]
    """What it changes, `KEY=VALUE`."""

    @property
    def kind(self) -> str:
        """What it shares with candidates that learn at the same pace: how images are made and matched."""
        return self.name.partition(",")[0]


def candidates(found: Look, images_per_class: int, source: str, own_priors: Sequence[str] = ()) -> list[Candidate]:
    """The candidates for some images, the most promising first.

    Args:
        source: `data.source`, for which the package may have a prior.
        own_priors: what the user gives as `prior.source`.
    """
    best, *others = _factors(found, images_per_class)
    priors = [*own_priors, *([name] if (name := _packaged(found, source)) and name not in own_priors else [])]
    chosen = [_pixels(best, images_per_class, 1, _why(best, found))]
    if images_per_class == 1:
        cheap = found.resolution < 2 * RECOGNISABLE
        chosen.insert(0 if cheap else 1, _gradients())
    chosen.append(_pixels(best, images_per_class, 3, "the rate matters more than most else, so a larger one"))
    chosen += [_pixels(factor, images_per_class, 1, _why(factor, found)) for factor in others[:1]]
    for prior in priors:
        chosen += [_autoencoder(prior, best, images_per_class), _chain(prior, images_per_class)]
    chosen.append(_pixels(best, images_per_class, 1 / 3, "and a smaller one"))
    chosen += [_pixels(factor, images_per_class, 1, _why(factor, found)) for factor in others[1:]]
    return chosen


def left_out(found: Look, images_per_class: int) -> list[str]:
    """What is not tried since the smallest class has too few images, for people: a line, or none."""
    tried = _factors(found, images_per_class)
    if not (missing := [factor for factor in _of_size(found) if factor not in tried]):
        return []
    several = " and ".join(str(factor**2) for factor in missing)
    needed = images_per_class * missing[0] ** 2
    return [
        f"not tried: {several} in one, which take {needed:,} images of each class{' or more' * (len(missing) > 1)}; "
        f"{found.smallest!r} has {found.fewest:,} in a pilot"
    ]


def _factors(found: Look, images_per_class: int) -> list[int]:
    """Factors that fit, the most promising first: sixteen in one for a single image per class, four for more."""
    fitting = [factor for factor in _of_size(found) if images_per_class * factor**2 <= found.fewest]
    promising = 4 if images_per_class == 1 else 2
    return sorted(fitting, key=lambda factor: (found.resolution // factor < RECOGNISABLE, abs(factor - promising)))


def _of_size(found: Look) -> list[int]:
    """Factors that fit the size of the images."""
    return [
        factor
        for factor in FACTORS
        if found.resolution % factor == 0 and (factor == 1 or found.resolution // factor >= SMALLEST)
    ]


def _packaged(found: Look, source: str) -> str | None:
    """The packaged prior that knows these images, at their size."""
    name = PACKAGED.get(source)
    fits = name and (KNOWN[name].resolution, KNOWN[name].channels) == (found.resolution, found.channels)
    return name if fits else None


def rate(latents: int, times: float) -> float:
    """A rate of Z for so many latents of a class, with two digits."""
    return float(f"{RATE * latents * times:.2g}")


def _pixels(factor: int, images_per_class: int, times: float, why: str) -> Candidate:
    own = rate(images_per_class * factor**2, times)
    name = f"pixels, {_several(factor)}, rate {own:g}"
    return Candidate(name, why, ("prior.source=pixels", *_shared(factor, images_per_class, own)))


def _gradients() -> Candidate:
    why = "matches gradients in place of features: ahead on digits with one image per class, behind on garments"
    overrides = ("prior.source=pixels", "distill.objective=dc", "distill.factor=1", "distill.init=prototype")
    batch = f"distill.real_batch={GRADIENT_BATCH}"  # in each iteration, as no network comes twice
    return Candidate("pixels by gradients, whole images, rate 0.1", why, (*overrides, "distill.lr_latents=0.1", batch))


def _autoencoder(prior: str, factor: int, images_per_class: int) -> Candidate:
    own = rate(images_per_class * factor**2, 1)
    overrides = (f"prior.source={prior}", "prior.steps=0", "prior.guidance=1", "distill.learn=latents")
    why = "a decoder makes images that look like its own; level with pixels in our results, but faster than the chain"
    name = f"autoencoder of {prior}, {_several(factor)}, rate {own:g}"
    return Candidate(name, why, (*overrides, *_shared(factor, images_per_class, own)))


def _chain(prior: str, images_per_class: int) -> Candidate:
    own = rate(images_per_class, 1)
    overrides = (f"prior.source={prior}", f"prior.steps={CHAIN_STEPS}", "prior.skip=reference")
    why = "the whole method; slower, and level with pixels in our results"
    name = f"chain of {prior}, {_several(1)}, rate {own:g}"
    own_rates = (*_shared(1, images_per_class, own), f"distill.lr_conditioning={own:g}")
    return Candidate(name, why, (*overrides, *own_rates))


def _shared(factor: int, images_per_class: int, own_rate: float) -> tuple[str, ...]:
    match = "moments" if images_per_class * factor**2 > 1 else "mean"  # one image has no deviation
    return (
        f"distill.factor={factor}",
        f"distill.lr_latents={own_rate:g}",
        f"distill.dm.match={match}",
        "distill.init=prototype",
    )


def _several(factor: int) -> str:
    return "whole images" if factor == 1 else f"{factor**2} in one"


def _why(factor: int, found: Look) -> str:
    side = found.resolution // factor
    if factor == 1:
        return f"one image in each, of {side} pixels: nothing is lost to enlarging"
    small = "" if side >= RECOGNISABLE else ", though so small ones were not tried"
    return f"{factor**2} smaller images of {side} pixels in each gained most in our results{small}"
