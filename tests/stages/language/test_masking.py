"""Masks as functions of keys: shares, what is read in place of tokens, and what they do not depend
on."""

import numpy as np
import pytest
from armada.cache_schemas.errors import StudentSourceError
from armada.cache_schemas.keys import keys_to_array
from armada.stages.language.masking import Masker, MaskSettings, WholeTexts, encode_whole
from pydantic import ValidationError
from tiny_checkpoints import make_byte_tokenizer, make_tokenizer
from tokenizers import AddedToken

TEXTS = ("the red bird sings at dawn", "two dogs run", "", "rain [MASK] falls [SEP]", "a cat " * 40)
TOKENIZER = make_tokenizer(TEXTS)
WORDS = np.arange(5, 55, dtype=np.int32)
"""Tokens of which none is special."""


def masker(**settings: object) -> Masker:
    return Masker.of(TOKENIZER, MaskSettings(**settings), StudentSourceError, "student x")


def long_texts(count: int, length: int) -> tuple[WholeTexts, np.ndarray]:
    random = np.random.default_rng(0)
    ids = random.choice(WORDS, count * length).astype(np.int32)
    offsets = np.arange(count + 1, dtype=np.int64) * length
    keys = keys_to_array(random.bytes(16) for _ in range(count))
    return WholeTexts(ids, offsets, np.zeros(count, dtype=bool)), keys


def test_texts_between_special_tokens_and_no_others() -> None:
    found = encode_whole(TOKENIZER, [(text,) for text in TEXTS], 16)
    rows = [TOKENIZER.convert_ids_to_tokens(found.of(n).tolist()) for n in range(len(found))]
    assert rows[0] == ["[CLS]", *TEXTS[0].split(), "[SEP]"]
    assert rows[2] == ["[CLS]", "[SEP]"]
    assert rows[3] == ["[CLS]", "rain", "[", "MASK", "]", "falls", "[", "SEP", "]", "[SEP]"]
    assert len(rows[4]) == 16
    assert rows[4][-1] == "[SEP]"
    assert found.truncated.tolist() == [False, False, False, False, True]


def test_shares_are_those_of_bert() -> None:
    """Exact ones of tokens chosen in each text; of those, within four standard errors."""
    texts, keys = long_texts(2_000, 40)
    found = masker().mask(texts, keys, np.zeros(len(texts), np.int64))
    assert (found.predicted == 6).all()
    read, ids = found.read[found.chosen], found.ids[found.chosen]
    masked, same = read == TOKENIZER.mask_token_id, read == ids
    total = len(read)
    assert np.array_equal(found.read[~found.chosen], found.ids[~found.chosen])
    for share, expected in ((masked.mean(), 0.8), ((~masked & ~same).mean(), 0.1)):
        assert abs(share - expected) < 4 * (expected * (1 - expected) / total) ** 0.5 + 0.1 / 50
    per_position = np.bincount(found.positions, minlength=40) / len(texts)
    assert np.abs(per_position - 0.15).max() < 4 * (0.15 * 0.85 / len(texts)) ** 0.5
    others = np.bincount(read[~masked & ~same], minlength=len(TOKENIZER))
    assert others[:5].sum() == 0  # special tokens
    assert (others > 0).sum() > 0.9 * (len(TOKENIZER) - 5)


@pytest.mark.parametrize(
    ("settings", "read_as_mask", "kept"),
    [
        ({"mask_token_share": 1, "random_token_share": 0}, 1.0, 0.0),
        ({"mask_token_share": 0, "random_token_share": 0}, 0.0, 1.0),
    ],
)
def test_the_ends_of_shares(settings: dict[str, float], read_as_mask: float, kept: float) -> None:
    texts, keys = long_texts(50, 20)
    found = masker(**settings).mask(texts, keys, np.zeros(50, np.int64))
    read = found.read[found.chosen]
    assert (read == TOKENIZER.mask_token_id).mean() == read_as_mask
    assert (read == found.ids[found.chosen]).mean() == kept


def test_a_mask_is_of_key_seed_and_number_alone() -> None:
    texts, keys = long_texts(30, 20)
    numbers = np.zeros(30, np.int64)
    whole = masker().mask(texts, keys, numbers)
    rows = np.array([7, 3, 29])
    alone = WholeTexts(
        np.concatenate([texts.of(row) for row in rows]),
        np.array([0, 20, 40, 60]),
        np.zeros(3, bool),
    )
    part = masker().mask(alone, keys[rows], numbers[:3])
    taken = whole.take(rows)
    assert np.array_equal(part.read, taken.read)
    assert np.array_equal(part.positions, taken.positions)
    for other in (
        masker(mask_seed=1).mask(texts, keys, numbers),
        masker().mask(texts, keys, numbers + 1),
        masker().mask(texts, keys[::-1], numbers),
    ):
        assert (other.chosen != whole.chosen).mean() > 0.15  # of independent ones 0.255


def test_a_mask_stays_what_it_is() -> None:
    """Caches of one release are read by the next."""
    texts = encode_whole(TOKENIZER, [(TEXTS[0],), (TEXTS[1],)], 16)
    keys = keys_to_array([bytes(range(16)), bytes(16)])
    found = masker(mask_share=0.4, mask_seed=3).mask(texts, keys, np.array([0, 2]))
    assert found.positions.tolist() == GOLDEN_POSITIONS
    assert (found.read[found.chosen] == TOKENIZER.mask_token_id).all()
    shares = {"mask_share": 1, "mask_token_share": 0.4, "random_token_share": 0.3}
    found = masker(**shares, mask_seed=3).mask(texts, keys, np.array([0, 2]))
    assert TOKENIZER.convert_ids_to_tokens(found.read[found.chosen].tolist()) == GOLDEN_READ


GOLDEN_POSITIONS = [4, 6, 3]
GOLDEN_READ = [*["[MASK]"] * 3, "s", "##s", "[MASK]", "two", "[MASK]", "##d"]


def test_a_special_token_without_a_role_is_never_read() -> None:
    """As <|padding|> of ModernBERT, which is none of the tokenizer's `all_special_ids`."""
    tokenizer = make_tokenizer(TEXTS)
    tokenizer.add_tokens([AddedToken("<|padding|>", special=True)], special_tokens=True)
    added = tokenizer.convert_tokens_to_ids("<|padding|>")
    found = Masker.of(tokenizer, MaskSettings(), StudentSourceError, "student x")
    assert added not in found.ordinary
    assert {added, tokenizer.mask_token_id, tokenizer.pad_token_id} <= {*found.special.tolist()}


def test_short_texts_have_one_mask_and_empty_ones_none() -> None:
    found = encode_whole(TOKENIZER, [("a",), ("",), ("☃",)], 16)
    masks = masker(mask_share=0.01).mask(found, keys_to_array([bytes(16)] * 3), np.zeros(3, "i8"))
    assert masks.predicted.tolist() == [1, 0, 0]  # the last one is unknown to the tokenizer


@pytest.mark.parametrize(
    "settings",
    [
        *({"mask_share": share} for share in (0, -0.1, 1.1, float("nan"))),
        {"mask_token_share": 0.8, "random_token_share": 0.3},
        *({"masks_per_text": count} for count in (0, 65)),
        {"mask_seed": -1},
    ],
)
def test_shares_that_are_none_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="|".join(settings)):
        MaskSettings(**settings)


def test_a_tokenizer_without_a_mask_token_is_refused() -> None:
    other = make_byte_tokenizer(TEXTS, bos="<s>", eos="</s>", pad=None)
    with pytest.raises(StudentSourceError, match="student x: its tokenizer has no mask token; use"):
        Masker.of(other, MaskSettings(), StudentSourceError, "student x")
