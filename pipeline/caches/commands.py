"""The commands of `armada cache`: parse, call, print. Nothing heavy is imported before one runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Inspect, check and share caches.", no_args_is_help=True)


def _local(path: Path) -> Path:
    from ..jobs import refuse_url

    return refuse_url(path)


AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
CacheFolder = Annotated[Path, typer.Argument(help="folder of the cache", callback=_local)]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="job key, KEY=VALUE; may be repeated")
]
SkipBadRows = Annotated[
    bool, typer.Option("--skip-bad-rows", help="skip invalid rows and list them")
]
TextColumn = Annotated[list[str] | None, typer.Option(help="column of a text segment")]
"""Shared with `../../cli.py`."""

CacheLocation = Annotated[str, typer.Argument(help="folder or URL of the cache")]
Prefix = Annotated[str | None, typer.Option("--teacher", help="fingerprint or unique prefix")]
Corpus = Annotated[list[str] | None, typer.Option(help="file or folder of texts")]
IdColumn = Annotated[str | None, typer.Option(help="column of unique ids")]
NeededCorpus = Annotated[
    list[str] | None, typer.Option(help="file or folder of texts: only shards that hold them")
]
Prefixes = Annotated[
    list[str] | None, typer.Option("--teacher", help="fingerprint or unique prefix; default all")
]
StorageOptions = Annotated[
    list[str] | None,
    typer.Option("--storage-option", help="KEY=VALUE for fsspec, e.g. anon=true; may be repeated"),
]
Jobs = Annotated[int, typer.Option(min=1, max=64, help="shards transferred at once")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="only show what would be transferred")]


@app.command("ls")
def ls(cache: CacheLocation, as_json: AsJson = False) -> None:
    """List the teachers of a cache: rows, bytes, what they cost."""
    from .console import show_teachers
    from .summary import summarise

    show_teachers(summarise(cache), as_json)


@app.command("inspect")
def inspect(cache: CacheLocation, teacher: Prefix = None) -> None:
    """Print all that is known of one teacher as JSON: settings, features, runs, cost."""
    from .summary import inspect

    print(json.dumps(inspect(cache, teacher), indent=2, ensure_ascii=False))


@app.command("merge")
def merge(
    cache: CacheFolder,
    sources: Annotated[list[str], typer.Argument(help="caches to copy from, in this order")],
    teacher: Prefix = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Copy rows that a cache lacks from other caches."""
    from .console import show_merge
    from .upkeep import merge_caches

    show_merge(merge_caches(cache, sources, teacher, quiet), as_json)


@app.command("export")
def export(
    cache: CacheFolder,
    corpus: Corpus = None,
    text_column: TextColumn = None,
    label_column: Annotated[str | None, typer.Option(help="column of labels to keep")] = None,
    id_column: IdColumn = None,
    feature: Annotated[list[str] | None, typer.Option(help="feature; default all")] = None,
    output: Annotated[Path | None, typer.Option(help="new folder to write to")] = None,
    file_format: Annotated[
        str | None, typer.Option("--format", help="parquet, datasets or npy")
    ] = None,
    teacher: Prefix = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="folder or hub id of the tokenizer, to decode generated responses"),
    ] = None,
    skip_bad_rows: SkipBadRows = False,
    settings: Settings = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a corpus with its features to a new folder, row for row, for other tools."""
    from ..jobs import collect_keys, make
    from .console import show_export
    from .export import ExportJob, run_export

    options = {
        "cache": str(cache),
        "teacher": teacher,
        "corpus": corpus,
        "text_column": text_column,
        "label_column": label_column,
        "id_column": id_column,
        "feature": feature,
        "output": str(output) if output else None,
        "format": file_format,
        "tokenizer": tokenizer,
        "skip_bad_rows": skip_bad_rows or None,
    }
    job = make(ExportJob, collect_keys(None, options, settings or []))
    show_export(run_export(job, quiet), as_json)


@app.command("import")
def import_features(
    cache: CacheFolder,
    source: Annotated[
        Path | None,
        typer.Argument(
            help="folder of .npy files, one .npy array, Parquet; .jsonl of responses; .jsonl, "
            "or a folder of DistillKit, of predictions (tokenizer)"
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="name of the import")] = None,
    declare: Annotated[
        list[str] | None,
        typer.Option(help="where the features come from, KEY=VALUE; may be repeated"),
    ] = None,
    corpus: Corpus = None,
    text_column: TextColumn = None,
    id_column: IdColumn = None,
    ids: Annotated[
        Path | None, typer.Option(help="ids of the rows of an array, one a line")
    ] = None,
    column: Annotated[str | None, typer.Option(help="Parquet column of the features")] = None,
    feature: Annotated[str | None, typer.Option(help="name of the feature")] = None,
    store_dtype: Annotated[str | None, typer.Option(help="float32 or float16")] = None,
    skip_bad_rows: SkipBadRows = False,
    settings: Settings = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Take features, or responses, that were computed elsewhere into a cache, for what they are
    declared to be."""
    from ..jobs import collect_keys, make
    from .console import show_import
    from .imports import ImportJob, declared, run_import

    options = {
        "cache": str(cache),
        "source": str(source) if source else None,
        "name": name,
        "declare": declared(declare) if declare else None,
        "corpus": corpus,
        "text_column": text_column,
        "id_column": id_column,
        "ids": str(ids) if ids else None,
        "column": column,
        "feature": feature,
        "store_dtype": store_dtype,
        "skip_bad_rows": skip_bad_rows or None,
    }
    keys = collect_keys(None, options, settings or [])
    if source is not None and _has_predictions(source, "tokenizer" in keys):
        from .import_predictions import PredictionImportJob, run_prediction_import

        show_import(run_prediction_import(make(PredictionImportJob, keys), quiet), as_json)
        return
    if source is not None and source.suffix == ".jsonl":
        from .import_responses import ResponseImportJob, run_response_import

        responses = run_response_import(make(ResponseImportJob, keys), quiet)
        show_import(responses, as_json)
        return
    job = make(ImportJob, keys)
    show_import(run_import(job, quiet), as_json)


def _has_predictions(source: Path, has_tokenizer: bool) -> bool:
    """Whether a source is one of predictions: what names a tokenizer, and folders of DistillKit."""
    if source.is_dir():
        return has_tokenizer or (source / "compression_config.yaml").is_file()
    return has_tokenizer and source.suffix == ".jsonl"


@app.command("derive")
def derive(
    cache: CacheFolder,
    rule: Annotated[str | None, typer.Option(help="class-means, moments, pca or clusters")] = None,
    teacher: Prefix = None,
    feature: Annotated[str | None, typer.Option(help="feature to derive from")] = None,
    output: Annotated[
        Path | None, typer.Option(help="cache to write to; default the same one")
    ] = None,
    corpus: Annotated[
        list[str] | None, typer.Option(help="file or folder of texts; default all of the teacher's")
    ] = None,
    text_column: TextColumn = None,
    label_column: Annotated[str | None, typer.Option(help="column of classes")] = None,
    components: Annotated[int | None, typer.Option(help="principal components")] = None,
    clusters: Annotated[int | None, typer.Option(help="clusters")] = None,
    skip_bad_rows: SkipBadRows = False,
    settings: Settings = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Derive a feature from a cached one, without its model: class means, moments of logits,
    principal components, clusters."""
    from ..jobs import collect_keys, make
    from .console import show_derived
    from .derive import run_derive
    from .derive_job import DeriveJob

    options = {
        "cache": str(cache),
        "rule": rule,
        "teacher": teacher,
        "feature": feature,
        "output": str(output) if output else None,
        "corpus": corpus,
        "text_column": text_column,
        "label_column": label_column,
        "components": components,
        "clusters": clusters,
        "skip_bad_rows": skip_bad_rows or None,
    }
    job = make(DeriveJob, collect_keys(None, options, settings or []))
    show_derived(run_derive(job, quiet), as_json)


@app.command("verify")
def verify(
    cache: CacheFolder,
    teacher: Prefix = None,
    sample: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="number of shards to read in full; of the others, only file sizes are compared",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="compare file sizes only")] = False,
    seed: Annotated[int | None, typer.Option(help="seed of the sample; default the digest")] = None,
    expect_digest: Annotated[
        str | None, typer.Option(help="expected digest of the whole cache")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compare a cache with its checksums: every document, file and key. Exits with 1 if damaged."""
    from .console import show_verify
    from .upkeep import run_verify

    report = run_verify(
        cache,
        teacher,
        sample=sample,
        quick=quick,
        seed=seed,
        expect_digest=expect_digest,
        quiet=quiet,
    )
    show_verify(report, as_json)
    if not report.whole:
        raise typer.Exit(1)


@app.command("repair")
def repair(
    cache: CacheFolder,
    teacher: Prefix = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only show what would be done")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Drop damaged shards, so that they are computed again. Exits with 1 if something is left."""
    from .console import show_repair
    from .upkeep import run_repair

    report = run_repair(cache, teacher, dry_run, quiet)
    show_repair(report, as_json)
    if not report.repaired:
        raise typer.Exit(1)


@app.command("rm")
def rm(
    cache: CacheFolder,
    teacher: Annotated[str, typer.Option(help="fingerprint or unique prefix")],
    yes: Annotated[bool, typer.Option("--yes", help="do not ask for confirmation")] = False,
    force: Annotated[bool, typer.Option("--force", help="even if a writer is running")] = False,
) -> None:
    """Remove a teacher and all its features from a cache."""
    from .upkeep import confirm, plan_removal, remove_teacher

    removal = plan_removal(cache, teacher)
    if not yes:
        confirm(removal)
    remove_teacher(removal, force)
    print(f"removed teacher {removal.fingerprint} ({removal.name}), {removal.rows} rows")


@app.command("gc")
def gc(
    cache: CacheFolder,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only show what would be done")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what dead writers left: reservations, partial files, files without a commit."""
    from .console import show_gc
    from .upkeep import run_gc

    show_gc(run_gc(cache, dry_run), as_json)


@app.command("card")
def card(
    cache: CacheFolder,
    output: Annotated[Path | None, typer.Option(help="default README.md in the cache")] = None,
    title: Annotated[str | None, typer.Option(help="default the name of the folder")] = None,
    licence: Annotated[str | None, typer.Option(help="licence of the features: cc-by-4.0")] = None,
    corpus: Annotated[
        list[str] | None, typer.Option(help="labelled file to colour the plots by")
    ] = None,
    text_column: TextColumn = None,
    label_column: Annotated[str | None, typer.Option(help="column of labels")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="replace a file that armada did not write")
    ] = False,
) -> None:
    """Write a README.md that describes a cache, and a plot of its features."""
    from ..jobs import collect_keys, make
    from .card import CardJob, run_card

    options = {
        "cache": str(cache),
        "output": str(output) if output else None,
        "title": title,
        "licence": licence,
        "corpus": corpus,
        "text_column": text_column,
        "label_column": label_column,
        "force": force or None,
    }
    for file in run_card(make(CardJob, collect_keys(None, options, []))):
        print(file)


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
    """Upload a cache to a location that others pull from; only missing files are sent."""
    from .console import show_shared
    from .sharing import Transfer, push_cache

    transfer = Transfer(storage_option or [], jobs, dry_run, quiet)
    show_shared(push_cache(cache, url, teacher or [], transfer, public), "pushed", as_json)


@app.command("pull")
def pull(
    url: Annotated[str, typer.Argument(help="folder or URL of a cache: https://, s3://, ...")],
    cache: CacheFolder,
    teacher: Prefixes = None,
    feature: Annotated[list[str] | None, typer.Option(help="feature; default all")] = None,
    corpus: NeededCorpus = None,
    text_column: TextColumn = None,
    encoding: Annotated[
        str | None, typer.Option(help="encoding of CSV, TSV and JSON files, such as latin-1")
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="field separator of CSV files, such as ';' or tab")
    ] = None,
    skip_bad_rows: SkipBadRows = False,
    expect_digest: Annotated[
        str | None, typer.Option(help="expected digest of the cache there")
    ] = None,
    storage_option: StorageOptions = None,
    jobs: Jobs = 8,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Download a cache, or a part of it; only missing files are fetched."""
    from ..jobs import TextFormatKeys, make
    from .console import show_shared
    from .sharing import Transfer, Wanted, pull_cache

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
