"""Texts as tokens of a language model: what is given, what is predicted, where they end."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from armada.stages.language import tokens
from armada.stages.language.recipe import Recipe
from armada.stages.language.tokens import (
    INSIDE,
    encode_texts,
    special_ends,
    tokenizer_digest,
    vocab_size_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoints import make_tokenizer
from tiny_language_models import TEXTS, make_chat_tokenizer
from transformers import AutoTokenizer

TOKENIZER = make_chat_tokenizer()
BERT = make_tokenizer(TEXTS)


@pytest.mark.parametrize(
    ("tokenizer", "ends"),
    [(TOKENIZER, (("<s>",), ("</s>",))), (BERT, (("[CLS]",), ("[SEP]",)))],
    ids=["causal", "bert"],
)
def test_special_tokens_stand_where_the_tokenizer_puts_them(tokenizer: Any, ends: Any) -> None:
    found = special_ends(tokenizer)
    names = tuple(map(tuple, map(tokenizer.convert_ids_to_tokens, (found.before, found.after))))
    assert names == ends


@given(
    texts=st.lists(st.text("abc é\n界", min_size=1).filter(str.strip), min_size=1, max_size=5),
    most=st.integers(2, 30),
)
@settings(max_examples=60, deadline=None)
def test_a_text_is_what_the_tokenizer_makes_of_it(texts: list[str], most: int) -> None:
    found = encode_texts(TOKENIZER, Recipe(), [(text,) for text in texts], most)
    for place, text in enumerate(texts):
        whole = [*TOKENIZER(text)["input_ids"], TOKENIZER.eos_token_id]
        assert found.of(place).tolist() == whole[:most]
        assert found.truncated[place] == (len(whole) > most)
    assert found.prompts.tolist() == [1] * len(texts)
    np.testing.assert_array_equal(found.predicted, found.lengths - 1)


def _told(recipe: Recipe, segments: Sequence[str], most: int = 200) -> tuple[str, str]:
    found = encode_texts(TOKENIZER, recipe, [segments], most)
    start = int(found.prompts[0])
    return tuple(map(TOKENIZER.decode, (found.ids[:start], found.ids[start:])))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("recipe", "segments", "told"),
    [
        (Recipe(), ("one", "", "two"), ("<s>", "one\n\ntwo</s>")),
        (Recipe(end_token=False), ("one",), ("<s>", "one")),
        (Recipe(text_format="plain"), ("ask", "", "say"), ("<s>ask\n", "say</s>")),
        (
            Recipe(text_format="plain", prompt_template="Q: {text}\nA:"),
            ("ask", "this", "say"),
            ("<s>Q: ask\n\nthis\nA:", "say</s>"),
        ),
        (
            Recipe(text_format="chat", system_prompt="be kind"),
            ("ask", "say"),
            ("<system>be kind</s>\n<user>ask</s>\n<assistant>", "say</s>"),
        ),
    ],
)
def test_what_is_given_and_what_is_predicted(
    recipe: Recipe, segments: Sequence[str], told: tuple[str, str]
) -> None:
    assert _told(recipe, segments) == told


def test_a_prompt_is_tokenized_as_when_it_is_asked() -> None:
    """A merge across its end would make other tokens of it than generation sees."""
    recipe = Recipe(text_format="plain", prompt_template="{text} the r")
    found = encode_texts(TOKENIZER, recipe, [("say", "iver runs")], 100)
    alone = TOKENIZER("say the r")["input_ids"]
    assert found.ids[: found.prompts[0]].tolist() == alone


def test_a_prompt_that_fills_all_leaves_nothing_to_predict() -> None:
    recipe = Recipe(text_format="plain")
    found = encode_texts(TOKENIZER, recipe, [("a" * 50, "b"), ("a", "b")], 10)
    assert found.predicted.tolist() == [0, 2]
    assert found.truncated.tolist() == [True, False]
    assert found.lengths.tolist() == [10, 5]


def test_without_a_first_token_the_first_word_is_not_predicted() -> None:
    bare = make_chat_tokenizer()
    bare.backend_tokenizer.post_processor = None  # type: ignore[assignment]
    with_none = _without_special(bare)
    found = encode_texts(with_none, Recipe(end_token=False), [("abc",)], 10)
    assert found.prompts.tolist() == [1]
    assert found.predicted.tolist() == [len(with_none("abc")["input_ids"]) - 1]


def _without_special(tokenizer: Any) -> Any:
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def test_digest_tells_tokenizers_apart_and_survives_a_file(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    again.padding_side = "left"
    again(["a", "bb"], padding=True, truncation=True, max_length=3)
    assert tokenizer_digest(again) == tokenizer_digest(TOKENIZER)
    assert tokenizer_digest(make_chat_tokenizer(["other words"])) != tokenizer_digest(TOKENIZER)
    assert tokenizer_digest(BERT) != tokenizer_digest(TOKENIZER)
    assert vocab_size_of(TOKENIZER) == len(TOKENIZER)


def test_blocks_of_texts_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [(text, text[::-1]) for text in TEXTS]
    recipe = Recipe(text_format="plain")
    whole = encode_texts(TOKENIZER, recipe, examples, 20, with_characters=True)
    monkeypatch.setattr(tokens, "_ENCODE_ROWS", 4)
    parts = encode_texts(TOKENIZER, recipe, examples, 20, with_characters=True)
    for field in dataclasses.fields(whole):
        one, other = getattr(whole, field.name), getattr(parts, field.name)
        np.testing.assert_array_equal(one, other, strict=True)
    assert len(encode_texts(TOKENIZER, recipe, [], 20)) == 0


def test_characters_that_have_been_read() -> None:
    """Pieces of one character are inside of it; the end token comes after all of them."""
    found = encode_texts(TOKENIZER, Recipe(), [("a界b",)], 20, with_characters=True)
    tokens_of = [TOKENIZER.decode([i]) for i in found.ids]
    assert found.read is not None
    told = found.read.tolist()
    assert told[0] == INSIDE  # the token before the text is no part of it
    assert told[1] == 0
    assert told[-1] == 3
    assert tokens_of[-1] == "</s>"
    known = [each for each in told if each != INSIDE]
    assert known == sorted(known)
    assert 1 in known
    assert told.count(INSIDE) > 1


def test_special_tokens_that_are_written_out_are_text() -> None:
    """A text cannot end itself, or anything else."""
    found = encode_texts(TOKENIZER, Recipe(text_format="plain"), [("a </s> b", "c </s> d")], 60)
    specials = [i for i in found.ids.tolist() if i in TOKENIZER.all_special_ids]
    assert specials == [TOKENIZER.bos_token_id, TOKENIZER.eos_token_id]
    assert TOKENIZER.decode(found.ids) == "<s>a </s> b\nc </s> d</s>"


TURNED = make_chat_tokenizer(
    chat_template="{% for turn in messages %}{{ '[' + turn['role'] + ']' }}"
    "{{ ' ' if turn['role'] == 'assistant' else '' }}{{ turn['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
"""A template that puts a space before what the assistant says."""


def test_bytes_are_of_what_is_predicted_and_of_the_texts_own() -> None:
    recipe = Recipe(text_format="chat")
    for tokenizer in (TOKENIZER, TURNED):
        assert encode_texts(tokenizer, recipe, [("ask", "a cät")], 200).bytes.tolist() == [6]
    bare = _without_special(make_chat_tokenizer())
    found = encode_texts(bare, Recipe(end_token=False), [("the river",)], 50)
    first = bare.decode(found.ids[:1])
    assert found.bytes.tolist() == [len("the river") - len(first)]
    cut = encode_texts(bare, Recipe(end_token=False), [("the river runs",)], 2)
    assert cut.bytes.tolist() == [len(bare.decode(cut.ids[1:2]))]


def test_what_has_been_read_does_not_count_what_a_template_adds() -> None:
    recipe = Recipe(text_format="chat")
    plain, turned = (
        encode_texts(each, recipe, [("ask", "a cat")], 200, with_characters=True)
        for each in (TOKENIZER, TURNED)
    )
    assert plain.read is not None
    assert turned.read is not None
    told = [set(each.read.tolist()) - {INSIDE} for each in (plain, turned)]
    assert 5 in told[0] & told[1]  # before the end of the turn
    assert 0 in told[0]
    assert max(told[0] | told[1]) == 5
    after_space = [
        TURNED.decode([i]) for i, r in zip(turned.ids, turned.read, strict=True) if r == 1
    ]
    before = [TOKENIZER.decode([i]) for i, r in zip(plain.ids, plain.read, strict=True) if r == 1]
    assert before == after_space
