"""`armada cache push` and `armada cache pull`: parse, call, print."""

from typing import Annotated

import typer

from ..options import AsJson, CacheFolder, Quiet, SkipBadRows, TextColumn

app = typer.Typer()

Corpus = Annotated[
    list[str] | None, typer.Option(help="file or folder of texts: only shards that answer them")
]
Prefixes = Annotated[
    list[str] | None, typer.Option("--teacher", help="fingerprint or unique prefix; default all")
]
StorageOptions = Annotated[
    list[str] | None,
    typer.Option("--storage-option", help="KEY=VALUE for fsspec, e.g. anon=true; may be repeated"),
]
Jobs = Annotated[int, typer.Option(min=1, max=64, help="shards under way at once")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="only say what would go over")]


@app.command("push")
def push(
    cache: CacheFolder,
    url: Annotated[str, typer.Argument(help="folder or URL to send to: s3://, gs://, hf://, ...")],
    teacher: Prefixes = None,
    storage_option: StorageOptions = None,
    jobs: Jobs = 8,
    public: Annotated[
        bool, typer.Option("--public", help="a new repository on the Hub is public, not private")
    ] = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Send a cache to a place that others pull from; only what is missing there goes over."""
    from .console import show_shared
    from .push import push_cache
    from .sharing import Transfer

    transfer = Transfer(storage_option or [], jobs, dry_run, quiet)
    show_shared(push_cache(cache, url, teacher or [], transfer, public), "pushed", as_json)


@app.command("pull")
def pull(
    url: Annotated[str, typer.Argument(help="folder or URL of a cache: https://, s3://, ...")],
    cache: CacheFolder,
    teacher: Prefixes = None,
    feature: Annotated[list[str] | None, typer.Option(help="feature; default all")] = None,
    corpus: Corpus = None,
    text_column: TextColumn = None,
    encoding: Annotated[
        str | None, typer.Option(help="encoding of CSV, TSV and JSON files, such as latin-1")
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="what parts the fields of CSV files, such as ';' or tab")
    ] = None,
    skip_bad_rows: SkipBadRows = False,
    expect_digest: Annotated[
        str | None, typer.Option(help="digest that the cache there must have")
    ] = None,
    storage_option: StorageOptions = None,
    jobs: Jobs = 8,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Bring a cache, or a part of it, to this machine; only what is missing here comes."""
    from ..corpus_keys import TextFormatKeys
    from ..jobs import make
    from .console import show_shared
    from .pull import Wanted, pull_cache
    from .sharing import Transfer

    form = make(TextFormatKeys, {"encoding": encoding, "delimiter": delimiter}).file_format
    wanted = Wanted(
        teacher or [],
        feature or [],
        corpus or [],
        text_column or [],
        skip_bad_rows,
        expect_digest,
        form,
    )
    transfer = Transfer(storage_option or [], jobs, dry_run, quiet)
    show_shared(pull_cache(url, cache, wanted, transfer), "pulled", as_json)
