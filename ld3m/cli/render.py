"""`ld3m render`."""

from typing import Annotated

import typer

from ld3m.cli import completion
from ld3m.cli.arguments import Output, names_and_overrides


def render(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN KEY=VALUE",
            help="A finished run (by default the newest in runs/) or USER/NAME on the Hub; and overrides, such as "
            "prior.source=priors/other.",
            autocompletion=completion.runs_and_overrides,
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(metavar="S", help="DDIM steps; 0 uses the autoencoder alone.")] = None,
    skip: Annotated[
        str | None, typer.Option(metavar="NAME", help="paper, reference or none.", autocompletion=completion.skips)
    ] = None,
    guidance: Annotated[float | None, typer.Option(metavar="G", help="Classifier-free guidance scale.")] = None,
    output: Output = None,
) -> None:
    """Render a run's latents again, with other sampler settings.

    For example: ld3m render runs/quickstart --steps 50 --skip none

    Writes images/ and grid.png, by default in a folder of RUN/rendered/, which ld3m evaluate accepts.
    """
    names, overrides = names_and_overrides(arguments)
    for key, value in (("steps", steps), ("skip", skip), ("guidance", guidance)):
        if value is not None:
            overrides.append(f"prior.{key}={value}")
    from ld3m.distillation.render import render_again
    from ld3m.runs.folder import load_recipe
    from ld3m.runs.imported import find_set

    folder = find_set(names)
    render_again(folder, load_recipe(folder, overrides), output)
