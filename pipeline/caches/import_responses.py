"""`cache import` of responses: text that was generated elsewhere, as JSON lines.

prompts with responses   a line each: the prompt in `text_column`, the response, or several, in
                         `response_field`; if they are known, the log-probabilities of its tokens in
                         `log_probs_field`, and how it finished in `finish_reason`
batch output             what OpenAI's batch service, and those like it, leave: joined with a corpus
                         by `custom_id`, which is the corpus's id

The teacher has only what was declared, as that of other imports: kind `imported`, and as settings
the name, the layout, the digest of the file, the fields that were read and the `declare`d keys. So
another file, or another field of it, is another teacher. Several responses to one prompt are those
of one example. Memory: the prompts and the responses.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from ...cache_schemas.chats import asking_turns, chat_problem, chat_segment
from ...cache_schemas.errors import CorpusError, JobError, ReservationLostError
from ...cache_schemas.features import GENERATED_LENGTHS, MAX_LENGTH, FeatureSpec
from ...cache_schemas.keys import example_key, keys_to_array
from ...cache_schemas.manifest import CorpusRecord, RowsPerShard, RunRecord, TeacherManifest
from ...cache_schemas.teachers import SettingValue, TeacherSpec
from ...stages.corpus.corpus import read_corpus
from ...stages.corpus.reading import OPTIONAL, column_name
from ...stages.precompute.remote.log_probs import ROUNDING
from ...stages.precompute.remote.responses import Choice, read_chat, read_completion
from ...stages.precompute.remote.wire import (
    MalformedReplyError,
    a_list,
    a_text,
    an_object,
    optional,
)
from ...stages.precompute.teachers.generated import (
    BYTES_PER_TOKEN,
    FINISHED,
    OTHERWISE,
    Response,
    ResponseFeatures,
)
from ...stages.ragged import joined
from ...stages.store.writing.teacher_folder import check_teacher
from ...stages.store.writing.writer import CacheWriter, Work
from ..environment import library_versions, new_run_id, now
from ..jobs import Corpora, LocalFolder, Names, TextFormatKeys
from ..messages import SHOWN_PROBLEMS, CountProgress, say_that_it_waits, warn
from ..outputs import file_digest
from ..signals import telling_what_is_kept
from .imports import KIND, LIBRARIES, Imported, check_declared, refuse_same_name

ROWS_PER_SHARD = 1024

OWN_SETTINGS = ("name", "layout", "file", "text_column", "response_field", "log_probs_field")
"""Settings of the teacher that are not declared."""

Segments = tuple[str, ...]
Layout = Literal["responses", "batch_output"]


class ResponseImportJob(TextFormatKeys):
    """Keys of an `import` of responses."""

    cache: LocalFolder = Field(description="folder of the cache; made if it is not there")
    source: Path = Field(description="a .jsonl file of prompts with responses, or batch output")
    name: str = Field(min_length=1, description="name of the import; part of its fingerprint")
    declare: dict[str, SettingValue] = Field(
        default_factory=dict, description="where the responses come from, as keys and values"
    )
    corpus: Corpora = Field(
        default=(), description="files or folders of the prompts, for batch output"
    )
    text_column: Names = Field(
        min_length=1, description="fields, or columns of the corpus, that hold the prompt, in order"
    )
    id_column: str | None = Field(
        default=None, description="column of the corpus with the custom_id; default id"
    )
    response_field: str = Field(
        default="response", description="field of the response, or of a list of several"
    )
    log_probs_field: str = Field(
        default="log_probs",
        description="field of the list of its tokens' log-probabilities, in nats; may be absent",
    )
    rows_per_shard: RowsPerShard | None = Field(
        default=None, description="maximum rows of a shard; a multiple of 64"
    )
    skip_bad_rows: bool = Field(default=False, description="skip invalid lines and list them")

    @field_validator("declare")
    @classmethod
    def _can_be_hashed(cls, declared: dict[str, SettingValue]) -> dict[str, SettingValue]:
        return check_declared(declared, *OWN_SETTINGS)


class _LineError(Exception):
    """What is the matter with a line."""


@dataclass(frozen=True, slots=True)
class _Read:
    """Responses to each prompt, in the order of the file; lines, and those that were skipped."""

    said: dict[Segments, list[Response]]
    lines: int
    layout: Layout
    skipped: tuple[str, ...]


@telling_what_is_kept(lambda: "written shards are kept; run the same command to continue")
def run_response_import(job: ResponseImportJob, quiet: bool = False) -> Imported:
    """Take responses into a cache; raises an InputError for what cannot be taken."""
    found = _read(job)
    count = max(map(len, found.said.values()))
    features = _Features.of(list(found.said.values()), count)
    manifest = _manifest(job, found.layout, features)
    keys = keys_to_array(map(example_key, found.said))
    answers = list(found.said.values())
    with CacheWriter(job.cache, manifest) as writer:
        work = Work(writer, keys, say_that_it_waits(quiet))
        run_id, run = new_run_id(), _run_record(job, found)
        imported = 0
        with CountProgress("import", "rows", work.pending, quiet) as progress:
            while (task := work.reserve()) is not None:
                rows = [answers[row] for row in task.rows.tolist()]
                try:
                    record = writer.commit(
                        keys[task.rows],
                        features.values(rows),
                        np.zeros(len(rows), dtype=bool),
                        reservation=task.reservation,
                    )
                except ReservationLostError:
                    work.put_back(task)
                    continue
                imported += record.rows
                seconds = run.teacher_seconds | {record.shard: 0.0}
                run = run.model_copy(update={"teacher_seconds": seconds})
                writer.record_run(run_id, run)
                progress.advance(len(rows))
    return Imported(
        fingerprint=manifest.fingerprint,
        feature=features.specs[0].name,
        rows=len(answers),
        imported=imported,
        already_cached=len(answers) - work.pending,
        repeated=0,
        unused=0,
        skipped=found.skipped,
    )


@dataclass(frozen=True, slots=True)
class _Features:
    """The features of `count` responses to each prompt; log-probabilities if all have them."""

    texts: ResponseFeatures
    specs: tuple[FeatureSpec, ...]
    count: int
    has_log_probs: bool

    @classmethod
    def of(cls, answers: Sequence[Sequence[Response]], count: int) -> "_Features":
        """Raises CorpusError for responses that are too long for a cache."""
        every = [each for row in answers for each in row]
        bytes_ = max(len(each.text) for each in every)
        texts = ResponseFeatures(count, -(-max(bytes_, 1) // BYTES_PER_TOKEN))
        without = sum(each.log_probs is None for each in every)
        known = not without
        if 0 < without < len(every):
            warn(
                f"log-probabilities: {without} of {len(every)} responses have none, so none are "
                "kept"
            )
        tokens = max(sum(map(_tokens, row)) for row in answers)
        if max(sum(len(each.text) for each in row) for row in answers) > MAX_LENGTH:
            raise CorpusError(f"responses to one prompt have over {MAX_LENGTH} bytes; split them")
        specs = texts.specs()
        if known:
            specs.append(
                FeatureSpec(
                    name="generated_log_probs",
                    shape=(),
                    dtype="float32",
                    axis="generated_tokens",
                    max_length=max(tokens, 1),
                    description="log-probabilities of its tokens, as declared",
                )
            )
        if known and count > 1:
            specs.append(
                FeatureSpec(
                    name=GENERATED_LENGTHS,
                    shape=(count,),
                    dtype="uint32",
                    description="tokens of each response",
                )
            )
        return cls(texts, tuple(specs), count, known)

    def values(self, rows: Sequence[Sequence[Response]]) -> dict[str, Any]:
        """The features of prompts, as a shard takes them."""
        nothing = Response(b"", 0)
        values = self.texts.values([[*row, *[nothing] * (self.count - len(row))] for row in rows])
        if self.has_log_probs:
            values["generated_log_probs"] = [
                np.concatenate([np.asarray(each.log_probs, np.float32) for each in row])
                for row in rows
            ]
        if self.has_log_probs and self.count > 1:
            lengths = [[*map(_tokens, row), *[0] * (self.count - len(row))] for row in rows]
            values[GENERATED_LENGTHS] = np.array(lengths, dtype=np.uint32)
        return {
            spec.name: values[spec.name]
            if spec.axis is None
            else joined(values[spec.name], spec.shape, spec.dtype)
            for spec in self.specs
        }


def _tokens(response: Response) -> int:
    return 0 if response.log_probs is None else len(response.log_probs)


def _read(job: ResponseImportJob) -> _Read:
    """All responses. Raises CorpusError, naming the file and the line, for what is none."""
    said, problems, lines = dict[Segments, list[Response]](), list[str](), 0
    of_batch: bool | None = None
    prompts: dict[str, Segments] = {}
    for number, line in _lines(job.source, job.encoding or "utf-8-sig"):
        where, lines = f"{job.source} line {number}", lines + 1
        try:
            document = json.loads(line)
            if not isinstance(document, dict):
                raise _LineError("is no object")
            if of_batch is None:
                # Text beside a custom_id is a response of a line's own prompt.
                said_of_id = document.get("response", "")
                of_batch = "custom_id" in document and not isinstance(said_of_id, str | list)
                prompts = _prompts_by_id(job) if of_batch else {}
            segments, found = _of_batch(document, prompts) if of_batch else _of_line(document, job)
        except (_LineError, MalformedReplyError, ValueError, RecursionError) as problem:
            problems.append(f"{where}: {problem}")
            continue
        said.setdefault(segments, []).extend(found)
    if problems and not job.skip_bad_rows:
        raise CorpusError(
            f"{len(problems)} of {lines} lines are no responses; skip such lines with "
            f"skip_bad_rows=true. First: {'; '.join(problems[:SHOWN_PROBLEMS])}"
        )
    if not said:
        raise CorpusError(f"{job.source}: has no response")
    return _Read(said, lines, "batch_output" if of_batch else "responses", tuple(problems))


def _lines(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding=encoding) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except (OSError, UnicodeError) as cause:
        raise CorpusError(f"{path}: cannot be read: {cause}") from cause


def _prompts_by_id(job: ResponseImportJob) -> dict[str, Segments]:
    if not job.corpus:
        raise JobError(
            f"job key 'corpus' is missing: {job.source} is batch output, which has no prompts; "
            "name the files of the prompts, whose ids are its custom_id"
        )
    corpus = read_corpus(
        job.corpus,
        job.text_column,
        id_column=job.id_column or "id",
        skip_bad_rows=job.skip_bad_rows,
        prompts_only=True,
        form=job.file_format,
    )
    assert corpus.ids is not None
    return dict(zip(corpus.ids.to_pylist(), corpus.examples(np.arange(len(corpus))), strict=True))


def _of_batch(
    document: dict[str, Any], prompts: dict[str, Segments]
) -> tuple[Segments, list[Response]]:
    """A line of batch output."""
    name = a_text(document.get("custom_id"), "custom_id")
    reply = optional(document.get("response"), "response", an_object) or {}
    if name not in prompts:
        raise _LineError(f"custom_id {name!r} is no id of the corpus")
    if document.get("error") or reply.get("status_code", 200) != 200:
        told = document.get("error") or reply.get("body")
        raise _LineError(f"custom_id {name!r} has no response: {json.dumps(told)[:120]}")
    body = an_object(reply.get("body"), "response.body")
    choices = a_list(body.get("choices"), "choices") or [{}]
    read = read_chat if "message" in an_object(choices[0], "choices[0]") else read_completion
    return prompts[name], [_of_choice(choice) for choice in read(body, len(choices))]


def _of_choice(choice: Choice) -> Response:
    if choice.declined:
        raise _LineError(f"the model declined to respond: {choice.refusal or 'filtered'}")
    finish = FINISHED.get(choice.finish_reason or "", OTHERWISE)
    log_probs = None if choice.predictions is None else choice.predictions.log_probs
    if log_probs is not None and not np.isfinite(log_probs).all():
        log_probs = None  # of a token that the service does not tell
    return Response(choice.text.encode(), finish, None, log_probs)


def _of_line(document: dict[str, Any], job: ResponseImportJob) -> tuple[Segments, list[Response]]:
    """A line with prompt and response, or several."""
    segments = tuple(_segment(document, column) for column in job.text_column)
    if len(segments) > 1 and not any(segment.strip() for segment in segments):
        raise _LineError("its prompt is blank")
    "".join(segments).encode()  # raises ValueError for half a character, which JSON can write
    texts, log_probs = document.get(job.response_field), document.get(job.log_probs_field)
    finish = document.get("finish_reason")
    if isinstance(texts, str):
        texts, log_probs, finish = [texts], [log_probs], [finish]
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise _LineError(f"field {job.response_field!r} is no text, nor a list of some")
    each_log_probs = optional(log_probs, job.log_probs_field, a_list) or [None] * len(texts)
    each_finish = finish if isinstance(finish, list) else [finish] * len(texts)
    if not len(texts) == len(each_log_probs) == len(each_finish):
        raise _LineError("has more, or fewer, log-probabilities or finish reasons than responses")
    if any(text and values == [] for text, values in zip(texts, each_log_probs, strict=True)):
        raise _LineError("has text of no log-probabilities; leave their field out if none is known")
    return segments, [
        Response(text.encode(), FINISHED.get(str(why), OTHERWISE), None, _log_probs(values, job))
        for text, values, why in zip(texts, each_log_probs, each_finish, strict=True)
    ]


def _log_probs(values: Any, job: ResponseImportJob) -> Any:
    if values is None:
        return None
    if not isinstance(values, list) or not all(map(_is_log_prob, values)):
        raise _LineError(
            f"field {job.log_probs_field!r} is no list of log-probabilities, finite and at most 0"
        )
    return np.minimum(values, 0.0).astype(np.float32)


def _is_log_prob(value: Any) -> bool:
    lowest = float(np.finfo(np.float32).min)
    return type(value) in (int, float) and lowest <= value <= ROUNDING


def _segment(document: dict[str, Any], column: str) -> str:
    name = column_name(column)
    value = document.get(name)
    if isinstance(value, list):
        if problem := chat_problem(value, asks=True):
            raise _LineError(f"the chat of field {name!r} {problem}")
        return chat_segment(asking_turns(value))
    if value is None and column.endswith(OPTIONAL):
        return ""
    if not isinstance(value, str) or not (value.strip() or column.endswith(OPTIONAL)):
        raise _LineError(f"field {name!r} is no text")
    return value


def _manifest(job: ResponseImportJob, layout: Layout, features: _Features) -> TeacherManifest:
    """The teacher as declared; what the cache holds of it, if it does."""
    settings: dict[str, SettingValue] = {
        "name": job.name,
        "layout": layout,
        "file": file_digest(job.source),
        "text_column": job.text_column,
    }
    if layout == "responses":
        named = {"response_field": job.response_field, "log_probs_field": job.log_probs_field}
        settings |= named
    spec = TeacherSpec(
        kind=KIND,
        name=job.name,
        weights={},
        settings=settings | job.declare,
        features=features.specs,
    )
    known = check_teacher(job.cache, spec, job.rows_per_shard, add_teacher=True)
    if known is not None:
        return known
    refuse_same_name(job.cache, spec)
    rows = job.rows_per_shard or ROWS_PER_SHARD
    return TeacherManifest(fingerprint=spec.fingerprint, rows_per_shard=rows, spec=spec)


def _run_record(job: ResponseImportJob, found: _Read) -> RunRecord:
    """Provenance of an import: hardware and libraries are unknown."""
    return RunRecord(
        started=now(),
        versions={name: library_versions()[name] for name in LIBRARIES},
        hardware={},
        corpora=(
            CorpusRecord(name=job.source.name, rows=found.lines, unique_examples=len(found.said)),
        ),
    )
