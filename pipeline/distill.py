"""A `distill` job: its data is read once, and each seed is a run (`seed_run.py`).

A trained student may be uploaded to a model repository on the Hub, its whole folder in one commit.
Name and token are checked before training. If the upload fails, the student is still in its folder,
and the error has the command to upload it.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from ..cache_schemas.errors import ArmadaError, InputError, JobError, StorageError, TrainingError
from ..stages.distill.checkpoints import steps_done
from ..stages.distill.processes import Processes, processes
from ..stages.distill.reporting import check_reporters
from ..stages.memory import out_of_memory_as
from ..stages.store.reading.memory import COLD_SHARE
from ..stages.store.transfer.hub import HubLocation
from .distill_job import DistillJob
from .environment import choose_device
from .messages import LOGGER, counted, size, warn
from .run_data import check_inputs, read_data, task_of
from .run_folder import (
    JOB,
    METRICS,
    alone_in,
    check_free,
    claim,
    read_metrics,
    spread,
    tidy,
    write_json,
)
from .seed_run import SeedRun, resolved
from .signals import telling_what_is_kept
from .student_data import StudentData
from .task import Metrics
from .terms import Term, terms_of

_PUSH_THREADS = 4


def run_distill(job: DistillJob, quiet: bool = False) -> Metrics:
    """Train one student for each seed; returns what `OUTPUT/metrics.json` holds.

    Of several processes that a launcher started for one job, the first writes the output."""
    group = processes()
    if not group.first:
        return _run(job, group, quiet=True)
    with telling_what_is_kept(lambda: _kept(job)):
        return _run(job, group, quiet)


def _run(job: DistillJob, group: Processes, quiet: bool) -> Metrics:
    _check_student_push(job)
    finished = read_metrics(job.output) if job.resume else None
    if group.first:
        check_free(job.output, resolved(job), job.resume)
    if finished is not None:
        if group.first:
            tidy(job.output)
        return finished
    with alone_in(job.output) if group.first else nullcontext():
        return _distill(job, group, quiet)


def _distill(job: DistillJob, group: Processes, quiet: bool) -> Metrics:
    _check_processes(job, group)
    check_reporters(job)
    group.meet(choose_device(job.device, group.local_rank))
    terms = terms_of(job)
    with group.one_of_a_node_first():  # it makes room in a mirror, or finds that there is none
        data = read_data(job, terms)
        check_inputs(job, terms, data)
        _fetch_ahead(job, data, terms, quiet)
    if group.first:
        _warn_of_random_reads(job, data)
        for line in data.selection.told() if data.selection else ():
            LOGGER.info(line)
        for name, answered in data.answered.items():
            LOGGER.info(
                f"teacher {name}: {answered:,} of {len(data.train.labels):,} training rows have "
                "its answers; the others are trained without it"
            )
        for line in data.measured.lines() if not quiet else ():
            LOGGER.info(line)
    with out_of_memory_as(lambda: _too_large(job)):
        if len(job.seeds) == 1:
            run = SeedRun(job, job.output, job.seeds[0], data, terms, task_of(job), group, quiet)
            return run.run()
        summary = summarise(_run_seeds(job, data, terms, group, quiet))
    if group.first:
        write_json(job.output / METRICS, summary)
    return summary


def _kept(job: DistillJob) -> str:
    """Message about what an interrupted job keeps, and how to continue."""
    if not (job.output / JOB).exists():
        return "nothing has been written yet"
    folders = [job.output, *job.output.glob("seed-*")]
    finished = sum(read_metrics(folder) is not None for folder in folders)
    steps = max(steps_done(folder) for folder in folders)
    kept = [
        *([f"{counted(finished, 'finished seed')}"] if finished else []),
        *([f"the checkpoint of step {steps}"] if steps else []),
    ]
    if not kept:
        return "no checkpoint yet (save_steps); --resume starts over"
    return f"kept: {', '.join(kept)}; --resume continues from there"


def _too_large(job: DistillJob) -> TrainingError:
    return TrainingError(
        f"device memory: a step of {job.batch_size} examples does not fit beside the student; set "
        "auto_batch_size=true or gradient_checkpointing=true, which --resume may add, or begin "
        "anew with a smaller batch_size and more gradient_accumulation, precision=bf16 or a "
        "smaller max_length; "
        f"{_kept(job)}"
    )


def _check_processes(job: DistillJob, group: Processes) -> None:
    if job.batch_size < group.count:
        raise JobError(
            f"job key 'batch_size': {job.batch_size} examples cannot be shared by {group.count} "
            "processes; start fewer, or use larger batches"
        )
    if job.auto_batch_size and group.count > 1:
        raise JobError(
            "auto_batch_size: is for one process: one of several that runs out of memory leaves "
            "the others waiting; use a smaller batch_size, or gradient_checkpointing"
        )
    if job.shard_student and group.count == 1:
        raise JobError(
            "shard_student: needs several processes, and there is one; start them with torchrun, "
            "or leave it out"
        )
    if job.shard_student and job.precision == "fp16":
        raise JobError("shard_student: does not support precision 'fp16'; use float32 or bf16")


def _warn_of_random_reads(job: DistillJob, data: StudentData) -> None:
    if choose_device(job.device).type != "cpu":
        return
    for source in data.of_texts.values():
        feature, requested = source.values, source.placement or job.placement
        if feature.access == "cold" and requested == "auto":
            warn(
                f"feature {feature.spec.name!r}: its {size(len(feature) * feature.spec.row_bytes)} "
                f"exceed {COLD_SHARE:.0%} of available memory, so rows in random order are read "
                "from disk in every epoch; placement=streamed reads them in blocks, many times as "
                "fast; placement=mapped silences this"
            )


def _fetch_ahead(job: DistillJob, data: StudentData, terms: Sequence[Term], quiet: bool) -> None:
    aligners_first = {
        reading.source
        for term in terms
        for reading in term.readings
        if term.objective.has_aligner and job.schedule == "alternate"
    }
    drawn = {name for name, s in data.sources.items() if s.control.name == "random-aligner"}
    to_come = data.fetch_ahead(job, aligners_first - drawn)
    if to_come is not None and to_come.shards and not quiet:
        LOGGER.info(
            f"{to_come.shards} shards of the cache, {size(to_come.bytes)}, will be downloaded "
            f"during training"
        )


def _run_seeds(
    job: DistillJob, data: StudentData, terms: Sequence[Term], group: Processes, quiet: bool
) -> list[Metrics]:
    if group.first:
        claim(job.output, resolved(job), job.resume)
    task = task_of(job)
    try:
        return [
            SeedRun(job, job.output / f"seed-{seed}", seed, data, terms, task, group, quiet).run()
            for seed in job.seeds
        ]
    except InputError:
        # Refused before its first seed began: the folder is free for the corrected job.
        if group.first and not any(job.output.glob("seed-*")):
            (job.output / JOB).unlink()
        raise


def summarise(runs: list[Metrics]) -> Metrics:
    """Mean and standard deviation of the validation metrics of runs with different seeds."""
    first = runs[0]
    return {
        "seeds": [run["seed"] for run in runs],
        "objective": first["objective"],
        "control": first["control"],
        "metric": first["metric"],
        "truncated_examples": first["truncated_examples"],
        "skipped_rows": first["skipped_rows"],
        "validation": {
            name: spread([run["validation"][name] for run in runs])
            for name in first["validation"] or {}
        },
        "distinct_predictions": min(
            (run["distinct_predictions"] for run in runs if run.get("distinct_predictions")),
            default=None,
        ),
        "train_losses": {
            name: spread([run["train_losses"][name] for run in runs])
            for name in first.get("train_losses", {})
        },
    }


def _check_student_push(job: DistillJob) -> None:
    """Raise InputError if a job's `push_to_hub` names no repository, or there is no token."""
    if job.push_to_hub is None:
        return
    if len(job.seeds) > 1:
        raise JobError(
            f"job key 'push_to_hub': the students of {len(job.seeds)} seeds do not fit in one "
            "repository; name one seed, or upload the best with `hf upload`"
        )
    _repository(job.push_to_hub).require_writable()


def push_student(job: DistillJob) -> None:
    """Upload the student of a finished run to `push_to_hub`, if set.

    Raises StorageError if that fails; the run's folder stays as it is."""
    if job.push_to_hub is None:
        return
    folder = job.output / "student"
    try:
        location = _repository(job.push_to_hub)
        if location.is_new():
            location.create(public=False)
            LOGGER.info("%s: created a private model repository", location.shown)
        location.commit(_files_of(folder), "A student trained with armada", _PUSH_THREADS)
    except ArmadaError as cause:
        raise StorageError(
            f"student {folder}: is trained and written, but was not uploaded to the Hub: {cause}; "
            f"upload it with `hf upload {job.push_to_hub} {folder} --private`, or by the same "
            "command with --resume"
        ) from cause
    LOGGER.info("student uploaded to %s", location.shown)


def _repository(name: str) -> HubLocation:
    return HubLocation(f"hf://{name}")


def _files_of(folder: Path) -> dict[str, Path | bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in paths}
