"""Text formats: the strings that a language model reads, and the part it predicts.

text    the segments are one text, and all of it is predicted
plain   the last segment is a response; the others are the prompt, written by a template
chat    the same, written as the tokenizer's chat template writes a user and an assistant; or the
        one segment is a chat of many turns (`cache_schemas/chats.py`), the last one the response

The output of a chat template depends on turns and settings alone: one that uses the clock gets a
fixed date, a random one is refused, and so are variables that it does not have.
"""

import difflib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from ...cache_schemas.chats import Turns, chat_turns, turns_of
from ...cache_schemas.errors import JobError
from ...cache_schemas.keys import canonical_json
from .prompt_templates import JOINT, TEXT, check_template, columns_of, fill_template

DEFAULT_DATE = "2025-01-01"
"""Default date for templates; any fixed date would do."""

_CLOCK = "strftime_now"
_DRAWS = frozenset({"random"})


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The chat template of a tokenizer under some options, on a date (ISO 8601)."""

    tokenizer: Any
    options: Mapping[str, Any]
    date: str

    def check(self) -> None:
        """Raises JobError for a missing or random template, and for options that it does not
        have."""
        read = _read(self._source())
        if read.draws:
            raise JobError(
                f"text_format chat: the chat template is random ({', '.join(sorted(read.draws))}), "
                "so the same chat differs each time; use plain"
            )
        taken = {*inspect.signature(self.tokenizer.apply_chat_template).parameters} - {
            *("tools", "documents", "kwargs")
        }
        for name in self.options:
            if name in taken | {"messages", _CLOCK}:
                raise JobError(
                    f"template_options: {name!r} is not an option of a template; leave it out"
                )
            if name not in read.variables:
                near = difflib.get_close_matches(name, read.variables, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                known = sorted(read.variables - {"messages", "add_generation_prompt"})
                raise JobError(
                    f"template_options: the chat template has no variable {name!r}{hint}; it has "
                    f"{', '.join(known) or 'none'}"
                )

    @property
    def reads_clock(self) -> bool:
        """Whether the output depends on the date."""
        return _read(self._source()).clock

    def render(self, turns: Sequence[Mapping[str, Any]], *, ask: bool = False) -> str:
        """The turns as one string; `ask`: with the generation prompt after them."""
        options = {**self.options, "tokenize": False, "add_generation_prompt": ask}
        if self.reads_clock:
            options["chat_template"] = _dated(self._source(), self.date)
        try:
            return str(self.tokenizer.apply_chat_template(list(turns), **options))
        except Exception as cause:  # whatever a template raises
            raise JobError(
                f"text_format chat: the chat template refuses "
                f"{', '.join(str(turn['role']) for turn in turns)}: "
                f"{' '.join(str(cause).split()):.200} ({turns[-1]['content'][:40]!r})"
            ) from cause

    def _source(self) -> str:
        try:
            return str(self.tokenizer.get_chat_template(tools=self.options.get("tools")))
        except ValueError as cause:
            raise JobError(
                "text_format chat: the tokenizer has no chat template; use plain, or a tokenizer "
                "that has one"
            ) from cause


@dataclass(frozen=True, slots=True)
class _Read:
    """The variables of a template, whether it uses the clock, and its random filters."""

    variables: frozenset[str]
    clock: bool
    draws: frozenset[str]


@lru_cache(maxsize=16)
def _read(source: str) -> _Read:
    from jinja2 import TemplateError, meta, nodes

    try:
        tree = _compiled(source).environment.parse(source)
    except TemplateError as cause:
        raise JobError(f"text_format chat: the chat template cannot be read: {cause}") from cause
    filters = {node.name for node in tree.find_all(nodes.Filter)}
    return _Read(
        frozenset(meta.find_undeclared_variables(tree)),
        any(node.name == _CLOCK for node in tree.find_all(nodes.Name)),
        frozenset(filters & _DRAWS),
    )


def _compiled(source: str) -> Any:
    """The template that transformers renders, which compiles each source once."""
    from transformers.utils import chat_template_utils

    return chat_template_utils._compile_jinja_template(source)


def _dated(source: str, date: str) -> str:
    """The template with that date for its clock; distinct from every other source."""
    # The newline that a comment swallows.
    marked = f"{{# on {date} #}}" + ("\n" if source.startswith("\n") else "") + source
    clock: Callable[[str], str] = datetime.fromisoformat(date).strftime
    _compiled(marked).globals[_CLOCK] = clock
    return marked


LATER: dict[str, Any] = {
    **{"template_date": None, "template_options": {}, "chat_prompt": "template"},
    "user_template": TEXT,
}
"""Settings of chats, which earlier caches and cards do not have, and their defaults."""


@dataclass(frozen=True, slots=True)
class Written:
    """An example as strings: `prompt` is given, `response` is predicted; `content` is the example's
    own part of it, and starts at character `start`: a chat template may add to it."""

    prompt: str
    response: str
    content: str
    start: int = 0

    @classmethod
    def plainly(cls, prompt: str, response: str) -> "Written":
        """Without anything added."""
        return cls(prompt, response, response)


class Recipe(BaseModel):
    """Text format of examples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_format: Literal["text", "plain", "chat"] = Field(
        default="text",
        description="text: predict all segments; plain: predict the last one, with the others as "
        "prompt; chat: the same, formatted by the tokenizer's chat template",
    )
    prompt_template: str = Field(
        default="{text}\n",
        description="prompt of text_format=plain; {text} is the segments before the last one, with "
        "blank lines between them; or {1}, {2}, ..., or names of columns, are single ones",
    )
    user_template: str = Field(
        default=TEXT,
        description="user's turn that text_format=chat makes of the segments, as prompt_template",
    )
    system_prompt: str | None = Field(default=None, description="system message (text_format=chat)")
    end_token: bool = Field(
        default=True, description="end every text with the tokenizer's end-of-sequence token"
    )
    template_date: str | None = Field(
        default=None,
        description=f"date, or date and time, given to chat templates that use one; default"
        f" {DEFAULT_DATE}",
    )
    template_options: dict[str, Any] = Field(
        default_factory=dict,
        description="further variables of the chat template, such as {enable_thinking: false}",
    )
    chat_prompt: Literal["template", "answered", "appended"] = Field(
        default="template",
        description="prompt of a chat: template: its generation prompt, if complete chats begin "
        "the same way; answered: what it writes before an answer; appended: the response as it "
        "is, after the generation prompt",
    )

    @field_validator("template_date", mode="before")
    @classmethod
    def _is_a_date(cls, value: Any) -> Any:
        if value is None:
            return None
        try:
            text = value if isinstance(value, str) else value.isoformat()
            datetime.fromisoformat(text)
        except (ValueError, AttributeError) as cause:
            raise ValueError(f"{value!r} is not a date, such as {DEFAULT_DATE}") from cause
        return text

    @field_validator("template_options", mode="before", json_schema_input_type=str | dict[str, Any])
    @classmethod
    def _is_a_document(cls, value: Any) -> Any:
        return json.loads(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _is_of_chats(self) -> "Recipe":
        for name, default in LATER.items():
            if self.text_format != "chat" and getattr(self, name) != default:
                raise ValueError(f"{name}: is for text_format chat; leave it out")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_asked(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Fingerprints and cards of texts that use none of it stay what they were.
        document: dict[str, Any] = dump(self)
        for name, default in LATER.items():
            if document.get(name) in (None, default):
                document.pop(name, None)
        if "template_options" in document:
            document["template_options"] = canonical_json(document["template_options"]).decode()
        return document

    @field_validator("prompt_template", "user_template")
    @classmethod
    def _holds_the_text(cls, template: str) -> str:
        return check_template(template)

    @property
    def has_prompt(self) -> bool:
        """Whether examples have a prompt that is not predicted."""
        return self.text_format != "text"

    @property
    def date(self) -> str:
        """The date for a chat template."""
        return self.template_date or DEFAULT_DATE

    def template(self, tokenizer: Any) -> ChatTemplate:
        """The tokenizer's chat template with these settings."""
        return ChatTemplate(tokenizer, self.template_options, self.date)

    def check(self, tokenizer: Any) -> None:
        """Raises JobError for a tokenizer that cannot write so, before anything else is done."""
        if self.text_format == "chat":
            self.template(tokenizer).check()
            self.write(tokenizer, ("?",) * columns_of(self.user_template) + ("x",))

    def write(self, tokenizer: Any, segments: Sequence[str]) -> Written:
        """The strings of one example. Raises JobError for segments or a tokenizer that cannot be
        written so."""
        if not self.has_prompt:
            return Written.plainly("", JOINT.join(part for part in segments if part.strip()))
        if self.text_format == "chat" and len(segments) == 1:
            return self._chat(tokenizer, self._with_system(_turns(segments[0])))
        *given, response = segments
        if not given:
            raise JobError(
                f"text_format {self.text_format}: examples have one segment; name the columns of "
                "prompt and response, the response last"
            )
        if self.text_format == "plain":
            return Written.plainly(fill_template(self.prompt_template, given), response)
        asked = fill_template(self.user_template, given)
        turns = [_turn("user", asked), _turn("assistant", response)]
        return self._chat(tokenizer, self._with_system(turns))

    def _with_system(self, turns: Turns) -> Turns:
        """The turns, the system's first; a chat that has its own keeps it."""
        if not self.system_prompt or turns[0]["role"] in ("system", "developer"):
            return turns
        return [_turn("system", self.system_prompt), *turns]

    def _chat(self, tokenizer: Any, turns: Turns) -> Written:
        template = self.template(tokenizer)
        *given, answer = turns
        response: str = answer["content"]
        whole = template.render(turns)
        if self.chat_prompt == "answered":
            prompt = whole[: _content_start(template, turns, whole)]
        else:
            prompt = template.render(given, ask=True)
        if self.chat_prompt == "appended":
            return Written(prompt, response + _behind(template, turns), response)
        if not whole.startswith(prompt):
            raise JobError(
                "text_format chat: the generation prompt of the chat template differs from how it "
                f"writes an answer ({_end(prompt)!r} is not in {_end(whole)!r}), so the start of "
                "the response is unknown; set chat_prompt=answered for prompts as before a given "
                "response, or chat_prompt=appended to put responses after the generation prompt"
            )
        rendered = whole.removeprefix(prompt).rstrip("\n")
        content = next((each for each in (response, response.strip()) if each in rendered), None)
        if content is None:
            raise JobError(
                f"text_format chat: the chat template changes the response ("
                f"{response[:40]!r} became {rendered[:60]!r}); use plain, or chat_prompt=appended"
            )
        return Written(prompt, rendered, content, rendered.index(content))

    def own_texts(self, segments: Sequence[str]) -> list[str]:
        """The example's own texts, without additions of a template."""
        if self.text_format == "chat" and len(segments) == 1:
            turns = turns_of(segments[0])
            return [str(turn["content"]) for turn in turns] if turns else [segments[0]]
        return [segment for segment in segments if segment]

    def after_response(self, tokenizer: Any) -> str:
        """The string that a chat template writes after a response."""
        turns = self._with_system([_turn("user", "?"), _turn("assistant", "x")])
        return _behind(self.template(tokenizer), turns)


def response_of(segments: Sequence[str]) -> str:
    """The response of an example that has a prompt."""
    return segments[-1] if len(segments) > 1 else str(_turns(segments[0])[-1]["content"])


def _turns(segment: str) -> Turns:
    try:
        return chat_turns(segment)
    except ValueError as cause:
        raise JobError(
            f"text_format chat: {segment[:40]!r} is a single text, not a chat; name the columns of "
            "prompt and response, the response last, or a column of chats"
        ) from cause


def _turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _content_start(template: ChatTemplate, turns: Turns, whole: str) -> int:
    """Start of the last turn's content: where renderings of different contents diverge."""
    reply = turns[-1]["content"].strip()
    other = template.render([*turns[:-1], _turn("assistant", "y" if reply[:1] == "x" else "x")])
    differ = (at for at, (one, two) in enumerate(zip(whole, other, strict=False)) if one != two)
    return next(differ, min(len(whole), len(other)))


def _behind(template: ChatTemplate, turns: Turns) -> str:
    """The string after the last turn's content, without line ends."""
    one = template.render([*turns[:-1], _turn("assistant", "x")])
    start = _content_start(template, [*turns[:-1], _turn("assistant", "x")], one)
    return one[start + 1 :].rstrip("\n")


def _end(text: str) -> str:
    return text[-40:]
