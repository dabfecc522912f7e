"""`ld3m train-teacher`."""

from ld3m.cli.arguments import BareResume, DryRun, NoResume, Overrides, RecipeArgument, resolve


def train_teacher(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    resume: BareResume = False,
    no_resume: NoResume = False,
    dry_run: DryRun = False,
) -> None:
    """Train a teacher on the real images, for soft labels.

    For example: ld3m train-teacher fashion-mnist teacher.epochs=20

    It goes to teachers/ and the recipe's name, unless teacher.source is a folder, with its accuracy on the test images.
    Interrupt it at any time: the same command resumes.

    Several processes share each batch: ld3m launch train-teacher RECIPE
    """
    from ld3m.recipe import Recipe

    resolved = resolve(Recipe, recipe, overrides, dry_run, data_only=True)
    from ld3m.teachers.train import train_teacher

    train_teacher(resolved, not no_resume)
