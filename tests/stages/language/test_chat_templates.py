"""Chats as templates write them: the same on any day, with options, thoughts, and many turns."""

import json
from datetime import datetime
from typing import Any

import pytest
from armada.cache_schemas.chats import chat_segment
from armada.cache_schemas.errors import JobError
from armada.stages.language.recipe import DEFAULT_DATE, Recipe
from armada.stages.language.tokens import encode_texts, end_ids
from pydantic import ValidationError
from tiny_chat_templates import TEMPLATES
from tiny_language_models import make_chat_tokenizer
from transformers import GenerationConfig

TOKENIZERS = {
    name: make_chat_tokenizer(chat_template=template) for name, template in TEMPLATES.items()
}
DATED = [name for name, template in TEMPLATES.items() if "strftime_now" in template]
TURNS = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "four"},
]


def chats(**settings: Any) -> Recipe:
    return Recipe(text_format="chat", **settings)


def told(name: str, recipe: Recipe, segments: tuple[str, ...] = ("ask", "say")) -> tuple[str, str]:
    """What is given and what is predicted, by way of the tokens."""
    tokenizer = TOKENIZERS[name]
    found = encode_texts(tokenizer, recipe, [segments], 400)
    start = int(found.prompts[0])
    return tokenizer.decode(found.ids[:start]), tokenizer.decode(found.ids[start:])


def by_hand(name: str, turns: list[dict[str, str]], date: str, **options: Any) -> str:
    """What the library writes, whose clock is set back."""
    from transformers.utils import chat_template_utils

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Clock":
            return cls.fromisoformat(date)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template_utils, "datetime", Clock)
        return str(TOKENIZERS[name].apply_chat_template(turns, tokenize=False, **options))


@pytest.mark.parametrize("name", DATED)
@pytest.mark.parametrize("date", [None, "2024-02-29", "1999-12-31T23:59"])
def test_the_clock_stands_still(name: str, date: str | None) -> None:
    recipe = chats(template_date=date)
    turns = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "say"}]
    expected = by_hand(name, turns, date or DEFAULT_DATE)
    assert "".join(told(name, recipe)) == expected.rstrip("\n")
    assert told(name, recipe) == told(name, recipe)
    other = chats(template_date="2001-01-01")
    assert told(name, other)[0] != told(name, recipe)[0]
    assert told(name, other)[1] == told(name, recipe)[1]


def test_other_callers_have_the_clock_of_today() -> None:
    name, turns = "dated", [{"role": "user", "content": "ask"}]
    told(name, chats(template_date="1999-12-31"))
    assert "1999" not in TOKENIZERS[name].apply_chat_template(turns, tokenize=False)


@pytest.mark.parametrize("name", DATED)
def test_only_templates_with_a_clock_depend_on_the_date(name: str) -> None:
    assert chats().template(TOKENIZERS[name]).reads_clock
    assert not chats().template(TOKENIZERS["thinking"]).reads_clock


def test_options_reach_the_template() -> None:
    off = chats(template_options={"enable_thinking": False})
    assert told("thinking", chats()) == (
        "<user>ask</s>\n<assistant>",
        "<think>\n\n</think>\n\nsay</s>",
    )
    assert told("thinking", off) == (
        "<user>ask</s>\n<assistant><think>\n\n</think>\n\n",
        "say</s>",
    )
    assert "Today: then" in told("dated", chats(template_options={"date_string": "then"}))[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"enable_thinkng": False},
            "has no variable 'enable_thinkng'; did you mean 'enable_thinking'?",
        ),
        ({"add_generation_prompt": True}, "'add_generation_prompt' is not an option of a template"),
        ({"strftime_now": "x"}, "'strftime_now' is not an option of a template"),
    ],
)
def test_options_that_no_template_reads(options: dict[str, Any], words: str) -> None:
    with pytest.raises(JobError, match=words.replace("?", r"\?")):
        chats(template_options=options).check(TOKENIZERS["thinking"])


def test_a_template_that_draws_is_refused() -> None:
    with pytest.raises(JobError, match="is random \\(random\\)"):
        chats().check(TOKENIZERS["drawing"])


def test_prompts_that_are_no_beginning() -> None:
    with pytest.raises(JobError, match="set chat_prompt=answered") as caught:
        told("prefilled", chats())
    assert "\n" not in str(caught.value)
    assert told("prefilled", chats(chat_prompt="answered")) == (
        "<user>ask</s>\n<assistant>",
        "say</s>",
    )
    thoughts = ("ask", "I think\n</think>\nsay")
    assert told("prefilled", chats(chat_prompt="appended"), thoughts) == (
        "<user>ask</s>\n<assistant><think>\n",
        "I think\n</think>\nsay</s>",
    )
    with pytest.raises(JobError, match="the chat template changes the response"):
        told("prefilled", chats(chat_prompt="answered"), thoughts)


@pytest.mark.parametrize("name", ["dated", "thinking", "channels"])
@pytest.mark.parametrize("response", ["say", "x", "x y", "yes", "<", "<think>"])
def test_answered_prompts_end_where_the_answer_begins(name: str, response: str) -> None:
    given, predicted = told(name, chats(chat_prompt="answered"), ("ask", response))
    assert predicted in (f"{response}</s>", f"{response}<return>")
    assert given.endswith((">", ">\n\n"))


def test_chats_of_many_turns() -> None:
    segment = (chat_segment(TURNS),)
    assert told("dated", chats(template_options={"date_string": "now"}), segment) == (
        "<system>Today: now</s>\n<user>one</s>\n<assistant>two</s>\n<user>three</s>\n<assistant>",
        "four</s>",
    )
    assert told("thinking", chats(system_prompt="be"), segment)[0].startswith("<system>be</s>\n")
    own = (chat_segment([{"role": "system", "content": "mine"}, *TURNS]),)
    assert told("thinking", chats(system_prompt="be"), own)[0].startswith(
        "<system>mine</s>\n<user>"
    )


def test_a_text_is_no_chat() -> None:
    with pytest.raises(JobError, match="is a single text, not a chat; name the columns"):
        told("dated", chats(), ("a text",))


def test_what_ends_a_response_is_behind_it() -> None:
    tokenizer = make_chat_tokenizer(chat_template=TEMPLATES["prefilled"])
    assert end_ids(tokenizer, chats(), GenerationConfig()) == {tokenizer.eos_token_id}


def test_settings_are_written_only_where_they_are_used() -> None:
    plain = {"text_format", "prompt_template", "system_prompt", "end_token"}
    assert Recipe().model_dump().keys() == plain == chats().model_dump().keys()
    recipe = chats(template_options={"b": [1], "a": False}, template_date="2025-07-26")
    document = recipe.model_dump()
    assert document["template_options"] == '{"a":false,"b":[1]}'
    assert Recipe.model_validate(document) == recipe
    assert Recipe.model_validate_json(json.dumps(document)) == recipe


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"template_date": "July"}, "'July' is not a date"),
        ({"template_date": "2025-13-01"}, "is not a date"),
        ({"text_format": "plain", "template_date": "2025-07-26"}, "is for text_format chat"),
        ({"text_format": "text", "template_options": {"a": 1}}, "is for text_format chat"),
        ({"text_format": "plain", "chat_prompt": "answered"}, "is for text_format chat"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Recipe(**{"text_format": "chat"} | settings)
