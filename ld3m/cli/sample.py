"""`ld3m sample`."""

from ld3m.cli.arguments import DryRun, NoResume, Output, Overrides, RecipeArgument, resolve
from ld3m.launched import is_first_process


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
    from ld3m.api import sampling_overrides
    from ld3m.recipe import Recipe

    given = list(overrides or [])
    implied = sampling_overrides(recipe, given, output is not None)
    if implied and is_first_process() and not dry_run:
        print(f"{recipe}: sampled with {' '.join(implied)}")
    resolved = resolve(Recipe, recipe, [*given, *implied], dry_run, output, resume=not no_resume)
    from ld3m.distillation.loop import distill

    distill(resolved, not no_resume)
