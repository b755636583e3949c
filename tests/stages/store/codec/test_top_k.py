"""Top-k rows: what comes back, by a second reader and by float64 arithmetic."""

import numpy as np
import pytest
from armada.cache_schemas.codings import TopKCoding
from armada.cache_schemas.errors import CacheError, TeacherOutputError
from armada.stages.store.codec.bits import NUMBERS_PER_BLOCK
from armada.stages.store.codec.top_k import decode_top_k, encode_top_k
from codec_reference import read_top_k
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp

VOCABULARIES = (1, 2, 3, 50, 256, 257, 4000, 128_256, 151_936, 262_144, 2**31)


def teacher(
    coding: TopKCoding, rows: int, seed: int, slope: float = 1.5, absent: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids [N, k], log-probabilities [N, k] float32 and log tails [N, T] float64 of logits over
    no more than 5,000 ids of the vocabulary, of which the last `absent` of k are forbidden."""
    draw = np.random.default_rng(seed)
    size = max(coding.k, min(coding.vocab_size, 5000))
    logits = -slope * np.log(np.arange(1, size + 1)) + draw.normal(size=(rows, size))
    logits = -np.sort(-logits, axis=1)
    logits[:, coding.k - absent :] = -np.inf if absent else logits[:, coding.k :]
    ids = np.linspace(coding.vocab_size - 1, 0, size).astype(np.int64)
    ids = np.tile(ids, (rows, 1))[:, : coding.k]
    tails = [
        logsumexp(log_softmax(logits / t, axis=1)[:, coding.k :], axis=1)
        if size > coding.k
        else np.full(rows, -np.inf)
        for t in coding.temperatures
    ]
    log_probs = log_softmax(logits, axis=1)[:, : coding.k].astype(np.float32)
    return ids, log_probs, np.stack(tails, axis=1)


@st.composite
def codings(draw: st.DrawFn) -> TopKCoding:
    vocabulary = draw(st.sampled_from(VOCABULARIES))
    return TopKCoding(
        k=draw(st.integers(1, min(vocabulary, 150))),
        vocab_size=vocabulary,
        bits=draw(st.sampled_from([5, 6, 8, 16])),
        temperatures=draw(st.sampled_from([(1.0,), (0.5, 1.0, 3.0)])),
    )


@settings(max_examples=60, deadline=None)
@given(codings(), st.integers(0, 2**20), st.sampled_from([0.0, 1.0, 2.5, 20.0]), st.data())
def test_what_comes_back(coding: TopKCoding, seed: int, slope: float, data: st.DataObject) -> None:
    absent = data.draw(st.integers(0, coding.k - 1))
    ids, log_probs, tails = teacher(coding, 3, seed, slope, absent)
    rows = encode_top_k(coding, ids, log_probs, tails)
    assert rows.shape == (3, coding.row_bytes)
    for place, temperature in enumerate(coding.temperatures):
        found = decode_top_k(coding, rows, temperature)
        mass = np.exp(found.log_probs_Nk.astype(np.float64)).sum(axis=1)
        tail = np.exp(found.log_tail_N.astype(np.float64))
        assert (mass + tail <= 1).all()
        assert (mass + tail >= 1 - 2**-18).all()
        assert tail == pytest.approx(np.exp(tails[:, place]), rel=1 / 2000, abs=2e-14)
        for row, got_ids, got in zip(rows, found.ids_Nk, found.log_probs_Nk, strict=True):
            expected_ids, relative, masses = read_top_k(coding, row)
            assert got_ids.tolist() == expected_ids
            scaled = np.array(relative) / temperature
            expected = scaled - logsumexp(scaled) + np.log1p(-masses[place])
            assert got == pytest.approx(expected, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(codings(), st.integers(0, 2**20), st.sampled_from([0.0, 1.0, 2.5, 20.0]), st.data())
def test_levels_lie_within_half_a_step(
    coding: TopKCoding, seed: int, slope: float, data: st.DataObject
) -> None:
    absent = data.draw(st.integers(0, coding.k - 1))
    ids, log_probs, tails = teacher(coding, 3, seed, slope, absent)
    rows = encode_top_k(coding, ids, log_probs, tails)
    for row, given_ids, given_log_probs in zip(rows, ids, log_probs, strict=True):
        below = (given_log_probs[0] - given_log_probs).astype(np.float64)
        limit = 65534.5 / 1024 if coding.bits == 16 else 63.75
        kept = below <= limit
        found_ids, relative, _ = read_top_k(coding, row)
        assert found_ids == np.where(kept, given_ids, 0).tolist()
        reach = np.ceil(4 * below[kept].max()) / 4  # the range, rounded up to quarters of a nat
        half = 1 / 2048 if coding.bits == 16 else reach / (2**coding.bits - 2) / 2
        assert np.abs(-np.array(relative)[kept] - below[kept]).max() <= half * (1 + 1e-3) + 1e-6
        assert np.isneginf(np.array(relative)[~kept]).all()


@pytest.mark.parametrize("temperature", [0.25, 1.0, 7.0])
@pytest.mark.parametrize("bits", [5, 6, 8, 16])
def test_renormalised_entries_sum_to_one_at_any_temperature(bits: int, temperature: float) -> None:
    coding = TopKCoding(k=20, vocab_size=4000, bits=bits)
    rows = encode_top_k(coding, *teacher(coding, 40, seed=3, absent=4))
    found = decode_top_k(coding, rows, temperature, renormalised=True)
    assert found.log_tail_N is None
    mass = np.exp(found.log_probs_Nk.astype(np.float64)).sum(axis=1)
    assert (mass <= 1).all()
    assert mass == pytest.approx(1, abs=2**-18)
    relative = np.array([read_top_k(coding, row)[1] for row in rows]) / temperature
    assert found.log_probs_Nk == pytest.approx(log_softmax(relative, axis=1), abs=1e-5)


@pytest.mark.parametrize("share", [1e-12, 1e-4, 0.5, 1 - 1e-4, 1 - 1e-12])
def test_tails_near_all_and_near_nothing_leave_entries_their_share(share: float) -> None:
    coding = TopKCoding(k=4, vocab_size=128_256, bits=16)
    log_probs = np.log(share * np.array([[0.4, 0.3, 0.2, 0.1]]))
    tails = np.log1p(-np.full((1, 1), share))
    found = decode_top_k(coding, encode_top_k(coding, np.arange(4)[None], log_probs, tails))
    assert found.log_probs_Nk == pytest.approx(log_probs, abs=1e-3)
    assert found.log_tail_N == pytest.approx(tails[:, 0], abs=5e-4)


def test_mass_never_exceeds_one_where_rounding_is_worst() -> None:
    """65,536 equal entries all round the same way; float64 sums show it."""
    for k in (1, 3, 1000, 40_000, 2**16):
        coding = TopKCoding(k=k, vocab_size=2**17, bits=8)
        for tail in (1e-9, 0.1, 0.5, 0.9, 0.999):
            tails = np.log(np.full((1, 1), tail))
            flat = np.zeros((1, k), np.float32)
            found = decode_top_k(coding, encode_top_k(coding, np.arange(k)[None], flat, tails))
            mass = np.exp(found.log_probs_Nk.astype(np.float64)).sum()
            total = mass + np.exp(np.float64(found.log_tail_N[0]))
            assert 1 - 2**-18 <= total <= 1


@pytest.mark.parametrize("k", range(1, 40))
def test_what_shifts_all_entries_of_a_token_is_rounded_down(k: int) -> None:
    """Equal entries are nothing but the shift."""
    coding = TopKCoding(k=k, vocab_size=k)
    rows = encode_top_k(coding, np.arange(k)[None], np.zeros((1, k)), np.full((1, 1), -np.inf))
    found = decode_top_k(coding, rows)
    assert found.log_probs_Nk.astype(np.float64).max() <= -np.log(k) - 2**-20 + 1e-14


def test_no_tail_and_all_tail_are_exact() -> None:
    coding = TopKCoding(k=2, vocab_size=2)
    ids, log_probs = np.array([[1, 0]]), np.log([[0.75, 0.25]])
    whole = decode_top_k(coding, encode_top_k(coding, ids, log_probs, np.full((1, 1), -np.inf)))
    assert whole.log_tail_N.tolist() == [-np.inf]
    # A teacher's rounding may leave the tail a little more than all.
    for tail in (0.0, 1e-4):
        rows = encode_top_k(coding, ids, log_probs, np.full((1, 1), tail))
        found = decode_top_k(coding, rows)
        assert np.isfinite(found.log_probs_Nk).all()
        assert found.log_tail_N == pytest.approx([0], abs=2e-14)


def test_differences_of_short_floats_are_taken_in_32_bits() -> None:
    coding = TopKCoding(k=2, vocab_size=300, bits=16)
    short = np.array([[-0.0146, -10.01]], np.float16)
    rows = [
        encode_top_k(coding, np.array([[1, 0]]), each, np.array([[-3.0]]))
        for each in (short, short.astype(np.float64))
    ]
    assert rows[0].tolist() == rows[1].tolist()


def test_a_token_without_entries_is_all_tail() -> None:
    coding = TopKCoding(k=3, vocab_size=9)
    nothing = np.full((1, 3), -np.inf)
    rows = encode_top_k(coding, np.full((1, 3), -1), nothing, np.zeros((1, 1)))
    found = decode_top_k(coding, rows)
    assert found.ids_Nk.tolist() == [[0, 0, 0]]
    assert np.isneginf(found.log_probs_Nk).all()
    assert found.log_tail_N.tolist() == [0.0]
    assert not np.signbit(found.log_tail_N[0])
    renormalised = decode_top_k(coding, rows, 5.0, renormalised=True)
    assert np.isneginf(renormalised.log_probs_Nk).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_row_worked_by_hand(dtype: type) -> None:
    """Range of 4 quarters; odds of the tail 32768 - 1597; low bytes of ids; then bits: 1 0 above
    the ids' bytes, six planes of levels 0 and 254 (lowest six bits 0 and 62), ones at 0 and
    1 + 3."""
    coding = TopKCoding(k=2, vocab_size=300)
    log_probs, tails = np.array([[-0.5, -1.5]], dtype), np.array([[-1.75]], dtype)
    row = encode_top_k(coding, np.array([[299, 1]]), log_probs, tails)
    assert row.tobytes().hex(" ") == "04 c3 79 2b 01 a1 6a 04"


def test_blocks_do_not_show() -> None:
    coding = TopKCoding(k=50, vocab_size=300)
    ids, log_probs, tails = teacher(coding, 3000, seed=1)
    rows = encode_top_k(coding, ids, log_probs, tails)
    whole = decode_top_k(coding, rows)
    block = NUMBERS_PER_BLOCK // 50
    for start in (0, block - 1, block, block + 1, 2999):
        one = decode_top_k(coding, rows[start : start + 1])
        assert one.ids_Nk[0].tolist() == whole.ids_Nk[start].tolist() == ids[start].tolist()
        assert one.log_probs_Nk[0].tolist() == whole.log_probs_Nk[start].tolist()
    none = decode_top_k(coding, encode_top_k(coding, ids[:0], log_probs[:0], tails[:0]))
    assert none.ids_Nk.shape == none.log_probs_Nk.shape == (0, 50)


def test_rows_of_a_wider_array_are_read_where_they_lie() -> None:
    coding = TopKCoding(k=5, vocab_size=4000, bits=16)
    rows = encode_top_k(coding, *teacher(coding, 8, seed=1))
    wide = np.zeros((16, coding.row_bytes + 3), np.uint8)
    wide[::2, 1:-2] = rows
    found = decode_top_k(coding, wide[::2, 1:-2])
    assert found.log_probs_Nk.tolist() == decode_top_k(coding, rows).log_probs_Nk.tolist()


def test_other_temperatures_are_refused() -> None:
    coding = TopKCoding(k=2, vocab_size=9, temperatures=(1.0, 2.0))
    rows = encode_top_k(coding, *teacher(coding, 1, seed=1))
    with pytest.raises(CacheError, match=r"not known at 3\.0, only at 1\.0, 2\.0"):
        decode_top_k(coding, rows, 3.0)
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(CacheError, match="choose another"):
            decode_top_k(coding, rows, temperature, renormalised=True)


@pytest.mark.parametrize(
    ("ids", "log_probs", "tail", "message"),
    [
        ([1, 2], [-1.0, np.nan], -1.0, "log-probabilities: 1 of 2 are NaN or above 0"),
        ([1, 2], [0.5, -1.0], -1.0, "log-probabilities: 1 of 2 are NaN or above 0"),
        ([1, 2], [-1.0, -1.0], np.nan, "tail's mass: 1 of 1 are NaN"),
        ([1, 9], [-1.0, -1.0], -1.0, "ids: 1 to 9 are not all below the vocabulary of 9"),
        ([-1, 2], [-1.0, -1.0], -1.0, "ids: -1 to 2"),
        ([0, 0], [-np.inf, -np.inf], -np.inf, "without any probability"),
    ],
)
def test_answers_that_must_not_be_stored(
    ids: list[int], log_probs: list[float], tail: float, message: str
) -> None:
    with pytest.raises(TeacherOutputError, match=message):
        encode_top_k(
            TopKCoding(k=2, vocab_size=9),
            np.array([ids]),
            np.array([log_probs]),
            np.array([[tail]]),
        )


@pytest.mark.parametrize(
    ("dtype", "low"), [(np.float16, -65504), (np.float32, -3.4e38), (np.float64, -1.7e308)]
)
@pytest.mark.parametrize("bits", [5, 6, 8, 16])
def test_masks_that_are_not_infinite_are_absent_too(bits: int, dtype: type, low: float) -> None:
    coding = TopKCoding(k=3, vocab_size=9, bits=bits)
    log_probs = np.array([[-0.25, -1.5, low]], dtype)
    rows = encode_top_k(coding, np.array([[8, 2, 4]]), log_probs, np.full((1, 1), -np.inf))
    found = decode_top_k(coding, rows)
    assert found.ids_Nk.tolist() == [[8, 2, 0]]
    assert np.exp(found.log_probs_Nk) == pytest.approx(np.array([[0.778, 0.222, 0]]), abs=0.01)
