"""`ld3m push-to-hub`."""

from typing import Annotated

import typer

from ld3m.cli.arguments import RunArgument


def push_to_hub(
    name: RunArgument = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="USER/NAME",
            help="The data set; by default the recipe's hub.repo_id, else `<login>/ld3m-<run>`.",
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make the data set private, if this command creates it.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write what would be pushed to RUN/hub/, without asking the Hub.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="The branch to push to; created if it does not exist.")
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    token: Annotated[
        str | None,
        typer.Option(
            help="A Hub token. HF_TOKEN or hf auth login are safer: other users of this machine see command lines."
        ),
    ] = None,
) -> None:
    """Publish a run as a data set on the Hugging Face Hub.

    Pushes images, latents, the recipe, results and a card. Pushing again sends only what has changed. Runs with another
    number of images per class or another resolution become further configs of the same data set.
    """
    from ld3m.publishing import push
    from ld3m.runs.imported import find_set

    folder = find_set([name] if name else [])
    push.push(folder, push.Destination(to, private, revision, create_pr, token), dry_run)
