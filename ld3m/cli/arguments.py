"""Arguments that several commands take, and how they are read."""

import functools
import inspect
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ld3m.cli import completion
from ld3m.errors import UserError

if TYPE_CHECKING:
    from ld3m.recipe import Recipe
    from ld3m.recipe.files import AnyRecipe

# --- recipes and what is made of them ----------------------------------------------------------------------

RECIPE_HELP, OVERRIDES_HELP = "A YAML file, or the name of a shipped recipe.", "Overrides, such as "

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help=RECIPE_HELP, autocompletion=completion.recipes)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help=f"{OVERRIDES_HELP}distill.iterations=200.", autocompletion=completion.overrides
    ),
]
PriorRecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help=RECIPE_HELP, autocompletion=completion.prior_recipes)
]
PriorOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help=f"{OVERRIDES_HELP}denoiser.steps=2000.", autocompletion=completion.prior_overrides
    ),
]


def folder_to_write(name: str) -> Path:
    """What `--output` names; safetensors must be able to open it."""
    from ld3m.recipe.parsing import NOT_UTF8, is_utf8

    if not name:
        raise UserError("--output: is empty; give a folder, or leave it out")
    if not is_utf8(name):
        raise UserError(f"--output: {name!r}: {NOT_UTF8}")
    return Path(name)


Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="The folder to write the result to.", parser=folder_to_write),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe, each key explained, and exit.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
NoResume = Annotated[
    bool,
    typer.Option("--no-resume", help="Start again and replace what is in the folder; by default it is resumed."),
]


def _refuse(given: bool) -> None:
    """Stops a `--resume` without a path, which is what happens anyway."""
    if given:
        raise UserError("--resume: resuming is the default, so leave it out; --no-resume starts again")


BareResume = Annotated[bool, typer.Option("--resume", hidden=True, is_eager=True, callback=_refuse)]
"""`--resume` of commands that resume from nowhere but their own folder; `distill` takes a path with it."""


def resolve(
    kind: "type[AnyRecipe]",
    recipe: str,
    overrides: list[str] | None,
    dry_run: bool = False,
    output: Path | None = None,
    data_only: bool = False,
    resume: bool = False,
) -> "AnyRecipe":
    """The recipe of a command, with its overrides applied; a dry run prints it and exits, or refuses as the run would.

    Args:
        data_only: whether the command reads only the data, neither the prior nor what a distillation starts from.
        resume: whether the command resumes what is in the run folder, which then must be a run of this recipe.

    Raises:
        UserError: with one line for each mistake.
    """
    from ld3m.recipe import Recipe
    from ld3m.recipe.files import load
    from ld3m.recipe.keys import commented

    overrides = list(overrides or [])
    if output is not None:
        overrides.append(f"output={json.dumps(str(output), ensure_ascii=False)}")  # quoted: a folder's name is not YAML
    resolved = load(kind, recipe, overrides)
    if dry_run:
        unseen = "images"
        if isinstance(resolved, Recipe) and not data_only:
            from ld3m.distillation.inputs import check_classes, check_inputs

            check_inputs(resolved)
            unseen = check_classes(resolved)
            if resume:
                from ld3m.runs.resume import check_resumable

                check_resumable(resolved)
        else:
            from ld3m.data.sources import class_names

            unseen += "" if class_names(resolved.data) else f", the classes of {resolved.data.source}"
        typer.echo(commented(resolved), nl=False)
        if isinstance(resolved, Recipe):
            typer.echo(_weights(resolved))
        typer.echo(f"# Not looked at: {unseen}")
        raise typer.Exit
    return resolved


def _weights(recipe: "Recipe") -> str:
    """The size of the prior's weights, as a YAML comment."""
    from ld3m.priors import stored
    from ld3m.priors.known import KNOWN
    from ld3m.priors.source import weight_bytes

    try:
        parameters, size = weight_bytes(recipe.prior)
        missing = stored.is_to_be_fetched(recipe.prior.source)
    except UserError as error:  # the prior may be on the Hub, and a dry run needs no network
        return f"# {error}"
    line = f"# The prior: {parameters / 1e6:,.2f} M parameters, {size / 1e6:,.2f} MB on each process"
    if missing:
        known = KNOWN[recipe.prior.source]
        line += f"\n# It is not on this machine: a run fetches about {known.size / 1e9:.1f} GB from {known.origin}"
    return line


# --- runs, and how they are measured -----------------------------------------------------------------------

RunArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN", help="A finished run; by default the newest in runs/.", autocompletion=completion.runs
    ),
]
SetAndOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN KEY=VALUE",
        help="A distilled set: a finished run (by default the newest in runs/), USER/NAME on the Hub, a folder of "
        "images by class, or a .pt file; and overrides, such as evaluate.epochs=300.",
        autocompletion=completion.runs_and_overrides,
    ),
]
MeasuredBy = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="RECIPE",
        help="The recipe whose data and protocol are used; required for a set that has no recipe of its own.",
        autocompletion=completion.recipes,
    ),
]
Whitening = Annotated[
    str | None,
    typer.Option(
        metavar="zca",
        help="For a set distilled in whitened images, as MTT's often are: train and test on images whitened by ZCA, "
        "fitted on the real training images; frepo fits as FRePo does.",
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,…",
        help="Networks to train: convnet, resnet18, vgg11, alexnet, vit, convnet6, resnetap10, resnet18_idc, "
        "`timm/<model>`; by default the recipe's.",
        autocompletion=completion.networks,
    ),
]
Seeds = Annotated[int | None, typer.Option(metavar="N", help="Networks per architecture; by default the recipe's.")]
Split = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="The images to test on: test, or validation if the recipe holds some out.",
        autocompletion=completion.splits,
    ),
]


ProtocolName = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        metavar="NAME",
        help="How networks are trained and tested: glad, minimax, idc, rded, rd3, rethinkdc, custom; as published, "
        "whatever the recipe changes for its own. Keys beside it change it; recipes/PROTOCOLS.md has its values.",
        autocompletion=completion.protocols,
    ),
]
Best = Annotated[
    bool,
    typer.Option(
        "--best", help="Also note the best of the protocol's own tests during training, as most published figures are."
    ),
]
Baselines = Annotated[
    str,
    typer.Option(
        metavar="NAME,…",
        help="Baselines, measured in the same way: as many real images chosen by random, herding, k-center, easy or "
        "hard; rded for as many mosaics of easy crops; full for all real images.",
    ),
]
Again = Annotated[
    bool, typer.Option("--again", help="Measure everything again; by default what is measured already is reused.")
]


def listed(names: str) -> list[str]:
    """Names between commas."""
    return [name for name in names.split(",") if name]


def names_and_overrides(arguments: list[str] | None) -> tuple[list[str], list[str]]:
    """Splits `NAME … KEY=VALUE …` into both; an existing path with a = in it is a name."""
    names = [argument for argument in arguments or [] if "=" not in argument or Path(argument).exists()]
    return names, [argument for argument in arguments or [] if argument not in names]


def command_line() -> str:
    """What was typed, which results note."""
    return f"ld3m {shlex.join(sys.argv[1:])}"


def show_report(report: Mapping[str, Any], as_json: bool, markdown: Callable[[Mapping[str, Any]], str]) -> None:
    """Prints a report as JSON, or as its tables in Markdown."""
    typer.echo(json.dumps(report, indent=2, ensure_ascii=False) if as_json else markdown(report), nl=as_json)


# --- options that several commands have together -----------------------------------------------------------


@dataclass(frozen=True)
class HowMeasured:
    """Which networks are trained, and by which protocol."""

    arch: Arch = None
    seeds: Seeds = None
    protocol: ProtocolName = None
    best: Best = False

    def overrides(self, others: list[str]) -> list[str]:
        """Overrides of a recipe with those for these options."""
        from ld3m.recipe.evaluation import from_own_values

        chosen = [] if self.arch is None else [f"evaluate.arch=[{self.arch}]"]
        chosen += [] if self.seeds is None else [f"evaluate.seeds={self.seeds}"]
        return [*from_own_values(others, self.protocol), *chosen, *(["evaluate.best=true"] if self.best else [])]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters of the types above are options, one for each of their fields."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if is_dataclass(kind) and isinstance(kind, type)}

    def expanded(name: str) -> list[inspect.Parameter]:
        if name not in groups:
            return [own[name].replace(annotation=hints[name])]
        options = get_type_hints(groups[name], include_extras=True)
        return [
            inspect.Parameter(each.name, own[name].kind, default=each.default, annotation=options[each.name])
            for each in fields(groups[name])
        ]

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{each.name: given.pop(each.name) for each in fields(kind)})
        command(**given)

    own = inspect.signature(command).parameters
    options = [option for name in own for option in expanded(name)]
    with_options.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    with_options.__annotations__ = {option.name: option.annotation for option in options}
    return with_options
