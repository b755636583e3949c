"""From text segments to the strings a language model reads, and which of them it has to predict.

text    the segments are one text, and all of it is predicted
plain   the last segment is a response; the others are the prompt, written by a template
chat    the same, written as the tokenizer's chat template writes a user and an assistant
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ...cache_schemas.errors import JobError

TEXT = "{text}"
JOINT = "\n\n"
"""Between segments of one text; those that are blank are left out."""


@dataclass(frozen=True, slots=True)
class Written:
    """An example as strings: `prompt` is given, `response` is to be predicted; of it, `content` is
    what the example says, and starts at character `start`: a chat template may add to it."""

    prompt: str
    response: str
    content: str
    start: int = 0

    @classmethod
    def plainly(cls, prompt: str, response: str) -> "Written":
        """Without anything added."""
        return cls(prompt, response, response)


class Recipe(BaseModel):
    """How examples of some segments are written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_format: Literal["text", "plain", "chat"] = Field(
        default="text",
        description="text: all segments are to be predicted; plain: the last one, after a prompt "
        "of the others; chat: the same in the words of the tokenizer's chat template",
    )
    prompt_template: str = Field(
        default="{text}\n",
        description="prompt of text_format plain; {text} is the segments before the last one, with "
        "blank lines between them",
    )
    system_prompt: str | None = Field(
        default=None, description="what the system says first (text_format chat)"
    )
    end_token: bool = Field(
        default=True, description="end every text with the tokenizer's end-of-sequence token"
    )

    @field_validator("prompt_template")
    @classmethod
    def _holds_the_text(cls, template: str) -> str:
        if TEXT not in template:
            raise ValueError(f"has no {TEXT}, so every prompt would be the same")
        return template

    @property
    def has_prompt(self) -> bool:
        """Whether examples have a prompt that is not predicted."""
        return self.text_format != "text"

    def write(self, tokenizer: Any, segments: Sequence[str]) -> Written:
        """The strings of one example. Raises JobError for segments or a tokenizer that cannot be
        written so."""
        if not self.has_prompt:
            return Written.plainly("", JOINT.join(part for part in segments if part.strip()))
        *given, response = segments
        if not given:
            raise JobError(
                f"text_format {self.text_format}: examples have one segment; name the columns of "
                "prompt and response, the response last"
            )
        asked = JOINT.join(part for part in given if part.strip())
        if self.text_format == "plain":
            return Written.plainly(self.prompt_template.replace(TEXT, asked), response)
        return self._chat(tokenizer, asked, response)

    def _chat(self, tokenizer: Any, asked: str, response: str) -> Written:
        system = [_turn("system", self.system_prompt)] if self.system_prompt else []
        turns = [*system, _turn("user", asked)]
        if not tokenizer.chat_template:
            raise JobError(
                "text_format chat: the tokenizer has no chat template; use plain, or a tokenizer "
                "that has one"
            )
        prompt = _rendered(tokenizer, turns, add_generation_prompt=True)
        whole = _rendered(tokenizer, [*turns, _turn("assistant", response)])
        if not whole.startswith(prompt):
            raise JobError(
                "text_format chat: the chat template writes an answered question otherwise than it "
                "asks for an answer, so where the response begins is not known; use plain"
            )
        rendered = whole.removeprefix(prompt).rstrip("\n")
        content = next((each for each in (response, response.strip()) if each in rendered), None)
        if content is None:
            raise JobError(
                f"text_format chat: the chat template does not write the response as it is "
                f"({response[:40]!r} became {rendered[:60]!r}); use plain"
            )
        return Written(prompt, rendered, content, rendered.index(content))

    def after_response(self, tokenizer: Any) -> str:
        """What a chat template writes behind a response."""
        written = self._chat(tokenizer, "?", "x")
        return written.response[written.start + len(written.content) :]


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _rendered(tokenizer: Any, turns: list[dict[str, str]], **options: bool) -> str:
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, **options))
    except Exception as cause:  # whatever a template raises
        raise JobError(
            f"text_format chat: the chat template refuses {', '.join(t['role'] for t in turns)}: "
            f"{' '.join(str(cause).split()):.200}"
        ) from cause
