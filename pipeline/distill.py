"""A run of `distill`: its job becomes data, a student, an objective; they train; a folder is left.

OUTPUT/ (or OUTPUT/seed-N/ when there are several seeds)
    job.yaml        the resolved job        metrics.json   the figures, written last
    run.json        versions, fingerprints  log.jsonl      loss terms and metrics by step
    student/        opens with AutoModel.from_pretrained; heads and card beside the weights
    aligner/        the TS aligner          tensorboard/   the same log for TensorBoard
"""

import resource
import shutil
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from ..cache_schemas.errors import JobError
from ..stages.corpus.labels import MISSING, LabelValues
from ..stages.distill.batches import DistillDataset
from ..stages.distill.best import BEST
from ..stages.distill.evaluation import predict, task_metrics
from ..stages.distill.export import StudentCard, load_saved_student, save_aligner, save_student
from ..stages.distill.model import DistillModel
from ..stages.distill.objectives import OBJECTIVES
from ..stages.distill.objectives.base import Objective, Sizes
from ..stages.distill.student_source import load_student
from ..stages.distill.tokens import choose_max_length
from ..stages.distill.training import CHECKPOINTS, Run, Training, steps_done, train
from .device import choose_device
from .distill_job import DistillJob
from .evaluate_job import EvaluateJob
from .model_card import model_card
from .progress import CountProgress
from .provenance import hardware, library_versions, now
from .run_folder import METRICS, RUN, append_log, claim, trim_log, write_json
from .student_data import LabelledCorpus, StudentData, read_labelled, read_student_data

Metrics = dict[str, Any]


def run_distill(job: DistillJob, quiet: bool = False) -> Metrics:
    """Train one student for each seed; returns what `OUTPUT/metrics.json` holds."""
    objective = _objective_class(job)
    data = read_student_data(job, objective)
    if len(job.seeds) == 1:
        return _run_seed(job, job.output, job.seeds[0], data, objective, quiet)
    claim(job.output, resolved(job), job.resume)
    runs = [
        _run_seed(job, job.output / f"seed-{seed}", seed, data, objective, quiet)
        for seed in job.seeds
    ]
    summary = summarise(runs)
    write_json(job.output / METRICS, summary)
    return summary


def resolved(job: DistillJob) -> dict[str, Any]:
    """All keys of a job with their values, as plain data."""
    return job.model_dump(mode="json")


def summarise(runs: list[Metrics]) -> Metrics:
    """Mean and standard deviation of the validation metrics of runs with different seeds."""
    first = runs[0]
    values = {name: [run["validation"][name] for run in runs] for name in first["validation"] or {}}
    return {
        "seeds": [run["seed"] for run in runs],
        "objective": first["objective"],
        "control": first["control"],
        "metric": first["metric"],
        "validation": {
            name: {"mean": mean(numbers), "std": stdev(numbers), "runs": numbers}
            for name, numbers in values.items()
        },
    }


def _objective_class(job: DistillJob) -> type[Objective]:
    chosen: type[Objective] = OBJECTIVES.load(job.objective if job.distilled else "undistilled")
    return chosen


def _run_seed(
    job: DistillJob,
    folder: Path,
    seed: int,
    data: StudentData,
    objective: type[Objective],
    quiet: bool,
) -> Metrics:
    finished = _finished(folder) if job.resume else None
    if finished is not None:
        return finished
    set_seed(seed)
    student, tokenizer = load_student(job, data.space, data.train.texts(), job.dropout)
    max_length = choose_max_length(job.max_length, tokenizer, student.backbone)
    feature_shape = data.feature.spec.shape if data.feature is not None else None
    sizes = Sizes(student.dim, data.space.num_labels, data.space.regression, feature_shape)
    model = DistillModel(student, objective(job, sizes))
    train_set = data.train.dataset(tokenizer, max_length, data.gather(job.parsed_control, seed))
    validation = None
    if data.validation is not None:
        validation = data.validation.dataset(tokenizer, max_length, data.validation_gather())
    # From here on the folder is this run's; everything that can be refused has been.
    claim(folder, resolved(job), job.resume)
    trim_log(folder, steps_done(folder))
    write_json(folder / RUN, _provenance(job, data))
    training = _train(job, folder, seed, data, model, train_set, validation, quiet)
    card = StudentCard(
        space=data.space,
        pooling=student.pooler.pooling,
        dropout=student.dropout,
        max_length=max_length,
        text_columns=job.text_column,
        label_column=job.label_column,
        metric=data.metric,
    )
    save_student(folder / "student", student, tokenizer, model.objective, card)
    if model.objective.aligner is not None:
        save_aligner(folder / "aligner", model.objective.aligner)
    metrics = _metrics(job, seed, data, train_set, training)
    (folder / "student" / "README.md").write_text(model_card(job, metrics, data), encoding="utf-8")
    _finish(folder, metrics)
    return metrics


def _finished(folder: Path) -> Metrics | None:
    import json

    file = folder / METRICS
    return json.loads(file.read_bytes()) if file.is_file() else None


def _finish(folder: Path, metrics: Metrics) -> None:
    write_json(folder / METRICS, metrics)
    for working in (CHECKPOINTS, BEST):
        shutil.rmtree(folder / working, ignore_errors=True)


def _train(
    job: DistillJob,
    folder: Path,
    seed: int,
    data: StudentData,
    model: DistillModel,
    train_set: DistillDataset,
    validation: DistillDataset | None,
    quiet: bool,
) -> Training:
    steps = job.epochs * -(-len(train_set) // (job.batch_size * job.gradient_accumulation))
    with CountProgress(f"distill, seed {seed}", "steps", steps, quiet) as progress:
        return train(
            Run(
                model=model,
                train=train_set,
                validation=validation,
                settings=job,
                metric=data.metric,
                seed=seed,
                device=choose_device(job.device),
                folder=folder,
                train_aligner=job.parsed_control.name != "random-aligner",
                on_log=lambda row: append_log(folder, row),
                on_step=progress.advance,
            )
        )


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
        "unlabelled_examples": _count_missing(data.train.labels),
        "truncated_examples": train_set.truncated,
        "skipped_rows": len(data.train.corpus.skipped),
        "steps": training.steps,
        "train_seconds": training.train_seconds,
        "step_seconds": training.step_seconds,
        "aligner_seconds": training.aligner_seconds,
        "data_seconds": training.data_seconds,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    if torch.cuda.is_available():
        figures["peak_cuda_bytes"] = torch.cuda.max_memory_allocated()
    return figures


def _count_missing(labels: LabelValues) -> int:
    return int((np.isnan(labels) if labels.dtype.kind == "f" else labels == MISSING).sum())


def _provenance(job: DistillJob, data: StudentData) -> Mapping[str, Any]:
    cache = data.cache
    return {
        "started": now(),
        "versions": library_versions(),
        "hardware": hardware(str(choose_device(job.device))),
        "teacher_fingerprint": cache and cache.teacher.fingerprint,
        "teacher": cache and cache.teacher.spec.model_dump(mode="json"),
        "feature": data.feature.spec.name if data.feature is not None else None,
    }


def run_evaluate(job: EvaluateJob) -> Metrics:
    """Metrics of a finished student on a corpus."""
    student, tokenizer, card = load_saved_student(job.student)
    if card.space.task == "none":
        raise JobError(f"student {job.student}: was trained without labels; it predicts none")
    keys = job.corpus_keys(card)
    labelled: LabelledCorpus = read_labelled(keys, job.corpus, card.space)
    dataset = labelled.dataset(tokenizer, card.max_length, None)
    missing = _count_missing(labelled.labels)
    if missing == len(dataset):
        raise JobError(f"corpus {job.corpus[0]}: no row has a label; nothing to evaluate")
    outputs = predict(student.to(choose_device(job.device)), dataset, job.batch_size)
    return {
        "examples": len(dataset) - missing,
        "unlabelled_examples": missing,
        "truncated_examples": dataset.truncated,
        "metrics": task_metrics(outputs, labelled.labels, card.space),
    }
