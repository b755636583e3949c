"""A run of `distill` with one seed: a student and an objective; they train; a folder is left.

OUTPUT/ (or OUTPUT/seed-N/ when there are several seeds)
    job.yaml        the resolved job        metrics.json   the figures, written last
    run.json        versions, fingerprints  log.jsonl      loss terms and metrics by step
    left_out.parquet  rows that `select` left out, if it is set
    student/        opens as the class that its config names; heads and card beside the weights
    aligner/        the TS aligner          tensorboard/   the same log for TensorBoard
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from ..cache_schemas.errors import JobError
from ..stages.corpus.labels import count_missing
from ..stages.distill.checkpoints import steps_done
from ..stages.distill.export import save_aligners
from ..stages.distill.model import TrainedModel
from ..stages.distill.objectives.base import Objective
from ..stages.distill.placement import Where
from ..stages.distill.processes import Processes
from ..stages.distill.training import Run, Training, check_checkpoint, placements, speed_up, train
from ..stages.store.files.atomic import follow_umask
from .conflicts import teacher_conflicts
from .distill_job import DistillJob
from .environment import choose_device, hardware, library_versions, now, peak_rss_bytes
from .messages import CountProgress
from .model_card import model_card
from .run_folder import (
    METRICS,
    RUN,
    append_log,
    check_same_data,
    claim,
    read_metrics,
    tidy,
    trim_log,
    write_json,
)
from .student_data import StudentData
from .task import Built, Metrics, Plan, Task
from .terms import Term, build_objective, sizes_of, stages_of


def resolved(job: DistillJob) -> dict[str, Any]:
    """All keys of a job with their values, as plain data."""
    return job.model_dump(mode="json")


@dataclass(frozen=True, slots=True)
class SeedRun:
    """The run of one seed in one folder: build, train, write."""

    job: DistillJob
    folder: Path
    seed: int
    data: StudentData
    terms: Sequence[Term]
    task: Task
    group: Processes
    quiet: bool

    def run(self) -> Metrics:
        """Train, write, return the figures."""
        finished = read_metrics(self.folder) if self.job.resume else None
        if finished is not None:
            if self.group.first:
                tidy(self.folder)
            return finished
        set_seed(self.seed)
        provenance = _provenance(self.job, self.data, self.group)
        check_same_data(self.folder, provenance)
        built = self.task.build(self._plan, self._objective)
        run = self._prepare(built)
        if self.group.first:
            # From here on the folder is this run's; everything that can be refused has been.
            claim(self.folder, resolved(self.job), self.job.resume)
            trim_log(self.folder, steps_done(self.folder))
            write_json(self.folder / RUN, provenance)
            if self.data.selection is not None:
                self.data.selection.write(self.folder)
        training = self._train(run)
        metrics = _metrics(self.job, self.seed, built.data, run, training)
        logits = [t for t in self.terms if t.objective.reads.classes]
        names = dict.fromkeys(name for term in logits for name in term.sources)
        if (conflicts := teacher_conflicts(built.data, tuple(names))) is not None:
            metrics["teacher_conflicts"] = conflicts
        if self.group.first:
            self._write(training.model, built, metrics)
        return metrics

    @property
    def _plan(self) -> Plan:
        warns = self.seed == self.job.seeds[0] and self.group.first
        return Plan(self.job, self.terms, self.data, self.seed, warns)

    def _objective(self, student: Any) -> Objective:
        """A new objective, for a student."""
        sizes = sizes_of(student, self.data.space, self.job.dropout, self.terms)
        stages = stages_of(self.terms, self.job)
        built = build_objective(self.terms, sizes, self.data.shapes, self.task.scores, stages)
        for part, term in zip(built.parts, self.terms, strict=True):
            if part.aligner is None and not self._random_aligners.isdisjoint(part.sources):
                raise JobError(
                    f"control random-aligner: objective {term.keys.name!r} declares an aligner, "
                    "but has no module named `aligner`"
                )
        return built

    @property
    def _as_drawn(self) -> set[str]:
        """Sources whose aligners do not learn: without labels nothing teaches them, and they stay
        orthogonal maps."""
        unlabelled = self.data.space.task == "none"
        return set(self.data.of_texts) if unlabelled else self._random_aligners

    @property
    def _random_aligners(self) -> set[str]:
        """Sources with the control `random-aligner`: their aligner stays at its initialisation."""
        sources = self.data.of_texts.items()
        return {name for name, each in sources if each.control.name == "random-aligner"}

    def _prepare(self, built: Built) -> Run:
        job = self.job
        run = Run(
            model=built.model,
            train=built.train,
            validation=built.validation,
            settings=job,
            metric=self.data.metric,
            seed=self.seed,
            device=choose_device(job.device, self.group.local_rank),
            folder=self.folder,
            name=self._name(),
            as_drawn=self._as_drawn,
            placements={n: s.placement for n, s in self.data.of_texts.items() if s.placement},
            from_afar=self.data.from_afar,
            processes=self.group,
            trainer=self.task.trainer,
            on_log=self._log,
        )
        check_checkpoint(run)
        speed_up(built.model.student, job, run.device)
        # Chosen once, as long as the memory is free; or there is no room.
        run = replace(run, where=placements(run))
        self.group.wait()  # until all processes have passed their checks
        return run

    def _name(self) -> str:
        """Name of the run for trackers."""
        name = self.job.run_name or self.job.name or self.job.output.name
        return f"{name}, seed {self.seed}" if len(self.job.seeds) > 1 else name

    def _log(self, row: Mapping[str, Any]) -> None:
        if self.group.first:
            append_log(self.folder, row)

    def _train(self, run: Run) -> Training:
        job = self.job
        batches = -(-len(run.train) // job.batch_size)
        steps = job.epochs * -(-batches // job.gradient_accumulation)
        with CountProgress(f"distill, seed {self.seed}", "steps", steps, self.quiet) as progress:
            return train(replace(run, on_step=progress.advance))

    def _write(self, model: TrainedModel, built: Built, metrics: Metrics) -> None:
        student = self.folder / "student"
        self.task.save(self._plan, student, model, built)
        readme = model_card(self.job, metrics, self.data, model.student, student)
        (student / "README.md").write_text(readme, encoding="utf-8")
        save_aligners(self.folder / "aligner", model.objective)
        follow_umask(self.folder)
        write_json(self.folder / METRICS, metrics)
        tidy(self.folder)


def _metrics(
    job: DistillJob, seed: int, data: StudentData, run: Run, training: Training
) -> Metrics:
    best = next((row for row in training.epochs if row["epoch"] == training.best_epoch), None)
    figures: Metrics = {
        "seed": seed,
        "objective": job.objective_name,
        "control": job.control,
        "metric": data.metric,
        "validation": best and {k: v for k, v in best.items() if k not in ("step", "epoch")},
        "best_epoch": training.best_epoch,
        "epochs": training.epochs,
        "train_losses": training.losses,
        "distinct_predictions": training.distinct_predictions,
        "train_examples": len(run.train),
        "unlabelled_examples": count_missing(data.train.labels),
        **({"answered_examples": data.answered} if data.answered else {}),
        **({"selection": data.selection.figures()} if data.selection else {}),
        **({"measured_examples": data.measured.examples} if data.measured.sources else {}),
        "truncated_examples": run.train.truncated,
        "skipped_rows": _skipped(data),
        "steps": training.steps,
        **({"stages": _by_stage(job, training)} if job.stages else {}),
        "train_seconds": training.train_seconds,
        "step_seconds": training.step_seconds,
        "aligner_seconds": training.aligner_seconds,
        "data_seconds": training.data_seconds,
        "placement": _one_or_all(run.where or {}),
        "processes": run.processes.count,
        "peak_rss_bytes": peak_rss_bytes(),
    }
    if torch.cuda.is_available():
        figures["peak_cuda_bytes"] = torch.cuda.max_memory_allocated()
    return figures


def _by_stage(job: DistillJob, training: Training) -> list[dict[str, Any]]:
    """The objectives of each stage of a run, the step after which it ended, and the figures of its
    last whole epoch, None if it had none."""
    found, begins = [], 0
    for stage in job.stages or ():
        ends = sum(step / training.steps < stage.until for step in range(training.steps))
        epochs = [row for row in training.epochs if begins < row["step"] <= ends]
        last = epochs[-1] if epochs else None
        found.append({"objectives": list(stage.objectives), "until_step": ends, "validation": last})
        begins = ends
    return found


def _one_or_all(where: Mapping[str, Where]) -> str | dict[str, Where] | None:
    """Placement of the features of the only source, or of each of several."""
    return dict(where) if len(where) > 1 else next(iter(where.values()), None)


def _skipped(data: StudentData) -> list[str]:
    corpora = [data.train.corpus, *([data.validation.corpus] if data.validation else [])]
    return [problem for corpus in corpora for problem in corpus.skipped]


def _provenance(job: DistillJob, data: StudentData, group: Processes) -> Mapping[str, Any]:
    return {
        "started": now(),
        "versions": library_versions(),
        "hardware": hardware(str(choose_device(job.device, group.local_rank))),
        **data.digests,
        **data.provenance(),
        **(data.selection.chosen_among() if data.selection else {}),
    }
