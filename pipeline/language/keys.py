"""The keys of a `distill` job that language models read, beside those of all students."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from ...cache_schemas.errors import JobError
from ...cache_schemas.teachers import TeacherSpec
from ...stages.distill.language.settings import LanguageSettings
from ...stages.language.recipe import LATER, Recipe
from ...stages.store.transfer.location import is_local, local_path
from ..jobs import make

WORD_FEATURES = ("top_k", "draws", "dense")
"""Features that teach words."""


class RecipeKeys(LanguageSettings):
    """How texts are written; as for the teacher of words where there is one, else by default."""

    text_format: Literal["text", "plain", "chat"] | None = Field(
        default=None,
        description="text: all segments are to be predicted; plain: the last one, after a prompt "
        "of the others; chat: the same in the words of the tokenizer's chat template; default as "
        "for the teacher, or text (task=language)",
    )
    prompt_template: str | None = Field(
        default=None,
        description="prompt of text_format plain; {text} is the segments before the last one",
    )
    system_prompt: str | None = Field(
        default=None, description="what the system says first (text_format chat)"
    )
    end_token: bool | None = Field(
        default=None, description="end every text with the tokenizer's end-of-sequence token"
    )
    template_date: Any = Field(
        default=None,
        description="date on the clock of a chat template that reads one (text_format chat)",
    )
    template_options: Any = Field(
        default=None,
        description="what a chat template is told beside the turns, such as "
        "{enable_thinking: false} (text_format chat)",
    )
    chat_prompt: Literal["template", "answered", "appended"] | None = Field(
        default=None,
        description="prompt of a chat: what the template writes to ask for an answer; answered: "
        "what it writes before one; appended: responses go on where the template asks",
    )

    def recipe(self, teacher: TeacherSpec | None) -> Recipe:
        """The recipe of a run. Raises JobError where the job contradicts the teacher."""
        told = {name: getattr(self, name) for name in Recipe.model_fields}
        asked = {name: value for name, value in told.items() if value is not None}
        if teacher is None:
            return make(Recipe, asked)
        lacking = Recipe.model_fields.keys() - LATER.keys() - teacher.settings.keys()
        if lacking:
            raise JobError(
                f"job key 'teacher': {teacher.kind}:{teacher.name} does not say how texts were "
                f"written ({', '.join(sorted(lacking))} are missing); name another"
            )
        settings = teacher.settings
        known = make(
            Recipe, {name: settings[name] for name in Recipe.model_fields if name in settings}
        )
        # An earlier cache does not tell the date that its chats were written on.
        open_to_job = {"template_date"} - settings.keys()
        given = make(Recipe, known.model_dump() | asked)
        for name in asked.keys() - open_to_job:
            ours, theirs = getattr(given, name), getattr(known, name)
            if ours != theirs:
                raise JobError(
                    f"job key {name!r}: {ours!r}, and the teacher was asked with "
                    f"{theirs!r}; leave it out"
                )
        return given


class LanguageKeys(RecipeKeys):
    """Keys of students that are language models."""

    token_cache: Path | str | None = Field(
        default=None,
        description="cache of a teacher of words, beside that of the feature (objective=armada); "
        "default the same cache",
    )
    token_teacher: str | None = Field(
        default=None, description="fingerprint of that teacher, or a prefix no other one shares"
    )
    token_feature: str | None = Field(
        default=None, description="top_k, draws or dense; may be left out if there is one"
    )

    @field_validator("token_cache", mode="before")
    @classmethod
    def _words_at_path_or_url(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return local_path(value) if is_local(value) else value

    @property
    def beside_a_feature(self) -> bool:
        """Whether a teacher of words is named beside the one of the feature."""
        return any((self.token_cache, self.token_teacher, self.token_feature))


def word_feature(held: tuple[str, ...], asked: str | None, key: str) -> str:
    """The feature to learn words from. Raises JobError."""
    known = [name for name in held if name in WORD_FEATURES]
    if asked in known:
        return str(asked)
    if asked is None and len(known) == 1:
        return known[0]
    what = "is missing" if asked is None else f"{asked!r} teaches no words"
    raise JobError(
        f"job key {key!r}: {what}; the teacher has {', '.join(known) or 'none that does'}"
    )
