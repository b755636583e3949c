"""A run of `precompute`: its job becomes a corpus, a teacher and a writer; what is new is asked."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..cache_schemas.fidelity import Fidelity
from ..cache_schemas.keys import KeyArray, first_occurrences
from ..cache_schemas.layout import teacher_folder
from ..cache_schemas.manifest import (
    CommitRecord,
    CorpusRecord,
    RunRecord,
    TeacherManifest,
    fidelity_of,
)
from ..cache_schemas.teachers import SettingValue
from ..stages.corpus.corpus import Corpus, corpus_name, read_corpus
from ..stages.store.format.manifests import read_commits
from ..stages.store.format.zarr_shards import shard_bytes
from ..stages.store.writing.teacher_folder import require_writable
from ..stages.store.writing.writer import CacheWriter, Work, pending
from ..stages.tokenizing.unknown import SAMPLE
from .added_features import admit, only_cached
from .environment import choose_device, hardware, library_versions, new_run_id, now
from .messages import LOGGER, CountProgress, say_that_it_waits
from .precompute_job import PrecomputeJob, make_teacher, part_of
from .signals import telling_what_is_kept, terminable

if TYPE_CHECKING:
    from ..stages.precompute.precompute import Probe
    from ..stages.precompute.teachers.base import Teacher

PROBE_ROWS = 64


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job is about: its examples, their keys, and whose answers are wanted."""

    corpus: Corpus
    keys: KeyArray
    unique: int
    manifest: TeacherManifest


@dataclass(frozen=True, slots=True)
class PrecomputeReport:
    """What a run did."""

    fingerprint: str
    rows: int
    unique: int
    already_cached: int
    asked: int
    done_elsewhere: int
    truncated: int
    skipped: tuple[str, ...]
    teacher_seconds: float
    fidelity: Mapping[str, Fidelity]
    """Of each coded feature, as measured in the shards of this run."""


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a run would do and cost."""

    fingerprint: str
    rows: int
    unique: int
    already_cached: int
    shards: int
    bytes: int
    skipped: tuple[str, ...]
    expected_seconds: float
    settings: Mapping[str, SettingValue]
    """Of the teacher: what the job says, and what it leaves to defaults and to the source."""


def run_precompute(job: PrecomputeJob, quiet: bool = False) -> PrecomputeReport:
    """Ask the teacher about every text of the corpus that is not cached yet."""
    with telling_what_is_kept(lambda: "all answers so far are kept; the same command goes on"):
        return _run(job, quiet)


def _run(job: PrecomputeJob, quiet: bool) -> PrecomputeReport:
    if job.workers is not None or job.dask is not None:
        from .distributed.precompute_cluster import run_on_cluster

        return run_on_cluster(job, quiet)
    teacher = make_teacher(job)
    plan = make_plan(job, teacher)
    require_writable(job.cache)
    with terminable():
        # First: a teacher that cannot be loaded leaves nothing in the cache.
        loaded = bool(len(not_cached(job, plan)))
        if loaded:
            teacher.load()
        with CacheWriter(job.cache, plan.manifest, job.takeover_seconds) as writer:
            return _ask(job, plan, teacher, loaded, writer, quiet)


def dry_run(job: PrecomputeJob) -> DryRun:
    """What `run_precompute` would do; asks the teacher about a probe batch, writes nothing."""
    teacher = make_teacher(job)
    plan = make_plan(job, teacher)
    todo = not_cached(job, plan)
    probe = _probe(job, plan, teacher, todo)
    return DryRun(
        fingerprint=plan.manifest.fingerprint,
        rows=len(plan.corpus),
        unique=plan.unique,
        already_cached=plan.unique - len(todo),
        shards=-(-len(todo) // plan.manifest.rows_per_shard),
        bytes=_feature_bytes(len(todo), plan.manifest, probe.places),
        skipped=plan.corpus.skipped,
        expected_seconds=probe.seconds * len(todo),
        settings=teacher.spec.settings,
    )


def not_cached(job: PrecomputeJob, plan: Plan) -> npt.NDArray[np.int64]:
    """Positions of the first appearance of each key that the cache lacks at this moment."""
    folder = teacher_folder(job.cache, plan.manifest.fingerprint)
    return pending(folder, read_commits(job.cache, plan.manifest), plan.keys)


def _feature_bytes(rows: int, manifest: TeacherManifest, places: Mapping[str, float]) -> int:
    """How many bytes of features so many new rows take, of so many places on each axis."""
    size = manifest.rows_per_shard
    shards = [min(size, rows - start) for start in range(0, rows, size)]
    return sum(
        shard_bytes(round(n * places.get(spec.axis or "", 1)), spec, size)
        for n in shards
        for spec in manifest.spec.features
    )


def _probe(
    job: PrecomputeJob, plan: Plan, teacher: "Teacher", todo: npt.NDArray[np.int64]
) -> "Probe":
    """What to expect of each of `todo`, from one batch spread evenly over it."""
    from ..stages.precompute.precompute import Probe, make_examples, probe

    if not len(todo):
        return Probe(0.0, {})
    size = min(job.batch_size or teacher.default_batch_size, PROBE_ROWS, len(todo))
    sample = todo[np.linspace(0, len(todo) - 1, size).astype(np.int64)]
    teacher.load()
    return probe(teacher, make_examples(plan.corpus, plan.keys, sample))


def make_plan(job: PrecomputeJob, teacher: "Teacher") -> Plan:
    """Read and check the corpus; refuse a teacher that the cache does not take."""
    for note in teacher.notes:
        LOGGER.warning(note)
    admission = admit(job, teacher)
    corpus = read_corpus(
        job.corpus,
        job.text_column,
        id_column=job.id_column,
        skip_bad_rows=job.skip_bad_rows,
        limit=job.limit,
        form=job.file_format,
    )
    corpus.require_format(teacher.spec.settings.get("text_format"), f"teacher {job.teacher}")
    keys = corpus.keys()
    if job.part is not None:
        rows = _rows_of_part(keys, job.part)
        corpus, keys = corpus.take(rows), keys[rows]
    if admission.base is not None:
        corpus, keys = only_cached(job, admission.base, corpus, keys)
    _warn_of_unknown(corpus, keys, teacher)
    return Plan(corpus, keys, len(first_occurrences(keys)), admission.manifest)


def _warn_of_unknown(corpus: Corpus, keys: KeyArray, teacher: "Teacher") -> None:
    from ..stages.precompute.precompute import make_examples

    sample = np.unique(np.linspace(0, len(corpus) - 1, SAMPLE).astype(np.int64))
    unknown = teacher.unknown(make_examples(corpus, keys, sample))
    if unknown is not None:
        LOGGER.warning(unknown.of("teacher"))


def _rows_of_part(keys: KeyArray, part: str) -> npt.NDArray[np.int64]:
    """The rows of one of several parts: neighbours, no key in two parts, equal but for one row."""
    number, count = part_of(part)
    unique = first_occurrences(keys)
    return unique[len(unique) * (number - 1) // count : len(unique) * number // count]


def _ask(
    job: PrecomputeJob,
    plan: Plan,
    teacher: "Teacher",
    loaded: bool,
    writer: CacheWriter,
    quiet: bool,
) -> PrecomputeReport:
    from ..stages.precompute.precompute import Asking, precompute

    run = Run(job, plan, writer, library_versions(), hardware(str(choose_device(job.device))))
    skipped: list[str] = []
    work = Work(writer, plan.keys, say_that_it_waits(quiet))
    if work.pending:
        if not loaded:  # somebody has just removed what was there
            teacher.load()
        with CountProgress("precompute", "rows", work.pending, quiet) as progress:
            batch_size = job.batch_size or teacher.default_batch_size
            asking = Asking(batch_size, job.skip_bad_rows, progress.advance, run.committed, skipped)
            precompute(plan.corpus, plan.keys, work, teacher, writer, asking)
    return PrecomputeReport(
        fingerprint=plan.manifest.fingerprint,
        rows=len(plan.corpus),
        unique=plan.unique,
        already_cached=plan.unique - work.pending,
        asked=work.pending - work.done_elsewhere - len(skipped),
        done_elsewhere=work.done_elsewhere,
        truncated=run.record.truncated_examples,
        skipped=(*plan.corpus.skipped, *skipped),
        teacher_seconds=sum(run.record.teacher_seconds.values()),
        fidelity=fidelity_of(run.commits),
    )


class Run:
    """Keeps the provenance record of this run up to date with its commits."""

    def __init__(
        self,
        job: PrecomputeJob,
        plan: Plan,
        writer: CacheWriter,
        versions: dict[str, str],
        machine: dict[str, str],
        run_id: str | None = None,
    ) -> None:
        self._writer, self.id = writer, run_id or new_run_id()
        self.record = RunRecord(
            started=now(),
            versions=versions,
            hardware=machine,
            corpora=tuple(_corpus_records(job, plan)),
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
            }
        )
        self.write()

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
