"""Figures of what a coding kept, against sums over all outcomes in float64."""

import hypothesis
import numpy as np
import pytest
from armada.cache_schemas.codings import Fidelity, SamplesCoding, TopKCoding, combined
from armada.stages.store.codec.fidelity import measure_samples, measure_top_k
from armada.stages.store.codec.samples import encode_samples
from armada.stages.store.codec.top_k import encode_top_k
from codec_reference import read_samples, read_top_k
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.special import log_softmax, logsumexp

CODING = TopKCoding(k=9, vocab_size=40, bits=6, temperatures=(0.5, 1.0))


def teacher(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, log-probabilities and tails of `CODING`."""
    logits = np.random.default_rng(5).normal(scale=3, size=(rows, 40))
    ids = np.argsort(-logits, axis=1)
    sorted_logits = np.take_along_axis(logits, ids, axis=1)
    tails = [
        logsumexp(log_softmax(sorted_logits / t, axis=1)[:, 9:], axis=1)
        for t in CODING.temperatures
    ]
    return ids[:, :9], log_softmax(sorted_logits, axis=1)[:, :9], np.stack(tails, axis=1)


def test_top_k_against_the_sum_over_outcomes() -> None:
    ids, log_probs, tails = teacher(20)
    rows = encode_top_k(CODING, ids, log_probs, tails)
    found = measure_top_k(CODING, ids, log_probs, tails, rows)
    errors, divergences = [], []
    for row, given, tail in zip(rows, log_probs, tails[:, 1], strict=True):
        _, relative, masses = read_top_k(CODING, row)
        decoded = np.array(relative) - logsumexp(relative) + np.log1p(-masses[1])
        errors.append(np.abs(decoded - given))
        p, q = np.append(np.exp(given), np.exp(tail)), np.append(np.exp(decoded), masses[1])
        divergences.append((p * np.log(p / q)).sum())
    assert (found.tokens, found.entries, found.bytes_per_token) == (20, 180, CODING.row_bytes)
    assert found.mean_error == pytest.approx(np.mean(errors), abs=1e-5)
    assert found.max_error == pytest.approx(np.max(errors), abs=1e-5)
    assert found.mean_tail == pytest.approx(np.exp(tails[:, 1]).mean())
    assert found.divergence == pytest.approx(np.mean(divergences), abs=3e-6)
    assert found.divergence > 1e-5


def test_samples_together_are_as_one() -> None:
    ids, log_probs, tails = teacher(20)
    log_probs[3, 6:] = -np.inf  # so that samples differ in entries a token
    rows = encode_top_k(CODING, ids, log_probs, tails)
    parts = [
        measure_top_k(CODING, ids[part], log_probs[part], tails[part], rows[part])
        for part in (slice(0, 5), slice(5, 18), slice(18, 20))
    ]
    whole = measure_top_k(CODING, ids, log_probs, tails, rows)
    assert whole.entries == 177
    assert combined(parts).model_dump() == pytest.approx(whole.model_dump())


def test_entries_too_improbable_to_keep_are_tail() -> None:
    coding = TopKCoding(k=3, vocab_size=3)
    log_probs = log_softmax(np.array([[0.0, -1.0, -100.0]]), axis=1)
    ids, tails = np.arange(3)[None], np.full((1, 1), -np.inf)
    rows = encode_top_k(coding, ids, log_probs, tails)
    found = measure_top_k(coding, ids, log_probs, tails, rows)
    assert found.entries == 2
    assert found.divergence < 1e-5


@pytest.mark.parametrize("bits", [0, 16])
def test_draws(bits: int) -> None:
    coding = SamplesCoding(samples=12, vocab_size=40, log_prob_bits=bits)
    draw = np.random.default_rng(2)
    ids = draw.integers(0, 40, (7, 12))
    log_probs = -draw.exponential(3, (7, 12)) if bits else None
    rows = encode_samples(coding, ids, log_probs)
    found = measure_samples(coding, ids, log_probs, rows)
    assert (found.tokens, found.entries) == (7, 84 if bits else 0)
    assert found.bytes_per_token == coding.row_bytes
    assert found.divergence is found.mean_tail is None
    if log_probs is None:
        assert found.mean_error is found.max_error is None
        return
    order = np.argsort(ids, axis=1, kind="stable")
    given = np.take_along_axis(log_probs, order, axis=1)
    errors = np.abs(given - np.array([read_samples(coding, row)[1] for row in rows]))
    assert found.mean_error == pytest.approx(errors.mean())
    assert found.max_error == pytest.approx(errors.max())


def test_samples_without_figures_have_none_together() -> None:
    parts = [Fidelity(tokens=n, entries=0, bytes_per_token=23) for n in (1, 5)]
    assert combined(parts) == Fidelity(tokens=6, entries=0, bytes_per_token=23)


@pytest.mark.parametrize(
    "damage",
    [
        {"tokens": 0},
        {"tokens": 10**40},
        {"entries": 2**60 + 1},
        {"bytes_per_token": 1e308},
        {"bytes_per_token": float("inf")},
        {"divergence": float("nan")},
        {"divergence": 1e300},
        {"max_error": float("inf")},
        {"mean_tail": 1.5},
        {"mean_error": -1},
        {"x": 1},
    ],
    ids=str,
)
def test_documents_that_are_refused(damage: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Fidelity(**{"tokens": 1, "entries": 1, "bytes_per_token": 9.0} | damage)


def bounded(most: float) -> st.SearchStrategy[float | None]:
    return st.none() | st.floats(0, most) | st.just(most)


SAMPLES = st.builds(
    Fidelity,
    tokens=st.integers(1, 2**60) | st.just(2**60),
    entries=st.integers(0, 2**60) | st.just(2**60),
    bytes_per_token=st.floats(0, 2.0**30, exclude_min=True) | st.just(2.0**30),
    mean_error=bounded(1e6),
    max_error=bounded(1e6),
    mean_tail=bounded(1.0),
    divergence=bounded(1e6),
)


@hypothesis.settings(derandomize=True, max_examples=200)
@hypothesis.given(st.lists(SAMPLES, min_size=1, max_size=5))
def test_whatever_a_document_may_say_has_a_mean(parts: list[Fidelity]) -> None:
    """Which lies between them."""
    found = combined(parts)
    for name in ("bytes_per_token", "mean_error", "mean_tail", "divergence"):
        figure, figures = getattr(found, name), [getattr(part, name) for part in parts]
        known = [each for each in figures if each is not None]
        assert figure is None or min(known) <= figure <= max(known)
