"""Vectors in fewer bytes, against sentence-transformers' own."""

import numpy as np
import pytest
from armada.cache_schemas.errors import InputError
from armada.stages.retrieval.quantization import Quantizer, cut, ranges_of

PRECISIONS = ["float32", "int8", "uint8", "binary", "ubinary"]
QUANTIZED = PRECISIONS[1:]


def vectors(count: int, seed: int, width: int = 20) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    found[:, 3] = 0.5  # a number that never changes
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
def test_codes_are_those_of_sentence_transformers(precision: str) -> None:
    theirs = pytest.importorskip("sentence_transformers.util.quantization")
    calibration, others = vectors(50, 0), vectors(30, 1) * 2  # beyond the ranges, too
    quantizer = Quantizer(precision, 20, ranges_of(calibration))  # type: ignore[arg-type]
    wanted = theirs.quantize_embeddings(others, precision, calibration_embeddings=calibration)
    codes = quantizer.codes(others)
    assert codes.dtype == wanted.dtype
    np.testing.assert_array_equal(codes, wanted)
    assert quantizer.vector_bytes == wanted[:1].nbytes
    if precision.endswith("int8"):
        low, high = calibration.min(axis=0), calibration.max(axis=0)
        bucket = wanted.astype(float) + (128 if precision == "int8" else 0)
        numbers = low + bucket * np.where(high > low, (high - low) / 255, 1)
        np.testing.assert_allclose(quantizer.numbers(codes), numbers, rtol=1e-5, atol=1e-6)


def test_int8_is_near_to_the_numbers_and_bits_are_their_signs() -> None:
    found = vectors(40, 2)
    quantizer = Quantizer("int8", 20, ranges_of(found))
    steps = np.ptp(found, axis=0) / 255
    off = found - quantizer.numbers(quantizer.codes(found))
    assert (off >= -1e-5).all()
    assert (off <= steps + 1e-5).all()
    for precision in ("binary", "ubinary"):
        bits = Quantizer(precision, 20)  # type: ignore[arg-type]
        signs = bits.compared(bits.codes(found))
        np.testing.assert_array_equal(signs, np.where(found > 0, 1, -1))
        codes = bits.codes(found).view(np.uint8)
        hamming = np.bitwise_count(codes[:1] ^ codes).sum(axis=1)
        np.testing.assert_array_equal(signs @ signs[0], 20 - 2 * hamming.astype(int))


def test_ranges_of_parts_are_those_of_the_whole() -> None:
    found = vectors(40, 3)
    in_parts = ranges_of(found[25:], ranges_of(found[:25]))
    np.testing.assert_array_equal(in_parts, ranges_of(found))
    np.testing.assert_array_equal(in_parts, [found.min(axis=0), found.max(axis=0)])


def test_a_cut_keeps_the_length() -> None:
    found = np.array([[3, 4, 0, 0], [0, 0, 2, 1], [1, 0, 0, 1]], np.float32)
    np.testing.assert_allclose(cut(found, 2), [[3, 4], [0, 0], [np.sqrt(2), 0]], rtol=1e-6)
    assert cut(found, None) is cut(found, 4) is found


def test_what_has_no_code_is_refused() -> None:
    for precision in PRECISIONS:
        quantizer = Quantizer(precision, 2, np.array([[0, 0], [1, 1]], np.float32))  # type: ignore[arg-type]
        with pytest.raises(InputError, match="vector 1: is not finite"):
            quantizer.codes(np.array([[0, 1], [np.nan, 0]]))
    with pytest.raises(InputError, match="of no vectors"):
        ranges_of(np.empty((0, 2)))
    for ranges in (None, np.zeros((2, 3), np.float32)):
        with pytest.raises(InputError, match=r"it takes \[2, 2\]"):
            Quantizer("int8", 2, ranges)
    with pytest.raises(InputError, match="above its highest"):
        Quantizer("uint8", 2, np.array([[0, 1], [1, 0]], np.float32))
