"""A run of `precompute` on Dask: this process plans and counts, workers compute and commit.

    run_on_cluster -> _ask -> Dispatch.run -> workers.answer, on the workers

In: a job with `workers` or `dask`. Out: the report of an ordinary run. The pending keys are split
into chunks of `rows_per_shard` in corpus order, each with the shard number that it would have in an
ordinary run: so an undisturbed run leaves the same bytes as one process.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...cache_schemas.errors import ArmadaError, JobError, RunError
from ...cache_schemas.extras import require_extra
from ...cache_schemas.manifest import BatchFigures, fidelity_of
from ...stages.store.format.manifests import first_own_shard
from ...stages.store.writing.teacher_folder import require_writable
from ...stages.store.writing.writer import CacheWriter
from ..environment import new_run_id, visible_gpus
from ..messages import CountProgress, say_that_it_waits
from ..precompute_job import PrecomputeJob
from ..precompute_plan import (
    Plan,
    PrecomputeReport,
    RunProvenance,
    make_plan,
    make_settled,
    not_cached,
)
from ..signals import terminable
from .cluster import connected, device_of, number_of_workers, own_cluster
from .dispatch import Chunks, Dispatch, load_on_one
from .workers import Equipment, JobSpec, Outcome, equipment, sees_run, unseen

if TYPE_CHECKING:
    import torch
    from distributed import Client


@dataclass(frozen=True, slots=True)
class _WorkerPool:
    """Workers that are ready."""

    client: "Client"
    equipment: tuple[Equipment, ...]

    def together(self, of_one: Callable[[Equipment], Mapping[str, str]]) -> dict[str, str]:
        """Values common to all workers; where they differ, each distinct value."""
        found: dict[str, set[str]] = {}
        for one in self.equipment:
            for name, value in of_one(one).items():
                found.setdefault(name, set()).add(value)
        return {name: ", ".join(sorted(values)) for name, values in found.items()}


class _Outcomes:
    """The outcomes so far, and the run's record; skipped rows are named once, however often they
    were computed."""

    def __init__(
        self, job_spec: JobSpec, plan: Plan, writer: CacheWriter, pool: _WorkerPool
    ) -> None:
        machine = pool.together(lambda one: one.hardware) | {"workers": str(len(pool.equipment))}
        versions = pool.together(lambda one: one.versions)
        self.rows = 0
        self.skipped: dict[str, None] = {}
        self._batches = BatchFigures()
        self.run = RunProvenance(
            job_spec.job, plan, writer, versions, machine, lambda: self._batches, job_spec.run_id
        )

    def add(self, outcome: Outcome) -> None:
        """Count what a chunk came to."""
        self.rows += outcome.rows
        self.skipped |= dict.fromkeys(outcome.skipped)
        self._batches = BatchFigures.together([self._batches, outcome.counts.figures()])
        for record, seconds, truncated in outcome.shards:
            self.run.committed(record, seconds, truncated)


def run_on_cluster(job: PrecomputeJob, quiet: bool) -> PrecomputeReport:
    """Compute what is not cached yet, with the workers of the job."""
    require_extra("precompute by workers", "cluster", "distributed")
    with ExitStack() as stack:
        stack.enter_context(terminable())
        if job.dask is not None:
            pool = _pool(stack.enter_context(connected(job.dask)), job)
            device = _device(pool)
        else:
            gpus = visible_gpus(job.device)
            device = device_of(job.device, gpus)
        job, teacher = make_settled(job, device)
        stack.callback(teacher.close)
        if teacher.asks_a_server:
            raise JobError(
                f"workers, dask: one process sends as many requests to {job.teacher} as its server "
                "takes; leave them out"
            )
        plan = make_plan(job, teacher)
        require_writable(job.cache)
        if not len(not_cached(job, plan)):
            return _report(plan, 0, None)
        if job.dask is None:
            number = number_of_workers(job.workers or "auto", gpus)
            pool = _pool(stack.enter_context(own_cluster(number, gpus)), job)
        there = job.model_copy(update={"cache": job.cache.absolute()})
        job_spec = JobSpec(new_run_id(), there, plan.manifest, teacher.spec)
        # First: a teacher that cannot be loaded leaves nothing in the cache.
        load_on_one(pool.client, job_spec)
        writer = stack.enter_context(CacheWriter(job.cache, plan.manifest, job.takeover_seconds))
        pending = writer.pending(plan.keys)
        outcomes = _compute(job_spec, plan, writer, pending, pool, quiet)
        return _report(plan, len(pending), outcomes)


def _report(plan: Plan, pending: int, outcomes: "_Outcomes | None") -> PrecomputeReport:
    """The report. Shards that a worker committed just before it was lost count as done
    elsewhere."""
    rows = outcomes.rows if outcomes else 0
    skipped = tuple(outcomes.skipped) if outcomes else ()
    return PrecomputeReport(
        fingerprint=plan.manifest.fingerprint,
        rows=len(plan.corpus),
        unique=plan.unique,
        already_cached=plan.unique - pending,
        computed=rows,
        done_elsewhere=pending - rows - len(skipped),
        truncated=outcomes.run.record.truncated_examples if outcomes else 0,
        skipped=(*plan.corpus.skipped, *skipped),
        teacher_seconds=sum(outcomes.run.record.teacher_seconds.values()) if outcomes else 0.0,
        fidelity=fidelity_of(outcomes.run.commits) if outcomes else {},
    )


def _pool(client: "Client", job: PrecomputeJob) -> _WorkerPool:
    """The workers of a cluster, looked at; raises JobError that names one that cannot be used."""
    found = client.run(equipment, job.device, on_error="return")
    here = version("armada-kd")
    if not found:
        raise RunError("dask: all workers have left the cluster; start some")
    for worker, one in found.items():
        if isinstance(one, ArmadaError):
            raise JobError(f"worker {worker}: {one}") from one
        if not isinstance(one, Equipment):
            raise JobError(
                f"worker {worker}: cannot run armada {here} ({type(one).__name__}: {one}); "
                "install the same version there"
            )
        if one.armada != here:
            raise JobError(
                f"worker {worker}: has armada {one.armada}, here is {here}; install the same "
                "version"
            )
    return _WorkerPool(client, tuple(found.values()))


def _device(pool: _WorkerPool) -> "torch.device":
    """Device of the workers' teachers, since the same settings may mean another teacher
    elsewhere."""
    import torch

    kinds = {one.device_type for one in pool.equipment}
    if len(kinds) > 1:
        raise JobError(
            f"job key 'device': means {' and '.join(sorted(kinds))} on different workers; name one"
        )
    return torch.device(kinds.pop())


def _compute(
    job_spec: JobSpec,
    plan: Plan,
    writer: CacheWriter,
    pending: npt.NDArray[np.int64],
    pool: _WorkerPool,
    quiet: bool,
) -> _Outcomes:
    outcomes = _Outcomes(job_spec, plan, writer, pool)
    outcomes.run.write()
    _refuse_blind(pool.client.run(sees_run, job_spec), job_spec)
    chunks = Chunks(
        plan.corpus,
        plan.keys,
        pending,
        plan.manifest.rows_per_shard,
        first_own_shard(job_spec.job.cache, plan.manifest.fingerprint),
        writer.commits,
    )
    in_words = outcomes.run.progress
    with CountProgress("precompute", "rows", len(pending), quiet, in_words) as progress:
        waiting = say_that_it_waits(quiet)
        Dispatch(pool.client, job_spec, chunks, outcomes.add, progress.advance, waiting).run()
    return outcomes


def _refuse_blind(seen: Mapping[str, bool], job_spec: JobSpec) -> None:
    for worker, sees in seen.items():
        if not sees:
            raise JobError(f"worker {worker}: {unseen(job_spec)}")
