"""Scores of training rows from cached features, and the rows that a rule keeps by them.

Pure functions of arrays: N rows, K classes; no row depends on the order of the corpus. Logarithms
are natural. Rules that spread rows over classes or clusters are those of a budget
(`../choosing.py`).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import entr, log_softmax, softmax

from ..corpus.labels import MISSING
from ..store.format.rows import Rows

Scores = npt.NDArray[np.float64]
Logits = npt.NDArray[Any]


def log_ratio(above_N: Scores, below_N: Scores, tokens_N: Rows) -> Scores:
    """(log p_above - log p_below) / tokens: large where the first model finds a text more probable.

    `above_N`, `below_N` are sums over the tokens of each text; one without tokens scores -inf. With
    a larger model above a smaller one, this is the difference of MiniPLM (Gu et al., arXiv
    2410.17215), per token, so that texts of different lengths compare; with a reference
    above a learner, the learnability loss_learner - loss_reference of JEST (Evans et al., arXiv
    2406.17711)."""
    scores_N = np.full(len(tokens_N), -np.inf)
    some = tokens_N > 0
    scores_N[some] = (above_N[some] - below_N[some]) / tokens_N[some]
    return scores_N


def log_probs_of_labels(logits_NK: Logits, labels_N: Rows) -> Scores:
    """log softmax(logits) at the label; NaN for a row without a label."""
    known = labels_N != MISSING
    scores_N = np.full(len(labels_N), np.nan)
    log_probs_NK = log_softmax(logits_NK.astype(np.float64), axis=1)
    scores_N[known] = log_probs_NK[known, labels_N[known]]
    return scores_N


def entropy(logits_NK: Logits) -> Scores:
    """-Σ p log p of p = softmax(logits), in nats: 0 to log K."""
    entropy_N: Scores = entr(softmax(logits_NK.astype(np.float64), axis=1)).sum(axis=1)
    return entropy_N


def confidence(logits_NK: Logits) -> Scores:
    """The largest of softmax(logits): 1/K to 1."""
    largest_N: Scores = softmax(logits_NK.astype(np.float64), axis=1).max(axis=1)
    return largest_N


def agrees(logits_NK: Logits, labels_N: Rows) -> Scores:
    """1 where the largest logit is at the label, or there is none; else 0."""
    agrees_N: Scores = np.zeros(len(labels_N))
    agrees_N[(logits_NK.argmax(axis=1) == labels_N) | (labels_N == MISSING)] = 1
    return agrees_N


def largest(scores_N: Scores, count: int, shuffled_N: Rows) -> Rows:
    """The rows with the `count` largest scores, ascending; of equal ones, the first of
    `shuffled_N`."""
    order = shuffled_N[np.argsort(-scores_N[shuffled_N], kind="stable")]
    return np.sort(order[:count])


def within(scores_N: Scores, least: float | None, most: float | None) -> Rows:
    """The rows with a score from `least` to `most`."""
    low, high = -np.inf if least is None else least, np.inf if most is None else most
    return np.flatnonzero((scores_N >= low) & (scores_N <= high))


def at_most_of_each(clusters_N: Rows, most: int, shuffled_N: Rows) -> Rows:
    """At most so many rows of each cluster, ascending: the first of `shuffled_N`."""
    of_cluster = clusters_N[shuffled_N]
    order = np.argsort(of_cluster, kind="stable")
    sizes = np.unique(of_cluster, return_counts=True)[1]
    turn = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(shuffled_N[order[turn < most]])


def domain_shares(
    domains_N: Rows, learner_N: Scores, teacher_N: Scores, tokens_N: Rows, strength: float
) -> Scores:
    """How often each domain is drawn, [D], which sums to 1: p_d = s r_d / Σ r + (1 - s) / D, with
    r_d the learner's perplexity in the domain over the teacher's, exp(ℓ_learner - ℓ_teacher).

    Losses ℓ are per token; `learner_N` and `teacher_N` are log-probabilities summed over the tokens
    of each text. A domain without tokens has r_d = 1. Source: the domain discrepancy factor and its
    smoothing of DDK (Liu et al., arXiv 2407.16154), which follows the student while it learns."""
    gain_D, tokens_D = (
        np.bincount(domains_N, weights=teacher_N - learner_N),
        np.bincount(domains_N, weights=tokens_N),
    )
    gap_D = gain_D / np.maximum(tokens_D, 1)
    ratio_D = np.exp(gap_D - gap_D.max())  # of which only proportions count
    shares_D: Scores = strength * ratio_D / ratio_D.sum() + (1 - strength) / len(ratio_D)
    return shares_D
