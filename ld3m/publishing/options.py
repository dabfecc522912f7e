"""Where and how a run is pushed: the options of `ld3m push-to-hub`, defined once."""

from dataclasses import dataclass
from typing import Annotated

from typer import Option


@dataclass(frozen=True)
class Destination:
    """What each field means is its help on the command line."""

    to: Annotated[
        str | None,
        Option(
            metavar="USER/NAME",
            help="The data set; by default the recipe's hub.repo_id, else `<login>/ld3m-<run>`.",
        ),
    ] = None
    private: Annotated[bool, Option("--private", help="Make the data set private, if this command creates it.")] = False
    revision: Annotated[
        str | None, Option(metavar="BRANCH", help="The branch to push to; created if it does not exist.")
    ] = None
    create_pr: Annotated[bool, Option("--create-pr", help="Open a pull request instead.")] = False
    token: Annotated[
        str | None,
        Option(help="A Hub token. HF_TOKEN or hf auth login are safer: other users of this machine see command lines."),
    ] = None
