"""Stage 2: a student and an objective -> Hugging Face Trainer -> the best student by validation.

    train -> DistillTrainer.train -> DistillTrainer.compute_loss -> DistillModel

In: built objects. Out: the trained model, in place, and `Training`, the figures of the run.
Everything is a function of the seed: initial weights, order of batches, dropout; so an interrupted
and resumed run ends like an uninterrupted one.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from ...cache_schemas.errors import JobError, StorageError, StudentSourceError
from ..matrix_products import matrix_products
from ..pretrained import quiet_transformers
from .averaging import WeightAverage
from .batches import DistillDataset, EpochBatches
from .checkpoints import CHECKPOINTS, BestStudent, is_of_a_whole_student, last_checkpoint
from .evaluation import DISTINCT
from .model import TrainedModel
from .objectives.base import Objective, aligned_parts, freeze
from .optimizers import has_rows, optimizer_of
from .placement import Where, choose_placements
from .processes import ALONE, Processes
from .reporting import reporters
from .schedules import AlternateSchedule, Replay
from .settings import Placement, TrainingSettings
from .sharding import UnshardedCopy, fsdp_arguments
from .static_student import StaticStudent
from .student import Student
from .timing import StepTimes
from .token_features import TokenGather
from .trainer import DistillTrainer

NO_LOSSES = ("step", "epoch", "learning_rate", "grad_norm")
"""Keys of log rows that are not losses."""


@dataclass(slots=True)
class Training:
    """The trained model, whole on the first process, and figures of the run."""

    model: TrainedModel
    steps: int = 0
    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: float | None = None
    losses: dict[str, float] = field(default_factory=dict)
    """The last ones that were logged in training."""
    distinct_predictions: float | None = None
    """Distinct predictions of the kept student on the validation set; None if undefined."""
    step_seconds: dict[str, float] = field(default_factory=dict)
    aligner_seconds: float = 0.0
    data_seconds: float = 0.0
    train_seconds: float = 0.0
    """These three are of all processes of the run, up to the checkpoints that were resumed from."""


@dataclass(frozen=True, slots=True)
class Run:
    """Everything one training run needs."""

    model: TrainedModel
    train: DistillDataset
    validation: DistillDataset | None
    settings: TrainingSettings
    metric: str
    seed: int
    device: torch.device
    folder: Path
    name: str | None = None
    """Name for trackers; default: that of its folder."""
    as_drawn: Collection[str] = ()
    """Sources whose aligners stay at their initialisation."""
    placements: Mapping[str, Placement] = field(default_factory=dict)
    """Placements of sources that differ from the settings."""
    from_afar: Collection[str] = ()
    """Sources whose shards are downloaded during the run."""
    where: Mapping[str, Where] | None = None
    """Placement of each source's features, once chosen; free memory changes."""
    processes: Processes = ALONE
    trainer: type[DistillTrainer] = DistillTrainer
    on_log: Callable[[dict[str, float]], None] = lambda row: None
    on_step: Callable[[int], None] = lambda steps: None

    @property
    def sharded(self) -> bool:
        """Whether the student is divided among processes."""
        return self.settings.shard_student and self.processes.count > 1


def train(run: Run) -> Training:
    """Train `run.model` in place, resuming from the last checkpoint in its folder if there is one.

    Raises TrainingError if the loss stops being finite."""
    checkpoint = last_checkpoint(run.folder)
    times = StepTimes(run.device, lambda: run.train.seconds)
    best = BestStudent(run.folder, run.metric, run.settings.keep, run.settings.average is not None)
    run.train.processes = run.model.processes = run.processes
    run.model.parts.halves = run.settings.auto_batch_size
    _place(run)
    _draw(run)
    twin = UnshardedCopy(run.model) if run.sharded and run.processes.first else None
    trainer = _make_trainer(run, [times, best], _schedules(run, checkpoint), checkpoint)
    best.weights_of = whole_weights = trainer.accelerator.get_state_dict
    run.processes.draw_apart(run.seed)
    fixed = deterministic_kernels(run.device) if run.settings.deterministic else nullcontext()
    try:
        with quiet_transformers(), fixed, matrix_products(run.settings.matmul_precision):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (OSError, SafetensorError) as cause:
        raise StorageError(
            f"output {run.folder}: cannot be written: {cause}; free some space and continue with "
            "resume=true"
        ) from cause
    run.processes.wait()  # for the first, which writes
    best_epoch = best.restore(trainer.model)
    if trainer.average is not None and best_epoch is None:
        trainer.average.swap()
    run.processes.wait()  # for all, before the first tidies up
    weights = whole_weights(trainer.model) if run.sharded else {}
    return Training(
        model=twin.filled(weights) if twin else run.model,
        steps=trainer.state.global_step,
        epochs=[_without(row, DISTINCT) for row in best.evaluations],
        best_epoch=best_epoch,
        losses=_last_losses(trainer.state.log_history),
        distinct_predictions=next(
            (row.get(DISTINCT) for row in best.evaluations if row["epoch"] == best_epoch), None
        ),
        step_seconds=times.summary(),
        **times.seconds(),
    )


def _last_losses(log: list[dict[str, float]]) -> dict[str, float]:
    last = next((row for row in reversed(log) if "loss" in row), {})
    return _without(last, *NO_LOSSES)


def _without(row: dict[str, float], *names: str) -> dict[str, float]:
    return {name: value for name, value in row.items() if name not in names}


def placements(run: Run) -> dict[str, Where]:
    """Placements of a run's training features, by source. Raises JobError if there is no room."""
    sizes = {source: features.bytes for source, features in run.train.features.items()}
    requested = {source: run.placements.get(source, run.settings.placement) for source in sizes}
    for source, features in run.train.features.items():
        if isinstance(features, TokenGather):
            requested[source] = _of_tokens(requested[source])
    return choose_placements(requested, sizes, run.device, run.from_afar)


def _of_tokens(requested: Placement) -> Placement:
    if requested == "resident":
        raise JobError(
            "placement resident: features along tokens are of different lengths; use mapped, or "
            "streamed if they do not fit into memory"
        )
    return "mapped" if requested == "auto" else requested


def check_checkpoint(run: Run) -> None:
    """Raise JobError if the run cannot resume from its last checkpoint: that of a sharded student
    does not fit an unsharded one, nor the other way round."""
    checkpoint = last_checkpoint(run.folder)
    if checkpoint is None:
        return
    whole = is_of_a_whole_student(checkpoint)
    if whole == run.sharded:
        was, wanted = ("whole", "divided") if whole else ("divided", "whole")
        raise JobError(
            f"shard_student: {checkpoint} is of a {was} student, but this run is {wanted}; "
            f"continue with {'one process' if whole else 'several processes'}, as it began"
        )


def _place(run: Run) -> None:
    chosen = placements(run) if run.where is None else run.where
    for source, where in chosen.items():
        if where == "streamed":
            run.train.follow_shards(source)
    resident = [source for source, where in chosen.items() if where == "resident"]
    run.train.keep_on(run.device, resident)


def _draw(run: Run) -> None:
    """Datasets draw what objectives take for negatives; of a source, as many as any of them.
    Objectives are told of how many examples these are."""
    counts: dict[str, int] = {}
    for part in run.model.objective.parts:
        for source in part.sources[:1]:
            if source in run.train.features:
                part.examples = int((run.train.features[source].rows >= 0).sum())
            if part.negatives:
                counts[source] = max(part.negatives, counts.get(source, 0))
    for dataset in (run.train, *([run.validation] if run.validation else [])):
        dataset.draws = {source: n for source, n in counts.items() if source in dataset.features}
        dataset.draw_seed = run.seed


def _schedules(run: Run, checkpoint: Path | None) -> list[AlternateSchedule]:
    """One for each aligner that takes turns with the student."""
    for part in run.model.objective.parts:
        # Whatever class it is of, and however it would train it.
        if part.aligner is not None and _stays_as_drawn(run, part):
            freeze(part.aligner)
    found = []
    settings = run.settings
    for number, part in enumerate(aligned_parts(run.model.objective)):
        learns = not _stays_as_drawn(run, part)
        part.joint = learns and settings.schedule == "joint"
        if learns and not part.joint:
            schedule = AlternateSchedule(
                part,
                run.train,
                batch_size=settings.aligner_batch_size or settings.batch_size,
                learning_rate=settings.aligner_learning_rate,
                weight_decay=settings.weight_decay,
                max_grad_norm=settings.max_grad_norm,
                seed=run.seed,
                resume_from=checkpoint,
                number=number,
            )
            found.append(schedule)
    return found


def _stays_as_drawn(run: Run, part: Objective) -> bool:
    return not set(part.sources).isdisjoint(run.as_drawn)


def _batches(run: Run) -> EpochBatches:
    settings = run.settings
    return EpochBatches(run.train, settings.batch_size, run.seed, settings.group_by_length)


def _replays(run: Run, batches: EpochBatches) -> list[Replay]:
    """Outputs of aligners that are frozen while the student is trained, computed ahead."""
    frozen = [part for part in aligned_parts(run.model.objective) if not part.joint]
    return [Replay(part, run.train, batches) for part in frozen]


def _make_trainer(
    run: Run,
    callbacks: list[TrainerCallback],
    schedules: list[AlternateSchedule],
    checkpoint: Path | None,
) -> DistillTrainer:
    def save_beside(folder: Path) -> None:
        for schedule in schedules:
            schedule.save(folder)
        for average in averages:
            average.save(folder)

    def aligner_losses() -> dict[str, float]:
        return {each.term: each.loss for each in schedules if each.loss is not None}

    run.model.to(run.device)
    if isinstance(run.model.student, StaticStudent):
        # Processes add up dense gradients, and a GPU is faster with them.
        alone = run.device.type == "cpu" and run.processes.count == 1
        run.model.student.backbone.sparse = alone and _has_tables(run)
    for part in (run.model.objective, *run.model.objective.parts):
        part.splits = run.settings.optimizer == "dot"
    averages = [WeightAverage(run.model, run.settings, checkpoint)] if run.settings.average else []
    batches = _batches(run)
    replays = _replays(run, batches)
    trainer = run.trainer(
        run.model,
        _arguments(run),
        run.train,
        run.validation,
        batches,
        run.settings.aligner_learning_rate,
        save_beside=save_beside,
        aligner_losses=aligner_losses,
        replays=replays,
        average=averages[0] if averages else None,
        optimizer_of=partial(optimizer_of, run.settings, run.processes),
    )
    trainer.remove_callback(PrinterCallback)
    objective = run.model.objective
    moved = [_Progress(objective)]
    shown = reporters(run.settings, run.folder) if run.processes.first else []
    for callback in (*callbacks, *schedules, *replays, *moved, *averages, *shown, _Reporter(run)):
        trainer.add_callback(callback)
    return trainer


def _arguments(run: Run) -> TrainingArguments:
    settings = run.settings
    own_rows = -(-settings.batch_size // run.processes.count)
    arguments = TrainingArguments(
        **(fsdp_arguments(run.model) if run.sharded else {}),
        output_dir=str(run.folder / CHECKPOINTS),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=own_rows,
        per_device_eval_batch_size=max(own_rows, 64),
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        lr_scheduler_type=(
            "constant_with_warmup" if settings.lr_scheduler == "constant" else settings.lr_scheduler
        ),
        warmup_steps=settings.warmup_ratio,
        # These clip gradients themselves.
        max_grad_norm=(
            0.0 if settings.optimizer == "dot" or _has_tables(run) else settings.max_grad_norm
        ),
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        use_cpu=run.device.type == "cpu",
        seed=run.seed,
        eval_strategy="epoch" if run.validation is not None else "no",
        save_strategy="epoch",
        save_total_limit=1,
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        # The buffers of a student never change while it trains; those of objectives follow from
        # the whole batch, so that all processes have the same.
        ddp_broadcast_buffers=False,
        # Where every adapter is used, torch warns of looking for others in vain.
        ddp_find_unused_parameters=False if _adapters_alone(run.model) else None,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        run_name=run.name or run.folder.name,
        disable_tqdm=True,
    )
    # One process, one device: several visible ones would otherwise split every batch.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _has_tables(run: Run) -> bool:
    """Whether AdamW updates the rows of a table one by one."""
    return run.settings.optimizer is None and any(map(has_rows, run.model.parameters()))


def _adapters_alone(model: TrainedModel) -> bool:
    """Whether nothing but adapters trains, and all of them in every step: an objective of a lower
    layer reaches none above it."""
    if model.layers or model.attention:
        return False
    return all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)


class _Progress(TrainerCallback):  # type: ignore[misc]
    """Updates objectives with the progress before each step: weights and targets may depend on
    it."""

    def __init__(self, objective: Objective) -> None:
        self._objectives = {objective, *objective.parts}

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for objective in self._objectives:
            objective.progress = state.global_step / max(1, state.max_steps)


class _Reporter(TrainerCallback):  # type: ignore[misc]
    """Hands log rows and steps to whoever shows them."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        self._run.on_log({"step": state.global_step, "epoch": state.epoch, **logs})

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_log = True  # whatever is left over, or short runs would log no losses

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._run.on_step(1)
        # The last step of an epoch is saved after the epoch's evaluation, or that would be lost
        # to a run that resumes there.
        every, ends_epoch = self._run.settings.save_steps, float(state.epoch).is_integer()
        if every and state.global_step % every == 0 and not ends_epoch:
            control.should_save = True


# --- Faster or smaller steps of a student, with equal numbers up to rounding


def speed_up(student: Student, settings: TrainingSettings, device: torch.device) -> None:
    """Apply the settings to a student, in place; raises an InputError if that is not possible."""
    for tower in getattr(student, "towers", (student,)):
        if settings.gradient_checkpointing:
            _checkpoint(tower)
        if settings.compile_student:
            _check_compiler(device)
            tower.backbone.compile()


def _checkpoint(student: Student) -> None:
    backbone = student.backbone
    if not backbone.supports_gradient_checkpointing:
        raise StudentSourceError(
            f"gradient_checkpointing: a {backbone.config.model_type} does not support it; leave it "
            "out"
        )
    # The newer name of the two; transformers warns of the older one.
    newer = getattr(backbone, "activation_checkpointing_enable", None)
    (newer or backbone.gradient_checkpointing_enable)({"use_reentrant": False})


@contextmanager
def deterministic_kernels(device: torch.device) -> Iterator[None]:
    """Kernels of a GPU that add in a fixed order; those of a CPU do anyway. Fused attention adds
    gradients in the order in which blocks end, so it is made of single operations.

    Raises JobError for an operation that has no such kernel."""
    if device.type == "cpu":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS reads at first use
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except RuntimeError as cause:
        reason = str(cause).partition(",")[0]
        if "deterministic implementation" not in reason:
            raise
        raise JobError(f"deterministic: {reason}; leave it out") from cause
    finally:
        torch.use_deterministic_algorithms(before)


def _check_compiler(device: torch.device) -> None:
    """A model is compiled at its first step, and errors of a compiler appear only there."""
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except Exception as cause:
        reason = str(cause).strip().splitlines()[0]
        raise JobError(
            f"compile_student: torch.compile does not work here: {reason}; leave it out"
        ) from cause
