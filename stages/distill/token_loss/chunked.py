"""Cross entropy and divergence over a vocabulary, without all logits in memory.

One node of the autograd graph: chunks of tokens go through lm_head, and a chunk's contribution to
the gradients of hidden states, weight and bias is computed at once, by three matrix products and no
second pass; backward scales the gradients. Beside inputs and gradients it takes two buffers [chunk,
V], three with a softcap or a temperature. Nothing here reads a value back from the device.

With z the logits, q = softmax(z/T), n labelled and m answered tokens of the whole step:

    total = alpha · T²/m · Σ divergence + (1 - alpha)/n · Σ cross entropy
    d/dz  = alpha · T/m · d divergence/d(z/T) + (1 - alpha)/n · (softmax(z) - onehot)

T is that of the loss, or each position's own, where the predictions bring one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...language.logits import LogitTransform
from ..losses import MISSING_LABEL
from .answers import Answers, temperatures_of
from .divergences import Soften, Softened, softmax

Observe = Callable[[Tensor, slice], None]


@dataclass(frozen=True, slots=True)
class Step:
    """Inputs of a step without gradients. Weights are per token."""

    labels_P: Tensor
    answers: Answers
    answered_P: Tensor
    soften: Soften
    transform: LogitTransform
    temperature: float
    alpha: float
    labelled_count: Tensor
    answered_count: Tensor
    chunk: int
    with_gradients: bool
    observe: Observe | None = None
    """Called with each chunk's logits [C, V] and its rows before they are used up."""
    weights_P: Tensor | None = None
    """Weights of the tokens, beside those of task and divergence; None: 1."""


class Chunked(torch.autograd.Function):
    """(step, hidden_PH, weight_VH, bias_V) -> total, cross entropy, divergence."""

    @staticmethod
    def forward(
        ctx: Any, step: Step, hidden_PH: Tensor, weight_VH: Tensor, bias_V: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs = (hidden_PH, weight_VH, bias_V)
        wanted = [step.with_gradients and needed for needed in ctx.needs_input_grad[1:]]
        pass_ = _Pass(step, Head(weight_VH, bias_V, hidden_PH.dtype), inputs, wanted)
        with torch.autocast(hidden_PH.device.type, enabled=False):
            task, divergence = pass_.run(hidden_PH)
        total = step.alpha * divergence + (1 - step.alpha) * task
        ctx.save_for_backward(*pass_.gradients, pass_.unit)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in inputs]
        ctx.mark_non_differentiable(task, divergence)
        return total, task, divergence

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        *gradients, unit = ctx.saved_tensors
        return None, *map(_scaled, gradients, ctx.dtypes, [total * unit] * 3)


def _scaled(gradient: Tensor | None, dtype: torch.dtype | None, by: Tensor) -> Tensor | None:
    """Scaled in the input's dtype, rounded once."""
    if gradient is None or dtype is None:
        return None
    return torch.mul(gradient, by, out=torch.empty_like(gradient, dtype=dtype))


class _Pass:
    """A pass over all chunks: sums of the terms, and the gradients that are wanted."""

    def __init__(
        self, step: Step, head: "Head", inputs: tuple[Tensor | None, ...], wanted: list[bool]
    ) -> None:
        self._step, self._head = step, head
        self.gradients = [
            torch.zeros_like(tensor, dtype=head.sums) if need and tensor is not None else None
            for tensor, need in zip(inputs, wanted, strict=True)
        ]
        weight_VH = inputs[1]
        assert weight_VH is not None
        tokens = min(step.chunk, len(step.labels_P))
        self._buffers = Buffers(tokens, len(weight_VH), weight_VH, head.sums)
        # Integer tensors would leave quotients in float32.
        self._labelled, self._answered = (
            count.to(head.sums) for count in (step.labelled_count, step.answered_count)
        )
        scale = step.transform.scale
        task = (1 - step.alpha) * scale / self._labelled
        divergence = step.alpha * step.temperature * scale / self._answered
        self.unit = torch.maximum(task, divergence)
        """Unit of gradients, so that the slope at a label, the same for most tokens, is -1 and not
        a number that bfloat16 rounds the same way everywhere."""
        self._task_weight, self._divergence_weight = task / self.unit, divergence / self.unit

    def run(self, hidden_PH: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy and divergence, T² included, each as a mean."""
        task = divergence = hidden_PH.new_zeros((), dtype=self._head.sums)
        for start in range(0, len(hidden_PH), self._step.chunk):
            sums = self._chunk(hidden_PH, slice(start, start + self._step.chunk))
            task, divergence = task + sums[0], divergence + sums[1]
        squared = self._step.temperature**2
        return task / self._labelled, squared * divergence / self._answered

    def _chunk(self, hidden_PH: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        counted = _Counted.of(self._step, rows, self._head.sums)
        hidden_CH = self._head.widened(hidden_PH[rows].masked_fill(counted.nowhere_C1, 0))
        logits_CV = self._buffers.take("logits", len(hidden_CH))
        self._head.logits(hidden_CH, logits_CV)
        self._step.transform.apply_(logits_CV)
        label_logit_C1 = logits_CV.gather(1, counted.label_C1)
        if self._step.observe is not None:
            self._step.observe(logits_CV, rows)
        soft = self._softened(logits_CV, rows, counted)
        log_sum_C1, own_CV = self._at_temperature_one(soft, logits_CV, counted)
        if any(gradient is not None for gradient in self.gradients):
            slope_CV = self._slope(soft, own_CV, counted)
            self._add(self._step.transform.cap_slope_(slope_CV, logits_CV), hidden_CH, rows)
        task_C = (log_sum_C1 - label_logit_C1).squeeze(1).where(counted.labelled_C, 0)
        divergence_C = soft.divergence_C.where(counted.answered_C, 0)
        if counted.temperature_C1 is not None:
            divergence_C = divergence_C * counted.temperature_C1.squeeze(1) ** 2
        if counted.weights_C is not None:
            task_C, divergence_C = task_C * counted.weights_C, divergence_C * counted.weights_C
        return task_C.sum(), divergence_C.sum()

    def _softened(self, logits_CV: Tensor, rows: slice, counted: "_Counted") -> Softened:
        """Logits over the temperature: in the logits' own memory, unless they are needed after
        this."""
        step, tempered_CV = self._step, logits_CV
        if not self._all_at_one(counted) or step.transform.softcap is not None:
            tempered_CV = self._buffers.take("softened", len(logits_CV))
            each_C1 = counted.temperature_C1
            torch.div(logits_CV, step.temperature if each_C1 is None else each_C1, out=tempered_CV)
        shares_CV = self._buffers.take("shares", len(logits_CV))
        targets_C = counted.label_C1.squeeze(1).where(counted.labelled_C, -1)
        answers = step.answers.rows(rows)
        return step.soften(tempered_CV, shares_CV, answers, counted.answered_C, targets_C)

    def _all_at_one(self, counted: "_Counted") -> bool:
        return self._step.temperature == 1 and counted.temperature_C1 is None

    def _at_temperature_one(
        self, soft: Softened, logits_CV: Tensor, counted: "_Counted"
    ) -> tuple[Tensor, Tensor | None]:
        """log Σ exp of the logits, and their softmax unless the softened one is the same."""
        if self._all_at_one(counted):
            return soft.log_sum_C1, None
        own_CV = self._buffers.take("softened", len(logits_CV))  # used up by now
        return softmax(logits_CV, own_CV), own_CV

    def _slope(self, soft: Softened, own_CV: Tensor | None, counted: "_Counted") -> Tensor:
        """The total in units of `unit`, differentiated by the logits before the cap but for the
        scale, [C, V]; uses up the shares."""
        task_C1 = counted.column(counted.labelled_C, self._task_weight)
        divergence_C1 = counted.column(counted.answered_C, self._divergence_weight)
        if counted.temperature_C1 is not None:
            divergence_C1 = divergence_C1 * counted.temperature_C1
        shared_C1 = divergence_C1 * soft.slope_C1
        if own_CV is None:
            shared_C1 = shared_C1 + task_C1 * soft.rest_C1
        slope_CV = soft.shares_CV.mul_(shared_C1)
        if soft.ids_Ck is None:
            slope_CV.addcmul_(soft.push, divergence_C1)
        else:
            pushed_Ck = divergence_C1 * soft.push
            if own_CV is None and soft.mass_Ck is not None:
                pushed_Ck.addcmul_(task_C1, soft.mass_Ck)
            slope_CV.scatter_add_(1, soft.ids_Ck, pushed_Ck)
        if own_CV is not None:
            slope_CV.addcmul_(own_CV, task_C1)
        return slope_CV.scatter_add_(1, counted.label_C1, -task_C1)

    def _add(self, slope_CV: Tensor, hidden_CH: Tensor, rows: slice) -> None:
        hidden_PH, weight_VH, bias_V = self.gradients
        if bias_V is not None:
            bias_V += slope_CV.sum(dim=0)
        slope_CV = self._head.narrowed(slope_CV)
        if hidden_PH is not None:
            self._head.hidden_gradient(slope_CV, hidden_PH[rows])
        if weight_VH is not None:
            self._head.add_weight_gradient(slope_CV, hidden_CH, weight_VH)


@dataclass(frozen=True, slots=True)
class _Counted:
    """Masks, labels and temperatures of a chunk's tokens."""

    labelled_C: Tensor
    answered_C: Tensor
    label_C1: Tensor
    """0 where there is none."""
    temperature_C1: Tensor | None
    """Temperature of each token; None: all have that of the loss."""
    weights_C: Tensor | None

    @classmethod
    def of(cls, step: Step, rows: slice, dtype: torch.dtype) -> "_Counted":
        labels_C = step.labels_P[rows]
        labelled_C = labels_C != MISSING_LABEL
        label_C1 = labels_C.where(labelled_C, 0).long()[:, None]
        answered_C = step.answered_P[rows]
        temperature_C1 = temperatures_of(step.answers.rows(rows), answered_C)
        if temperature_C1 is not None:
            temperature_C1 = temperature_C1.to(dtype)
        weights_C = None if step.weights_P is None else step.weights_P[rows]
        return cls(labelled_C, answered_C, label_C1, temperature_C1, weights_C)

    def column(self, counted_C: Tensor, weight: Tensor) -> Tensor:
        """A weight for each token that counts, times the token's own."""
        column_C = counted_C.to(weight.dtype) * weight
        if self.weights_C is not None:
            column_C = column_C * self.weights_C.to(weight.dtype)
        return column_C[:, None]

    @property
    def nowhere_C1(self) -> Tensor:
        """Tokens that must not reach a sum, not even as 0 times infinity."""
        return ~(self.labelled_C | self.answered_C)[:, None]


# --- The three matrix products of a chunk with the lm_head, summed in float32 whatever comes in.
#
# logits        hidden · weightᵀ + bias     [C, V]
# hidden's      slope · weight              [C, H]
# weight's      slopeᵀ · hidden             [V, H], added up over chunks in one float32 matrix
#
# bfloat16 multiplies as it is where the product can be left in float32 (CUDA). Elsewhere, and for
# float16, whose range slopes leave, a block of the weight at a time is widened: logits rounded to
# bfloat16 are off by 0.03 at z = 10, and probabilities by 3 %.

BLOCK_BYTES = 16 * 2**20
"""Approximate size of a block of the weight in float32."""

HALF = (torch.float16, torch.bfloat16)


class Head:
    """A student's lm_head in the precision of its products; sums are in `sums`."""

    def __init__(self, weight_VH: Tensor, bias_V: Tensor | None, hidden_dtype: torch.dtype) -> None:
        self._rounded = factors_dtype(weight_VH, hidden_dtype)
        self.sums = torch.float32 if self._rounded in HALF else self._rounded
        self._narrow = self._rounded == torch.bfloat16 and can_leave_float32(weight_VH)
        self._factors = self._rounded if self._narrow else self.sums
        # Under autocast the weight is narrowed once, as a linear layer would do.
        self._weight_VH = weight_VH.to(self._rounded)
        self._bias_V = None if bias_V is None else bias_V.to(self.sums)
        rows, width = weight_VH.shape
        step = max(1, BLOCK_BYTES // (4 * width))
        self._blocks = [slice(start, start + step) for start in range(0, rows, step)]

    def widened(self, hidden_CH: Tensor) -> Tensor:
        """Hidden states as factors of the products, rounded as autocast would."""
        return hidden_CH.to(self._rounded).to(self._factors)

    def narrowed(self, slope_CV: Tensor) -> Tensor:
        """Slopes in the logits as factors of the products."""
        return slope_CV.to(self._factors)

    def logits(self, hidden_CH: Tensor, out: Tensor) -> None:
        """hidden · weightᵀ + bias."""
        for block, weight in self._weights():
            self._multiply(hidden_CH, weight.t(), out[:, block])
        if self._bias_V is not None:
            out.add_(self._bias_V)

    def hidden_gradient(self, slope_CV: Tensor, out: Tensor) -> None:
        """slope · weight, into zeros."""
        if self._whole:
            self._multiply(slope_CV, self._weight_VH, out)
            return
        for block, weight in self._weights():
            out.addmm_(slope_CV[:, block], weight)

    def add_weight_gradient(self, slope_CV: Tensor, hidden_CH: Tensor, total_VH: Tensor) -> None:
        """slopeᵀ · hidden, added to the total."""
        if not self._narrow:
            total_VH.addmm_(slope_CV.t(), hidden_CH)
            return
        for block in self._blocks:
            # In pieces that a GPU's cache holds until they are added.
            slope_VC = slope_CV[:, block].t()
            total_VH[block] += torch.mm(slope_VC, hidden_CH, out_dtype=self.sums)

    @property
    def _whole(self) -> bool:
        return self._weight_VH.dtype == self._factors

    def _weights(self) -> Iterator[tuple[slice, Tensor]]:
        if self._whole:
            yield slice(None), self._weight_VH
            return
        for block in self._blocks:
            yield block, self._weight_VH[block].to(self._factors)

    def _multiply(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        if self._narrow:
            torch.mm(left, right, out_dtype=self.sums, out=out)
        else:
            torch.mm(left, right, out=out)


def can_leave_float32(weight_VH: Tensor) -> bool:
    """Whether a product of bfloat16 matrices can come out in float32 here."""
    return weight_VH.is_cuda


def factors_dtype(weight_VH: Tensor, hidden_dtype: torch.dtype) -> torch.dtype:
    """Dtype of a linear layer's product: autocast's choice, or the wider of the two."""
    device = weight_VH.device.type
    if torch.is_autocast_enabled(device) and torch.float64 not in (weight_VH.dtype, hidden_dtype):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(weight_VH.dtype, hidden_dtype)


# --- How many tokens go through the vocabulary at a time, and the memory that they share.

CHUNK_BYTES = 64 * 2**20
"""Approximate size of a chunk's float32 logits on a CPU. A quarter of it made steps slower by a
half, four times as much no faster (128,256 tokens, width 256, 2 cores)."""

ACCELERATOR_CHUNK_BYTES = 256 * 2**20
"""The same on other devices. Each chunk reads and writes the whole gradient of the weight, in
float32: at 64 MiB that takes a GPU longer than the products. Estimated, not measured."""


def chunk_tokens(vocabulary: int, device: torch.device) -> int:
    """Tokens of a chunk, at least one."""
    most = CHUNK_BYTES if device.type == "cpu" else ACCELERATOR_CHUNK_BYTES
    return max(1, most // (4 * vocabulary))


class Buffers:
    """[chunk, V] buffers that live as long as one call: made at first use, then reused by every
    chunk, so that no chunk waits for fresh pages."""

    def __init__(self, tokens: int, vocabulary: int, like: Tensor, dtype: torch.dtype) -> None:
        self._shape, self._like, self._dtype = (tokens, vocabulary), like, dtype
        self._made: dict[str, Tensor] = {}

    def take(self, name: str, tokens: int) -> Tensor:
        """The buffer of that name for so many tokens; its content is undefined."""
        if name not in self._made:
            self._made[name] = self._like.new_empty(self._shape, dtype=self._dtype)
        return self._made[name][:tokens]
