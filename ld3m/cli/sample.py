"""`ld3m sample`."""

import os
from typing import TYPE_CHECKING

from ld3m.cli.arguments import DryRun, NoResume, Output, Overrides, RecipeArgument, resolve
from ld3m.errors import UserError

if TYPE_CHECKING:
    from ld3m.recipe import Recipe

IMPLIED = {"distill.init": "sample", "distill.iterations": 0, "distill.learn": "latents", "prior.steps": 0}
"""What makes a distillation of a sampling: nothing is learnt, and the autoencoder alone renders what was sampled."""


def sample(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Output = None,
    no_resume: NoResume = False,
    dry_run: DryRun = False,
) -> None:
    """Sample a few images per class from the prior.

    For example: ld3m sample quickstart sample.method=mgd3

    The result is a run as ld3m distill makes it, which evaluate, report, compare and push-to-hub take. Interrupt it at
    any time: the same command resumes, and no image that is done is sampled again.

    distill.init=sample starts a distillation from the same images: ld3m distill quickstart distill.init=sample
    """
    from ld3m.recipe import Recipe
    from ld3m.recipe.files import load

    given = list(overrides or [])
    for key, value in IMPLIED.items():
        if other := [each for each in given if each.startswith(f"{key}=") and each != f"{key}={value}"]:
            raise UserError(
                f"{other[0]}: ld3m sample learns nothing and sets {key}={value}; leave it out, or give ld3m distill "
                "RECIPE distill.init=sample"
            )
    own = load(Recipe, recipe, given)
    if implied := [f"{key}={value}" for key, value in IMPLIED.items() if _at(own, key) != value]:
        if output is None and own.output is None:
            implied.append(f"name={own.name}-{own.sample.method}")
        if (os.environ.get("RANK") or "0") == "0" and not dry_run:
            print(f"{recipe}: sampled with {' '.join(implied)}")
    resolved = resolve(Recipe, recipe, [*given, *implied], dry_run, output, resume=not no_resume)
    from ld3m.distillation.loop import distill

    distill(resolved, not no_resume)


def _at(recipe: "Recipe", key: str) -> object:
    """The value of a key of a section."""
    section, _, last = key.partition(".")
    return getattr(getattr(recipe, section), last)
