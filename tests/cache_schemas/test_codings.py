"""Codings of tokens: their widths, and what is refused of them."""

from typing import Any

import pytest
from armada.cache_schemas.codings import Coding, EliasFano, SamplesCoding, TopKCoding
from pydantic import TypeAdapter, ValidationError

LLAMA, QWEN, GPT_OSS, GEMMA = 128_256, 151_936, 201_088, 262_144


@pytest.mark.parametrize(
    ("coding", "expected"),
    [
        # Header, 2 byte columns of ids, and bits: 1 of each id, 2 of each level, high bits.
        (TopKCoding(k=50, vocab_size=LLAMA), 3 + 100 + 33),
        (TopKCoding(k=50, vocab_size=LLAMA, bits=6), 3 + 100 + 21),
        (TopKCoding(k=50, vocab_size=LLAMA, bits=16), 2 + 150 + 33),
        (TopKCoding(k=128, vocab_size=LLAMA), 3 + 256 + 64),
        (TopKCoding(k=128, vocab_size=LLAMA, bits=16), 2 + 384 + 64),
        (TopKCoding(k=128, vocab_size=LLAMA, temperatures=(1.0, 2.0, 4.0)), 7 + 256 + 64),
        (TopKCoding(k=50, vocab_size=QWEN), 3 + 100 + 40),
        (TopKCoding(k=50, vocab_size=GPT_OSS), 3 + 100 + 40),
        (TopKCoding(k=50, vocab_size=GEMMA), 3 + 100 + 40),
        (TopKCoding(k=1, vocab_size=1, bits=16), 2 + 1 + 2),
        (SamplesCoding(samples=12, vocab_size=LLAMA), 23),
        (SamplesCoding(samples=12, vocab_size=LLAMA, log_prob_bits=16), 23 + 24),
        (SamplesCoding(samples=50, vocab_size=LLAMA), 83),
        (SamplesCoding(samples=3, vocab_size=2**31), 9 + 3),
    ],
    ids=str,
)
def test_the_width_of_a_row(coding: TopKCoding | SamplesCoding, expected: int) -> None:
    assert coding.row_bytes == expected


def test_no_coding_that_is_allowed_is_wide() -> None:
    widest = TopKCoding(k=2**16, vocab_size=2**31, bits=16, temperatures=tuple(range(1, 17)))
    assert widest.row_bytes < 2**20
    assert SamplesCoding(samples=2**16, vocab_size=2**31, log_prob_bits=16).row_bytes < 2**20


@pytest.mark.parametrize("universe", [1, 2, 3, 64, 256, 1000, 65536, LLAMA, 2**31])
@pytest.mark.parametrize("count", [1, 2, 12, 50, 128, 65536])
def test_elias_fano_takes_the_fewest_bits_of_all_splits(universe: int, count: int) -> None:
    law = EliasFano(universe, count)
    sizes = [count * (low + 1) + (universe - 1 >> low) for low in range(32)]
    assert count * law.low_bits + law.high_bits == min(sizes)
    assert law.low_bits == sizes.index(min(sizes))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"kind": "topk", "k": 300, "vocab_size": 256}, "k: 300 is above the vocabulary of 256"),
        ({"kind": "topk", "k": 0, "vocab_size": 256}, "greater than or equal to 1"),
        ({"kind": "topk", "k": 65537, "vocab_size": 2**20}, "less than or equal to 65536"),
        ({"kind": "topk", "k": 5, "vocab_size": 2**31 + 1}, "less than or equal to 2147483648"),
        ({"kind": "topk", "k": 5, "vocab_size": 9, "bits": 7}, "6, 8 or 16"),
        ({"kind": "topk", "k": 5, "vocab_size": 9, "temperatures": [2, 1]}, "not ascending"),
        ({"kind": "topk", "k": 5, "vocab_size": 9, "temperatures": [1, 1]}, "not ascending"),
        ({"kind": "topk", "k": 5, "vocab_size": 9, "temperatures": [2]}, "lack 1.0"),
        ({"kind": "topk", "k": 5, "vocab_size": 9, "temperatures": []}, "at least 1"),
        ({"kind": "topk", "k": 5, "vocab_size": 9, "temperatures": [0, 1]}, "greater than"),
        ({"kind": "topk", "k": 5, "vocab_size": 9, "temperatures": ["nan", 1]}, "finite"),
        ({"kind": "topk", "k": 5, "vocab_size": 9, "temperatures": [1] * 17}, "at most 16"),
        ({"kind": "topk", "k": 5, "vocab_size": 9, "samples": 3}, "Extra inputs"),
        ({"kind": "samples", "samples": 0, "vocab_size": 9}, "greater than or equal to 1"),
        ({"kind": "samples", "samples": 4, "vocab_size": 0}, "greater than or equal to 1"),
        ({"kind": "samples", "samples": 4, "vocab_size": 9, "log_prob_bits": 8}, "0 or 16"),
        ({"kind": "samples", "samples": 4, "vocab_size": 9, "temperature": "inf"}, "finite"),
        ({"kind": "dense", "vocab_size": 9}, "'topk', 'samples'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals(document: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(Coding).validate_python(document)


@pytest.mark.parametrize(
    "coding",
    [
        TopKCoding(k=7, vocab_size=99, bits=16, temperatures=(0.5, 1.0)),
        SamplesCoding(samples=7, vocab_size=99, temperature=2.0, log_prob_bits=16),
    ],
    ids=lambda coding: coding.kind,
)
def test_a_coding_comes_back_from_json(coding: TopKCoding | SamplesCoding) -> None:
    assert TypeAdapter(Coding).validate_json(coding.model_dump_json()) == coding
