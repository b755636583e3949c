"""The token-level loss written from its textbook formulas in NumPy, and cases to try it on.

Gradients come from the same formulas by complex steps: the imaginary part of f(x + i·1e-30) over
1e-30 is f' to the last digit, as nothing is subtracted.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from armada.stages.distill.token_loss.answers import (
    Answers,
    DenseAnswers,
    SampledAnswers,
    SparseAnswers,
)
from armada.stages.distill.token_loss.loss import Tokens, token_loss
from armada.stages.distill.token_loss.settings import TokenLossSettings
from armada.stages.language.logits import LogitTransform

DIVERGENCES = (
    "forward_kl",
    "reverse_kl",
    "jsd",
    "skew_kl",
    "skew_reverse_kl",
    "total_variation",
)
KINDS = ("tail", "renormalised", "drawn", "dense")
BETA, SKEW = 0.3, 0.2
SETTINGS = {
    name: TokenLossSettings(divergence=name, jsd_beta=BETA, skew=SKEW)  # type: ignore[arg-type]
    for name in DIVERGENCES
}


@dataclass
class Case:
    """A student and a teacher at a few positions, some without a label and one without answers."""

    positions: int = 5
    width: int = 3
    words: int = 8
    listed: int = 4
    teacher_words: int = 8
    samples: int = 6
    seed: int = 0
    scale: float = 1.0
    softcap: float | None = None
    inputs: list[np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        self.random = random = np.random.default_rng(self.seed)
        shapes = (self.positions, self.width), (self.words, self.width), (self.words,)
        self.inputs = [random.normal(size=shape) for shape in shapes]
        self.labels = random.integers(0, self.words, self.positions)
        self.labels[1::4] = -100
        self.answered = np.arange(self.positions) % 5 != 2
        logits = 1.5 * random.normal(size=(self.positions, self.teacher_words))
        self.log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))

    def answers(self, kind: str, temperature: float) -> Answers:
        """The teacher's, as a cache would give them."""
        if kind == "dense":
            return DenseAnswers(torch.from_numpy(self.log_p))
        if kind == "drawn":
            ids = torch.multinomial(
                torch.from_numpy(np.exp(self.log_p)),
                self.samples,
                replacement=True,
                generator=torch.Generator().manual_seed(self.seed),
            )
            return SampledAnswers(ids, torch.from_numpy(self.log_p).gather(1, ids))
        softened = torch.from_numpy(self.log_p / temperature).log_softmax(1)
        log_probs, ids = softened.topk(self.listed)
        # The last of the first row is absent; its id belongs to another entry, or to no word.
        log_probs[:1, -1], ids[:1, -1] = -torch.inf, ids[:1, 0]
        if kind == "renormalised":
            ids[:1, -1] = -7
            return SparseAnswers(ids, log_probs, None)
        return SparseAnswers(ids.int(), log_probs, torch.log1p(-log_probs.exp().sum(1)))

    def tokens(self, *inputs: torch.Tensor, **others: Any) -> Tokens:
        """The student's side of the loss."""
        hidden, weight, bias = inputs or map(torch.from_numpy, self.inputs)
        return Tokens(
            hidden,
            weight,
            torch.from_numpy(self.labels),
            bias,
            **{
                "answered_P": torch.from_numpy(self.answered),
                "transform": LogitTransform(self.scale, self.softcap),
                **others,
            },
        )

    def loss(self, kind: str, name: str, temperature: float, alpha: float, **how: Any) -> Any:
        """Terms and gradients of the product."""
        inputs = [torch.from_numpy(array).requires_grad_() for array in self.inputs]
        answers = self.answers(kind, temperature)
        terms = token_loss(
            self.tokens(*inputs),
            answers,
            SETTINGS[name],
            alpha=alpha,
            temperature=temperature,
            **how,
        )
        return terms, torch.autograd.grad(terms.total, inputs)

    def reference(self, kind: str, name: str, temperature: float) -> tuple[Any, Any]:
        """Functions of (hidden, weight, bias): cross entropy and divergence, as means."""
        answers = self.answers(kind, temperature)

        def logits(inputs: list[np.ndarray]) -> np.ndarray:
            z = self.scale * (inputs[0] @ inputs[1].T + inputs[2])
            return z if self.softcap is None else self.softcap * np.tanh(z / self.softcap)

        def task(inputs: list[np.ndarray]) -> Any:
            log_q = log_softmax(logits(inputs))
            rows = [row for row in range(self.positions) if self.labels[row] != -100]
            return -sum(log_q[row, self.labels[row]] for row in rows) / len(rows)

        def divergence(inputs: list[np.ndarray]) -> Any:
            q = np.exp(log_softmax(logits(inputs) / temperature))
            rows = np.flatnonzero(self.answered)
            each = [of_row(answers, row, q[row], name, temperature) for row in rows]
            return temperature**2 * sum(each) / len(rows)

        return task, divergence


def log_softmax(z: np.ndarray) -> np.ndarray:
    """Of rows of complex numbers that are small enough for the formula as it stands."""
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def of_row(answers: Answers, row: int, q: np.ndarray, name: str, temperature: float) -> Any:
    """The divergence at one position."""
    if isinstance(answers, SampledAnswers):
        assert answers.log_probs_PK is not None
        ids = answers.ids_PK[row].numpy()
        return of_samples(ids, np.exp(answers.log_probs_PK[row].numpy()), q, name, temperature)
    if isinstance(answers, DenseAnswers):
        p = np.exp(log_softmax(answers.log_probs_PV[row].numpy() / temperature))
        return DIVERGENCE[name](np.concatenate([p, np.zeros(len(q) - len(p))]), q)
    present = answers.log_probs_Pk[row].numpy() > -np.inf
    ids = answers.ids_Pk[row].numpy()[present]
    p, listed = np.exp(answers.log_probs_Pk[row].numpy()[present]), q[ids]
    if answers.log_tail_P is None:
        return DIVERGENCE[name](p / p.sum(), listed / listed.sum())
    others = np.delete(q, ids).sum()
    tail = np.exp(answers.log_tail_P[row].numpy())
    return DIVERGENCE[name](np.append(p, tail), np.append(listed, others))


def of_samples(ids: np.ndarray, p: np.ndarray, q: np.ndarray, name: str, temperature: float) -> Any:
    """The estimate of the divergence from draws, as `divergences.py` states it."""
    if name == "forward_kl":
        weight = p ** (1 / temperature - 1)
        weight /= weight.sum()
        found = {word: weight[ids == word].sum() for word in ids}
        return sum(w * np.log(w / q[word]) for word, w in found.items())
    r = q[ids] / p
    return np.mean(H[name](r) - H_SLOPE_AT_ONE[name] * (r - 1))


def kl(p: np.ndarray, q: np.ndarray) -> Any:
    """Σ p log(p / q); a divisor below e^-80 counts as that."""
    used = p.real > 0
    q = np.where(q.real < np.exp(-80), np.exp(-80), q)
    return (p[used] * np.log(p[used] / q[used])).sum()


def mix(share: float, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """share · p + (1 - share) · q."""
    return share * p + (1 - share) * q


def size(x: np.ndarray) -> np.ndarray:
    """|x| of complex numbers that are real but for their steps."""
    return np.sign(x.real) * x


DIVERGENCE: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "forward_kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "jsd": lambda p, q: BETA * kl(p, mix(BETA, p, q)) + (1 - BETA) * kl(q, mix(BETA, p, q)),
    "skew_kl": lambda p, q: kl(p, mix(SKEW, p, q)),
    "skew_reverse_kl": lambda p, q: kl(q, mix(1 - SKEW, p, q)),
    "total_variation": lambda p, q: 0.5 * size(p - q).sum(),
}
"""Of p, the teacher's, and q."""

H: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "reverse_kl": lambda r: r * np.log(r),
    "jsd": lambda r: -BETA * np.log(mix(BETA, 1, r)) + (1 - BETA) * r * np.log(r / mix(BETA, 1, r)),
    "skew_kl": lambda r: -np.log(mix(SKEW, 1, r)),
    "skew_reverse_kl": lambda r: r * np.log(r / mix(1 - SKEW, 1, r)),
    "total_variation": lambda r: 0.5 * size(r - 1),
}
"""h in Σ p·h(q/p)."""

H_SLOPE_AT_ONE = {
    "reverse_kl": 1.0,
    "jsd": 0.0,
    "skew_kl": SKEW - 1,
    "skew_reverse_kl": 1 - SKEW,
    "total_variation": 0.0,
}


def gradients(function: Callable[[Any], Any], inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Of a function of several arrays, by complex steps."""
    found = []
    for place, array in enumerate(inputs):
        slope = np.empty(array.shape)
        for index in np.ndindex(array.shape):
            stepped = array.astype(complex)
            stepped[index] += 1e-30j
            value = function([*inputs[:place], stepped, *inputs[place + 1 :]])
            slope[index] = np.imag(value) / 1e-30
        found.append(slope)
    return found
