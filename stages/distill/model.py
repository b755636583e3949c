"""The trained module: a student and the objective's parts beside it.

Shapes: B rows, T tokens, D pooled student text, K classes (1 for regression).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...cache_schemas.errors import StudentSourceError
from ...cache_schemas.features import TOKENS
from ..language.attention import attention_linears, with_attention
from ..language.probes import probe_text, probing
from ..pretrained import refusing
from .aligner import AlignerAnswers
from .losses import task_loss
from .negatives import Negatives, negatives_name
from .objectives.base import Feature, Objective, Sources, StudentSide
from .order import Indices
from .parts import Parts
from .processes import ALONE, Processes
from .student import Student


class TrainedModel(nn.Module):
    """A student of any kind and the objective's parts beside it.

    Of several processes, each sees the student's and the teachers' numbers for the whole batch;
    but a language model's tokens for its own share."""

    student: Any
    objective: Objective
    processes: Processes

    def __init__(self, student: Any, objective: Objective) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.processes = ALONE
        self.parts = Parts()
        self.along_tokens = {
            name for part in objective.parts if part.reads.axis == TOKENS for name in part.sources
        }
        """Sources of features along the tokens."""
        self.layers = sorted({layer for part in objective.parts for layer in part.layers})
        """Layers that some objective reads; hidden states are kept for no others."""
        self.attention = sorted({layer for part in objective.parts for layer in part.attention})
        """Attention layers that some objective reads."""

    def _joined(self, part: Feature | None, rows: int) -> Any:
        """A part of this process's share, for a whole batch of so many rows; in an evaluation every
        process has the whole batch."""
        if part is None or self.processes.count == 1 or not self.training:
            return part
        if isinstance(part, AlignerAnswers):
            return AlignerAnswers(*(self.processes.joined(each, rows) for each in part))
        return self.processes.joined(part, rows)

    def _features(
        self, features: Mapping[str, Feature] | None, mask_BT: Tensor | None, rows: int
    ) -> dict[str, Any]:
        """Teachers' features for the whole batch; those along tokens are as wide as its mask."""
        found: dict[str, Any] = {}
        for name, each in (features or {}).items():
            if name in self.along_tokens:
                assert isinstance(each, Tensor)
                assert mask_BT is not None
                lacking = mask_BT.shape[1] - each.shape[1]
                each = F.pad(each, (*(0, 0) * (each.ndim - 2), 0, lacking))
            found[name] = self._joined(each, rows)
        return found

    def _read_layers(self, *inputs: Tensor | None, **more: Any) -> tuple[Any, ...]:
        """What a student returns with its hidden states, and its attention where that is read."""
        read = self.student.with_hidden_states
        if not self.attention:
            return (*self.parts.read(read, *inputs, **more), ())
        linears = attention_linears(self.student.backbone)
        chosen = [linears[layer - 1 if layer > 0 else layer] for layer in self.attention]
        found: tuple[Any, ...] = self.parts.read(with_attention(read, chosen), *inputs, **more)
        return found

    def _layers(
        self,
        states: Sequence[Tensor],
        attention: Sequence[Tensor],
        mask_BT: Tensor,
        rows: int,
    ) -> dict[str, Any]:
        """The layers that are read, of the hidden states of all, the attention that is read, and
        their mask, for the whole batch; as `StudentSide` has them."""
        read = {layer % len(states): states[layer] for layer in self.layers}
        lacking = self.processes.widest(mask_BT) - mask_BT.shape[1]

        def whole(each: Tensor) -> Any:
            # Shares are as wide as their own longest texts.
            wide = F.pad(each, (*(0, 0) * (each.ndim - 2), 0, lacking)) if lacking else each
            return self._joined(wide, rows)

        joined = {number: whole(each) for number, each in read.items()}
        return {
            "layers": {layer: joined[layer % len(states)] for layer in self.layers},
            "attention": dict(zip(self.attention, map(whole, attention), strict=True)),
            "mask_BT": whole(mask_BT),
        }


class DistillModel(TrainedModel):
    """Training mode: the objective's terms. Evaluation mode: outputs and the task loss alone, so
    that features of evaluation texts are not needed; unless there are no labels."""

    student: Student

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        features: Mapping[str, Feature] | None = None,
        rows: int = 0,
        masked: bool | None = None,
        has_answers: Mapping[str, npt.NDArray[np.bool_]] | None = None,
        negatives: Mapping[str, Negatives] | None = None,
        repeats: Mapping[str, Indices] | None = None,
    ) -> dict[str, Any]:
        """`logits` [B, K], and `loss` where there are labels; in training also `terms`, in an
        evaluation `pooled` [B, D]. `features` are the teachers', `rows` those of the batch in all
        processes; `masked` as the student takes it; `has_answers` and `repeats` as in
        `StudentSide`; `negatives` those of a source."""
        inputs = (input_ids, attention_mask, token_type_ids)
        scored = labels is not None and (self.training or self.student.space.task == "none")
        inside: dict[str, Any] = {}
        if scored and (self.layers or self.attention):
            read = self._read_layers(*inputs, masked=masked)
            pooled_BD, output_BK, states, attention = read
            inside = self._layers(states, attention, attention_mask, rows)
            del read, states, attention
        else:
            pooled_BD, output_BK = self.parts.read(self.student, *inputs, masked=masked)
        if labels is None:
            return {"logits": output_BK}
        if not scored:
            loss = task_loss(output_BK, labels, self.student.space.regression)
            return {"loss": loss, "logits": output_BK, "pooled": pooled_BD}
        sources: Sources = {
            **self._features(features, inside.get("mask_BT"), rows),
            **{negatives_name(name): each for name, each in (negatives or {}).items()},
        }
        side = StudentSide(
            pooled_BD=self._joined(pooled_BD, rows),
            output_BK=self._joined(output_BK, rows),
            has_answers=has_answers or {},
            repeats=repeats or {},
            **inside,
        )
        terms = self.objective.of_batch(side, sources, self._joined(labels, rows))
        found = {"loss": terms["total"], "logits": output_BK, "terms": terms}
        return found if self.training else found | {"pooled": pooled_BD}


def attention_dims(student: Any) -> tuple[int, ...]:
    """0 for the embeddings, and the width of a query in each of a student's layers.

    Raises StudentSourceError for a family without a linear map each for queries, keys and
    values."""
    linears = attention_linears(student.backbone)
    if not linears:
        raise StudentSourceError(
            f"student: a {student.backbone.config.model_type} has no separate queries, keys and "
            "values in each layer; use a BERT, RoBERTa, ELECTRA or DistilBERT, or another objective"
        )
    return (0, *(int(query.out_features) for query, _, _ in linears))


def layer_dims(student: Any) -> tuple[int, ...]:
    """The widths of a student's embeddings and of each of its layers, found on a short text.

    Raises StudentSourceError for a family that does not give their hidden states for each token."""
    ids_BT, mask_BT = probe_text(student.backbone)
    family = student.backbone.config.model_type
    what = f"student: a {family} gives no hidden states of its layers"
    with refusing(StudentSourceError, what), probing(student), torch.random.fork_rng(devices=[]):
        *_, states = student.with_hidden_states(ids_BT, mask_BT)
    if not states or any(each.shape[:2] != ids_BT.shape for each in states):
        raise StudentSourceError(f"{what} for each token; use another student or objective")
    return tuple(each.shape[-1] for each in states)
