"""A language model's own continuations of prompts, greedy or sampled, one seed per example.

    reader = SameLengths(...)                 or PaddedReader, of prompts of different lengths
    continued = continue_prompts(...)         on the device
    continued.arrive()()                      here

Prompts of one length are continued without any padding, so that a response depends on its example
alone, to the last bit on a CPU. The loop reads nothing from the device but, now and then, which
texts have ended, and that without waiting for it. Shapes: B prompts of a batch, A rows that are
still continued, N tokens, V tokens of the vocabulary, H hidden numbers.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....cache_schemas.errors import TeacherOutputError
from ....cache_schemas.keys import IntArray
from ...language.logits import NOISE, hidden_states, same_states, transformer
from ...language.masks import attending
from ...language.probes import probing
from ...language.tokens import Ids
from .base import in_row_groups, to_device, to_host

CACHE_NAMES = ("cache", "past_key_values", "cache_params", "state")
"""Names of the key-value cache (or states), as an argument and in the output: the first since
transformers 5.24, the second until 5.40."""

PROBE_TOKENS = 6

LOOK_EVERY = 8
"""Tokens after which a loop looks which texts have ended, on a device other than the CPU. It sees
what was so at the look before, which has arrived by then: the device is never without work."""

CPU_LOOK_EVERY = 1
"""There it costs nothing to look, and what is so now is seen."""

FULL = 256
"""Prompts of a bucket that make it full."""

FEWER = 3 / 4
"""Rows that have ended are dropped where at most so many of all go on: to drop some copies the keys
and values of the others."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Choice of the next token. temperature 0: the most probable one; else it is sampled from the
    most probable tokens that together have at least `top_p` of the mass (nucleus sampling, arXiv
    1904.09751)."""

    temperature: float
    top_p: float

    def choose(self, logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
        """The next token of each text [B]; `uniform_B` are numbers from 0 to 1."""
        if self.temperature == 0:
            return logits_BV.argmax(1)
        probs_BV, ids_BV = (logits_BV / self.temperature).double().softmax(1).sort(1, True)
        summed_BV = probs_BV.cumsum(1)
        # The tokens before the one at which the mass is reached, and that one.
        kept_B1 = ((summed_BV - probs_BV) < self.top_p).sum(1, keepdim=True)
        mass_B1 = summed_BV.gather(1, kept_B1 - 1)
        position_B1 = torch.searchsorted(summed_BV, uniform_B[:, None] * mass_B1, right=True)
        return ids_BV.gather(1, torch.minimum(position_B1, kept_B1 - 1))[:, 0]


@dataclass(slots=True)
class Continuation:
    """Generated tokens, and their log-probabilities at temperature 1; `broken` if logits were not
    finite."""

    ids: npt.NDArray[np.uint32]
    log_probs: npt.NDArray[np.float32]
    broken: bool


class Reader(Protocol):
    """A model that reads prompts and then one token of each at a time."""

    drops: ClassVar[bool]
    """Whether rows can be dropped on the way."""

    def begin(self, prompts: Sequence[Ids], repeats: int, room: int) -> Tensor:
        """Read prompts, the longest first. Hidden states [A, H] at their last tokens, each
        `repeats` times; `room` more tokens may follow."""

    def go_on(self, ids_A: Tensor) -> Tensor:
        """Read a token of each row. Hidden states [A, H]."""

    def keep(self, rows_C: Tensor) -> None:
        """Drop all rows but these [C]."""


class SameLengths:
    """See Reader: prompts of one length, which are read as they are. On a CPU rows come in groups
    of four, and none is dropped, so that the bits of a row do not depend on the others."""

    drops: ClassVar[bool] = False

    def __init__(self, model: Any, cache_name: str | None) -> None:
        self._model, self._cache_name = model, cache_name

    def begin(self, prompts: Sequence[Ids], repeats: int, room: int) -> Tensor:
        """See Reader; also of rows that fill a group."""
        ids_BT = torch.from_numpy(np.stack(prompts)).long()
        ids_BT = in_row_groups(ids_BT, self._model.device)
        states_BH, self._past = self._next(ids_BT, None)
        if repeats == 1:
            return states_BH
        if _repeat(self._past, repeats):
            return states_BH.repeat_interleave(repeats, 0)
        states_BH, self._past = self._next(ids_BT.repeat_interleave(repeats, 0), None)
        return states_BH

    def begin_with(self, inputs: Mapping[str, Tensor], repeats: int) -> Tensor:
        """`begin` with one prompt and its picture, [1, T] tokens with all that belongs to them."""
        assert self._cache_name is not None
        output = transformer(self._model)(**inputs, use_cache=True)
        self._past = output[self._cache_name]
        if repeats > 1 and not _repeat(self._past, repeats):
            raise TeacherOutputError("keys and values of its prompt cannot be repeated")
        states_AH: Tensor = output.last_hidden_state[:, -1].repeat_interleave(repeats, 0)
        return states_AH

    def go_on(self, ids_A: Tensor) -> Tensor:
        """See Reader."""
        states_AH, self._past = self._next(ids_A[:, None], self._past)
        return states_AH

    def keep(self, rows_C: Tensor) -> None:
        """All rows stay."""

    def _next(self, ids_BT: Tensor, past: Any) -> tuple[Tensor, Any]:
        with attending(False):
            return next_states(self._model, self._cache_name, ids_BT, past)


def _repeat(cache: Any, repeats: int) -> bool:
    """Repeat each row of a cache, if it is one of keys and values."""
    layers = getattr(cache, "layers", ())
    if not layers or not all(hasattr(layer, "batch_repeat_interleave") for layer in layers):
        return False
    cache.batch_repeat_interleave(repeats)
    return True


@dataclass(frozen=True, slots=True)
class Continued:
    """Continuations of texts on the device: ids and log-probabilities [N, B], of which each text
    has so many [B]; whether logits were not finite [B]."""

    ids_NB: Tensor
    log_probs_NB: Tensor
    counts_B: Tensor
    broken_B: Tensor

    @classmethod
    def empty(cls, most: int, rows: int, device: torch.device) -> "Continued":
        """State of texts that have no token yet, and may have so many."""
        zeros = torch.zeros(most, rows, dtype=torch.int64, device=device)
        broken = torch.zeros(rows, dtype=torch.bool, device=device)
        return cls(zeros, zeros.float(), torch.zeros_like(broken, dtype=torch.int64), broken)

    def note(
        self,
        step: int,
        rows_A: Tensor,
        ids_A: Tensor,
        log_probs_A: Tensor,
        going_on_A: Tensor,
        broken_A: Tensor,
    ) -> None:
        """Add a token of some texts; of those that have ended it does not count."""
        self.ids_NB[step, rows_A] = ids_A
        self.log_probs_NB[step, rows_A] = log_probs_A
        self.counts_B[rows_A] += going_on_A
        self.broken_B[rows_A] |= broken_A

    def arrive(self, count: int) -> Callable[[], list[Continuation]]:
        """Begin to copy the first texts here; the result waits for them."""
        copied = to_host([self.ids_NB, self.log_probs_NB, self.counts_B, self.broken_B])

        def wait() -> list[Continuation]:
            ids, log_probs, counts, broken = copied()
            return [
                Continuation(
                    ids[: counts[text], text].astype(np.uint32),
                    log_probs[: counts[text], text].astype(np.float32),
                    bool(broken[text]),
                )
                for text in range(count)
            ]

        return wait


Stops = Callable[[Tensor], Tensor]
"""Whether each row of ids [A, N] ends with a string, [A]."""


def stop_strings(tokenizer: Any, strings: Sequence[str]) -> Stops | None:
    """For strings that end a response; None if there are none."""
    if not strings:
        return None
    from transformers.generation.stopping_criteria import StopStringCriteria

    criteria = StopStringCriteria(tokenizer, list(strings))
    # It would take scores, too, and does not read them.
    return lambda ids_AN: criteria(ids_AN.contiguous(), None)


def filled(tokens_N: IntArray) -> IntArray:
    """Buckets [N] of prompts that take so many tokens each, with their responses: wide enough for
    full batches, as prompts of a bucket need not be of one length, but no padding beyond half."""
    buckets_N, longest, rows = np.empty_like(tokens_N), 0, 0
    for tokens in np.unique(tokens_N)[::-1].tolist():
        if rows >= FULL or 2 * tokens < longest or not longest:
            longest, rows = tokens, 0
        alike_N = tokens_N == tokens
        buckets_N[alike_N] = longest
        rows += int(alike_N.sum())
    return buckets_N


def find_cache_name(model: Any, noise: float = NOISE) -> str | None:
    """Name by which a causal model takes and returns its cache; None if it has none, or if
    continuing from it differs from reading the whole text by more than `noise`, which is tested."""
    taken = inspect.signature(transformer(model).forward).parameters
    name = next((name for name in CACHE_NAMES if name in taken), None)
    if name is None:
        return None
    vocab_size = model.get_input_embeddings().weight.shape[0]
    # Two rows: RWKV's recurrence is right for a single one only.
    ids_BT = torch.arange(2 * PROBE_TOKENS, device=model.device).view(2, -1) % vocab_size
    with probing(model):
        whole_BH, _ = next_states(model, None, ids_BT, None)
        try:
            _, past = next_states(model, name, ids_BT[:, :-2], None)
            _, past = next_states(model, name, ids_BT[:, -2:-1], past)
            continued_BH, _ = next_states(model, name, ids_BT[:, -1:], past)
        except Exception:  # whatever a family raises that cannot continue so: it reads all again
            return None
    return name if same_states(continued_BH, whole_BH, noise) else None


def next_states(
    model: Any, cache_name: str | None, ids_BT: Tensor, past: Any
) -> tuple[Tensor, Any]:
    """Hidden states [B, H] at the last of new tokens [B, T], and the cache of all tokens so far:
    the model's, or without one the tokens themselves, which are read again each time."""
    if cache_name is None:
        ids_BT = ids_BT if past is None else torch.cat([past, ids_BT], dim=1)
        output = hidden_states(model, ids_BT, torch.ones_like(ids_BT))
        return output.last_hidden_state[:, -1], ids_BT
    inputs: dict[str, Any] = {cache_name: past}
    if past is None:
        inputs = {"attention_mask": torch.ones_like(ids_BT)}
    output = transformer(model)(input_ids=ids_BT, use_cache=True, **inputs)
    return output.last_hidden_state[:, -1], output[cache_name]


def continue_prompts(
    reader: Reader,
    states_AH: Tensor,
    logits_of: Callable[[Tensor], Tensor],
    most: int,
    ends_E: Tensor,
    stops: Stops | None,
    sampling: Sampling,
    uniforms_NB: Tensor,
) -> Continued:
    """Continuations of prompts that a reader has begun with, at most `most` tokens each, up to and
    with one of `ends_E`, or until a string of `stops`. `logits_of` maps hidden states to logits
    [A, V]."""
    device, rows = states_AH.device, len(states_AH)
    found, ends = Continued.empty(most, rows, device), _Ends()
    rows_A = torch.arange(rows, device=device)
    ended_A = torch.zeros(rows, dtype=torch.bool, device=device)
    for step in range(most):
        logits_AV = logits_of(states_AH)
        log_probs_AV = logits_AV.log_softmax(1)
        next_A = sampling.choose(logits_AV.nan_to_num(), uniforms_NB[step, rows_A])
        chosen_A = log_probs_AV.gather(1, next_A[:, None])[:, 0]
        broken_A = ~(chosen_A.isfinite() | ended_A)
        found.note(step, rows_A, next_A, chosen_A, ~ended_A, broken_A)
        ended_A = ended_A | broken_A | (next_A[:, None] == ends_E).any(1)
        if stops is not None:
            ended_A = ended_A | stops(found.ids_NB[: step + 1, rows_A].T)
        if step + 1 == most:
            break
        going_on = ends.look(step, ended_A)
        if going_on is not None and not len(going_on):
            break
        if going_on is not None and reader.drops and len(going_on) <= FEWER * len(rows_A):
            kept_C = to_device(torch.from_numpy(going_on), device)
            reader.keep(kept_C)
            rows_A, ended_A, next_A = (each[kept_C] for each in (rows_A, ended_A, next_A))
            ends = _Ends()
        states_AH = reader.go_on(next_A)
    return found


@dataclass(slots=True)
class _Ends:
    """Looks which rows have ended, without waiting for the device."""

    _coming: Callable[[], list[npt.NDArray[Any]]] | None = None

    def look(self, step: int, ended_A: Tensor) -> IntArray | None:
        """The rows that go on, as of this look, or the one before it; None: not known now."""
        every = CPU_LOOK_EVERY if ended_A.device.type == "cpu" else LOOK_EVERY
        if (step + 1) % every:
            return None
        before, self._coming = self._coming, to_host([ended_A])
        arrived = self._coming if every == 1 else before
        return None if arrived is None else np.flatnonzero(~arrived()[0])
