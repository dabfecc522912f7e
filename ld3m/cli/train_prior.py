"""`ld3m train-prior`."""

from ld3m.cli.arguments import BareResume, DryRun, NoResume, Output, PriorOverrides, PriorRecipeArgument, resolve


def train_prior(
    recipe: PriorRecipeArgument,
    overrides: PriorOverrides = None,
    output: Output = None,
    resume: BareResume = False,
    no_resume: NoResume = False,
    dry_run: DryRun = False,
) -> None:
    """Train a small latent diffusion model on your own images.

    For example: ld3m train-prior prior-fashion-mnist name=photos data.source=photos data.channels=3

    The model is class-conditional, and is evaluated at the end. Interrupt it at any time: the same command resumes.

    Several processes share each batch: ld3m launch train-prior RECIPE
    """
    from ld3m.recipe.prior import PriorRecipe

    resolved = resolve(PriorRecipe, recipe, overrides, dry_run, output)
    from ld3m.prior_training.train import train_prior

    train_prior(resolved, not no_resume)
