"""A run of `precompute`: its job becomes a corpus, a teacher and a writer; missing rows are
computed."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from ..cache_schemas.manifest import BudgetRecord, RequestFigures, TeacherManifest, fidelity_of
from ..cache_schemas.teachers import SettingValue
from ..stages.store.format.zarr_shards import shard_bytes
from ..stages.store.reading.reader import Cache
from ..stages.store.writing.replies import KeptReplies
from ..stages.store.writing.teacher_folder import require_writable
from ..stages.store.writing.writer import CacheWriter, Work
from .environment import choose_device, hardware, library_versions
from .messages import CountProgress, say_that_it_waits
from .precompute_job import PrecomputeJob, parse_options
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
    from ..stages.precompute.ranks import Ranks
    from ..stages.precompute.teachers.base import Teacher

R = TypeVar("R")


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
    budget: BudgetRecord | None = None
    """The texts that were chosen, where a budget is set."""


def run_precompute(job: PrecomputeJob, quiet: bool = False) -> PrecomputeReport:
    """Compute every text of the corpus that is not cached yet.

    Of processes that hold the teacher together, the first writes, and each returns the report."""
    look_at_corpus(job)
    with telling_what_is_kept(
        lambda: "committed shards are kept; run the same command to continue"
    ):
        return _run(job, quiet)


def _run(job: PrecomputeJob, quiet: bool) -> PrecomputeReport:
    if job.workers is not None or job.dask is not None:
        from .distributed.precompute_cluster import run_on_cluster

        return run_on_cluster(job, quiet)
    return _with_teacher(job, PrecomputeReport, partial(_run_here, quiet=quiet))


def tells(job: PrecomputeJob) -> bool:
    """Whether this process tells of the run: the first of those that hold a teacher together."""
    if not parse_options(job).is_divided:
        return True
    from ..stages.distill.processes import processes

    return processes().first


def _with_teacher(
    job: PrecomputeJob,
    report: type[R],
    run: "Callable[[PrecomputeJob, Teacher, Ranks], R]",
) -> R:
    """What `run` returns with the job's teacher. Of processes that hold it together, the first
    runs, and the others compute along."""
    from ..stages.precompute.ranks import ALONE, END, MADE, Ranks, follow

    if not parse_options(job).is_divided:
        job, teacher = make_settled(job)
        with closing(teacher):
            return run(job, teacher, ALONE)
    from ..stages.distill.processes import processes

    group = processes()
    device = choose_device(job.device, group.local_rank)
    group.meet(device)
    ranks, document = Ranks.of(group.first, group.count), TypeAdapter(report)
    if not ranks.first:
        ranks.hear()  # that the first has made it: what is wrong is said once, digests are known
    job, teacher = make_settled(job, device)
    with closing(teacher):
        if not ranks.first:
            return document.validate_python(follow(teacher, ranks))
        ranks.say(MADE)
        found = run(job, teacher, ranks)
        ranks.say(END, document.dump_python(found, mode="json"))
        return found


def _run_here(
    job: PrecomputeJob, teacher: "Teacher", ranks: "Ranks", quiet: bool
) -> PrecomputeReport:
    plan = make_plan(job, teacher)
    require_writable(job.cache)
    with terminable():
        # First: a teacher that cannot be loaded leaves nothing in the cache.
        loaded = bool(len(not_cached(job, plan)))
        if loaded:
            _load(teacher, ranks)
        with CacheWriter(job.cache, plan.manifest, job.takeover_seconds) as writer:
            return _compute(job, plan, teacher, ranks, loaded, writer, quiet)


def _load(teacher: "Teacher", ranks: "Ranks") -> None:
    from ..stages.precompute.ranks import LOAD
    from ..stages.precompute.teachers.base import load_teacher

    ranks.say(LOAD)
    load_teacher(teacher)


def dry_run(job: PrecomputeJob) -> DryRun:
    """Plan of `run_precompute`; runs the teacher on one probe batch, writes nothing."""
    look_at_corpus(job)
    return _with_teacher(job, DryRun, _dry_run)


def _dry_run(job: PrecomputeJob, teacher: "Teacher", ranks: "Ranks") -> DryRun:
    plan = make_plan(job, teacher)
    todo = not_cached(job, plan)
    probe = _probe(job, plan, teacher, ranks, todo)
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
        budget=plan.budget,
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
    job: PrecomputeJob,
    plan: Plan,
    teacher: "Teacher",
    ranks: "Ranks",
    todo: npt.NDArray[np.int64],
) -> "Probe":
    """Expected time and lengths per row of `todo`, from one batch spread evenly over it."""
    from ..stages.precompute.ahead import make_examples
    from ..stages.precompute.precompute import Probe, probe

    if not len(todo):
        return Probe(0.0, {})
    rows = job.batch_size if isinstance(job.batch_size, int) else teacher.default_batch_size
    size = min(rows, teacher.probe_rows, len(todo))
    sample = todo[np.linspace(0, len(todo) - 1, size).astype(np.int64)]
    _load(teacher, ranks)
    return probe(teacher, make_examples(plan.corpus, plan.keys, sample), ranks)


def _begin_to_ask(plan: Plan, teacher: "Teacher", writer: CacheWriter) -> None:
    from ..stages.precompute.ahead import make_examples

    replies = KeptReplies(writer.path, writer.manifest.fingerprint, writer.pending)
    examples = make_examples(plan.corpus, plan.keys, writer.pending(plan.keys))
    teacher.begin(replies, Cache(writer.path, writer.manifest).runs(), examples)


def _compute(
    job: PrecomputeJob,
    plan: Plan,
    teacher: "Teacher",
    ranks: "Ranks",
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
            _load(teacher, ranks)
        if teacher.asks_a_server:
            _begin_to_ask(plan, teacher, writer)
        with CountProgress("precompute", "rows", work.pending, quiet, run.progress) as progress:
            encoding = EncodingRun(
                BatchSizes.of(teacher, job.batch_size),
                device,
                counts,
                job.skip_bad_rows,
                progress.advance,
                run.committed,
                skipped,
                ranks=ranks,
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
