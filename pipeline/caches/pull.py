"""`cache pull`: a URL and some wishes become a plan, and the plan is carried out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...cache_schemas.errors import JobError
from ...cache_schemas.keys import first_occurrences
from ...stages.corpus.corpus import PLAIN, Corpus, read_corpus
from ...stages.corpus.files import require_use
from ...stages.corpus.text_files import TextFormat
from ...stages.store.transfer.choice import Choice
from ...stages.store.transfer.origin import read_origin
from ...stages.store.transfer.place import open_place
from ...stages.store.transfer.plan import planned
from ...stages.store.transfer.pull import pull
from ..messages import CountProgress, say_that_a_pull_waits
from ..signals import telling_what_is_kept
from .sharing import Shared, Transfer, arrived, refuse_itself, storage_options


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to pull; `corpus` with its `text_columns` chooses shards by the texts they answer,
    `digest` is what the whole cache must have."""

    teachers: Sequence[str] = ()
    features: Sequence[str] = ()
    corpus: Sequence[str] = ()
    text_columns: Sequence[str] = ()
    skip_bad_rows: bool = False
    digest: str | None = None
    text_format: TextFormat = PLAIN


@telling_what_is_kept(lambda: "what has come is kept; the same command goes on")
def pull_cache(url: str, cache: Path, wanted: Wanted, transfer: Transfer) -> Shared:
    """Bring what is wanted of the cache at `url` into the local cache at `cache`.

    Raises CacheError if it is not there or does not fit, DamagedCacheError or StorageError if it
    does not come; what has come stays, and the same call goes on from there."""
    started = time.monotonic()
    corpus = _corpus(wanted)
    place = open_place(url, storage_options(transfer.options))
    refuse_itself(place, cache)
    index = read_origin(place, wanted.digest and wanted.digest.lower())
    keys = corpus.keys() if corpus else None
    choice = Choice(tuple(wanted.teachers), tuple(wanted.features), keys)
    waiting = say_that_a_pull_waits(transfer.quiet)
    with planned(place, index, cache, choice, transfer.jobs, transfer.dry_run, waiting) as plan:
        if not transfer.dry_run:
            with CountProgress("pull", "bytes", plan.bytes, transfer.quiet) as progress:
                pull(place, cache, plan, transfer.jobs, progress.advance)
    return Shared(
        place=place.shown,
        digest=index.digest,
        teachers=tuple(arrived(teacher) for teacher in plan.teachers),
        seconds=time.monotonic() - started,
        dry_run=transfer.dry_run,
        texts=None if keys is None else len(first_occurrences(keys)),
        skipped=corpus.skipped if corpus else (),
    )


def _corpus(wanted: Wanted) -> Corpus | None:
    named = {name for name in ("encoding", "delimiter") if getattr(wanted.text_format, name)}
    if not wanted.corpus and not wanted.text_columns:
        if named:
            raise JobError(f"--{min(named)}: says how a --corpus is written, and none is named")
        return None
    if not wanted.corpus or not wanted.text_columns:
        raise JobError("--corpus and --text-column: give both to pull what a corpus needs")
    require_use(wanted.text_format, wanted.corpus)
    return read_corpus(
        wanted.corpus,
        wanted.text_columns,
        id_column=False,
        skip_bad_rows=wanted.skip_bad_rows,
        form=wanted.text_format,
    )
