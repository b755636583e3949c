"""Hugging Face Trainer as stage 2 uses it: joined batches, a rate for the aligner, all terms."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.utils import SAFE_WEIGHTS_NAME

from ..corpus.labels import LabelSpace, count_known
from .averaging import AVERAGED_STEPS, UNAVERAGED, WeightAverage
from .batches import Batch, DistillDataset, EpochBatches, as_batch
from .evaluation import DISTINCT, distinct_predictions, task_metrics
from .finite import FiniteLosses
from .model import TrainedModel
from .objectives.base import TASK_PART, Sources
from .optimizers import DOT, Groups, Optimizer, RowAdamW, adamw, parameter_groups
from .order import Indices
from .placement import to_device
from .schedules import Replay
from .sharding import frozen_names, load_whole, plain, shard

_OF_ONE_PROCESS = {"train_loss", "train_samples_per_second", "train_steps_per_second"}
"""Keys of the trainer's final log that are wrong in a resumed run: they cover only this process's
losses and time."""


class DistillTrainer(Trainer):  # type: ignore[misc]
    """Hugging Face Trainer with joined batches, a group of its own for the aligner, and a log of
    every loss term."""

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        model: TrainedModel,
        arguments: TrainingArguments,
        train: DistillDataset,
        validation: DistillDataset | None,
        batches: EpochBatches,
        aligner_learning_rate: float,
        save_beside: Callable[[Path], None] = lambda folder: None,
        aligner_losses: Callable[[], Mapping[str, float]] = dict,
        replays: Sequence[Replay] = (),
        average: WeightAverage | None = None,
        optimizer_of: Callable[[Groups], Optimizer] = adamw,
    ) -> None:
        """`replays`: sources of aligners' outputs for the training batches; `average`: weights to
        evaluate in place of the model's."""
        self.average = average
        self._optimizer_of = optimizer_of
        self._beside: dict[str, float] = {}
        self._epoch_batches = batches
        self._aligner_learning_rate = aligner_learning_rate
        self._save_beside = save_beside
        self._aligner_losses = aligner_losses
        self._replays = replays
        replayed = {each.name for each in replays}
        stepwise = [part for part in model.objective.parts if part.answers_name not in replayed]
        self._read_in_steps = {
            name for part in stepwise if part.reads.axis != "predictions" for name in part.sources
        }
        # The flag that stops an optimizer on the device is none of those that are divided, and only
        # fused ones read it.
        splits = model.objective.splits
        deferred = arguments.device.type != "cpu" and not arguments.fsdp and not splits
        self._finite = FiniteLosses(train, deferred)
        self._terms: dict[str, torch.Tensor] = {}
        self._averaged = 0
        self._batches_with = Counter[str]()
        self._latest_terms: dict[str, torch.Tensor] = {}
        self._of_step: list[tuple[Batch, Any]] = []
        self._step = -1
        self._buffers: dict[str, torch.Tensor] = {}
        self._evaluated: list[tuple[float, int]] = []
        self._space: LabelSpace = model.student.space
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=train,
            eval_dataset=validation,
            compute_metrics=self.metrics,
        )

    def metrics(self, prediction: Any) -> dict[str, float]:
        """Metrics of an evaluation's outputs and labels."""
        outputs, labels, space = prediction.predictions, prediction.label_ids, self._space
        return task_metrics(outputs, labels, space) | distinct_predictions(outputs, labels, space)

    def create_accelerator_and_postprocess(self) -> None:
        """As in the trainer; a model to be sharded is announced."""
        super().create_accelerator_and_postprocess()
        if self.args.fsdp_plugin_args is not None:
            shard(self.accelerator, self.args.fsdp_plugin_args, self.model)
            self.is_fsdp_enabled = True

    def get_train_dataloader(self) -> Any:
        """Batches in the order of (seed, epoch); the dataset joins each in one go, and takes this
        process's share, so that nothing else divides them."""
        return self._own(self._loader(self.train_dataset, batch_sampler=self._epoch_batches))

    def _own(self, loader: DataLoader[Any]) -> Any:
        return prepare_data_loader(
            loader,
            self.args.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            non_blocking=True,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Batches in the order of the corpus, all of them on every process: what chooses the best
        epoch is what one process would see."""
        dataset = eval_dataset or self.eval_dataset
        return self._own(self._loader(dataset, batch_size=self.args.per_device_eval_batch_size))

    def evaluate(self, *args: Any, **more: Any) -> dict[str, float]:
        """As in the trainer; of averaged weights if there are any, with metrics of the others
        beside."""
        if self.average is None or not self.average.steps:
            return super().evaluate(*args, **more)  # type: ignore[no-any-return]
        prefix = f"eval_{UNAVERAGED}"
        loader = self.get_eval_dataloader()
        found = self.evaluation_loop(loader, "Evaluation", metric_key_prefix=prefix).metrics
        found.pop(f"{prefix}_{DISTINCT}", None)
        self._beside = found | {f"eval_{AVERAGED_STEPS}": float(self.average.steps)}
        with self.average.applied():
            metrics: dict[str, float] = super().evaluate(*args, **more)
        self._beside = {}
        return metrics

    def evaluation_loop(
        self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **more: Any
    ) -> Any:
        """No gather: every process evaluates all batches. The loss is a mean over examples, where
        the trainer weights a short last batch like the others."""
        self.gather_function = lambda tensors: tensors
        self._evaluated = []
        more["metric_key_prefix"] = metric_key_prefix
        found = super().evaluation_loop(dataloader, *args, **more)
        losses, rows = map(torch.tensor, zip(*self._evaluated, strict=True))
        total = (losses.double() * rows)[rows > 0].sum()
        found.metrics[f"{metric_key_prefix}_loss"] = float(total / rows.sum())
        answers = dataloader.dataset.answers
        if answers is not None:
            figures = answers.figures(found.predictions, found.label_ids)
            found.metrics.update({f"{metric_key_prefix}_{n}": v for n, v in figures.items()})
        found.metrics.update(self._beside)
        return found

    def prediction_step(self, model: Any, inputs: Batch, *more: Any, **kwargs: Any) -> Any:
        """As in the trainer; records the loss, and the number of its examples."""
        loss, outputs, labels = self.model.parts.fitted(
            lambda _: super(DistillTrainer, self).prediction_step(model, inputs, *more, **kwargs),
            inputs["input_ids"],
        )
        rows = len(labels)
        if self.model.student.space.task != "none":
            rows = count_known(labels.cpu().numpy())
        self._evaluated.append((float(loss), rows))
        return loss, outputs, labels

    def _loader(self, dataset: Any, **batching: Any) -> DataLoader[Any]:
        # A generator of its own: a loader that draws from the global one would make the dropout
        # of a resumed run differ.
        return DataLoader(
            dataset,
            collate_fn=as_batch,
            pin_memory=self.args.device.type == "cuda",
            generator=torch.Generator(),
            **batching,
        )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimizer of the job; the aligner, when it trains here, has a rate of its own."""
        if self.optimizer is None:
            self.optimizer = self._own_optimizer = self._optimizer_of(self._parameter_groups())
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        weights = state_dict or self.model.state_dict()
        super()._save(output_dir, plain(weights, frozen_names(self.model)))
        # Here, not in a callback's on_save: by then the checkpoint before this one is gone.
        if output_dir is not None:
            self._save_beside(Path(output_dir))

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        """Accelerate's, but for a sharded model, which it rounds in ways of its own."""
        if self.is_fsdp_enabled and self.args.bf16:
            return torch.autocast(self.args.device.type, torch.bfloat16)
        return super().autocast_smart_context_manager(cache_enabled)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The files written after this mark the checkpoint as complete.
        self.train_dataset.processes.wait()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # Sharded weights too: the trainer's own way leaves out those that are not sharded.
        load_whole(model or self.model, Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """As in the trainer; an optimizer of rows tells that of sparse gradients."""
        if isinstance(self._own_optimizer, RowAdamW):
            return self._own_optimizer.norm()
        return super()._get_grad_norm(model, grad_norm=grad_norm)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        parts: dict[bool, list[torch.nn.Parameter]] = {False: [], True: []}
        aligners = [part.aligner for part in self.model.objective.parts if part.aligner is not None]
        apart = {id(parameter) for each in aligners for parameter in each.parameters()}
        # The rate of a pretrained student would leave learned weights where they begin.
        apart |= {id(getattr(self.model.objective, "log_variances", None))}
        for parameter in self.model.parameters():
            parts[id(parameter) in apart].append(parameter)
        decay = self.args.weight_decay
        return [
            *parameter_groups(parts[False], self.args.learning_rate, decay),
            *parameter_groups(parts[True], self._aligner_learning_rate, decay),
        ]

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, **_: Any
    ) -> Any:
        """The total of the objective's terms."""
        indices, sources = inputs.pop("indices"), inputs.pop("sources", None)
        inputs["rows"] = len(indices)
        if model.training and self.train_dataset.apart:
            inputs["features"] = sources() if sources else self._sources(indices)
            drawn = self.train_dataset.negatives_of(indices)
            inputs["negatives"] = {name: n.to(self.args.device) for name, n in drawn.items()}
        if model.training and (lacking := self.train_dataset.has_answers(indices)):
            inputs["has_answers"] = lacking
        dataset = self.train_dataset if model.training else self.eval_dataset
        if repeats := dataset.repeats(indices):
            inputs["repeats"] = repeats
        outputs = model(**inputs)
        terms, pooled = outputs.pop("terms", {}), outputs.pop("pooled", None)
        task = terms.pop(TASK_PART, None)
        if model.training:
            self._finite.look_at(self.state.global_step + 1, terms, indices, self._own_optimizer)
            self._latest_terms = {name: value.detach() for name, value in terms.items()}
            if task is not None:
                self._add_task(task)
        elif self.eval_dataset.answers is not None and pooled is not None:
            self.eval_dataset.answers.see(indices, pooled)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def _add_task(self, task: torch.Tensor) -> None:
        """Tell an optimizer that treats them apart the gradient of the task's part of a loss."""
        assert isinstance(self._own_optimizer, DOT)
        # As the trainer does for the whole loss, outside of autocast and divided by the batches.
        with torch.autocast(self.args.device.type, enabled=False):
            self._own_optimizer.add_task(task / self.current_gradient_accumulation_steps)

    def training_step(self, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> Any:
        """As in the trainer; sums each term for the log, on the device."""
        if self.model.parts.halves:
            loss = self._step_that_fits(model, inputs, num_items_in_batch)
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)
        for name, value in self._latest_terms.items():
            if name != "total":
                self._terms[name] = self._terms.get(name, 0.0) + value
                self._batches_with[name] += 1
        self._averaged += 1
        return loss

    def _step_that_fits(self, model: Any, inputs: Batch, count: Any) -> Any:
        """Where memory runs out, all batches of this step are computed once more, from what was
        before it: gradients of some weights may be there already, and an objective may have
        observed some of the batches."""
        if self.state.global_step != self._step:
            self._step, self._of_step = self.state.global_step, []
            self._buffers = _kept_buffers(self.model.objective)
        sources = cache(partial(self._sources, inputs["indices"]))
        self._of_step.append((inputs | {"sources": sources}, count))

        def compute(again: bool) -> Any:
            if again:
                model.zero_grad()
                self.model.objective.load_state_dict(self._buffers, strict=False)
            for batch, items in self._of_step if again else self._of_step[-1:]:
                loss = super(DistillTrainer, self).training_step(model, dict(batch), items)
            return loss

        return self.model.parts.fitted(compute, inputs["input_ids"])

    def _mean_terms(self) -> dict[str, float]:
        """Each term since the last log, of the batches that have it."""
        counts = self._batches_with
        return {name: (total / counts[name]).item() for name, total in self._terms.items()}

    def _sources(self, indices: Indices) -> Sources:
        """Teachers' features of a batch, or the outputs of frozen aligners for them; those that
        this step needs."""
        active = self.model.objective.active_parts
        needed = {name for part in active for name in (*part.sources, part.answers_name)}
        replays = [each for each in self._replays if each.name in needed]
        sources: dict[str, Any] = {each.name: each.answers(indices) for each in replays}
        own = self.train_dataset.processes.share(indices)
        for name in self._read_in_steps & needed:
            features = self.train_dataset.features_of(own, name)
            sources[name] = to_device(features, self.args.device)
        return sources

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of each term since the last log, and of the aligner's last pass."""
        self._finite.check()
        if "loss" in logs and self._averaged:
            logs |= self._mean_terms()
            self._terms, self._averaged, self._batches_with = {}, 0, Counter()
            logs |= self._aligner_losses()
        super().log({k: v for k, v in logs.items() if k not in _OF_ONE_PROCESS}, start_time)


def _kept_buffers(objective: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of what an objective has observed: its buffers, as a checkpoint keeps them."""
    names = {name for name, _ in objective.named_buffers()}
    state = objective.state_dict()
    return {name: tensor.clone() for name, tensor in state.items() if name in names}
