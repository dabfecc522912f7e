"""What `import ld3m` offers to programs and notebooks: the commands that make, measure and load, as functions.

`ld3m/__init__.py` opens these names when they are first asked for.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ld3m.errors import UserError
from ld3m.recipe import Recipe, SamplerRecipe
from ld3m.recipe.files import load
from ld3m.recipe.varied import value_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ld3m.priors import Prior
    from ld3m.rehearsal.rehearse import Rehearsal
    from ld3m.tuning.results import Outcome


def load_recipe(name: str | Path, *overrides: str) -> Recipe:
    """Reads a recipe of a distillation.

    Args:
        name: a YAML file, or the name of a shipped recipe, such as "quickstart".
        overrides: `KEY=VALUE` as on the command line, such as "distill.iterations=20".

    Raises:
        UserError: with one line for each mistake.
    """
    return load(Recipe, str(name), list(overrides))


def distill(
    recipe: Recipe | str | Path,
    *overrides: str,
    output: str | Path | None = None,
    resume: bool | str | Path = True,
) -> Path:
    """Distils a data set, as `ld3m distill` does.

    Args:
        recipe: a recipe, or what `load_recipe` takes.
        overrides: `KEY=VALUE`, if `recipe` is a name or a file.
        output: the run folder; by default the recipe's.
        resume: whether an unfinished run in that folder is resumed or replaced; or another run's folder or a
            checkpoint to resume from.

    Returns:
        The run folder.

    Raises:
        UserError: for a mistake in the recipe, or a folder that holds something else.
        TypeError: for overrides of a recipe that is loaded already.
        SystemExit: after an interrupt, once a checkpoint is saved; the same call resumes from it.
    """
    from ld3m.distillation.loop import distill

    start = None if isinstance(resume, bool) else Path(resume)
    return distill(_loaded(recipe, overrides, output), resume is not False, start)


SAMPLING: dict[str, str | int] = {
    "distill.init": "sample", "distill.iterations": 0, "distill.learn": "latents", "prior.steps": 0
}  # fmt: skip
"""What makes a distillation of a sampling: nothing is learnt, and the autoencoder alone renders what was sampled."""


def sample(recipe: str | Path, *overrides: str, output: str | Path | None = None, resume: bool = True) -> Path:
    """Samples images from the prior instead of learning them, as `ld3m sample` does.

    Args:
        recipe: a YAML file, or the name of a shipped recipe, such as "sampling/mgd3".
        overrides: `KEY=VALUE` as on the command line, such as "sample.method=d4m".
        output: the run folder; by default the recipe's, or one that is named after the recipe and the method.
        resume: whether an unfinished run in that folder is resumed or replaced.

    Returns:
        The run folder, which `evaluate` and all others take.

    Raises:
        UserError: for a mistake in the recipe, or a key that makes it learn.
        SystemExit: after an interrupt; the same call resumes after the last images that are done.
    """
    implied = sampling_overrides(recipe, overrides, output is not None)
    return distill(recipe, *overrides, *implied, output=output, resume=resume)


def sampling_overrides(recipe: str | Path, overrides: Sequence[str], has_output: bool) -> list[str]:
    """What a recipe lacks to be a sampling, as `KEY=VALUE`; also a name of its own, if nothing says where it goes.

    Raises:
        UserError: for a mistake in the recipe, or an override that makes it learn.
    """
    for key, value in SAMPLING.items():
        if other := [each for each in overrides if each.startswith(f"{key}=") and each != f"{key}={value}"]:
            raise UserError(
                f"{other[0]}: ld3m sample learns nothing and sets {key}={value}; leave it out, or give ld3m distill "
                "RECIPE distill.init=sample"
            )
    own = load_recipe(recipe, *overrides)
    implied = [f"{key}={value}" for key, value in SAMPLING.items() if value_of(own, key) != value]
    if implied and not has_output and own.output is None:
        implied.append(f"name={own.name}-{own.sample.method}")
    return implied


def auto(
    source: str | Path,
    *overrides: str,
    images_per_class: int = 1,
    minutes: float = 15,
    output: str | Path | None = None,
) -> Path:
    """Makes the best set of own images that a given time allows, as `ld3m auto` does.

    Args:
        source: the images, as `data.source` of a recipe.
        overrides: `KEY=VALUE` of the recipe that stand; "prior.source=…" is a prior to try too.
        minutes: for pilots, distillation and evaluation together.
        output: the run folder; by default `runs/auto-<name of the source>`.

    Returns:
        The run folder, with images, evaluation.json, report.html, and auto.yaml, which is the set's recipe.

    Raises:
        UserError: for images that cannot be used, too little time, or a folder that holds something else.
        SystemExit: after an interrupt; the same call resumes.
    """
    from ld3m.automatic.answer import answer
    from ld3m.automatic.question import Question

    folder = None if output is None else Path(output)
    question = Question(str(source), images_per_class, minutes, overrides, folder)
    answer(question)
    return question.folder


def rehearse(
    recipe: Recipe | str | Path, *overrides: str, output: str | Path | None = None, resume: bool = True
) -> "Rehearsal":
    """Tries every step of a run on a small scale and prints a table, as `ld3m distill --rehearse` does.

    Args:
        recipe: a recipe, or what `load_recipe` takes.
        overrides: `KEY=VALUE`, if `recipe` is a name or a file.
        output: the run folder, to which nothing is written; by default the recipe's.
        resume: whether the run would resume an unfinished one in that folder, or replace it.

    Returns:
        Its `rows`, and the `seconds` that the run and its evaluation will take.

    Raises:
        UserError: with a line for each mistake, after all that could be tried.
        TypeError: for overrides of a recipe that is loaded already.
        SystemExit: after an interrupt.
    """
    from ld3m.rehearsal.rehearse import rehearse

    rehearsal = rehearse(_loaded(recipe, overrides, output), resume)
    rehearsal.raise_if_failed()
    return rehearsal


def _loaded(recipe: Recipe | str | Path, overrides: Sequence[str], output: str | Path | None) -> Recipe:
    """A recipe, loaded unless it is one already, with its run folder."""
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, *overrides)
    elif overrides:
        raise TypeError(f"{overrides[0]}: overrides go to ld3m.load_recipe when the recipe is loaded")
    return recipe if output is None else recipe.changed({"output": str(output)})


def evaluate(
    run: str | Path | None = None,
    *overrides: str,
    recipe: str | Path | None = None,
    protocol: str | None = None,
    best: bool = False,
    against: Sequence[str | Path] = (),
    split: str = "test",
    scores: bool = False,
    again: bool = False,
    pixels: str | None = None,
    class_order: str | Path | None = None,
    by_position: bool = False,
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Trains networks on a distilled set and tests them on real images, as `ld3m evaluate` does.

    Args:
        run: a finished run's folder, by default the newest in runs/; "user/name" on the Hub, a folder of images by
            class, or a .pt file.
        overrides: `KEY=VALUE`, such as "evaluate.arch=[convnet,resnet18]" or "evaluate.seeds=2".
        recipe: the recipe whose data and protocol are used; required for a set that has no recipe of its own.
        protocol: "glad", "minimax", "rded", "rd3", "rethinkdc" or "custom", as published but for what `overrides`
            change; by default the recipe's, with its changes.
        best: whether to note the best of the protocol's own tests during training too.
        against: baselines ("random", "herding", "k-center", "easy", "hard", "rded", "full") and folders of other
            runs of the same data.
        split: the images to test on, "test" or "validation".
        scores: whether to measure what DD-Ranking's scores need.
        again: whether to measure again what was measured in the same way before.
        pixels: what the floats of a .pt file mean: "normalised", "unit", "signed", "whitened", or the data whose public
            constants they are normalised by, such as "cifar10"; by default it is judged.
        class_order: a file with a class per line, in the order of the numbers by which a set calls its classes.
        by_position: whether these numbers count the recipe's classes.
        output: the folder for evaluation.json; by default the run's.

    Returns:
        The run's evaluation.json. `results` has a row for each set, architecture and protocol: `trained_on`, `arch`,
        `protocol`, `mean` and `std` in %, and the `accuracies` of the single networks. `asked` has the places in it of
        the rows that this call asked for.

    Raises:
        UserError: for an unknown run, baseline, architecture or split.
    """
    from ld3m.comparison.named_sets import set_and_recipe
    from ld3m.evaluation.evaluate import evaluate
    from ld3m.recipe.evaluation import from_own_values
    from ld3m.runs.options import Reading

    names = [] if run is None else [str(run)]
    reading = Reading(pixels, None if class_order is None else str(class_order), by_position)
    changes = [*from_own_values(overrides, protocol), *(["evaluate.best=true"] if best else [])]
    folder, measured_by = set_and_recipe(names, None if recipe is None else str(recipe), changes, reading)
    elsewhere = None if output is None else Path(output)
    report, _ = evaluate(folder, measured_by, [str(name) for name in against], split, scores, again, elsewhere)
    return report


def compare(
    sets: Sequence[str | Path],
    *overrides: str,
    recipe: str | Path | None = None,
    against: Sequence[str] = (),
    published: str | Path | None = None,
    split: str = "test",
    again: bool = False,
    pixels: str | None = None,
    class_order: str | Path | None = None,
    by_position: bool = False,
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Measures several sets by one protocol and writes one table and one chart, as `ld3m compare` does.

    Args:
        sets: as `evaluate` takes one.
        overrides: as `evaluate` takes them.
        recipe: the recipe whose data and protocol are used; by default that of the first run among the sets.
        against: baselines, as `evaluate` has them.
        published: a YAML or JSON file of published figures, a list of entries with the keys of
            `ld3m.comparison.published.Figure`.
        split, again, pixels, class_order, by_position: as `evaluate` has them.
        output: the folder to write to; by default one in comparisons/, named after the sets.

    Returns:
        What comparison.json holds: `sets` with their `accuracies`, `differences` of pairs, and `notes`.

    Raises:
        UserError: for sets that cannot be compared, an unknown baseline, architecture or split.
    """
    from ld3m.comparison.compare import compare
    from ld3m.runs.options import Reading

    names, by = list(map(str, sets)), None if recipe is None else str(recipe)
    reading = Reading(pixels, None if class_order is None else str(class_order), by_position)
    figures, folder = (None if path is None else Path(path) for path in (published, output))
    return compare(names, overrides, by, reading, against, figures, split, again, folder)[0]


def tune(
    recipe: str | Path,
    *overrides: str,
    axis: Sequence[str] = (),
    axes: str | None = None,
    trials: int | None = None,
    minutes: float | None = None,
    rungs: int = 3,
    eta: int = 3,
    close: float = 1.0,
    distillations: int = 3,
    final: bool = False,
    output: str | Path | None = None,
) -> "Outcome":
    """Searches the settings that make the best set, as `ld3m tune` does; the same call resumes.

    Args:
        recipe: a YAML file, or the name of a shipped recipe.
        axis: keys to search, such as "distill.lr_latents=0.03..3", as `ld3m.tuning.axes` describes them.
        axes: ready ones: "rates" or "all".
        trials: candidates, 1 or more; by default 20, or as `minutes` allows.
        minutes: the time of this call, above 0; no run begins that would not end in it. By default no limit.
        rungs: lengths of runs, 1 to 10; 1: all are of full length.
        eta: one of so many trials is promoted to runs that are so many times as long, 2 or more.
        close: how near to the best, in points of accuracy, a candidate gets more distillations, 0 or more; not less
            than one held-out image weighs.
        distillations: distillation seeds of candidates that are close, 1 or more.
        final: whether the best is distilled five times from all training images at the end, and measured once on test
            images.
        output: the folder; by default one in tunings/.

    Returns:
        `best` and `ranked`, with `settings`, `overrides` and `mean` accuracy in %; the `report` that tune.json holds.

    Raises:
        UserError: with a line for each mistake.
        SystemExit: after an interrupt.
    """
    from ld3m.tuning.options import Budget
    from ld3m.tuning.search import Search
    from ld3m.tuning.tune import tune

    folder = None if output is None else Path(output)
    budget = Budget(trials, minutes, rungs, eta, close, distillations, final)
    return tune(Search.of(str(recipe), overrides, axis, axes, folder, budget))


def load_latents(run: str | Path) -> "dict[str, Tensor]":
    """The tensors of a finished run.

    Returns:
        On the CPU: `z`, float32 [N, *latent_shape]; `c`, float32 [N, *conditioning_shape]; `labels`, int64 [N].
    """
    from ld3m.runs.result import read_latents

    return read_latents(Path(run))[0]


def load_prior(source: Recipe | str | Path, device: "str | torch.device" = "cpu") -> "Prior":
    """Loads a frozen latent diffusion model, which `ld3m.sampling.render` takes.

    Args:
        source: a recipe, for the prior it names with its settings; or, as `prior.source`, a folder, `hub:<id>`, or the
            name of a packaged prior. An autoencoder alone has no size of its own: give a recipe with `prior.steps=0`.

    Raises:
        UserError: if it is not a latent diffusion model in diffusers' layout, or "pixels", which has no size without a
            recipe.
    """
    from ld3m import priors

    if isinstance(source, Recipe):
        return priors.for_images(source.prior, source.data.channels, source.rendered_size, device)
    if str(source) == "pixels":
        raise UserError("source: pixels is of the size that a recipe says; give ld3m.load_prior the recipe")
    unguided = SamplerRecipe(source=str(source), guidance=1)  # which a prior without a null class takes
    return priors.load(unguided, device)
