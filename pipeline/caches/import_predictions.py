"""`cache import` of predictions of given texts: the `prompt_logprobs` of vLLM, as JSON lines ->
features `token_ids`, `prompt_tokens` and `top_k`, as those of `causal_lm`.

A line is the reply of a server, a line of batch output, or an object of `prompt_logprobs` and
`prompt_token_ids`. A line has no text: it is of those rows of a corpus with whose tokens it begins,
written and tokenized as declared. So a tokenizer, or a text format, that is not the one of the file
leads to no rows, and not to wrong ones.

The teacher has only what was declared, as that of other imports, beside how texts are written. So
several files with the same declarations are one teacher. Memory: the corpus, its tokens, and one
shard; the file is read once for its places, and once more.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, field_validator

from ...cache_schemas.errors import CorpusError, ReservationLostError
from ...cache_schemas.keys import IntArray, first_occurrences
from ...cache_schemas.manifest import RowsPerShard, TeacherManifest
from ...cache_schemas.teachers import SettingValue, TeacherSpec
from ...stages.corpus.corpus import Corpus, read_corpus
from ...stages.corpus.reading import prompt_columns
from ...stages.language.prompt_templates import by_number
from ...stages.precompute.remote.log_probs import Predictions, Tokens, read_prompt
from ...stages.precompute.remote.options import OF_API, OpenAIOptions
from ...stages.precompute.remote.wire import MalformedReplyError, a_list, an_object
from ...stages.store.writing.teacher_folder import check_teacher
from ...stages.store.writing.writer import CacheWriter, Task, Work
from ..environment import new_run_id
from ..jobs import Corpora, LocalFolder, Names, TextFormatKeys, make
from ..messages import SHOWN_PROBLEMS, CountProgress, say_that_it_waits
from ..signals import telling_what_is_kept
from .imports import KIND, Imported, check_declared, refuse_same_name, run_record

if TYPE_CHECKING:
    from ...stages.precompute.remote.given_api import Given, GivenApi

LAYOUT = "prompt_log_probs"
ROWS_PER_SHARD = 1024
READ_ROWS = 16
"""Rows whose predictions are in memory as the file has them, some 90 bytes an alternative."""
OF_TEXTS = ("text_format", "prompt_template", "user_template", "system_prompt", "end_token")
OPTIONS = (*OF_TEXTS, "tokenizer", "top_k", "own_log_probs", "max_length")
"""Keys that are options of the teacher `openai` with api=given, under the same names."""


class PredictionImportJob(TextFormatKeys):
    """Keys of an `import` of predictions."""

    cache: LocalFolder = Field(description="folder of the cache; made if it is not there")
    source: Path = Field(description="a .jsonl file of replies with prompt_logprobs")
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
        own = OF_API["given"] | {"vocab_size", "template_date"}
        return check_declared(declared, "name", "layout", *own)

    def options(self) -> OpenAIOptions:
        """How texts are written and predictions kept. Raises JobError."""
        named = {name: getattr(self, name) for name in OPTIONS}
        given = {name: value for name, value in named.items() if value is not None}
        for name in OpenAIOptions.templates & given.keys():
            given[name] = by_number(given[name], prompt_columns(self.text_column))
        return make(OpenAIOptions, {"api": "given", **given})


@telling_what_is_kept(lambda: "written shards are kept; run the same command to continue")
def run_prediction_import(job: PredictionImportJob, quiet: bool = False) -> Imported:
    """Take predictions into a cache; raises an InputError for what cannot be taken."""
    from ...stages.precompute.remote.given_api import GivenApi  # and with it torch

    options = job.options()
    api = GivenApi(job.name, options)
    corpus = read_corpus(
        job.corpus,
        job.text_column,
        id_column=job.id_column,
        skip_bad_rows=job.skip_bad_rows,
        form=job.file_format,
    )
    texts = _Texts(corpus, api)
    places = _find(job, texts)
    manifest = _manifest(job, options, api)
    with CacheWriter(job.cache, manifest) as writer:
        shards = _Shards(job, texts, places, writer, quiet)
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

    def rows_of(self, predictions: Predictions) -> list[int]:
        """The rows with whose tokens a text begins: what comes behind them changes nothing of what
        is predicted before. Raises MalformedReplyError where the file does not say the first token,
        and rows differ in it."""
        rows, found = self._rows, list[int]()
        first, *others = predictions.tokens.ids or [None]
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

    def answers(self, rows: list[int], found: list[Predictions]) -> Any:
        """The features of rows, of which the texts begin with their tokens."""
        given = [self.given(row) for row in rows]
        own = [_first_of(each, len(text.ids)) for each, text in zip(found, given, strict=True)]
        return self._api.answers(own, given)


def _hasher(data: bytes) -> Any:
    return blake2b(data, digest_size=16)


def _first_of(predictions: Predictions, count: int) -> Predictions:
    """The predictions of the first `count` tokens."""
    others = int(predictions.counts[:count].sum())
    return Predictions(
        _first_tokens(predictions.tokens, count),
        predictions.log_probs[:count],
        predictions.counts[:count],
        _first_tokens(predictions.alternatives, others),
        predictions.alternative_log_probs[:others],
    )


def _first_tokens(tokens: Tokens, count: int) -> Tokens:
    return Tokens(tokens.strings[:count], tokens.spellings[:count], tokens.ids[:count])


@dataclass(slots=True)
class _Places:
    """Where in the file the predictions of rows are: byte and number in its line. Positions of the
    file that are of no row; lines and rows that were skipped."""

    of_row: dict[int, tuple[int, int]] = field(default_factory=dict)
    unused: int = 0
    skipped: list[str] = field(default_factory=list)

    @property
    def rows(self) -> IntArray:
        """The rows that have predictions, ascending."""
        return np.array(sorted(self.of_row), dtype=np.int64)


def _find(job: PredictionImportJob, texts: _Texts) -> _Places:
    """Read the whole file. Raises CorpusError for lines without predictions, and rows without a
    line."""
    places, problems, lines = _Places(), list[str](), 0
    for number, (offset, line) in enumerate(_lines(job.source), 1):
        if not line.strip():
            continue
        lines += 1
        try:
            for at, predictions in enumerate(_read(line)):
                rows = texts.rows_of(predictions)
                if rows:
                    _require_alternatives(predictions, job.top_k)
                new = [row for row in rows if row not in places.of_row]
                if rows and not new and at == 0:
                    places.skipped.append(
                        f"{job.source} line {number}: has the tokens of an earlier line"
                    )
                places.unused += not rows
                places.of_row |= dict.fromkeys(new, (offset, at))
        except (MalformedReplyError, ValueError, RecursionError) as problem:
            problems.append(f"{job.source} line {number}: {problem}")
    if not lines:
        raise CorpusError(f"{job.source}: has no lines")
    if problems and not job.skip_bad_rows:
        raise CorpusError(
            f"{len(problems)} of {lines} lines have no predictions; skip such lines with "
            f"skip_bad_rows=true. First: {'; '.join(problems[:SHOWN_PROBLEMS])}"
        )
    places.skipped = [*problems, *places.skipped]
    _refuse_lacking(job, texts.corpus, places)
    return places


def _refuse_lacking(job: PredictionImportJob, corpus: Corpus, places: _Places) -> None:
    lacking = np.setdiff1d(np.arange(len(corpus)), places.rows).tolist()
    if not places.of_row:
        raise CorpusError(
            f"{job.source}: none of its lines begins with the tokens of a row of the corpus; name "
            "the tokenizer, text_format, templates and end_token with which its texts were written"
        )
    if lacking and not job.skip_bad_rows:
        first = "; ".join(map(corpus.where, lacking[:SHOWN_PROBLEMS]))
        raise CorpusError(
            f"{len(lacking)} of {len(corpus)} rows have no predictions of their tokens in "
            f"{job.source}; skip such rows with skip_bad_rows=true. First: {first}"
        )
    places.skipped += [f"{corpus.where(row)}: no predictions of its tokens" for row in lacking]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each line, and the byte at which it begins."""
    try:
        with path.open("rb") as file:
            offset = 0
            for line in file:
                yield offset, line
                offset += len(line)
    except OSError as cause:
        raise CorpusError(f"{path}: cannot be read: {cause}") from cause


def _read(line: bytes) -> list[Predictions]:
    """The predictions of a line, those of each text once. Raises MalformedReplyError, ValueError,
    RecursionError."""
    document = an_object(json.loads(line), "the line")
    if "response" in document and document["response"] is None:
        raise MalformedReplyError(f"has no response: {json.dumps(document.get('error'))[:120]}")
    reply = an_object(document.get("response", document), "response")
    if document.get("error") or reply.get("status_code", 200) != 200:
        told = document.get("error") or reply.get("body")
        raise MalformedReplyError(f"has no response: {json.dumps(told)[:120]}")
    body = an_object(reply.get("body", reply), "body")
    choices = [an_object(each, "choices") for each in a_list(body.get("choices", []), "choices")]
    found: dict[tuple[int | None, ...], Predictions] = {}
    for fields in (body, *choices):
        read = read_prompt(
            fields.get("prompt_logprobs"), fields.get("prompt_token_ids"), "prompt_logprobs"
        )
        if read is not None:
            found.setdefault(tuple(read.tokens.ids), read)
    if not found:
        raise MalformedReplyError("has no prompt_logprobs")
    return list(found.values())


def _require_alternatives(predictions: Predictions, k: int) -> None:
    fewest = int(predictions.counts[1:].min(initial=k))
    if fewest < k:
        raise MalformedReplyError(
            f"prompt_logprobs has {fewest} tokens at one place, and top_k is {k}: name the number "
            "that was requested"
        )


def _manifest(job: PredictionImportJob, options: OpenAIOptions, api: "GivenApi") -> TeacherManifest:
    """The teacher as declared; what the cache holds of it, if it does."""
    written = {name: value for name, value in options.settings().items() if name != "api"}
    spec = TeacherSpec(
        kind=KIND,
        name=job.name,
        weights={},
        settings={**written, **api.settings, "name": job.name, "layout": LAYOUT, **job.declare},
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
    """Rows with predictions, in the order of the corpus; of several with the same text, the
    first."""

    def __init__(
        self,
        job: PredictionImportJob,
        texts: _Texts,
        places: _Places,
        writer: CacheWriter,
        quiet: bool,
    ) -> None:
        self._job, self._texts, self._places, self._writer = job, texts, places, writer
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
            some = [rows[at] for at in positions.tolist()]
            answers = self._texts.answers(some, [self._predictions(row) for row in some])
            bad |= buffer.put(positions, answers)
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

    def _predictions(self, row: int) -> Predictions:
        offset, at = self._places.of_row[row]
        try:
            with self._job.source.open("rb") as file:
                file.seek(offset)
                return _read(file.readline())[at]
        except (OSError, MalformedReplyError, ValueError, IndexError) as cause:
            raise CorpusError(f"{self._job.source}: has changed while it was read") from cause
