"""A run of `precompute`: its job becomes a corpus, a teacher and a writer; missing rows are
computed."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..cache_schemas.manifest import RequestFigures, TeacherManifest, fidelity_of
from ..cache_schemas.teachers import SettingValue
from ..stages.store.format.zarr_shards import shard_bytes
from ..stages.store.reading.reader import Cache
from ..stages.store.writing.replies import KeptReplies
from ..stages.store.writing.teacher_folder import require_writable
from ..stages.store.writing.writer import CacheWriter, Work
from .environment import choose_device, hardware, library_versions
from .messages import CountProgress, say_that_it_waits
from .precompute_job import PrecomputeJob
from .precompute_plan import (
    Plan,
    PrecomputeReport,
    RunProvenance,
    look_at_corpus,
    make_plan,
    make_settled,
    not_cached,
)
from .signals import telling_what_is_kept, terminable

if TYPE_CHECKING:
    from ..stages.precompute.precompute import Probe
    from ..stages.precompute.teachers.base import Teacher


@dataclass(frozen=True, slots=True)
class DryRun:
    """Plan and estimated cost of a run."""

    fingerprint: str
    rows: int
    unique: int
    already_cached: int
    shards: int
    bytes: int
    skipped: tuple[str, ...]
    expected_seconds: float
    settings: Mapping[str, SettingValue]
    """All settings of the teacher, defaults and those of the source included."""
    requests: RequestFigures | None = None
    """Requests that are expected, of a teacher behind a server."""


def run_precompute(job: PrecomputeJob, quiet: bool = False) -> PrecomputeReport:
    """Compute every text of the corpus that is not cached yet."""
    look_at_corpus(job)
    with telling_what_is_kept(
        lambda: "committed shards are kept; run the same command to continue"
    ):
        return _run(job, quiet)


def _run(job: PrecomputeJob, quiet: bool) -> PrecomputeReport:
    if job.workers is not None or job.dask is not None:
        from .distributed.precompute_cluster import run_on_cluster

        return run_on_cluster(job, quiet)
    job, teacher = make_settled(job)
    with closing(teacher):
        return _run_here(job, teacher, quiet)


def _run_here(job: PrecomputeJob, teacher: "Teacher", quiet: bool) -> PrecomputeReport:
    plan = make_plan(job, teacher)
    require_writable(job.cache)
    with terminable():
        # First: a teacher that cannot be loaded leaves nothing in the cache.
        loaded = bool(len(not_cached(job, plan)))
        if loaded:
            _load(teacher)
        with CacheWriter(job.cache, plan.manifest, job.takeover_seconds) as writer:
            return _compute(job, plan, teacher, loaded, writer, quiet)


def _load(teacher: "Teacher") -> None:
    from ..stages.precompute.teachers.base import load_teacher

    load_teacher(teacher)


def dry_run(job: PrecomputeJob) -> DryRun:
    """Plan of `run_precompute`; runs the teacher on one probe batch, writes nothing."""
    look_at_corpus(job)
    job, teacher = make_settled(job)
    with closing(teacher):
        return _dry_run(job, teacher)


def _dry_run(job: PrecomputeJob, teacher: "Teacher") -> DryRun:
    plan = make_plan(job, teacher)
    todo = not_cached(job, plan)
    probe = _probe(job, plan, teacher, todo)
    return DryRun(
        fingerprint=plan.manifest.fingerprint,
        rows=len(plan.corpus),
        unique=plan.unique,
        already_cached=plan.unique - len(todo),
        shards=-(-len(todo) // plan.manifest.rows_per_shard),
        bytes=_feature_bytes(len(todo), plan.manifest, probe.lengths),
        skipped=plan.corpus.skipped,
        expected_seconds=probe.seconds * len(todo),
        settings=teacher.spec.settings,
        requests=teacher.forecast(len(todo)),
    )


def _feature_bytes(rows: int, manifest: TeacherManifest, lengths: Mapping[str, float]) -> int:
    """Bytes of the features of new rows, given the total length on each axis."""
    size = manifest.rows_per_shard
    shards = [min(size, rows - start) for start in range(0, rows, size)]
    return sum(
        shard_bytes(round(n * lengths.get(spec.axis or "", 1)), spec, size)
        for n in shards
        for spec in manifest.spec.features
    )


def _probe(
    job: PrecomputeJob, plan: Plan, teacher: "Teacher", todo: npt.NDArray[np.int64]
) -> "Probe":
    """Expected time and lengths per row of `todo`, from one batch spread evenly over it."""
    from ..stages.precompute.ahead import make_examples
    from ..stages.precompute.precompute import Probe, probe

    if not len(todo):
        return Probe(0.0, {})
    rows = job.batch_size if isinstance(job.batch_size, int) else teacher.default_batch_size
    size = min(rows, teacher.probe_rows, len(todo))
    sample = todo[np.linspace(0, len(todo) - 1, size).astype(np.int64)]
    _load(teacher)
    return probe(teacher, make_examples(plan.corpus, plan.keys, sample))


def _begin_to_ask(teacher: "Teacher", writer: CacheWriter) -> None:
    replies = KeptReplies(writer.path, writer.manifest.fingerprint, writer.pending)
    teacher.begin(replies, Cache(writer.path, writer.manifest).runs())


def _compute(
    job: PrecomputeJob,
    plan: Plan,
    teacher: "Teacher",
    loaded: bool,
    writer: CacheWriter,
    quiet: bool,
) -> PrecomputeReport:
    from ..stages.precompute.batching import BatchCounts, BatchSizes
    from ..stages.precompute.precompute import EncodingRun, precompute

    device, counts = choose_device(job.device), BatchCounts()
    run = RunProvenance(
        job,
        plan,
        writer,
        library_versions(),
        hardware(str(device)),
        counts.figures,
        requests=teacher.requests,
    )
    skipped: list[str] = []
    work = Work(writer, plan.keys, say_that_it_waits(quiet))
    if work.pending:
        if not loaded:  # somebody has just removed what was there
            _load(teacher)
        if teacher.asks_a_server:
            _begin_to_ask(teacher, writer)
        with CountProgress("precompute", "rows", work.pending, quiet, run.progress) as progress:
            encoding = EncodingRun(
                BatchSizes.of(teacher, job.batch_size),
                device,
                counts,
                job.skip_bad_rows,
                progress.advance,
                run.committed,
                skipped,
            )
            precompute(plan.corpus, plan.keys, work, teacher, writer, encoding)
    return PrecomputeReport(
        fingerprint=plan.manifest.fingerprint,
        rows=len(plan.corpus),
        unique=plan.unique,
        already_cached=plan.unique - work.pending,
        computed=work.pending - work.done_elsewhere - len(skipped),
        done_elsewhere=work.done_elsewhere,
        truncated=run.record.truncated_examples,
        skipped=(*plan.corpus.skipped, *skipped),
        teacher_seconds=sum(run.record.teacher_seconds.values()),
        fidelity=fidelity_of(run.commits),
        requests=teacher.requests(),
    )
