"""Texts that are cut before they are tokenized: their first tokens are those of the whole texts."""

from typing import Any

import numpy as np
import pytest
from armada.stages.distill import tokens as student_tokens
from armada.stages.language.recipe import Recipe
from armada.stages.language.tokens import encode_texts
from armada.stages.precompute.teachers.base import Example
from armada.stages.precompute.teachers.tokenized import TextTokenizer, TokenizedOptions
from armada.stages.tokenizing import long_texts
from armada.stages.tokenizing.long_texts import shortened, shortened_pair, stretches
from armada.stages.tokenizing.partings import PARTINGS, is_local, partings, takes_all
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoints import make_tokenizer
from tiny_language_models import make_chat_tokenizer
from tiny_tokenizers import CL100K, KINDS, O200K, SENTENCES, make_kind

TOKENIZERS = {kind: make_kind(kind) for kind in KINDS}
CUT_AT_NO_PLACE = {"lookahead", "previous", "lines", "bare", "across", "unigram_whole"}

FRAGMENTS = (
    "the |red bird| sings|  |\n| \n\n |12|1999|aaaa|ab|babab|it's|'ve|I'll| |，|。|红色|鸟|é"  # noqa: RUF001
    "|e\u0301|İ|ß|море| и |<unk>|</s>|x[10]|(|!!|\t|\u200b|ﬁ|q|Ġ|▁|ABcd"
)
pieces = st.sampled_from(FRAGMENTS.split("|"))
texts = st.lists(pieces | st.text(max_size=3), min_size=1, max_size=60).map("".join)


@pytest.fixture(autouse=True)
def _short_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_texts, "LONG", 1)
    monkeypatch.setattr(long_texts, "TRIED", 1)


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts, most=st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_the_first_tokens_are_those_of_the_whole_text(kind: str, text: str, most: int) -> None:
    tokenizer = TOKENIZERS[kind]
    whole = tokenizer(text)["input_ids"]
    cut = tokenizer(shortened(tokenizer, [text], most)[0])["input_ids"]
    assert cut[:most] == whole[:most]
    assert (len(cut) > most) == (len(whole) > most)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - CUT_AT_NO_PLACE))
def test_a_text_of_sentences_is_cut(kind: str) -> None:
    text = " ".join(SENTENCES * 20)
    assert len(shortened(TOKENIZERS[kind], [text], 4)[0]) < len(text) / 10


@pytest.mark.parametrize("kind", sorted(CUT_AT_NO_PLACE))
def test_what_is_not_known_to_part_is_left_whole(kind: str) -> None:
    assert partings(TOKENIZERS[kind]) == []


def test_patterns_that_part() -> None:
    spaces, digits, marks = PARTINGS
    for pattern in (CL100K, O200K):
        assert all(is_local(pattern, kind) and takes_all(pattern, kind) for kind in PARTINGS)
    assert not is_local(r"\p{L}+ ?", spaces)
    assert is_local(r"\p{L}+ ?", digits)
    assert not takes_all(r"[A-Z]+", spaces)
    refused = (
        r"\w+(?=x)",
        r"^\s+",
        r"(\p{L}+\s)*x",
        ".+",
        r"[^\n]+",
        r"(?<=a)b",
        r"a\b",
        "a*?",
        "(a",
    )
    for pattern in (*refused, r"[^(\s|[.,])]+", r"[\p{L}&&[a-z]]"):
        assert not any(is_local(pattern, kind) for kind in (spaces, marks)), pattern


@given(first=texts, second=texts, most=st.integers(4, 21))
@settings(max_examples=60, deadline=None)
def test_pairs_keep_as_many_tokens_of_each(first: str, second: str, most: int) -> None:
    tokenizer = make_pair_tokenizer()
    expected = tokenizer(first, second, truncation=True, max_length=most)
    cut = shortened_pair(tokenizer, first, second, most)
    found = tokenizer(*cut, truncation=True, max_length=most)
    assert found["input_ids"] == expected["input_ids"]
    assert found["token_type_ids"] == expected["token_type_ids"]


_PAIRS: list[Any] = []


def make_pair_tokenizer() -> Any:
    if not _PAIRS:
        _PAIRS.append(make_tokenizer(SENTENCES))
    return _PAIRS[0]


@given(text=texts, most=st.integers(3, 20))
@settings(max_examples=40, deadline=None)
def test_teachers_and_students_read_the_same_as_without(text: str, most: int) -> None:
    """By a second route: the library, which is given all of the text."""
    tokenizer = make_pair_tokenizer()
    expected = tokenizer(text, truncation=True, max_length=most)["input_ids"]
    whole = tokenizer(text)["input_ids"]
    student = student_tokens.encode(tokenizer, [(text,)], most)
    assert student.values["input_ids"].tolist() == expected
    assert student.truncated == (len(whole) > most)
    teacher = TextTokenizer(
        tokenizer,
        TokenizedOptions(),
        max_length=most,
        names=frozenset({"input_ids"}),
        vocabulary=len(tokenizer),
        positions=64,
    )
    rows = teacher.read([Example(b"", (text,))])
    assert rows.columns["input_ids"].tolist() == expected
    assert rows.truncated.tolist() == [len(whole) > most]


CHAT = make_chat_tokenizer()


@given(given_text=texts, said=texts, most=st.integers(2, 30))
@settings(max_examples=40, deadline=None)
def test_language_models_read_the_same_as_without(given_text: str, said: str, most: int) -> None:
    recipe = Recipe(text_format="plain")
    cut = encode_texts(CHAT, recipe, [(given_text, said)], most, with_characters=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_texts, "LONG", 10**9)
        whole = encode_texts(CHAT, recipe, [(given_text, said)], most, with_characters=True)
    for name in ("ids", "offsets", "predicted", "truncated", "bytes", "read"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name), name)


def test_a_word_that_no_tokenizer_looks_at_is_cut() -> None:
    tokenizer = TOKENIZERS["bert"]
    text = "a " + "b" * 10_000 + " the"
    short = shortened(tokenizer, [text], 5)[0]
    assert len(short) < 100
    assert tokenizer(short)["input_ids"] == tokenizer(text)["input_ids"]


def test_tokenizers_that_cut_at_the_left_are_given_all() -> None:
    tokenizer = make_kind("gpt2")
    tokenizer.truncation_side = "left"
    text = " ".join(SENTENCES * 20)
    assert shortened(tokenizer, [text], 4) == [text]


def test_an_added_token_across_a_place_is_kept_whole() -> None:
    tokenizer = make_kind("gpt2")
    tokenizer.add_tokens(["red bird"])
    assert all(kind.after != " " for kind in partings(tokenizer))


def test_ordinary_texts_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    text = " ".join(SENTENCES)
    assert shortened(TOKENIZERS["gpt2"], [text], 64) == [text]


STRETCHED = sorted(KINDS.keys() - {"bert", "words", "clip", "lookahead"})
LETTERS = "a|b|ab|ba|aaa|abab|the|红色|鸟在|黎明|，"  # noqa: RUF001
letters = st.sampled_from(LETTERS.split("|"))


@pytest.mark.parametrize("kind", STRETCHED)
@given(
    start=st.sampled_from(["", "I'", "'", "it's ", "42", "\n", " 'l", "AB"]),
    body=st.lists(st.lists(letters, min_size=60, max_size=90).map("".join), max_size=3),
    most=st.integers(1, 12),
)
@settings(max_examples=12, deadline=None)
def test_a_stretch_without_a_place_is_cut_where_its_tokens_are_settled(
    kind: str, start: str, body: list[str], most: int
) -> None:
    tokenizer, text = TOKENIZERS[kind], start + "".join(body) * 4
    known = stretches(tokenizer)
    assert known is not None
    at = len(text) // 2
    whole = tokenizer(text)["input_ids"]
    if known.settles(text, at, most, {}):
        assert tokenizer(text[:at])["input_ids"][: most + 1] == whole[: most + 1]


@pytest.mark.parametrize("kind", [kind for kind in STRETCHED if "unigram" not in kind])
def test_one_endless_word_is_cut(kind: str) -> None:
    text = "ab" * 4000
    short = shortened(TOKENIZERS[kind], [text], 4)[0]
    assert len(short) < len(text) / 4
    assert len(TOKENIZERS[kind](short)["input_ids"]) > 4


def test_stretches_of_which_nothing_is_known() -> None:
    assert stretches(TOKENIZERS["bert"]) is None, "a word is known or not as a whole"
    assert stretches(TOKENIZERS["lookahead"]) is None
