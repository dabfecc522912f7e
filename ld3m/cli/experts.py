"""`ld3m experts`."""

from ld3m.cli.arguments import BareResume, DryRun, NoResume, Overrides, RecipeArgument, resolve


def experts(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    resume: BareResume = False,
    no_resume: NoResume = False,
    dry_run: DryRun = False,
) -> None:
    """Train networks on the real images, if a recipe needs them.

    A recipe with distill.objective=mtt needs them, as it matches their trajectories; so does distill.networks=experts.

    It first says how much disk space they take. Interrupt it at any time: the same command resumes.

    Several processes share the experts: ld3m launch experts RECIPE
    """
    from ld3m.recipe import Recipe

    resolved = resolve(Recipe, recipe, overrides, dry_run, data_only=True)
    from ld3m.objectives.train_experts import train_experts

    train_experts(resolved, not no_resume)
