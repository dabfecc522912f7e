"""`ld3m convert-prior`."""

from pathlib import Path
from typing import Annotated

import typer


def convert_prior(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="The original's .ckpt, .pt or .safetensors, or the name of a KIND."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write, for prior.source.")],
    kind: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="cin256-v2, ffhq256, celebahq256, or auto to recognise it by its tensors.",
        ),
    ] = "auto",
    config: Annotated[
        str | None,
        typer.Option(
            metavar="YAML|FOLDER",
            help="The original's YAML file, for a model of another kind; for Stable Diffusion a folder of the same "
            "model in diffusers' layout.",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="N|FILE",
            help="How many classes the model has, or a file with the name of each on a line; the null class left out.",
        ),
    ] = None,
    vae: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="The autoencoder of a DiT, which its checkpoint lacks: a folder, or hub:stabilityai/sd-vae-ft-ema.",
        ),
    ] = None,
) -> None:
    """Convert an original checkpoint to a prior.

    Of latent-diffusion (CompVis), of DiT, or a single file of Stable Diffusion 1 or 2. Writes a folder in diffusers'
    layout, in safetensors. No code pickled in the checkpoint is run. Every tensor is converted or listed as left out in
    OUT/provenance.json.

    Given the name of a KIND instead of a file, it writes the configurations alone, which is enough for ld3m plan
    --device.
    """
    from ld3m.errors import UserError
    from ld3m.priors.originals.config import KINDS
    from ld3m.priors.originals.convert import convert, write_configurations

    if str(checkpoint) in KINDS and not checkpoint.exists():
        if config or classes or vae or kind != "auto":
            raise UserError(f"{checkpoint}: is the name of a kind, which takes no other option; leave them out")
        write_configurations(str(checkpoint), out)
        typer.echo(f"{out}: the configurations of {checkpoint} without weights, for ld3m plan --device")
        return
    report = convert(checkpoint, out, kind, config, classes, vae)
    left_out, count = len(report["tensors left out"]), report["classes"]
    null = "a null class" if report["null class"] else "no null class, so prior.guidance=1"
    conditioning = "takes prompts" if count is None else f"{count} classes and {null}" if count else "unconditional"
    typer.echo(
        f"{out}: {report['kind']}, {conditioning}; "
        f"{report['tensors used']} tensors, {left_out} left out, listed in provenance.json"
    )
    if report["note"]:
        typer.echo(f"{out}: {report['note']}")
