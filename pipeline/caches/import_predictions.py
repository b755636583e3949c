"""`cache import` of predictions of given texts: the `prompt_logprobs` of vLLM, as JSON lines, or
a folder of DistillKit -> features `token_ids`, `prompt_tokens` and `top_k`, as those of
`causal_lm`.

A line or row has no text: it is of those rows of a corpus with whose tokens it begins, written and
tokenized as declared. So a tokenizer, or a text format, that is not the one of the file leads to no
rows, and not to wrong ones.

The teacher has only what was declared, as that of other imports, beside how texts are written, and
how the source was compressed. So several files with the same declarations are one teacher. Memory:
the corpus, its tokens, and one shard; the source is read once for its places, and once more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, field_validator

from ...cache_schemas.errors import CorpusError, JobError, ReservationLostError
from ...cache_schemas.keys import IntArray, first_occurrences
from ...cache_schemas.manifest import RowsPerShard, TeacherManifest
from ...cache_schemas.teachers import SettingValue, TeacherSpec
from ...stages.corpus.corpus import Corpus, read_corpus
from ...stages.corpus.reading import prompt_columns
from ...stages.language.prompt_templates import by_number
from ...stages.precompute.remote.log_probs import Predictions, TopPredictions
from ...stages.precompute.remote.options import OF_API, OpenAIOptions
from ...stages.precompute.remote.wire import MalformedReplyError
from ...stages.store.writing.teacher_folder import check_teacher
from ...stages.store.writing.writer import CacheWriter, Task, Work
from ..environment import new_run_id
from ..jobs import Corpora, LocalFolder, Names, TextFormatKeys, make
from ..messages import SHOWN_PROBLEMS, CountProgress, say_that_it_waits
from ..signals import telling_what_is_kept
from .distillkit import DistillKitRows
from .imports import KIND, Imported, check_declared, refuse_same_name, run_record
from .prediction_sources import Place, PredictionSource, ReplyLines

if TYPE_CHECKING:
    from ...stages.precompute.remote.given_api import Given, GivenApi

ROWS_PER_SHARD = 1024
READ_ROWS = 16
"""Rows whose predictions are in memory as the source has them, some 90 bytes an alternative."""
OF_TEXTS = ("text_format", "prompt_template", "user_template", "system_prompt", "end_token")
OPTIONS = (*OF_TEXTS, "tokenizer", "top_k", "own_log_probs", "max_length")
"""Keys that are options of the teacher `openai` with api=given, under the same names."""


class PredictionImportJob(TextFormatKeys):
    """Keys of an `import` of predictions."""

    cache: LocalFolder = Field(description="folder of the cache; made if it is not there")
    source: Path = Field(
        description="a .jsonl file of replies with prompt_logprobs, or a folder of DistillKit"
    )
    name: str = Field(min_length=1, description="name of the import; part of its fingerprint")
    declare: dict[str, SettingValue] = Field(
        default_factory=dict, description="where the predictions come from, as keys and values"
    )
    corpus: Corpora = Field(min_length=1, description="files or folders of the texts")
    text_column: Names = Field(
        min_length=1, description="columns that hold the text segments, in order"
    )
    id_column: str | Literal[False] | None = Field(
        default=None, description="column of unique ids; default `id` if there is one; false: none"
    )
    tokenizer: str = Field(description="folder or hub id of the tokenizer of the predictions")
    top_k: int = Field(
        ge=1, description="most probable tokens to keep: the prompt_logprobs that was requested"
    )
    own_log_probs: bool = Field(
        default=False, description="keep the log-probability of the text's own tokens, too"
    )
    text_format: Literal["text", "plain", "chat"] = Field(
        default="text",
        description="text: all segments are predicted; plain, chat: the last one, after the others",
    )
    prompt_template: str | None = Field(
        default=None, description="prompt of text_format=plain; default {text} and a line break"
    )
    user_template: str | None = Field(
        default=None, description="user's turn of text_format=chat; default {text}"
    )
    system_prompt: str | None = Field(default=None, description="system message of a chat")
    end_token: bool = Field(
        default=True, description="texts end with the tokenizer's end-of-sequence token"
    )
    max_length: int | None = Field(
        default=None, ge=2, description="tokens after which texts were truncated; default 1024"
    )
    rows_per_shard: RowsPerShard | None = Field(
        default=None, description="maximum rows of a shard; a multiple of 64"
    )
    skip_bad_rows: bool = Field(
        default=False, description="leave bad lines, and rows without a line, out and list them"
    )

    @field_validator("declare")
    @classmethod
    def _can_be_hashed(cls, declared: dict[str, SettingValue]) -> dict[str, SettingValue]:
        own = OF_API["given"] | {"vocab_size", "template_date"} | DistillKitRows.own_settings
        return check_declared(declared, "name", "layout", *own)

    def options(self) -> OpenAIOptions:
        """How texts are written and predictions kept. Raises JobError."""
        named = {name: getattr(self, name) for name in OPTIONS}
        given = {name: value for name, value in named.items() if value is not None}
        for name in OpenAIOptions.templates & given.keys():
            given[name] = by_number(given[name], prompt_columns(self.text_column))
        return make(OpenAIOptions, {"api": "given", **given})

    def open(self) -> PredictionSource:
        """The source, of which the declarations are read. Raises JobError or CorpusError."""
        if not self.source.is_dir():
            return ReplyLines(self.source, self.top_k)
        if self.own_log_probs:
            raise JobError(
                "job key 'own_log_probs': true: rows of DistillKit have no log-probability of "
                "tokens that are not among the most probable ones; leave it out"
            )
        return DistillKitRows(self.source, self.top_k)


@telling_what_is_kept(lambda: "written shards are kept; run the same command to continue")
def run_prediction_import(job: PredictionImportJob, quiet: bool = False) -> Imported:
    """Take predictions into a cache; raises an InputError for what cannot be taken."""
    from ...stages.precompute.remote.given_api import GivenApi  # and with it torch

    options, source = job.options(), job.open()
    api = GivenApi(job.name, options)
    source.check(api.vocabulary)
    corpus = read_corpus(
        job.corpus,
        job.text_column,
        id_column=job.id_column,
        skip_bad_rows=job.skip_bad_rows,
        form=job.file_format,
    )
    texts = _Texts(corpus, api)
    places = _find(job, source, texts)
    manifest = _manifest(job, options, api, source)
    with CacheWriter(job.cache, manifest) as writer:
        shards = _Shards(job, texts, source, places, writer, quiet)
        shards.write(quiet)
    return Imported(
        fingerprint=manifest.fingerprint,
        feature="top_k",
        rows=len(places.rows),
        imported=shards.imported,
        already_cached=len(shards.keys_once) - shards.pending,
        repeated=len(places.rows) - len(shards.keys_once),
        unused=places.unused,
        skipped=(*corpus.skipped, *places.skipped, *shards.skipped),
    )


class _Texts:
    """The rows of a corpus as tokens."""

    def __init__(self, corpus: Corpus, api: "GivenApi") -> None:
        self.corpus, self._api, self._lengths = corpus, api, set[int]()

    def given(self, row: int) -> "Given":
        """The tokens of a row."""
        from ...stages.precompute.teachers.base import Example

        (segments,) = self.corpus.examples(np.array([row]))
        return self._api.content(Example(b"", segments))

    @cached_property
    def _rows(self) -> dict[bytes, list[int]]:
        """Digest of the tokens after the first -> rows."""
        found: dict[bytes, list[int]] = {}
        for row in range(len(self.corpus)):
            ids = self.given(row).ids[1:].astype("<u4")
            self._lengths.add(len(ids))
            found.setdefault(_hasher(ids.tobytes()).digest(), []).append(row)
        return found

    def rows_of(self, tokens: Sequence[int | None]) -> list[int]:
        """The rows with whose tokens a text begins: what comes behind them changes nothing of what
        is predicted before. Raises MalformedReplyError where the file does not say the first token,
        and rows differ in it."""
        rows, found = self._rows, list[int]()
        first, *others = tokens or [None]
        hasher = _hasher(b"")
        for length, token in enumerate(others, 1):
            assert token is not None
            hasher.update(token.to_bytes(4, "little"))
            if length in self._lengths:
                found += self._of_first(first, rows.get(hasher.digest(), []))
        return found

    def _of_first(self, first: int | None, rows: list[int]) -> list[int]:
        firsts = [int(self.given(row).ids[0]) for row in rows]
        if first is None and len(set(firsts)) > 1:
            raise MalformedReplyError(
                f"its first token is not known, and may be one of {sorted(set(firsts))}: it lacks "
                "prompt_token_ids (return_token_ids)"
            )
        return [row for row, own in zip(rows, firsts, strict=True) if first in (None, own)]

    def answers(self, rows: list[int], found: list[Predictions | TopPredictions]) -> Any:
        """The features of rows, of which the texts begin with their tokens."""
        given = [self.given(row) for row in rows]
        own = [each.first(len(text.ids)) for each, text in zip(found, given, strict=True)]
        return self._api.answers(own, given)


def _hasher(data: bytes) -> Any:
    return blake2b(data, digest_size=16)


@dataclass(slots=True)
class _Places:
    """Where in the source the predictions of rows are. Texts of the source that are of no row;
    lines and rows that were skipped."""

    of_row: dict[int, Place] = field(default_factory=dict)
    unused: int = 0
    skipped: list[str] = field(default_factory=list)

    @property
    def rows(self) -> IntArray:
        """The rows that have predictions, in the order of the source, so that it is read
        forward."""
        found = sorted(self.of_row, key=lambda row: (self.of_row[row], row))
        return np.array(found, dtype=np.int64)


def _find(job: PredictionImportJob, source: PredictionSource, texts: _Texts) -> _Places:
    """Read the tokens of the whole source. Raises CorpusError for lines without predictions, and
    rows without a line."""
    places, problems = _Places(), source.problems
    for text in source.texts():
        try:
            rows = texts.rows_of(text.tokens)
            if rows:
                _require_alternatives(text.fewest, job.top_k)
        except MalformedReplyError as problem:
            problems.setdefault(text.number, str(problem))
            continue
        new = [row for row in rows if row not in places.of_row]
        if rows and not new and text.first_of_its_line:
            where = source.where(text.number)
            places.skipped.append(f"{where}: has the tokens of an earlier {source.unit}")
        places.unused += not rows
        places.of_row |= dict.fromkeys(new, text.place)
    if not source.count:
        raise CorpusError(f"{job.source}: has no {source.unit}s")
    told = [f"{source.where(number)}: {problems[number]}" for number in sorted(problems)]
    if told and not job.skip_bad_rows:
        raise CorpusError(
            f"{len(told)} of {source.count} {source.unit}s have no predictions; skip such "
            f"{source.unit}s with skip_bad_rows=true. First: {'; '.join(told[:SHOWN_PROBLEMS])}"
        )
    places.skipped = [*told, *places.skipped]
    _refuse_lacking(job, source, texts.corpus, places)
    return places


def _refuse_lacking(
    job: PredictionImportJob, source: PredictionSource, corpus: Corpus, places: _Places
) -> None:
    lacking = np.setdiff1d(np.arange(len(corpus)), places.rows).tolist()
    if not places.of_row:
        raise CorpusError(
            f"{job.source}: none of its {source.unit}s begins with the tokens of a row of the "
            "corpus; name the tokenizer, text_format, templates and end_token with which its texts "
            "were written"
        )
    if lacking and not job.skip_bad_rows:
        first = "; ".join(map(corpus.where, lacking[:SHOWN_PROBLEMS]))
        raise CorpusError(
            f"{len(lacking)} of {len(corpus)} rows have no predictions of their tokens in "
            f"{job.source}; skip such rows with skip_bad_rows=true. First: {first}"
        )
    places.skipped += [f"{corpus.where(row)}: no predictions of its tokens" for row in lacking]


def _require_alternatives(fewest: int | None, k: int) -> None:
    if fewest is not None and fewest < k:
        raise MalformedReplyError(
            f"prompt_logprobs has {fewest} tokens at one place, and top_k is {k}: name the number "
            "that was requested"
        )


def _manifest(
    job: PredictionImportJob, options: OpenAIOptions, api: "GivenApi", source: PredictionSource
) -> TeacherManifest:
    """The teacher as declared; what the cache holds of it, if it does."""
    written = {name: value for name, value in options.settings().items() if name != "api"}
    read = {"layout": source.layout, **source.settings}
    spec = TeacherSpec(
        kind=KIND,
        name=job.name,
        weights={},
        settings={**written, **api.settings, "name": job.name, **read, **job.declare},
        features=tuple(api.features(None)),
        vocab_digest=api.vocab_digest,
    )
    known = check_teacher(job.cache, spec, job.rows_per_shard, add_teacher=True)
    if known is not None:
        return known
    refuse_same_name(job.cache, spec)
    rows = job.rows_per_shard or ROWS_PER_SHARD
    return TeacherManifest(fingerprint=spec.fingerprint, rows_per_shard=rows, spec=spec)


class _Shards:
    """Rows with predictions, in the order of the source; of several with the same text, the
    first."""

    def __init__(
        self,
        job: PredictionImportJob,
        texts: _Texts,
        source: PredictionSource,
        places: _Places,
        writer: CacheWriter,
        quiet: bool,
    ) -> None:
        self._job, self._texts, self._writer = job, texts, writer
        self._source, self._places = source, places
        self._rows = places.rows
        self._keys = texts.corpus.keys()[self._rows]
        self.keys_once = first_occurrences(self._keys)
        self._work = Work(writer, self._keys, say_that_it_waits(quiet))
        self._run_id, self._run = new_run_id(), run_record(texts.corpus)
        self.pending = self._work.pending
        self.imported = 0
        self.skipped: list[str] = []

    def write(self, quiet: bool) -> None:
        """Import what is pending. Raises CorpusError for tokens that the tokenizer does not have,
        unless bad rows are skipped."""
        with CountProgress("import", "rows", self.pending, quiet) as progress:
            while (task := self._work.reserve()) is not None:
                try:
                    self._commit(task)
                except ReservationLostError:
                    self._work.put_back(task)
                else:
                    progress.advance(len(task.rows))

    def _commit(self, task: Task) -> None:
        from ...stages.precompute.shard_buffer import BadRow, ShardBuffer

        rows = self._rows[task.rows].tolist()
        buffer = ShardBuffer(self._keys[task.rows], self._writer.manifest.spec.features)
        bad = dict[int, BadRow]()
        for positions in np.split(np.arange(len(rows)), range(READ_ROWS, len(rows), READ_ROWS)):
            of_rows = [self._places.of_row[rows[at]] for at in positions.tolist()]
            good = dict[int, Predictions | TopPredictions]()
            for at, found in zip(positions.tolist(), self._source.take(of_rows), strict=True):
                if isinstance(found, str):
                    bad[at] = BadRow(found)
                else:
                    good[at] = found
            if good:
                answers = self._texts.answers([rows[at] for at in good], [*good.values()])
                bad |= buffer.put(np.array([*good]), answers)
        problems = [
            f"{self._texts.corpus.where(rows[at])}: {bad[at].problem}" for at in sorted(bad)
        ]
        if problems and not self._job.skip_bad_rows:
            self._writer.release(task.reservation)
            raise CorpusError(
                f"{len(problems)} rows have predictions that cannot be kept; rows imported so far "
                "are kept; skip such rows with skip_bad_rows=true. First: "
                f"{'; '.join(problems[:SHOWN_PROBLEMS])}"
            )
        self.skipped += problems
        if not len(buffer):
            self._writer.release(task.reservation)
            return
        done = buffer.finished()
        record = self._writer.commit(
            done.keys,
            done.features,
            done.truncated,
            reservation=task.reservation,
            fidelity=done.fidelity,
        )
        self.imported += record.rows
        seconds = self._run.teacher_seconds | {record.shard: 0.0}
        self._run = self._run.model_copy(update={"teacher_seconds": seconds})
        self._writer.record_run(self._run_id, self._run)
