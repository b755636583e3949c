"""Bytes that no encoder wrote: refused, or read as ids of the vocabulary; never worse."""

import numpy as np
import pytest
from armada.cache_schemas.codings import SamplesCoding, TopKCoding
from armada.cache_schemas.errors import DamagedCacheError
from armada.stages.store.codec.samples import decode_samples, encode_samples
from armada.stages.store.codec.top_k import decode_top_k, encode_top_k
from hypothesis import given, settings
from hypothesis import strategies as st

VOCABULARIES = (1, 3, 200, 300, 128_256, 151_936, 2**31)


def top_k_rows(coding: TopKCoding, rows: int, draw: np.random.Generator) -> np.ndarray:
    ids = draw.integers(0, coding.vocab_size, (rows, coding.k))
    log_probs = -np.sort(draw.exponential(4, (rows, coding.k)), axis=1)
    tails = np.log(np.full((rows, len(coding.temperatures)), 0.1))
    return encode_top_k(coding, ids, log_probs, tails)


def flipped(rows: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """One bit of each row is another."""
    rows = rows.copy()
    places = draw.integers(0, rows.shape[1], len(rows))
    rows[np.arange(len(rows)), places] ^= (1 << draw.integers(0, 8, len(rows))).astype(np.uint8)
    return rows


def check_top_k(coding: TopKCoding, rows: np.ndarray) -> int:
    """How many rows are refused, read one by one."""
    refused = 0
    for row in rows:
        for renormalised in (False, True):
            try:
                found = decode_top_k(coding, row[None], renormalised=renormalised)
            except DamagedCacheError:
                refused += 1
                continue
            assert found.ids_Nk.min() >= 0
            assert found.ids_Nk.max() < coding.vocab_size
            mass = np.exp(found.log_probs_Nk.astype(np.float64)).sum()
            tail = 0.0 if renormalised else np.exp(np.float64(found.log_tail_N[0]))
            assert mass + tail <= 1
    return refused // 2


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(VOCABULARIES), st.integers(1, 60), st.sampled_from([5, 6, 8, 16]), st.data())
def test_any_bytes_as_top_k(vocabulary: int, k: int, bits: int, data: st.DataObject) -> None:
    coding = TopKCoding(k=min(k, vocabulary), vocab_size=vocabulary, bits=bits)
    draw = np.random.default_rng(data.draw(st.integers(0, 2**20)))
    noise = draw.integers(0, 256, (4, coding.row_bytes)).astype(np.uint8)
    constant = np.full((1, coding.row_bytes), data.draw(st.integers(0, 255)), np.uint8)
    check_top_k(coding, noise)
    check_top_k(coding, constant)
    check_top_k(coding, flipped(top_k_rows(coding, 8, draw), draw))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(VOCABULARIES), st.integers(1, 60), st.sampled_from([0, 16]), st.data())
def test_any_bytes_as_draws(vocabulary: int, samples: int, bits: int, data: st.DataObject) -> None:
    coding = SamplesCoding(samples=samples, vocab_size=vocabulary, log_prob_bits=bits)
    draw = np.random.default_rng(data.draw(st.integers(0, 2**20)))
    log_probs = -draw.exponential(4, (8, samples)) if bits else None
    good = encode_samples(coding, draw.integers(0, vocabulary, (8, samples)), log_probs)
    noise = draw.integers(0, 256, (4, coding.row_bytes)).astype(np.uint8)
    for row in (*flipped(good, draw), *noise):
        try:
            found = decode_samples(coding, row[None])
        except DamagedCacheError:
            continue
        assert found.ids_NK.min() >= 0
        assert found.ids_NK.max() < vocabulary


@pytest.mark.parametrize("value", [0, 255])
def test_rows_that_were_never_written_are_refused(value: int) -> None:
    for coding in (TopKCoding(k=50, vocab_size=128_256), TopKCoding(k=7, vocab_size=99, bits=16)):
        with pytest.raises(DamagedCacheError, match="numbers in 2 tokens"):
            decode_top_k(coding, np.full((2, coding.row_bytes), value, np.uint8))
    samples = SamplesCoding(samples=12, vocab_size=128_256)
    with pytest.raises(DamagedCacheError, match="numbers in 2 tokens"):
        decode_samples(samples, np.full((2, samples.row_bytes), value, np.uint8))


def test_every_flipped_bit_of_the_unary_part_is_found() -> None:
    coding = TopKCoding(k=50, vocab_size=128_256)
    (row,) = top_k_rows(coding, 1, np.random.default_rng(0))
    first = 8 * (coding.row_bytes - coding.header_bytes - 100) - 33 * 8 + 50 + 100
    start = 8 * (coding.header_bytes + 100) + first
    for bit in range(start, start + 113):
        damaged = row.copy()
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedCacheError):
            decode_top_k(coding, damaged[None])


def test_a_one_too_many_here_and_one_too_few_there_are_found() -> None:
    coding = SamplesCoding(samples=2, vocab_size=16)  # two low bits; then 2 ones and 3 zeros
    few, many = 0b00001_0000, 0b00111_0000
    rows = np.array([list(each.to_bytes(2, "little")) for each in (few, many)], np.uint8)
    with pytest.raises(DamagedCacheError, match="2 numbers each"):
        decode_samples(coding, rows)
    with pytest.raises(DamagedCacheError, match="2 numbers each"):
        decode_samples(coding, rows[::-1])


def test_ids_outside_of_the_vocabulary_are_found() -> None:
    wide, narrow = (TopKCoding(k=3, vocab_size=v) for v in (256, 200))
    rows = top_k_rows(wide, 1, np.random.default_rng(0))
    rows[0, wide.header_bytes + 1] = 200
    with pytest.raises(DamagedCacheError, match=r"id 2\d\d of a vocabulary of 200"):
        decode_top_k(narrow, rows)
    ids = np.array([[199, 200]])
    rows = encode_samples(SamplesCoding(samples=2, vocab_size=201), ids, None)
    with pytest.raises(DamagedCacheError, match=r"id 2\d\d of a vocabulary of 200"):
        decode_samples(SamplesCoding(samples=2, vocab_size=200), rows)


def test_numbers_that_go_down_are_found() -> None:
    coding = SamplesCoding(samples=2, vocab_size=16)
    row = encode_samples(coding, np.array([[5, 6]]), None)
    row[0, 0] ^= 0b1111  # low bits 1 and 2 become 2 and 1
    with pytest.raises(DamagedCacheError, match="go down"):
        decode_samples(coding, row)


def test_a_first_level_that_is_not_zero_is_found() -> None:
    coding = TopKCoding(k=1, vocab_size=2, bits=6)  # one level of 6 bits and its unary rest
    row = encode_top_k(coding, np.array([[1]]), np.array([[-0.1]]), np.array([[-3.0]]))
    row[0, -1] ^= 0b10
    with pytest.raises(DamagedCacheError, match="first log-probability"):
        decode_top_k(coding, row)


def test_an_absent_entry_has_id_0_whatever_its_bytes_are() -> None:
    coding = TopKCoding(k=2, vocab_size=256)
    log_probs = np.array([[0.0, -np.inf]])
    row = encode_top_k(coding, np.array([[7, 7]]), log_probs, np.array([[-np.inf]]))
    row[0, coding.header_bytes + 1] = 9
    assert decode_top_k(coding, row).ids_Nk.tolist() == [[7, 0]]
