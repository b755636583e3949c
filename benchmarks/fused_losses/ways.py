"""Ways to a loss from a student's hidden states: ours and three in plain torch.

Sparse: half of cross entropy, half of KL over the listed words and their tail, at temperature 1.
Dense: KL over the whole vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from armada.stages.distill.token_loss.answers import Answers, DenseAnswers, SparseAnswers
from armada.stages.distill.token_loss.loss import Tokens, token_loss
from armada.stages.distill.token_loss.settings import TokenLossSettings
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fused_losses.material import Material

CHUNKS = 16
"""Chunks of the ways in plain torch."""


@dataclass(frozen=True, slots=True)
class Way:
    """A name, the loss, and whether it takes every word's probability from a cache."""

    name: str
    loss: Callable[[Material], Tensor]
    reference: str
    dense_answers: bool = False


def armada_sparse(m: Material) -> Tensor:
    """Ours, both terms."""
    return _ours(m, SparseAnswers(m.ids_Pk, m.log_probs_Pk, m.log_tail_P), alpha=0.5)


def armada_dense(m: Material) -> Tensor:
    """Ours, from cached probabilities of all words."""
    assert m.log_probs_PV is not None
    return _ours(m, DenseAnswers(m.log_probs_PV), alpha=1.0)


def _ours(m: Material, answers: Answers, alpha: float) -> Tensor:
    tokens = Tokens(m.hidden_PH, m.weight_VH, m.labels_P)
    return token_loss(tokens, answers, TokenLossSettings(), alpha=alpha, temperature=1.0).total


def plain_sparse(m: Material) -> Tensor:
    """All logits at once."""
    everything = (m.hidden_PH, m.weight_VH, m.labels_P, m.ids_Pk, m.log_probs_Pk, m.log_tail_P)
    return sparse_sum(*everything) / m.size.tokens


def plain_dense(m: Material) -> Tensor:
    """All logits at once, beside all of the teacher's."""
    assert m.log_probs_PV is not None
    log_q = wide(m.hidden_PH @ m.weight_VH.t()).log_softmax(dim=-1)
    return F.kl_div(log_q, m.log_probs_PV, log_target=True, reduction="batchmean")


def chunks_in_the_graph(m: Material) -> Tensor:
    """A loop over chunks whose activations all wait for backward."""
    return sum((sparse_sum(*part) for part in _parts(m)), m.hidden_PH.new_zeros(())) / m.size.tokens


def chunks_again(m: Material) -> Tensor:
    """A loop over chunks, each of which backward works out once more."""
    sums = (checkpoint(sparse_sum, *part, use_reentrant=False) for part in _parts(m))
    return sum(sums, m.hidden_PH.new_zeros(())) / m.size.tokens


def _parts(m: Material) -> list[tuple[Tensor, ...]]:
    split = [
        tensor.chunk(CHUNKS)
        for tensor in (m.hidden_PH, m.labels_P, m.ids_Pk, m.log_probs_Pk, m.log_tail_P)
    ]
    return [(hidden, m.weight_VH, *rest) for hidden, *rest in zip(*split, strict=True)]


def sparse_sum(
    hidden: Tensor, weight: Tensor, labels: Tensor, ids: Tensor, log_p: Tensor, log_tail: Tensor
) -> Tensor:
    """Half of cross entropy and half of KL with a tail, summed over tokens, as most would write
    it: the tail is 1 minus the listed words."""
    log_q = wide(hidden @ weight.t()).log_softmax(dim=-1)
    task = F.nll_loss(log_q, labels, reduction="sum")
    listed = log_q.gather(1, ids)
    log_rest = torch.log1p(-listed.exp().sum(dim=1))
    apart = (log_p.exp() * (log_p - listed)).sum() + (log_tail.exp() * (log_tail - log_rest)).sum()
    return 0.5 * task + 0.5 * apart


def wide(logits: Tensor) -> Tensor:
    """Half-precision logits in float32, as losses take them."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


OURS_AND_PLAIN = (
    Way("armada, sparse", armada_sparse, "plain, sparse"),
    Way("plain, sparse", plain_sparse, "plain, sparse"),
    Way("chunks in the graph", chunks_in_the_graph, "plain, sparse"),
    Way("chunks, recomputed", chunks_again, "plain, sparse"),
    Way("armada, dense", armada_dense, "plain, dense", dense_answers=True),
    Way("plain, dense", plain_dense, "plain, dense", dense_answers=True),
)
