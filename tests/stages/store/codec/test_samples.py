"""Rows of samples: what comes back, by a second reader too."""

import numpy as np
import pytest
from armada.cache_schemas.codings import SamplesCoding
from armada.cache_schemas.errors import TeacherOutputError
from armada.stages.store.codec.bits import NUMBERS_PER_BLOCK
from armada.stages.store.codec.samples import decode_samples, encode_samples
from codec_reference import read_samples
from hypothesis import given, settings
from hypothesis import strategies as st

VOCABULARIES = (1, 2, 50, 257, 128_256, 201_088, 2**31)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(VOCABULARIES),
    st.integers(1, 150),
    st.sampled_from([0, 16]),
    st.integers(0, 2**20),
)
def test_what_comes_back(vocabulary: int, samples: int, bits: int, seed: int) -> None:
    coding = SamplesCoding(samples=samples, vocab_size=vocabulary, log_prob_bits=bits)
    draw = np.random.default_rng(seed)
    # Much repetition, as of a teacher that is sure.
    ids = draw.choice(draw.integers(0, vocabulary, 5), (3, samples))
    log_probs = -draw.exponential(8, (3, samples)) if bits else None
    rows = encode_samples(coding, ids, log_probs)
    assert rows.shape == (3, coding.row_bytes)
    found = decode_samples(coding, rows)
    assert found.ids_NK.tolist() == np.sort(ids, axis=1).tolist()
    for place, row in enumerate(rows):
        expected_ids, expected = read_samples(coding, row)
        assert found.ids_NK[place].tolist() == expected_ids
        if log_probs is None:
            assert found.log_probs_NK is None
            continue
        assert found.log_probs_NK[place].tolist() == expected
        order = np.argsort(ids[place], kind="stable")
        within = np.maximum(log_probs[place][order], -65535 / 1024)
        assert np.abs(found.log_probs_NK[place] - within).max() <= 1 / 2048 + 1e-6


def test_a_row_worked_by_hand() -> None:
    """300 ids, 3 samples: 6 low bits each of 5, 5 and 299 (lowest six 43), ones at 0, 1 and 2 + 4;
    then 0, 1 and 65535 steps."""
    coding = SamplesCoding(samples=3, vocab_size=300, log_prob_bits=16)
    ids, log_probs = np.array([[5, 299, 5]]), np.array([[1e-4, -np.inf, -1 / 1024]])
    row = encode_samples(coding, ids, log_probs)
    planes = "111001110001000001"  # from the lowest bit: 5 = 101000, 43 = 110101
    high = "1100001"
    section = int((planes + high)[::-1], 2).to_bytes(4, "little")
    assert row.tobytes() == section + bytes([0, 0, 1, 0, 255, 255])
    assert decode_samples(coding, row).log_probs_NK.tolist() == [[0.0, -1 / 1024, -65535 / 1024]]
    assert not np.signbit(decode_samples(coding, row).log_probs_NK[0, 0])


def test_blocks_do_not_show() -> None:
    coding = SamplesCoding(samples=50, vocab_size=128_256)
    ids = np.sort(np.random.default_rng(0).integers(0, 128_256, (3000, 50)), axis=1)
    rows = encode_samples(coding, ids, None)
    assert decode_samples(coding, rows).ids_NK.tolist() == ids.tolist()
    block = NUMBERS_PER_BLOCK // 50
    for start in (block - 1, block, block + 1, 2999):
        assert (
            rows[start].tolist() == encode_samples(coding, ids[start : start + 1], None)[0].tolist()
        )
    assert decode_samples(coding, encode_samples(coding, ids[:0], None)).ids_NK.shape == (0, 50)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_log_probabilities_of_any_float_type(dtype: type) -> None:
    coding = SamplesCoding(samples=3, vocab_size=9, log_prob_bits=16)
    log_probs = np.array([[-1.5, -40.0, np.finfo(dtype).min]], dtype)
    found = decode_samples(coding, encode_samples(coding, np.arange(3)[None], log_probs))
    assert found.log_probs_NK.tolist() == [[-1.5, -40.0, -65535 / 1024]]


@pytest.mark.parametrize(
    ("ids", "log_probs", "message"),
    [
        ([1, 9], None, "ids: 1 to 9 are not all below the vocabulary of 9"),
        ([-1, 2], None, "ids: -1 to 2"),
        ([1, 2], [-1.0, np.nan], "log-probabilities of samples: 1 of 2 are NaN or above 0"),
        ([1, 2], [2.0, np.nan], "2 of 2 are NaN or above 0"),
    ],
)
def test_answers_that_must_not_be_stored(
    ids: list[int], log_probs: list[float] | None, message: str
) -> None:
    coding = SamplesCoding(samples=2, vocab_size=9, log_prob_bits=16 if log_probs else 0)
    with pytest.raises(TeacherOutputError, match=message):
        encode_samples(coding, np.array([ids]), np.array([log_probs]) if log_probs else None)
