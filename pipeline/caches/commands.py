"""The commands of `armada cache`: parse, call, print. Nothing heavy is imported before one runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Look into a cache, check it, pass it on.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
CacheFolder = Annotated[Path, typer.Argument(help="folder of the cache")]
Prefix = Annotated[str | None, typer.Option("--teacher", help="fingerprint or unique prefix")]


@app.command("ls")
def ls(cache: CacheFolder, as_json: AsJson = False) -> None:
    """List the teachers of a cache: rows, bytes, what they cost."""
    from ..show import show_teachers
    from .report import summarise

    show_teachers(summarise(cache), as_json)


@app.command("inspect")
def inspect(cache: CacheFolder, teacher: Prefix = None) -> None:
    """Print all that is known of one teacher as JSON: settings, features, runs, cost."""
    from .report import inspect

    print(json.dumps(inspect(cache, teacher), indent=2, ensure_ascii=False))
