"""`ld3m export`."""

from typing import Annotated

import typer

from ld3m.cli import completion
from ld3m.cli.arguments import Output, RunArgument


def export(
    name: RunArgument = None,
    layout: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="LAYOUT",
            help="folder (class folders, of WordNet ids for ImageNet), rded (00000/…), rethinkdc (class folders as its "
            "benchmark reads them) or pt (IDC's data.pt: images in [0, 1] and labels).",
            autocompletion=completion.layouts,
        ),
    ] = "folder",
    output: Output = None,
) -> None:
    """Write a set as other projects' code reads it.

    By default to RUN/export/LAYOUT. The pixels are those of the run; layouts that number classes have a class_order.txt
    beside them, by which ld3m evaluate reads them back: ld3m evaluate runs/mine/export/rded --recipe quickstart
    """
    from ld3m.errors import counted
    from ld3m.publishing.export import export
    from ld3m.runs.folder import load_recipe
    from ld3m.runs.imported import find_set

    folder = find_set([name] if name else [])
    written = export(folder, layout, output)
    distilled = load_recipe(folder).distill
    several = f", each {distilled.factor} × {distilled.factor} smaller ones" if distilled.factor > 1 else ""
    typer.echo(f"{written}: {counted(distilled.images_per_class, 'image')} per class{several}")
