"""The trained module of a student that embeds, and its trainer.

A step embeds all texts of a batch at once: [P, E], and by example [B, C, E]. Objectives of vectors
compare each text with its feature; those of candidates read them by example. With Matryoshka dims,
the loss is the mean over prefixes of the embedding, each at the length of the whole (Kusupati et
al., arXiv 2205.13147).

Shapes: B examples, C texts of each, P texts that are there, E numbers of an embedding; where a text
has a vector for each token, E stands for T tokens of E numbers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..model import TrainedModel
from ..negatives import Negatives, negatives_name
from ..objectives.base import Objective, Sources, StudentSide, named_terms
from ..order import Indices
from ..trainer import DistillTrainer
from .candidates import Candidates, by_example, rows_that_are_there
from .dataset import EmbeddingDataset
from .student import EmbeddingStudent, TwoTowers


class EmbeddingModel(TrainedModel):
    """A student that embeds, or one for queries and one for passages, and the objective's parts
    beside it."""

    student: EmbeddingStudent | TwoTowers

    def __init__(
        self,
        student: EmbeddingStudent | TwoTowers,
        objective: Objective,
        dims: Sequence[int] = (),
        passages_of: str | None = None,
    ) -> None:
        """`dims`: numbers of the prefixes that are embeddings, too; the whole is always one.
        `passages_of`: source whose features are the embeddings of passages; None: they are
        read."""
        super().__init__(student, objective)
        self.dims = sorted({*dims, student.dim}, reverse=True)
        self.passages_of = passages_of

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
        passages: Mapping[str, Any] | None = None,
        longest: int = 0,
    ) -> dict[str, Any]:
        """`logits`: the embeddings of this process's examples [B, C, E]; `loss` and `terms`, where
        the batch has all that the objective reads. `words` are numbers of the bare texts of the
        whole batch [B, C], -1 where one is absent, `own_words` of this process's share. Where
        passages have a tower of their own, the inputs are those of queries, and `passages` has
        its. `longest`: tokens of the longest text of all batches."""
        assert words is not None
        assert own_words is not None
        inputs = (input_ids, attention_mask, token_type_ids)
        tower = self.student.towers[0]
        embeddings_PE = self._embedded(tower, inputs, lengths, masked)
        if len(embeddings_PE) < int((own_words >= 0).sum()):
            others = self._passages(own_words[:, 1:], passages, features or {})
            own_BCE = torch.cat([embeddings_PE[:, None], others], dim=1)
        else:
            own_BCE = by_example(embeddings_PE, own_words)
        if own_BCE.ndim == 4:
            wide = self.processes.widest(input_ids) if self.training else longest
            own_BCE = F.pad(own_BCE, (0, 0, 0, wide - own_BCE.shape[2]))
        if not has_loss:
            return {"logits": own_BCE, "loss": own_BCE.new_full((), math.nan)}
        embeddings_BCE = self._joined(own_BCE, rows)
        joined = {name: self._joined(each, rows) for name, each in (features or {}).items()}
        candidates = Candidates(embeddings_BCE, words, joined)
        sources: Sources = {
            **{name: self._rows(each, words) for name, each in joined.items()},
            **{negatives_name(name): each for name, each in (negatives or {}).items()},
        }
        terms = self._terms(candidates, sources, repeats or {}, self._joined(labels, rows))
        return {"loss": terms["total"], "logits": own_BCE, "terms": terms}

    def _passages(
        self,
        own_words: npt.NDArray[np.int64],
        inputs: Mapping[str, Any] | None,
        features: Mapping[str, Tensor],
    ) -> Tensor:
        """The embeddings of passages [B, C - 1, E] that queries have no tower in common with."""
        if self.passages_of is not None:
            cached_BCE = features[self.passages_of][:, 1:].flatten(2).float()
            return F.normalize(cached_BCE, dim=-1) if self.student.normalize else cached_BCE
        assert inputs is not None
        read = tuple(inputs.get(name) for name in ("input_ids", "attention_mask", "token_type_ids"))
        tower = self.student.towers[-1]
        found = self._embedded(tower, read, inputs["lengths"], inputs["masked"])
        return by_example(found, own_words)

    def _rows(self, feature: Tensor, places: npt.NDArray[np.int64]) -> Tensor:
        """Features of the texts that the student embeds, in a row; those of pairs as they are."""
        if feature.shape[1] != places.shape[1]:
            return feature
        read = self._columns
        return rows_that_are_there(feature[:, :read], places[:, :read])

    @property
    def _columns(self) -> int | None:
        """How many texts of an example the student embeds; None: all."""
        return None if self.passages_of is None else 1

    def _embedded(
        self,
        tower: EmbeddingStudent,
        inputs: tuple[Any, ...],
        lengths_P: npt.NDArray[np.int64] | None,
        masked: bool | None,
    ) -> Tensor:
        """The embeddings [P, E]. On a CPU, texts of like length are read together, as wide as the
        longest of them: padding costs as much as tokens there, and a further call little."""
        ids_PT = inputs[0]
        parts, width = [], ids_PT.shape[1]
        if ids_PT.device.type == "cpu" and lengths_P is not None:
            parts = parts_by_length(lengths_P)
        if len(parts) < 2:
            whole: Tensor = self.parts.read(tower, *inputs, masked=masked)[0]
            return whole
        assert lengths_P is not None
        found = []
        for rows in parts:
            longest, chosen = int(lengths_P[rows].max()), torch.from_numpy(rows)
            left = inputs[1].shape[1] - longest if bool(inputs[1][chosen, -1].all()) else 0
            cut = [None if each is None else each[chosen, left : left + longest] for each in inputs]
            varied = bool((lengths_P[rows] < longest).any())
            part = self.parts.read(tower, *cut, masked=varied)[0]
            found.append(F.pad(part, (0, 0, 0, width - longest)) if part.ndim == 3 else part)
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
            read, pooled_PE = self._columns, None
            if own.embeddings_BCE.ndim == 3:
                pooled_PE = rows_that_are_there(own.embeddings_BCE[:, :read], own.places[:, :read])
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
