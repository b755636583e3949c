"""The trainer of stage 2 for language models: means over the tokens of a whole step; perplexity.

A step may take several batches, and each of several processes has a share of each; every token that
is counted has the same weight all the same.
"""

from typing import Any

import torch
from transformers.trainer_utils import EvalLoopOutput

from ..batches import Batch, DistillDataset
from ..trainer import DistillTrainer
from .batches import Counts, PackedTexts
from .evaluation import TokenSums
from .model import only_rows


def packed_texts(dataset: DistillDataset) -> PackedTexts:
    """Texts that make up the rows of a language model's dataset."""
    texts = dataset.tokens
    assert isinstance(texts, PackedTexts)
    return texts


class LanguageTrainer(DistillTrainer):
    """The trainer of language models: means are over tokens, and the evaluation differs."""

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: Any) -> Counts:
        """Counts of a step: of all its batches, in all processes."""
        texts = packed_texts(self.train_dataset)
        return sum((texts.counts(batch["places"]) for batch in batch_samples), Counts(0, batches=0))

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Counts | None = None,
        **more: Any,
    ) -> Any:
        """The total of the loss; sums each term for the log, on the device."""
        if model.training:
            inputs["counts"] = num_items_in_batch
            only_rows(inputs, self._own_rows(inputs))
        return super().compute_loss(model, inputs, return_outputs, **more)

    def _mean_terms(self) -> dict[str, float]:
        """Each term since the last log; every process has its share of it."""
        totals = torch.stack([total.double() for total in self._terms.values()])
        means = self.train_dataset.processes.mean(totals) / self._averaged
        return dict(zip(self._terms, means.tolist(), strict=True))

    def _own_rows(self, inputs: Batch) -> int:
        """Number of rows in this process's share, without repetitions of the last one."""
        share = len(inputs["input_ids"])
        left = len(inputs["places"]) - int(self.train_dataset.processes.rank) * share
        return min(share, max(0, left))

    def evaluation_loop(
        self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **_: Any
    ) -> EvalLoopOutput:
        """Cross entropy over all tokens, summed batch by batch."""
        model, sums = self.model.eval(), TokenSums()
        for batch in dataloader:
            with self.compute_loss_context_manager():
                sums.add(model, self._prepare_inputs(batch), packed_texts(dataloader.dataset))
        metrics = {f"{metric_key_prefix}_{name}": v for name, v in sums.metrics().items()}
        return EvalLoopOutput(None, None, metrics=metrics, num_samples=len(dataloader.dataset))
