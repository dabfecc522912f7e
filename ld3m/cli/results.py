"""Commands about what was made: how far it is, how good it is, a page of it, its latents otherwise, the Hub."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ld3m.cli.app import Output, app

SetAndOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN KEY=VALUE",
        help="A distilled set: a finished run, by default the newest below runs/; USER/NAME of the Hub; a folder of "
        "images by class; a .pt file. Overrides, such as evaluate.epochs=300.",
    ),
]
MeasuredBy = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="RECIPE",
        help="Whose data and protocol to measure by; what has no recipe of its own needs one.",
    ),
]


def _names_and_overrides(arguments: list[str] | None) -> tuple[list[str], list[str]]:
    """Which of RUN KEY=VALUE are which; a path may have a = too."""
    names = [argument for argument in arguments or [] if "=" not in argument or Path(argument).exists()]
    return names, [argument for argument in arguments or [] if argument not in names]


def _sets(listed: str) -> list[str]:
    """Names between commas; the folder of an ablation's run may have some too."""
    names, parts = [], [part for part in listed.split(",") if part]
    while parts:
        joined = [",".join(parts[:count]) for count in range(len(parts), 0, -1)]
        names.append(next((name for name in joined if Path(name).is_dir()), parts[0]))
        parts = parts[names[-1].count(",") + 1 :]
    return names


@app.command()
def status(
    run: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="A run's folder, by default the newest below runs/.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Say how far a run is: running, stopped or finished, its loss, rate, time left, and where to look.

    From another terminal, while it runs or afterwards: ld3m status runs/quickstart
    """
    from dataclasses import asdict

    from ld3m.reporting.status import find, read, text

    found = read(find(run or []))
    typer.echo(json.dumps(asdict(found), indent=2) if as_json else text(found))


@app.command()
def evaluate(
    arguments: SetAndOverrides = None,
    recipe: MeasuredBy = None,
    arch: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="Networks to train: convnet, resnet18, vgg11, alexnet, vit, `timm/<model>`; by default the recipe's.",
        ),
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            metavar="NAME,…",
            help="Baselines of as many real images, trained on alike: random, herding, k-center, easy, hard; full is "
            "all of them, evaluate.full_epochs times. Or the folder of another run of the same data.",
        ),
    ] = "",
    scores: Annotated[
        bool,
        typer.Option(
            "--scores",
            help="Measure what DD-Ranking's label-robust and augmentation-robust scores need: random and full, and "
            "distilled and random with and without augmentation.",
        ),
    ] = False,
    seeds: Annotated[int | None, typer.Option(help="Networks of each kind; by default the recipe's.")] = None,
    split: Annotated[str, typer.Option(help="What to test on: test, or validation where some is held out.")] = "test",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Train networks from scratch on a distilled set and test them on real images.

    Prints mean ± std over seeds, of each architecture and of the mean over all but the matching network's, and how far
    it is from each baseline: the mean difference, its 95 % interval, and the p-value of a t-test paired by seed.

    Adds them, and how the networks were trained, to the run's evaluation.json.

    Nothing is chosen on the test set: the images are the last iteration's, and each network is tested once, after its
    last epoch. To compare settings, set data.validation_share=0.1 when distilling, and use --split validation.

    Interrupted, the same command goes on with the network it was at. Baselines' accuracies are kept with the prepared
    data, where other runs find them.

    Anybody's set by the same protocol: ld3m evaluate user/name, or: ld3m evaluate images_best.pt --recipe fashion-mnist
    """
    names, overrides = _names_and_overrides(arguments)
    if arch is not None:
        overrides.append(f"evaluate.arch=[{arch}]")
    if seeds is not None:
        overrides.append(f"evaluate.seeds={seeds}")
    from ld3m.evaluation.evaluate import evaluate
    from ld3m.evaluation.tables import accuracy_table
    from ld3m.recipe import Recipe
    from ld3m.recipe.files import load
    from ld3m.runs import folder as run
    from ld3m.runs import imported as imports

    folder = imports.find(names, recipe, overrides)
    measured_by = load(Recipe, recipe, overrides) if recipe else run.load_recipe(folder, overrides)
    report, is_main = evaluate(folder, measured_by, _sets(against), split, scores)
    if is_main:
        typer.echo(json.dumps(report, indent=2) if as_json else accuracy_table(report))


@app.command()
def report(
    arguments: SetAndOverrides = None,
    recipe: MeasuredBy = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="What to write; by default RUN/report.html.")
    ] = None,
) -> None:
    """Write a run, finished or not, as one HTML page: images on their way, curves, accuracies, recipe and cost.

    The page loads nothing else: it can be sent, kept, and read without a network.
    """
    names, overrides = _names_and_overrides(arguments)
    from ld3m.reporting.report import report
    from ld3m.runs import imported as imports

    unfinished = Path(names[0]) if len(names) == 1 and (Path(names[0]) / "recipe.yaml").is_file() else None
    typer.echo(report(unfinished or imports.find(names, recipe, overrides), output))


@app.command()
def render(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN KEY=VALUE",
            help="A finished run, by default the newest below runs/, or USER/NAME of the Hub; overrides, such as "
            "prior.source=priors/other.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="DDIM steps; 0 for the autoencoder alone.")] = None,
    skip: Annotated[str | None, typer.Option(help="paper, reference or none.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance scale.")] = None,
    output: Output = None,
) -> None:
    """Render the latents of a run otherwise, for example: ld3m render runs/quickstart --steps 50 --skip none

    Writes images/ and grid.png, by default to RUN/rendered/, which ld3m evaluate takes.
    """
    names, overrides = _names_and_overrides(arguments)
    for key, value in (("steps", steps), ("skip", skip), ("guidance", guidance)):
        if value is not None:
            overrides.append(f"prior.{key}={value}")
    from ld3m.distillation.render import render_again
    from ld3m.runs import folder as run
    from ld3m.runs import imported as imports

    folder = imports.find(names)
    render_again(folder, run.load_recipe(folder, overrides), Path(output) if output else None)


@app.command("push-to-hub")
def push_to_hub(
    name: Annotated[
        str | None, typer.Argument(metavar="RUN", help="A finished run, by default the newest below runs/.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="USER/NAME",
            help="The data set; by default the recipe's hub.repo_id, else `<login>/ld3m-<run>`.",
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Only for your eyes, if the data set is made now.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write what would go to RUN/hub/, and ask nothing of the Hub.")
    ] = False,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="A branch, made where there is none.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    token: Annotated[
        str | None,
        typer.Option(help="Better in HF_TOKEN, or by hf auth login: others on this machine see command lines."),
    ] = None,
) -> None:
    """Publish a run as a data set of the Hugging Face Hub: images, latents, recipe, figures, card.

    Again, it updates what has changed and sends nothing else. Runs with other numbers of images per class or
    resolutions become configs beside it.
    """
    from ld3m.publishing import push
    from ld3m.runs import imported as imports

    folder = imports.find([name] if name else [])
    push.push(folder, push.Destination(to, private, revision, create_pr, token), dry_run)


@app.command()
def env() -> None:
    """Print what a bug report needs: versions, GPUs, Accelerate's configuration, caches, settings.

    Tokens, keys and passwords are left out: ld3m env can be pasted into an issue as it is.
    """
    from ld3m.machine.environment import report

    typer.echo(report())
