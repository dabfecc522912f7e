"""`ld3m push-to-hub`."""

from typing import Annotated

import typer

from ld3m.cli.arguments import RunArgument, grouped
from ld3m.publishing.options import Destination


@grouped
def push_to_hub(
    name: RunArgument = None,
    *,
    destination: Destination,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write what would be pushed to RUN/hub/, without asking the Hub.")
    ] = False,
) -> None:
    """Publish a run as a data set on the Hugging Face Hub.

    Pushes images, latents, the recipe, results and a card. Pushing again sends only what has changed. Runs with another
    number of images per class or another resolution become further configs of the same data set.
    """
    from ld3m.publishing import push
    from ld3m.runs.imported import find_set

    folder = find_set([name] if name else [])
    push.push(folder, destination, dry_run)
