"""The token-level loss of stage 2: cross entropy, and a divergence from cached predictions.

Shapes: P positions, H width of the student, V rows of its vocabulary.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ...language.logits import LogitTransform
from ..losses import MISSING_LABEL
from .answers import (
    Answers,
    DenseAnswers,
    SampledAnswers,
    SparseAnswers,
    check_samples,
    check_vocabulary,
    temperatures_of,
)
from .chunked import Chunked, Observe, Step, chunk_tokens
from .divergences import Soften, measure_of, soften_dense, soften_samples, soften_sparse
from .settings import TokenLossSettings
from .targets import comparison_of

AS_THEY_ARE = LogitTransform()


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """`total` to backpropagate; `task` (cross entropy) and `distillation` (the divergence, T²
    included) before their weights, without a graph."""

    total: Tensor
    task: Tensor
    distillation: Tensor


@dataclass(frozen=True, slots=True)
class Tokens:
    """Student states at P positions, and the targets there.

    hidden_PH       the student's last hidden states
    weight_VH       its lm_head, frozen or not; a frozen one costs one matrix product less
    bias_V          of its lm_head, if it has one
    labels_P        int64, the next token; -100: unknown, so that there is no cross entropy here
    answered_P      bool; False: no teacher prediction, so that there is only cross entropy; None:
                    True everywhere
    labelled_count, answered_count
                    tokens of the whole step, over which means are taken, where these are only part
                    of it (accumulated gradients, other processes); None: as many as are here
    weights_P       of the tokens in all means, 0 or more; a token counts as its weight there, too;
                    None: 1
    Tokens with neither label nor prediction change no bit of value and gradients, nor do weights of
    1.
    """

    hidden_PH: Tensor
    weight_VH: Tensor
    labels_P: Tensor
    bias_V: Tensor | None = None
    answered_P: Tensor | None = None
    transform: LogitTransform = AS_THEY_ARE
    labelled_count: Tensor | float | None = None
    answered_count: Tensor | float | None = None
    weights_P: Tensor | None = None


def token_loss(
    tokens: Tokens,
    answers: Answers,
    settings: TokenLossSettings,
    *,
    alpha: float,
    temperature: float,
    chunk: int | None = None,
    progress: float = 1.0,
    observe: Observe | None = None,
) -> TokenTerms:
    """alpha · T² · D(teacher, student) + (1 - alpha) · cross entropy, each a mean over its tokens.

    The divergence compares softmax(z/T) with the predictions: sparse ones as they are (they were
    cached at T), dense ones as softmax(log p / T), samples as in `divergences.py`. Cross entropy:
    T = 1. Predictions that have temperatures of their own, T² included, go with `temperature` 1.
    `chunk` is the number of tokens per matrix product with the vocabulary; None: as many as
    make 64 MiB of float32 logits, or 256 MiB on a GPU. Memory is O(chunk · V) beside the gradients,
    forward and backward. `progress` is the share of the training steps that are made, for targets
    that move. `observe` sees the logits of each chunk and its rows, and must leave them as they
    are.
    Sums are in float32, or float64 for float64 inputs; gradients come back in the inputs' dtypes.
    Raises JobError for samples that cannot give this divergence, or for a teacher with more tokens.
    Sources: T², Hinton, Vinyals, Dean, arXiv 1503.02531; gradients worked out chunk by chunk in the
    forward pass, Liger Kernel, arXiv 2410.10989.
    """
    check_vocabulary(answers, len(tokens.weight_VH))
    soften = _soften(answers, settings, temperature, progress)
    return chunked(
        tokens,
        answers,
        soften,
        alpha=alpha,
        temperature=temperature,
        chunk=chunk,
        observe=observe,
    )


def cross_entropy(tokens: Tokens, observe: Observe | None = None) -> Tensor:
    """The mean cross entropy of the labelled tokens, without a teacher."""
    ids = torch.zeros(len(tokens.labels_P), 1, dtype=torch.int64, device=tokens.labels_P.device)
    nothing = SparseAnswers(ids, torch.full_like(ids, -torch.inf, dtype=torch.float32), None)
    nowhere = torch.zeros_like(tokens.labels_P, dtype=torch.bool)
    alone = replace(tokens, answered_P=nowhere, answered_count=None)
    settings = TokenLossSettings()
    return token_loss(alone, nothing, settings, alpha=0.0, temperature=1.0, observe=observe).total


def _soften(
    answers: Answers, settings: TokenLossSettings, temperature: float, progress: float
) -> Soften:
    match answers:
        case SparseAnswers():
            return partial(soften_sparse, compare=comparison_of(settings, progress))
        case DenseAnswers():
            compare = comparison_of(settings, progress)
            return partial(soften_dense, compare=compare, temperature=temperature)
        case SampledAnswers():
            kept = answers.log_probs_PK is not None
            check_samples(settings, temperature, kept)
            ratios = None if settings.divergence == "forward_kl" else measure_of(settings)
            return partial(soften_samples, measure=ratios, temperature=temperature)


def chunked(
    tokens: Tokens,
    answers: Answers,
    soften: Soften,
    *,
    alpha: float,
    temperature: float,
    chunk: int | None,
    observe: Observe | None = None,
) -> TokenTerms:
    """The terms of any divergence that can be worked out chunk by chunk."""
    labels_P, answered_P = tokens.labels_P, tokens.answered_P
    assert len(tokens.hidden_PH) == len(labels_P) == len(answers), (
        "one label and one prediction per row"
    )
    if answered_P is None:
        answered_P = torch.ones_like(labels_P, dtype=torch.bool)
    assert temperature == 1 or temperatures_of(answers, answered_P) is None, "one of the two"
    step = Step(
        labels_P=labels_P,
        answers=answers,
        answered_P=answered_P,
        soften=soften,
        transform=tokens.transform,
        temperature=temperature,
        alpha=alpha,
        labelled_count=_count(tokens, tokens.labelled_count, labels_P != MISSING_LABEL),
        answered_count=_count(tokens, tokens.answered_count, answered_P),
        chunk=chunk or chunk_tokens(len(tokens.weight_VH), tokens.weight_VH.device),
        with_gradients=torch.is_grad_enabled(),
        observe=observe,
        weights_P=tokens.weights_P,
    )
    return TokenTerms(*Chunked.apply(step, tokens.hidden_PH, tokens.weight_VH, tokens.bias_V))


def _count(tokens: Tokens, given: Tensor | float | None, counted_P: Tensor) -> Tensor:
    """One instead of none, so that no token at all makes a loss of 0. A process's share of a small
    count may be less than one."""
    if given is None and tokens.weights_P is not None:
        given = (tokens.weights_P * counted_P).sum()
    if given is None:
        return counted_P.sum().clamp(min=1)
    if isinstance(given, Tensor):
        return given.where(given > 0, 1)
    return torch.full((), given or 1, device=counted_P.device)
