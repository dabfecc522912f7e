"""Commands that make something: distillations, experts, priors, and plans of them."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ld3m.cli.app import Output, app

if TYPE_CHECKING:
    from ld3m.recipe import Recipe
    from ld3m.recipe.files import AnyRecipe

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Overrides, such as distill.iterations=200."),
]
Resume = Annotated[bool, typer.Option(help="Go on with an unfinished run of the same recipe, or start anew.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")]


def _resolve(
    kind: "type[AnyRecipe]", recipe: str, overrides: list[str] | None, dry_run: bool, output: str | None = None
) -> "AnyRecipe":
    """A command's recipe with its overrides; a dry run ends with it on the screen."""
    from ld3m.recipe import Recipe
    from ld3m.recipe.files import load, to_yaml

    overrides = list(overrides or [])
    if output is not None:
        overrides.append(f"output={json.dumps(output, ensure_ascii=False)}")  # quoted: a folder's name is not YAML
    resolved = load(kind, recipe, overrides)
    if dry_run:
        typer.echo(to_yaml(resolved), nl=False)
        if isinstance(resolved, Recipe):
            typer.echo(_memory(resolved))
        raise typer.Exit
    return resolved


def _memory(recipe: "Recipe") -> str:
    """What the prior's weights will take, as a comment of YAML."""
    from ld3m.errors import UserError
    from ld3m.priors.folder import weight_bytes

    try:
        parameters, size = weight_bytes(recipe.prior)
    except UserError as error:  # a dry run needs no network
        return f"# {error}"
    return f"# The prior: {parameters / 1e6:,.2f} M parameters, {size / 1e6:,.2f} MB on each process"


@app.command()
def distill(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Output = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Go on from a run's folder or one of its checkpoints, in that folder or in that of --output.",
        ),
    ] = None,
    no_resume: Annotated[bool, typer.Option("--no-resume", help="Replace a run that is in the folder.")] = False,
    dry_run: DryRun = False,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Time the parts of a few iterations, write a trace, and stop."),
    ] = False,
) -> None:
    """Distil a data set by a recipe, for example: ld3m distill quickstart distill.iterations=200

    Interrupted at any moment, the same command goes on where it stood. SIGINT, SIGTERM and SIGUSR1 end it once its
    state is saved.

    Processes share the classes: accelerate launch -m ld3m distill quickstart
    """
    from ld3m.errors import UserError
    from ld3m.recipe import Recipe

    if profile and resume:
        raise UserError("--profile: the first iterations are profiled; leave out --resume")
    if resume and no_resume:
        raise UserError("--resume: a run is gone on from, or with --no-resume replaced; give one of the two")
    if resume and output is None:
        output = os.path.normpath(resume / "../.." if (resume / "manifest.json").is_file() else resume)
    resolved = _resolve(Recipe, recipe, overrides, dry_run, output)
    if profile:
        from ld3m.distillation.profile import profile as take_profile

        typer.echo(take_profile(resolved))
        return
    from ld3m.distillation.loop import distill

    distill(resolved, not no_resume, resume)


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    processes: Annotated[
        int, typer.Option("--processes", metavar="N", min=1, help="Processes that share the classes.")
    ] = 1,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A GPU to look up in a table instead of measuring here: a100-40gb, a100-80gb, h100-80gb, h200-141gb, "
            "l4-24gb, l40s-48gb.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say what a run will take before it is paid for: shards, memory, denoiser calls, hours, communication, disk.

    Times a sample of an iteration on this machine, in about a minute: ld3m plan quickstart

    Or looks up a device, with neither images nor weights here, but the JSON files of the prior's folder: ld3m plan
    imagenet1k prior.source=priors/cin256-v2 --processes 8 --device h100-80gb

    Warns of what will not fit, and names the override that makes it fit.
    """
    from ld3m.recipe import Recipe

    resolved = _resolve(Recipe, recipe, overrides, dry_run=False)
    from dataclasses import asdict

    from ld3m.distillation.plan import plan, table

    result = plan(resolved, processes, device)
    typer.echo(json.dumps(asdict(result), indent=2) if as_json else table(result))


@app.command()
def experts(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    resume: Resume = True,
    dry_run: DryRun = False,
) -> None:
    """Train networks on the real images: distill.objective=mtt matches their way, distill.networks=experts takes them.

    Says what they will take on disk first. Interrupted, the same command goes on.

    Processes share the experts: accelerate launch -m ld3m experts RECIPE
    """
    from ld3m.recipe import Recipe

    resolved = _resolve(Recipe, recipe, overrides, dry_run)
    from ld3m.objectives.train_experts import train_experts

    train_experts(resolved, resume)


@app.command("train-prior")
def train_prior(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Output = None,
    resume: Resume = True,
    dry_run: DryRun = False,
) -> None:
    """Train a small class-conditional latent diffusion model on your own images, and judge it.

    Interrupted, the same command goes on. Processes share each batch: accelerate launch -m ld3m train-prior RECIPE
    """
    from ld3m.recipe.prior import PriorRecipe

    resolved = _resolve(PriorRecipe, recipe, overrides, dry_run, output)
    from ld3m.prior_training.train import train_prior

    train_prior(resolved, resume)


@app.command("convert-prior")
def convert_prior(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="The original's .ckpt or .safetensors, or the name of a KIND.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write, for prior.source.")],
    kind: Annotated[
        str, typer.Option(metavar="KIND", help="cin256-v2, ffhq256, celebahq256, or auto: as its shapes say.")
    ] = "auto",
    config: Annotated[
        Path | None, typer.Option(metavar="YAML", help="The original's configuration, for a model of another kind.")
    ] = None,
) -> None:
    """Turn an original latent-diffusion checkpoint (CompVis) into a prior's folder, in safetensors.

    Nothing pickled in the checkpoint is run. Every tensor finds its place or is named in OUT/provenance.json.
    Of the name of a KIND the folder has the configurations alone, which `ld3m plan --device` can do with.
    """
    from ld3m.priors.convert import KINDS, convert, write_configurations

    if str(checkpoint) in KINDS and not checkpoint.exists():
        write_configurations(str(checkpoint), out)
        typer.echo(f"{out}: the configurations of {checkpoint} without weights, for ld3m plan --device")
        return
    report = convert(checkpoint, out, kind, config)
    left_out = len(report["tensors left out"])
    typer.echo(
        f"{out}: {report['kind']}, {report['tensors used']} tensors, {left_out} left out as provenance.json says"
    )
