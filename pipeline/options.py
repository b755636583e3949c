"""Options and arguments that several commands have, with the words that help shows."""

from pathlib import Path
from typing import Annotated

import typer


def _local(path: Path) -> Path:
    from .jobs import refuse_url

    return refuse_url(path)


AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
CacheFolder = Annotated[Path, typer.Argument(help="folder of the cache", callback=_local)]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="job key, KEY=VALUE; may be repeated")
]
SkipBadRows = Annotated[
    bool, typer.Option("--skip-bad-rows", help="leave bad rows out and list them")
]
TextColumn = Annotated[list[str] | None, typer.Option(help="column of a text segment")]
