"""Plan and provenance of a run of `precompute`, wherever it runs.

job, teacher -> Plan: a corpus, its keys, and the teacher whose features are written: the job's, or
what it adds to a cached one. Commits -> the provenance record of the run, and its report.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..cache_schemas.codings import Fidelity
from ..cache_schemas.errors import JobError, MissingKeysError
from ..cache_schemas.keys import KeyArray, first_occurrences
from ..cache_schemas.layout import teacher_folder
from ..cache_schemas.manifest import (
    BatchFigures,
    BudgetRecord,
    CommitRecord,
    CorpusRecord,
    RequestFigures,
    RunRecord,
    TeacherManifest,
)
from ..cache_schemas.teachers import TeacherSpec
from ..stages.corpus.corpus import Corpus, corpus_name, read_corpus, refuse_unreadable
from ..stages.corpus.reading import PICTURES, prompt_columns
from ..stages.language.prompt_templates import columns_of, doubts, fill_template
from ..stages.store.format.manifests import list_teachers, read_commits
from ..stages.store.reading.reader import Cache
from ..stages.store.writing.extending import plan_extension
from ..stages.store.writing.teacher_folder import begun_without, check_teacher, is_new
from ..stages.store.writing.writer import CacheWriter, pending
from ..stages.tokenizing.unknown import SAMPLE
from .environment import new_run_id, now
from .messages import LOGGER, budget_in_words, device_in_words, requests_in_words
from .precompute_job import PrecomputeJob, make_teacher, part_of, placeholders

if TYPE_CHECKING:
    import torch

    from ..stages.precompute.teachers.base import Teacher


@dataclass(frozen=True, slots=True)
class Plan:
    """Examples of a job, their keys, and the teacher whose features are written."""

    corpus: Corpus
    keys: KeyArray
    unique: int
    manifest: TeacherManifest
    budget: BudgetRecord | None = None


def look_at_corpus(job: PrecomputeJob) -> None:
    """Refuse a mistyped file or column before a teacher is made, which takes seconds."""
    refuse_unreadable(job.corpus, job.text_column, id_column=job.id_column, form=job.file_format)


def make_settled(
    job: PrecomputeJob, device: "torch.device | None" = None
) -> tuple[PrecomputeJob, "Teacher"]:
    """The job's teacher, not loaded yet, and the job with all options that it has.

    Options that are not named and that earlier releases did not have are as they were then, if the
    cache was begun so. `device`: its device, if not that of the job. Raises what `make_teacher`
    raises, CacheError if there is something else."""
    teacher = make_teacher(job, device)
    cached = [] if is_new(job.cache) else [known.spec for known in list_teachers(job.cache)]
    teacher.settle(cached)
    earlier = {
        name: value
        for name, value in teacher.Options.earlier.items()
        if name not in job.options and name in teacher.spec.settings
    }
    if not begun_without(job.cache, teacher.spec, frozenset(earlier), teacher.selecting):
        return job, teacher
    listed = ", ".join(f"{name}={value}" for name, value in earlier.items())
    LOGGER.info(f"cache {job.cache}: was begun with {listed} by an earlier release; goes on so")
    job = job.model_copy(update={"options": {**job.options, **earlier}})
    teacher = make_teacher(job, device)
    teacher.settle(cached)
    return job, teacher


def make_plan(job: PrecomputeJob, teacher: "Teacher") -> Plan:
    """Read and check the corpus; refuse a teacher that the cache does not take."""
    for note in teacher.notes:
        LOGGER.warning(note)
    admission = _admit(job, teacher)
    corpus = read_corpus(
        job.corpus,
        job.text_column,
        label_column=job.label_column,
        id_column=job.id_column,
        skip_bad_rows=job.skip_bad_rows,
        limit=job.limit,
        prompts_only=asks_prompts(teacher.spec),
        form=job.file_format,
    )
    corpus.require_format(teacher.spec.settings.get("text_format"), f"teacher {job.teacher}")
    _require_response(job, corpus, teacher.spec)
    _look_at_templates(job, corpus, teacher)
    keys, budget = corpus.keys(), None
    if job.budget is not None:
        from .budget import choose_rows

        rows, budget = choose_rows(job, corpus, keys)
        LOGGER.info(f"budget: {budget_in_words(budget)}")
        corpus, keys = corpus.take(rows), keys[rows]
    if job.part is not None:
        rows = _rows_of_part(keys, job.part)
        corpus, keys = corpus.take(rows), keys[rows]
    if admission.base is not None:
        corpus, keys = _only_cached(job, admission.base, corpus, keys)
    _look_at_examples(corpus, keys, teacher)
    return Plan(corpus, keys, len(first_occurrences(keys)), admission.manifest, budget)


def asks_prompts(spec: TeacherSpec) -> bool:
    """Whether a teacher's examples are prompts alone: a chat is one without its last answer."""
    return spec.settings.get("response_column") is False


def _require_response(job: PrecomputeJob, corpus: Corpus, spec: TeacherSpec) -> None:
    text_format = spec.settings.get("text_format")
    if text_format not in ("plain", "chat") or asks_prompts(spec):
        return
    if len(corpus.segments) == 1 and not corpus.chats:
        raise JobError(
            f"text_format {text_format}: examples have one segment; name the columns of prompt and "
            "response, the response last; prompts alone are answered with response_column=false"
        )


def _look_at_templates(job: PrecomputeJob, corpus: Corpus, teacher: "Teacher") -> None:
    """Refuse a template of no text column, unless it is beside a picture, or of more than there
    are; warn of one that leaves some out."""
    pictured = any(each.startswith(PICTURES) for each in job.text_column)
    settings, columns = teacher.spec.settings, prompt_columns(job.text_column)
    form = settings.get("text_format", settings.get("prompt_format"))
    of_other_formats = {"plain": {"user_template"}, "chat": {"prompt_template"}}.get(
        str(form), {"user_template", "prompt_template"}
    )
    responds = settings.get("text_format") in ("plain", "chat") and not asks_prompts(teacher.spec)
    count = len(columns) - int(responds)
    for name in sorted(teacher.Options.templates & job.options.keys() - of_other_formats):
        template = job.options[name]
        if corpus.chats or not isinstance(template, str):
            continue
        if not columns_of(template) and not pictured:
            raise JobError(
                f"{name} {template!r}: has no {{text}}, so all texts would be the same; add it, or "
                f"{{1}} to {{{count}}}, or names of text columns"
            )
        fill_template(template, [""] * count)
        for doubt in doubts(template, columns, count, placeholders(job)):
            LOGGER.warning(f"{name}: {doubt}")


def _look_at_examples(corpus: Corpus, keys: KeyArray, teacher: "Teacher") -> None:
    from ..stages.precompute.ahead import make_examples

    sample = np.unique(np.linspace(0, len(corpus) - 1, SAMPLE).astype(np.int64))
    examples = make_examples(corpus, keys, sample)
    teacher.check(examples)
    unknown = teacher.unknown(examples)
    if unknown is not None:
        LOGGER.warning(unknown.of("teacher"))


def _rows_of_part(keys: KeyArray, part: str) -> npt.NDArray[np.int64]:
    """The rows of one of several parts: neighbours, no key in two parts, equal but for one row."""
    number, count = part_of(part)
    unique = first_occurrences(keys)
    return unique[len(unique) * (number - 1) // count : len(unique) * number // count]


@dataclass(frozen=True, slots=True)
class _Admission:
    """`manifest`: the teacher whose features are written; `base`: the teacher that they are added
    to, if it is another."""

    manifest: TeacherManifest
    base: TeacherManifest | None = None


def _admit(job: PrecomputeJob, teacher: "Teacher") -> _Admission:
    """The teacher under which the cache takes the features; raises CacheError if it does not.

    With `add_features`, only the features are written that the cached teacher lacks."""
    spec, selecting = teacher.spec, teacher.selecting
    keep_both = job.add_teacher or job.add_features
    known = check_teacher(job.cache, spec, job.rows_per_shard, keep_both, selecting)
    if known is not None:
        return _Admission(known)
    if job.add_features:
        base, added = plan_extension(job.cache, spec, selecting, job.rows_per_shard)
        return _Admission(added, base)
    rows = job.rows_per_shard or teacher.default_rows_per_shard
    return _Admission(TeacherManifest(fingerprint=spec.fingerprint, rows_per_shard=rows, spec=spec))


def _only_cached(
    job: PrecomputeJob, base: TeacherManifest, corpus: Corpus, keys: KeyArray
) -> tuple[Corpus, KeyArray]:
    """The examples cached for `base`: a feature is added to existing rows. Others are listed as
    skipped; raises MissingKeysError if that is all of them."""
    rows = Cache(job.cache, base).find(keys)
    missing = np.flatnonzero(rows < 0)
    name = base.fingerprint[:12]
    if len(missing) == len(keys):
        raise MissingKeysError(
            f"add_features: none of the {len(keys)} rows is in the cache of teacher {name}; run "
            "`armada precompute` with its settings first, without add_features",
            missing.tolist(),
        )
    if not len(missing):
        return corpus, keys
    return corpus.without(missing, f"teacher {name} has not computed them"), keys[rows >= 0]


def not_cached(job: PrecomputeJob, plan: Plan) -> npt.NDArray[np.int64]:
    """Positions of the first appearance of each key that the cache lacks at this moment."""
    folder = teacher_folder(job.cache, plan.manifest.fingerprint)
    return pending(folder, read_commits(job.cache, plan.manifest), plan.keys)


@dataclass(frozen=True, slots=True)
class PrecomputeReport:
    """Result of a run."""

    fingerprint: str
    rows: int
    unique: int
    already_cached: int
    computed: int
    done_elsewhere: int
    truncated: int
    skipped: tuple[str, ...]
    teacher_seconds: float
    fidelity: Mapping[str, Fidelity]
    """Fidelity of each coded feature, measured in the shards of this run."""
    requests: RequestFigures | None = None
    """Requests of this run, of a teacher behind a server."""

    @property
    def asked(self) -> int:
        """Deprecated name of `computed`."""
        return self.computed


class RunProvenance:
    """Keeps the provenance record of this run up to date with its commits."""

    def __init__(
        self,
        job: PrecomputeJob,
        plan: Plan,
        writer: CacheWriter,
        versions: dict[str, str],
        machine: dict[str, str],
        batches: Callable[[], BatchFigures],
        run_id: str | None = None,
        requests: Callable[[], RequestFigures | None] = lambda: None,
    ) -> None:
        """`batches`, `requests`: the figures of its batches and requests so far."""
        self._writer, self.id = writer, run_id or new_run_id()
        self._batches, self._requests = batches, requests
        self.record = RunRecord(
            started=now(),
            versions=versions,
            hardware=machine,
            corpora=tuple(_corpus_records(job, plan)),
            budget=plan.budget,
        )
        self.commits: list[CommitRecord] = []

    def committed(self, record: CommitRecord, seconds: float, truncated: int) -> None:
        """Note what a shard cost."""
        LOGGER.debug(f"shard {record.shard}: {record.rows} rows in {seconds:.1f} s")
        self.commits.append(record)
        old = self.record
        self.record = old.model_copy(
            update={
                "teacher_seconds": old.teacher_seconds | {record.shard: round(seconds, 3)},
                "truncated_examples": old.truncated_examples + truncated,
                "batches": self._batches(),
                "requests": self._requests(),
            }
        )
        self.write()

    def progress(self) -> str:
        """What the device has been doing, or what requests took, in words; nothing before the
        first."""
        if (requests := self._requests()) is not None:
            return requests_in_words(requests) if requests.requests else ""
        figures = self._batches()
        return device_in_words(figures) if figures.batches else ""

    def write(self) -> None:
        """Write the record as it is now."""
        self._writer.record_run(self.id, self.record)


def _corpus_records(job: PrecomputeJob, plan: Plan) -> Iterator[CorpusRecord]:
    for number, source in enumerate(plan.corpus.sources):
        keys = plan.keys[plan.corpus.source_of_row == number]
        yield CorpusRecord(
            name=corpus_name(source),
            rows=len(keys),
            unique_examples=len(first_occurrences(keys)),
            licence=job.corpus_licence,
        )
