"""The trained module of a student that embeds, and its trainer.

A step embeds all texts of a batch at once: [P, E], and by example [B, C, E]. Objectives of vectors
compare each text with its feature; those of candidates read them by example. With Matryoshka dims,
the loss is the mean over prefixes of the embedding, each at the length of the whole (Kusupati et
al., arXiv 2205.13147).

Shapes: B examples, C texts of each, P texts that are there, E numbers of an embedding.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..model import TrainedModel
from ..negatives import Negatives, negatives_name
from ..objectives.base import Objective, Sources, StudentSide, named_terms
from ..order import Indices
from ..trainer import DistillTrainer
from .candidates import Candidates, by_example, rows_that_are_there
from .dataset import EmbeddingDataset
from .student import EmbeddingStudent


class EmbeddingModel(TrainedModel):
    """A student that embeds and the objective's parts beside it."""

    student: EmbeddingStudent

    def __init__(
        self, student: EmbeddingStudent, objective: Objective, dims: Sequence[int] = ()
    ) -> None:
        """`dims`: numbers of the prefixes that are embeddings, too; the whole is always one."""
        super().__init__(student, objective)
        self.dims = sorted({*dims, student.dim}, reverse=True)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        features: Mapping[str, Tensor] | None = None,
        rows: int = 0,
        masked: bool | None = None,
        words: npt.NDArray[np.int64] | None = None,
        own_words: npt.NDArray[np.int64] | None = None,
        lengths: npt.NDArray[np.int64] | None = None,
        negatives: Mapping[str, Negatives] | None = None,
        repeats: Mapping[str, Indices] | None = None,
        has_loss: bool = True,
    ) -> dict[str, Any]:
        """`logits`: the embeddings of this process's examples [B, C, E]; `loss` and `terms`, where
        the batch has all that the objective reads. `words` are numbers of the bare texts of the
        whole batch [B, C], -1 where one is absent, `own_words` of this process's share."""
        assert words is not None
        assert own_words is not None
        inputs = (input_ids, attention_mask, token_type_ids)
        embeddings_PE = self._embedded(inputs, lengths, masked)
        own_BCE = by_example(embeddings_PE, own_words)
        if not has_loss:
            return {"logits": own_BCE, "loss": own_BCE.new_full((), math.nan)}
        embeddings_BCE = self._joined(own_BCE, rows)
        joined = {name: self._joined(each, rows) for name, each in (features or {}).items()}
        candidates = Candidates(embeddings_BCE, words, joined)
        sources: Sources = {
            **{name: _rows(each, words) for name, each in joined.items()},
            **{negatives_name(name): each for name, each in (negatives or {}).items()},
        }
        terms = self._terms(candidates, sources, repeats or {}, self._joined(labels, rows))
        return {"loss": terms["total"], "logits": own_BCE, "terms": terms}

    def _embedded(
        self,
        inputs: tuple[Tensor, Tensor, Tensor | None],
        lengths_P: npt.NDArray[np.int64] | None,
        masked: bool | None,
    ) -> Tensor:
        """The embeddings [P, E]. On a CPU, texts of like length are read together, as wide as the
        longest of them: padding costs as much as tokens there, and a further call little."""
        ids_PT = inputs[0]
        parts = []
        if ids_PT.device.type == "cpu" and lengths_P is not None:
            parts = parts_by_length(lengths_P)
        if len(parts) < 2:
            whole: Tensor = self.parts.read(self.student, *inputs, masked=masked)[0]
            return whole
        assert lengths_P is not None
        found = []
        for rows in parts:
            longest, chosen = int(lengths_P[rows].max()), torch.from_numpy(rows)
            left = inputs[1].shape[1] - longest if bool(inputs[1][chosen, -1].all()) else 0
            cut = [None if each is None else each[chosen, left : left + longest] for each in inputs]
            varied = bool((lengths_P[rows] < longest).any())
            found.append(self.parts.read(self.student, *cut, masked=varied)[0])
        back = np.argsort(np.concatenate(parts))
        return torch.cat(found).index_select(0, torch.from_numpy(back))

    def _terms(
        self,
        candidates: Candidates,
        sources: Sources,
        repeats: Mapping[str, Indices],
        labels_B: Tensor | None,
    ) -> dict[str, Tensor]:
        """Terms of the whole embedding, or means over its prefixes, which are named by their
        dims."""
        found = []
        for dim in self.dims:
            own = candidates if dim == self.student.dim else candidates.first(dim)
            pooled_PE = rows_that_are_there(own.embeddings_BCE, own.places)
            side = StudentSide(pooled_BD=pooled_PE, candidates=own, repeats=repeats)
            found.append(self.objective.of_batch(side, sources, labels_B))
        if len(found) == 1:
            return found[0]
        total = torch.stack([terms.pop("total") for terms in found]).mean()
        told = {
            f"{name}.{dim}": value
            for dim, terms in zip(self.dims, found, strict=True)
            for name, value in terms.items()
        }
        return named_terms(total, **told)


_CALL = 128
"""Padded tokens that take about as long as a further call of a student on a CPU."""
_MOST_PARTS = 8


def parts_by_length(lengths_P: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Texts in parts of nearly equal size, the longest first: as many parts as make the padded
    tokens, and the calls, fewest."""
    order = np.argsort(-lengths_P, kind="stable")
    choices = [np.array_split(order, count) for count in range(1, min(_MOST_PARTS, len(order)) + 1)]

    def cost(parts: list[npt.NDArray[np.int64]]) -> int:
        return sum(len(rows) * int(lengths_P[rows[0]]) + _CALL for rows in parts)

    return min(choices, key=cost)


def _rows(feature: Tensor, places: npt.NDArray[np.int64]) -> Tensor:
    """Features of texts in a row; those of pairs as they are."""
    if feature.shape[1] != places.shape[1]:
        return feature
    return rows_that_are_there(feature, places)


class EmbeddingTrainer(DistillTrainer):
    """Evaluations measure the embeddings of all texts together."""

    def metrics(self, prediction: Any) -> dict[str, float]:
        """Metrics of the embeddings [N, C, E] of an evaluation."""
        dataset = self.eval_dataset
        assert isinstance(dataset, EmbeddingDataset)
        assert dataset.measure is not None
        return dataset.measure(dataset.embeddings(prediction.predictions), prediction.label_ids)

    def evaluation_loop(
        self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **more: Any
    ) -> Any:
        """Without a loss where there is none."""
        found = super().evaluation_loop(
            dataloader, *args, metric_key_prefix=metric_key_prefix, **more
        )
        if not dataloader.dataset.has_loss:
            del found.metrics[f"{metric_key_prefix}_loss"]
        return found
