"""A run of `distill`: its job becomes data, a student, an objective; they train; a folder is left.

OUTPUT/ (or OUTPUT/seed-N/ when there are several seeds)
    job.yaml        the resolved job        metrics.json   the figures, written last
    run.json        versions, fingerprints  log.jsonl      loss terms and metrics by step
    student/        opens with AutoModel.from_pretrained; heads and card beside the weights
    aligner/        the TS aligner          tensorboard/   the same log for TensorBoard
"""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from ..cache_schemas.errors import InputError, JobError
from ..stages.corpus.labels import count_missing
from ..stages.distill.batches import DistillDataset
from ..stages.distill.best import BEST
from ..stages.distill.export import StudentCard, save_aligner, save_student
from ..stages.distill.model import DistillModel
from ..stages.distill.objectives import OBJECTIVES
from ..stages.distill.objectives.base import Objective, Sizes
from ..stages.distill.student_source import load_student
from ..stages.distill.tokens import choose_max_length
from ..stages.distill.training import CHECKPOINTS, Run, Training, steps_done, train
from ..stages.store.reading.access import COLD_SHARE
from .device import choose_device
from .distill_job import DistillJob
from .model_card import model_card
from .progress import CountProgress
from .provenance import hardware, library_versions, now, peak_rss_bytes
from .run_folder import (
    JOB,
    METRICS,
    RUN,
    append_log,
    check_free,
    check_same_data,
    claim,
    read_metrics,
    spread,
    trim_log,
    write_json,
)
from .show import size, warn
from .student_data import StudentData, read_student_data

Metrics = dict[str, Any]


def run_distill(job: DistillJob, quiet: bool = False) -> Metrics:
    """Train one student for each seed; returns what `OUTPUT/metrics.json` holds."""
    finished = read_metrics(job.output) if job.resume else None
    check_free(job.output, resolved(job), job.resume)
    if finished is not None:
        return finished
    objective = _objective_class(job)
    data = read_student_data(job, objective)
    _warn_of_random_reads(job, data)
    _fetch_ahead(job, data, objective, quiet)
    if len(job.seeds) == 1:
        return _SeedRun(job, job.output, job.seeds[0], data, objective, quiet).run()
    summary = summarise(_run_seeds(job, data, objective, quiet))
    write_json(job.output / METRICS, summary)
    return summary


def _warn_of_random_reads(job: DistillJob, data: StudentData) -> None:
    feature = data.feature
    if feature is not None and feature.access == "cold" and job.shuffle == "full":
        warn(
            f"feature {feature.spec.name!r}: its {size(len(feature) * feature.spec.row_bytes)} are "
            f"more than {COLD_SHARE:.0%} of the memory at hand, so rows in random order are read "
            "from disk in every epoch; shuffle=block reads them in blocks, many times as fast"
        )


def _fetch_ahead(
    job: DistillJob, data: StudentData, objective: type[Objective], quiet: bool
) -> None:
    alternates = objective.has_aligner and job.schedule == "alternate"
    to_come = data.fetch_ahead(job, alternates and job.parsed_control.name != "random-aligner")
    if to_come is not None and to_come.shards and not quiet:
        print(
            f"{to_come.shards} shards of the cache, {size(to_come.bytes)}, come while the run "
            f"goes on",
            file=sys.stderr,
        )


def _run_seeds(
    job: DistillJob, data: StudentData, objective: type[Objective], quiet: bool
) -> list[Metrics]:
    claim(job.output, resolved(job), job.resume)
    try:
        return [
            _SeedRun(job, job.output / f"seed-{seed}", seed, data, objective, quiet).run()
            for seed in job.seeds
        ]
    except InputError:
        # Refused before its first seed began: the folder is free for the mended job.
        if not any(job.output.glob("seed-*")):
            (job.output / JOB).unlink()
        raise


def resolved(job: DistillJob) -> dict[str, Any]:
    """All keys of a job with their values, as plain data."""
    return job.model_dump(mode="json")


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
    }


def _objective_class(job: DistillJob) -> type[Objective]:
    chosen: type[Objective] = OBJECTIVES.load(job.objective if job.distilled else "undistilled")
    if job.parsed_control.name == "random-aligner" and not chosen.has_aligner:
        raise JobError(
            f"control random-aligner: objective {job.objective!r} has no aligner; choose another"
        )
    return chosen


@dataclass(frozen=True, slots=True)
class _Built:
    """What one seed trains, and with what."""

    model: DistillModel
    tokenizer: Any
    max_length: int
    train: DistillDataset
    validation: DistillDataset | None


@dataclass(frozen=True, slots=True)
class _SeedRun:
    """The run of one seed in one folder: build, train, write."""

    job: DistillJob
    folder: Path
    seed: int
    data: StudentData
    objective: type[Objective]
    quiet: bool

    def run(self) -> Metrics:
        finished = read_metrics(self.folder) if self.job.resume else None
        if finished is not None:
            return finished
        set_seed(self.seed)
        provenance = _provenance(self.job, self.data)
        check_same_data(self.folder, provenance)
        built = self._build()
        # From here on the folder is this run's; everything that can be refused has been.
        claim(self.folder, resolved(self.job), self.job.resume)
        trim_log(self.folder, steps_done(self.folder))
        write_json(self.folder / RUN, provenance)
        return self._write(built, self._train(built))

    def _build(self) -> _Built:
        job, data = self.job, self.data
        student, tokenizer = load_student(job, data.space, data.train.texts(), job.dropout)
        max_length = choose_max_length(job.max_length, tokenizer, student.backbone)
        shape = data.feature.spec.shape if data.feature is not None else None
        sizes = Sizes(student.dim, data.space.num_labels, data.space.regression, shape)
        gather = data.gather(job.parsed_control, self.seed)
        validation = None
        if data.validation is not None:
            validation = data.validation.dataset(tokenizer, max_length, data.validation_gather())
        return _Built(
            model=DistillModel(student, self.objective(job, sizes)),
            tokenizer=tokenizer,
            max_length=max_length,
            train=data.train.dataset(tokenizer, max_length, gather),
            validation=validation,
        )

    def _train(self, built: _Built) -> Training:
        job = self.job
        batches = -(-len(built.train) // job.batch_size)
        steps = job.epochs * -(-batches // job.gradient_accumulation)
        with CountProgress(f"distill, seed {self.seed}", "steps", steps, self.quiet) as progress:
            run = Run(
                model=built.model,
                train=built.train,
                validation=built.validation,
                settings=job,
                metric=self.data.metric,
                seed=self.seed,
                device=choose_device(job.device),
                folder=self.folder,
                train_aligner=job.parsed_control.name != "random-aligner",
                on_log=lambda row: append_log(self.folder, row),
                on_step=progress.advance,
            )
            return train(run)

    def _write(self, built: _Built, training: Training) -> Metrics:
        student, objective = built.model.student, built.model.objective
        card = StudentCard(
            space=self.data.space,
            pooling=student.pooler.pooling,
            dropout=student.dropout,
            max_length=built.max_length,
            text_columns=self.job.text_column,
            label_column=self.job.label_column,
            metric=self.data.metric,
        )
        save_student(self.folder / "student", student, built.tokenizer, objective, card)
        if objective.aligner is not None:
            save_aligner(self.folder / "aligner", objective.aligner)
        metrics = _metrics(self.job, self.seed, self.data, built.train, training)
        readme = model_card(self.job, metrics, self.data)
        (self.folder / "student" / "README.md").write_text(readme, encoding="utf-8")
        write_json(self.folder / METRICS, metrics)
        for working in (CHECKPOINTS, BEST):
            shutil.rmtree(self.folder / working, ignore_errors=True)
        return metrics


def _metrics(
    job: DistillJob, seed: int, data: StudentData, train_set: DistillDataset, training: Training
) -> Metrics:
    best = next((row for row in training.epochs if row["epoch"] == training.best_epoch), None)
    figures: Metrics = {
        "seed": seed,
        "objective": job.objective,
        "control": job.control,
        "metric": data.metric,
        "validation": best and {k: v for k, v in best.items() if k not in ("step", "epoch")},
        "best_epoch": training.best_epoch,
        "epochs": training.epochs,
        "train_examples": len(train_set),
        "unlabelled_examples": count_missing(data.train.labels),
        "truncated_examples": train_set.truncated,
        "skipped_rows": _skipped(data),
        "steps": training.steps,
        "train_seconds": training.train_seconds,
        "step_seconds": training.step_seconds,
        "aligner_seconds": training.aligner_seconds,
        "data_seconds": training.data_seconds,
        "peak_rss_bytes": peak_rss_bytes(),
    }
    if torch.cuda.is_available():
        figures["peak_cuda_bytes"] = torch.cuda.max_memory_allocated()
    return figures


def _skipped(data: StudentData) -> list[str]:
    corpora = [data.train.corpus, *([data.validation.corpus] if data.validation else [])]
    return [problem for corpus in corpora for problem in corpus.skipped]


def _provenance(job: DistillJob, data: StudentData) -> Mapping[str, Any]:
    cache = data.cache
    return {
        "started": now(),
        "versions": library_versions(),
        "hardware": hardware(str(choose_device(job.device))),
        **data.digests,
        "cache_digest": data.answers and data.answers.digest,
        "teacher_fingerprint": cache and cache.teacher.fingerprint,
        "teacher": cache and cache.teacher.spec.model_dump(mode="json"),
        "feature": data.feature.spec.name if data.feature is not None else None,
    }
