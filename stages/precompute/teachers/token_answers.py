"""A language model's predictions for each token, from its logits, chunk by chunk.

In: logits [C, V] in float32 of a chunk of tokens. Out: NumPy arrays with a row per token. Shapes: C
tokens of a chunk, P of all, V tokens, K entries or samples, T temperatures.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....cache_schemas.codings import Fidelity, SamplesCoding, TopKCoding
from ....cache_schemas.keys import IntArray
from ...language.tokens import by_text
from ...store.codec.fidelity import measure_samples, measure_top_k
from ...store.codec.samples import encode_samples
from ...store.codec.top_k import encode_top_k
from .base import to_host
from .options import Precision

MEASURED_EVERY = 16
"""Interval of predicted tokens at which the written row is compared with the exact one."""

Arrays = tuple[npt.NDArray[Any], ...]
Tensors = tuple[Tensor, ...]
Bools = npt.NDArray[np.bool_]
Uniforms = npt.NDArray[np.float64]
"""Numbers from 0 to 1, some for each token [P, K]."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Logits of C tokens; uniform_CK: numbers from 0 to 1; own_C: the ids that the text has there,
    which were predicted."""

    logits_CV: Tensor
    uniform_CK: Uniforms
    own_C: IntArray


class Answer(Protocol):
    """One feature of predicted tokens."""

    def read(self, chunk: Chunk) -> Tensors:
        """The predictions, tensors [C, ...] on the device."""

    def rows(self, outputs: Arrays) -> npt.NDArray[Any]:
        """The stored rows [C, *shape]."""

    def measure(self, outputs: Arrays, rows: npt.NDArray[Any]) -> Fidelity | None:
        """Errors of the stored rows; None if they are exact."""


@dataclass(frozen=True, slots=True)
class TopK:
    """The most probable tokens with their log-probabilities, and the mass of all others."""

    coding: TopKCoding

    def read(self, chunk: Chunk) -> Tensors:
        """Ids and log-probabilities [C, K], log-masses of all others [C, T]."""
        logits_CV = chunk.logits_CV
        found = torch.topk(logits_CV, self.coding.k)
        log_probs_CK = found.values - logits_CV.logsumexp(1, keepdim=True)
        tails_CT = self._log_tails(logits_CV, found.indices)
        return found.indices, log_probs_CK, tails_CT

    def rows(self, outputs: Arrays) -> npt.NDArray[Any]:
        """Coded, [C, W]."""
        return encode_top_k(self.coding, *outputs)

    def measure(self, outputs: Arrays, rows: npt.NDArray[Any]) -> Fidelity:
        """Errors of coded rows."""
        ids_CK, log_probs_CK, log_tails_CT = outputs
        return measure_top_k(self.coding, ids_CK, log_probs_CK, log_tails_CT, rows)

    def _log_tails(self, logits_CV: Tensor, ids_CK: Tensor) -> Tensor:
        # Not one minus the mass of the others: that would be rounding alone where a tail is small.
        others_CV = logits_CV.scatter(1, ids_CK, -torch.inf)
        tails = [
            (others_CV / temperature).logsumexp(1) - (logits_CV / temperature).logsumexp(1)
            for temperature in self.coding.temperatures
        ]
        return torch.stack(tails, dim=1)


@dataclass(frozen=True, slots=True)
class Samples:
    """Tokens drawn with replacement from the model's own distribution (arXiv 2503.16870)."""

    coding: SamplesCoding

    def read(self, chunk: Chunk) -> Tensors:
        """Ids and log-probabilities [C, K]."""
        logits_CV = chunk.logits_CV
        # In double precision: in single, the sum over a large vocabulary forgets rare tokens.
        summed_CV = logits_CV.double().softmax(1).cumsum(1)
        wanted_CK = torch.from_numpy(chunk.uniform_CK).to(logits_CV.device) * summed_CV[:, -1:]
        ids_CK = torch.searchsorted(summed_CV, wanted_CK, right=True)
        ids_CK = ids_CK.clamp(max=logits_CV.shape[1] - 1)
        log_probs_CK = logits_CV.gather(1, ids_CK) - logits_CV.logsumexp(1, keepdim=True)
        return ids_CK, log_probs_CK

    def rows(self, outputs: Arrays) -> npt.NDArray[Any]:
        """Coded, [C, W]."""
        return encode_samples(
            self.coding, outputs[0], outputs[1] if self.coding.log_prob_bits else None
        )

    def measure(self, outputs: Arrays, rows: npt.NDArray[Any]) -> Fidelity:
        """Errors of coded rows."""
        ids_CK, log_probs_CK = outputs
        return measure_samples(self.coding, ids_CK, log_probs_CK, rows)


@dataclass(frozen=True, slots=True)
class Dense:
    """The log-probabilities of all tokens."""

    precision: Precision

    def read(self, chunk: Chunk) -> Tensors:
        """Log-probabilities [C, V]; a token that is ruled out has the lowest number there is."""
        log_probs_CV = chunk.logits_CV.log_softmax(1)
        lowest = float(np.finfo(self.precision.stored).min)
        return (self.precision.cast(log_probs_CV.clamp(min=lowest)),)

    def rows(self, outputs: Arrays) -> npt.NDArray[Any]:
        """The same."""
        return outputs[0]

    def measure(self, outputs: Arrays, rows: npt.NDArray[Any]) -> None:
        """Nothing is lost but the rounding to the stored type."""


class OwnLogProbs:
    """The log-probability of the text's own token, in float16."""

    def read(self, chunk: Chunk) -> Tensors:
        """Log-probabilities [C]; a token that is ruled out has the lowest number there is."""
        own_C1 = torch.from_numpy(chunk.own_C).to(chunk.logits_CV.device)[:, None]
        log_probs_C1 = chunk.logits_CV.gather(1, own_C1) - chunk.logits_CV.logsumexp(1, True)
        return (log_probs_C1[:, 0].clamp(min=float(np.finfo(np.float16).min)).half(),)

    def rows(self, outputs: Arrays) -> npt.NDArray[Any]:
        """The same."""
        return outputs[0]

    def measure(self, outputs: Arrays, rows: npt.NDArray[Any]) -> None:
        """Nothing is lost but the rounding to the stored type."""


def stored_own(log_probs_P: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """As `OwnLogProbs` has them, of log-probabilities that another computed; NaN stays."""
    return np.maximum(log_probs_P, np.finfo(np.float16).min).astype(np.float16)


_Arriving = Callable[[], list[npt.NDArray[Any]]]
_Chunk = tuple[slice, _Arriving, Mapping[str, _Arriving]]


@dataclass(slots=True)
class TokenAnswers:
    """The predictions of a batch's tokens, gathered chunk by chunk."""

    answers: Mapping[str, Answer]
    measured: Bools
    """Mask of the measured tokens, [P]."""
    _rows: dict[str, list[npt.NDArray[Any]]] = field(default_factory=dict)
    _samples: dict[str, list[tuple[Arrays, npt.NDArray[Any]]]] = field(default_factory=dict)
    _numbers: list[Bools] = field(default_factory=list)
    _coming: list[_Chunk] = field(default_factory=list)

    def gather(
        self,
        logits: Callable[[int, int], Tensor],
        chunk: int,
        uniform_PK: Uniforms,
        own_P: IntArray,
    ) -> None:
        """Begin to compute all of them; `logits` gives those of tokens `start` to `stop - 1`
        [C, V], the text's own of which are `own_P`."""
        # Run once even for zero tokens, to get empty arrays of the right shape.
        for start in range(0, max(len(self.measured), 1), chunk):
            part = slice(start, min(start + chunk, len(self.measured)))
            logits_CV = logits(part.start, part.stop)
            # A token that is ruled out has minus infinity; other logits that are no numbers are
            # broken, and so is all that follows from them.
            numbers_C = logits_CV.logsumexp(1).isfinite()
            logits_CV = torch.where(numbers_C[:, None], logits_CV, 0.0)
            read = Chunk(logits_CV, uniform_PK[part], own_P[part])
            outputs = {name: to_host(answer.read(read)) for name, answer in self.answers.items()}
            self._coming.append((part, to_host([numbers_C]), outputs))

    def wait(self) -> "TokenAnswers":
        """Take what was computed from the device, and code it; before anything below."""
        for part, numbers, outputs in self._coming:
            self._numbers.extend(numbers())
            for name, answer in self.answers.items():
                self._add(name, answer, tuple(outputs[name]()), part)
        self._coming.clear()
        return self

    def _add(self, name: str, answer: Answer, outputs: Arrays, part: slice) -> None:
        rows = answer.rows(outputs)
        self._rows.setdefault(name, []).append(rows)
        chosen = self.measured[part]
        sample = tuple(array[chosen] for array in outputs), rows[chosen]
        self._samples.setdefault(name, []).append(sample)

    def broken(self, lengths: IntArray) -> list[int]:
        """The texts, of so many tokens each, of which a token's logits are no numbers."""
        parts = by_text(np.concatenate([np.empty(0, dtype=bool), *self._numbers]), lengths)
        return [text for text, numbers in enumerate(parts) if not numbers.all()]

    def rows_of_texts(self, lengths: IntArray) -> dict[str, list[npt.NDArray[Any]]]:
        """Feature -> rows of each text, of so many tokens each."""
        return {name: by_text(np.concatenate(rows), lengths) for name, rows in self._rows.items()}

    def fidelity_of_texts(self, texts: IntArray, count: int) -> dict[str, list[Any]]:
        """Feature -> fidelity of each of `count` texts, None where nothing was measured; `texts`
        [P] has the text of each token. Text by text: what a text's figures are must not depend on
        those beside it."""
        chosen = texts[self.measured]
        lengths = np.bincount(chosen, minlength=count)
        return {
            name: [
                self.answers[name].measure(outputs, rows) if len(rows) else None
                for outputs, rows in _samples_of_texts(samples, lengths)
            ]
            for name, samples in self._samples.items()
        }


def _samples_of_texts(
    samples: list[tuple[Arrays, npt.NDArray[Any]]], lengths: IntArray
) -> list[tuple[Arrays, npt.NDArray[Any]]]:
    outputs = zip(*(arrays for arrays, _ in samples), strict=True)
    columns = [by_text(np.concatenate(each), lengths) for each in outputs]
    rows = by_text(np.concatenate([rows for _, rows in samples]), lengths)
    return list(zip(zip(*columns, strict=True), rows, strict=True))


def read_top_k(top_k: TopK, outputs: Arrays) -> tuple[npt.NDArray[Any], Fidelity | None]:
    """Coded rows [P, W] of a whole text's predictions, and their errors where they are measured;
    None: nothing is predicted."""
    rows = top_k.rows(outputs)
    chosen = tuple(each[::MEASURED_EVERY] for each in outputs)
    return rows, top_k.measure(chosen, rows[::MEASURED_EVERY]) if len(rows) else None
