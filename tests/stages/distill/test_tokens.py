"""Ragged token ids against what the tokenizer itself pads."""

from typing import Any

import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import StudentSourceError
from armada.stages.distill.student_models import load_tokenizer, match_tokenizer
from armada.stages.distill.tokens import choose_max_length, encode
from tiny_runs import TEXTS
from transformers import AutoConfig, AutoModel

ONE = [(text,) for text in TEXTS[:12]]
TWO = list(zip(TEXTS[:12], TEXTS[20:32], strict=True))
THREE = [(*pair, text) for pair, text in zip(TWO, TEXTS[40:52], strict=True)]
EVERY_OTHER = np.array([9, 1, 4, 4, 0])


def padded(tokenizer: Any, texts: list[str], pairs: list[str] | None, length: int) -> Any:
    """The tokenizer's own batch."""
    return tokenizer(
        texts, pairs, padding=True, truncation=True, max_length=length, return_tensors="pt"
    )


def assert_same_batch(ours: dict[str, torch.Tensor], theirs: Any) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == torch.int64
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["bert", "roberta", "opt", "llama"])
@pytest.mark.parametrize("length", [64, 9], ids=["whole", "cut"])
def test_one_segment_is_padded_as_the_tokenizer_does(checkpoint, kind, length):
    tokenizer = load_tokenizer(checkpoint(kind))
    batch = encode(tokenizer, ONE, length).pad(EVERY_OTHER)
    texts = [ONE[i][0] for i in EVERY_OTHER]
    assert_same_batch(batch, padded(tokenizer, texts, None, length))


@pytest.mark.parametrize("kind", ["bert", "opt"])
@pytest.mark.parametrize("length", [64, 15], ids=["whole", "cut"])
def test_two_segments_are_a_pair(checkpoint, kind, length):
    tokenizer = load_tokenizer(checkpoint(kind))
    batch = encode(tokenizer, TWO, length).pad(EVERY_OTHER)
    first, second = ([TWO[i][part] for i in EVERY_OTHER] for part in (0, 1))
    assert_same_batch(batch, padded(tokenizer, first, second, length))


@pytest.mark.parametrize("kind", ["bert", "opt"])
def test_further_segments_join_the_second_of_the_pair(checkpoint, kind):
    """By the separator, or by the end of a text where there is none, as for a teacher."""
    tokenizer = load_tokenizer(checkpoint(kind))
    joint = f" {tokenizer.sep_token or tokenizer.eos_token} "
    batch = encode(tokenizer, THREE, 64).pad(EVERY_OTHER)
    first = [THREE[i][0] for i in EVERY_OTHER]
    rest = [joint.join(THREE[i][1:]) for i in EVERY_OTHER]
    assert_same_batch(batch, padded(tokenizer, first, rest, 64))


def test_a_separator_between_segments_is_one_token(checkpoint):
    tokenizer = load_tokenizer(checkpoint("bert"))
    tokens = encode(tokenizer, THREE[:1], 64)
    separators = tokens.values["input_ids"] == tokenizer.sep_token_id
    assert separators.sum() == 3
    kinds = tokens.values["token_type_ids"]
    assert kinds.tolist() == sorted(kinds)  # the first is 0, all others are 1
    assert kinds[0] == 0
    assert kinds[-1] == 1


def test_a_batch_is_as_wide_as_its_own_longest_example(checkpoint):
    tokenizer = load_tokenizer(checkpoint("bert"))
    tokens = encode(tokenizer, ONE, 64)
    lengths = [len(tokenizer(text)["input_ids"]) for (text,) in ONE]
    assert tokens.offsets.tolist() == [0, *np.cumsum(lengths)]
    assert len(tokens) == len(ONE)
    shortest = int(np.argmin(lengths))
    assert max(lengths) > lengths[shortest]
    batch = tokens.pad(np.array([shortest]))
    assert batch["input_ids"].shape == (1, lengths[shortest])


@pytest.mark.parametrize("examples", [ONE, TWO, THREE], ids=["one", "two", "three"])
@pytest.mark.parametrize("length", [6, 9, 20, 64])
def test_truncated_examples_are_counted(checkpoint, examples, length):
    tokenizer = load_tokenizer(checkpoint("bert"))
    tokens = encode(tokenizer, examples, length)
    # Segments of a BERT-style example: [CLS] a [SEP] b [SEP] c [SEP].
    words = [
        1 + sum(len(tokenizer.tokenize(text)) + 1 for text in segments) for segments in examples
    ]
    assert tokens.truncated == sum(count > length for count in words)
    assert np.diff(tokens.offsets).tolist() == [min(count, length) for count in words]


def test_many_examples_are_encoded_in_parts(checkpoint, monkeypatch):
    tokenizer = load_tokenizer(checkpoint("bert"))
    whole = encode(tokenizer, TWO, 12)
    monkeypatch.setattr("armada.stages.distill.tokens._ENCODE_ROWS", 5)
    parts = encode(tokenizer, TWO, 12)
    np.testing.assert_array_equal(parts.offsets, whole.offsets)
    assert parts.truncated == whole.truncated
    for name, values in whole.values.items():
        np.testing.assert_array_equal(parts.values[name], values, strict=True)


@pytest.mark.parametrize(
    ("kind", "has_types"),
    [("bert", True), ("roberta", False), ("distilbert", False), ("deberta", False)],
)
def test_segment_numbers_are_for_models_that_read_them(checkpoint, kind, has_types):
    tokenizer = load_tokenizer(checkpoint(kind))
    match_tokenizer(tokenizer, AutoConfig.from_pretrained(checkpoint(kind)))
    assert ("token_type_ids" in encode(tokenizer, TWO, 32).values) == has_types


# --- how long an example may be


@pytest.mark.parametrize(
    ("kind", "asked", "chosen"),
    [
        pytest.param("bert", None, 64, id="what-it-takes"),
        pytest.param("roberta", None, 64, id="less-the-unused-positions"),
        pytest.param("opt", None, 64, id="decoder"),
        pytest.param("bert", 10, 10, id="as-asked"),
        pytest.param("bert", 64, 64, id="the-limit"),
    ],
)
def test_the_length_is_chosen(checkpoint, kind, asked, chosen):
    folder = checkpoint(kind)
    backbone = AutoModel.from_pretrained(folder)
    assert choose_max_length(asked, load_tokenizer(folder), backbone) == chosen


def test_a_length_is_128_where_more_is_possible(checkpoint):
    tokenizer = load_tokenizer(checkpoint("bert"))
    backbone = AutoModel.from_pretrained(checkpoint("bert"))
    backbone.config.max_position_embeddings = 512
    assert choose_max_length(None, tokenizer, backbone) == 128
    tokenizer.model_max_length = 100
    assert choose_max_length(None, tokenizer, backbone) == 100


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_more_tokens_than_the_student_takes_are_refused(checkpoint, kind):
    folder = checkpoint(kind)
    backbone = AutoModel.from_pretrained(folder)
    with pytest.raises(StudentSourceError, match=r"max_length 65: .* at most 64 tokens"):
        choose_max_length(65, load_tokenizer(folder), backbone)


@pytest.mark.parametrize(("kind", "least"), [("bert", 4), ("opt", 3)])
def test_fewer_tokens_than_a_text_needs_are_refused(checkpoint, kind, least):
    tokenizer = load_tokenizer(checkpoint(kind))
    backbone = AutoModel.from_pretrained(checkpoint(kind))
    assert choose_max_length(least, tokenizer, backbone) == least
    with pytest.raises(StudentSourceError, match=f"max_length {least - 1}: .* at least {least}"):
        choose_max_length(least - 1, tokenizer, backbone)
    # A pair of that length has one token of text.
    lengths = np.diff(encode(tokenizer, TWO, least).offsets)
    assert set(lengths) == {least}
