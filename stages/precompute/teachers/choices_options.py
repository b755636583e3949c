"""Options of scored choices: the prompts of a row, the answers, and the features that follow."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from ....cache_schemas.features import FeatureSpec, StoredDtype
from ....cache_schemas.teachers import SettingValue
from ...language.prompt_templates import TEXT, check_template, columns_of, fill_template
from ...language.recipe import Recipe
from .causal_options import CausalCheckpointOptions
from .options import TeacherOptions

QUESTION = "{question}"

Shown = Annotated[str, StringConstraints(pattern=r"\S")]


def _answers(default: tuple[str, ...]) -> Any:
    return Field(
        default=default,
        min_length=2,
        max_length=4096,
        description="scored choices: the answers, as they follow the prompt (a space in front, "
        "where one belongs there), in the order of the classes",
    )


class ScoredAnswers(TeacherOptions):
    """What is scored, whatever computes it."""

    placeholders: ClassVar[Mapping[str, str]] = {"questions": "question"}

    answers: tuple[Shown, ...] = _answers(())
    names: tuple[Shown, ...] = Field(
        default=(),
        description="names of the classes, as labels have them, in the order of the answers; "
        "default: the answers",
    )
    questions: tuple[Shown, ...] = Field(
        default=(),
        max_length=4096,
        description="questions that are asked of each text, by {question} in the template; of two "
        "answers the log-odds of the second are kept for each, as feature aspects",
    )
    score: bool | tuple[float, ...] = Field(
        default=False,
        description="keep the expected value of the answers, as feature score: true, if they are "
        "numbers, or the number that each stands for",
    )
    per: Literal["answer", "token", "byte"] = Field(
        default="answer",
        description="log-probability of an answer: of the whole, or the mean of its tokens or "
        "bytes, for answers of different lengths",
    )
    content_free: tuple[str, ...] = Field(
        default=(),
        description="calibration (arXiv 2102.09690): texts without content, such as N/A, in place "
        "of each segment; the log of the answers' mean probabilities there is subtracted",
    )
    premise: str | None = Field(
        default=None,
        description="PMI_DC (arXiv 2104.08315): a prompt without the text, such as its last line; "
        "the answers' log-probabilities there are subtracted",
    )

    @field_validator("answers", "names", mode="before")
    @classmethod
    def _are_words(cls, given: Any) -> Any:
        if not isinstance(given, list | tuple):
            return given
        if any(isinstance(each, bool) for each in given):
            raise ValueError('yes and no are not words in YAML; put them in quotes: "yes"')
        return [str(each) if isinstance(each, int | float) else each for each in given]


class ChoicesOptions(ScoredAnswers, CausalCheckpointOptions):
    """Options of the teacher `choices`."""

    answers: tuple[Shown, ...] = _answers(("no", "yes"))
    text_format: Literal["plain", "chat"] = Field(
        default="plain",
        description="plain: answers follow the prompt; chat: prompt and answer are turns, written "
        "by the tokenizer's chat template",
    )
    prompt_template: str = Field(
        default="{text}\n",
        description="prompt of text_format=plain; {text} is all segments, with blank lines between "
        "them, or {1}, {2}, ..., or names of columns, are single ones; {question} is one of the "
        "questions",
    )
    user_template: str = Field(
        default=TEXT,
        description="user's turn of text_format=chat, as prompt_template",
    )
    picture: Literal["none", "given"] = Field(
        default="none",
        description="given: the first segment is a picture, the others the text, and the model is "
        "one of images and text; a plain template says where the picture stands",
    )
    end_token: bool = Field(
        default=False,
        description="score the token that ends a response, too: for answers that begin as others "
        "do, such as 1 and 10",
    )
    max_length: int | None = Field(
        default=None,
        ge=2,
        description="maximum tokens of a prompt with its longest answer; of longer ones the "
        "segments are cut, the template never; default 1024, or the model's maximum if less",
    )

    @field_validator("prompt_template", "user_template")
    @classmethod
    def _holds_the_text(cls, template: str) -> str:
        return template  # or a picture: see _asks_of_each

    @model_validator(mode="after")
    def _asks_of_each(self) -> "ChoicesOptions":
        if self.picture == "none":
            for name in ("prompt_template", "user_template"):
                try:
                    check_template(getattr(self, name))
                except ValueError as cause:
                    raise ValueError(f"{name}: {cause}") from cause
            return self
        for name in ("content_free", "premise"):
            if name in self.model_fields_set:
                raise ValueError(f"{name}: is of texts; leave it out with picture=given")
        if self.text_format == "chat" and self.end_token:
            raise ValueError("end_token: of a chat with a picture is not known; leave it out")
        return self

    @model_validator(mode="after")
    def _names_each(self) -> "ChoicesOptions":
        for name in ("answers", "names", "questions"):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                raise ValueError(f"{name}: {list(given)} repeats one; name each once")
        if self.names and len(self.names) != len(self.answers):
            raise ValueError(f"names: are {len(self.names)}, the answers {len(self.answers)}")
        if not self.questions and len(set(self.classes)) < len(self.classes):
            raise ValueError(
                f"names: {list(self.classes)} would be the classes; name each by another word"
            )
        if bool(self.questions) != (QUESTION in self._template):
            raise ValueError(
                f"questions: {QUESTION} of prompt_template, or user_template of a chat, stands for "
                "one of them; give both or neither"
            )
        if self.content_free and self.premise is not None:
            raise ValueError("content_free, premise: subtract the same twice; name one")
        return self

    @model_validator(mode="after")
    def _answers_are_numbers(self) -> "ChoicesOptions":
        values = self.values
        if values is not None and len(values) != len(self.answers):
            raise ValueError(f"score: has {len(values)} numbers for {len(self.answers)} answers")
        if values is not None and not all(map(math.isfinite, values)):
            raise ValueError(f"score: {list(values)} are not all finite")
        if self.questions and values is None and len(self.answers) != 2:
            raise ValueError(
                f"questions: {len(self.answers)} answers have no log-odds; name two, or set score"
            )
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.names or tuple(answer.strip() for answer in self.answers)

    @property
    def values(self) -> tuple[float, ...] | None:
        """The number that each answer stands for, or None. Raises ValueError for words."""
        if isinstance(self.score, tuple):
            return self.score
        if not self.score:
            return None
        try:
            return tuple(map(float, self.answers))
        except ValueError as cause:
            raise ValueError(
                f"score: {cause}; give the numbers that the answers stand for"
            ) from cause

    def settings(self) -> dict[str, SettingValue]:
        """The settings in the fingerprint."""
        settings = super().settings()
        # Elsewhere a text_format is one of prompts with their responses.
        settings["prompt_format"] = settings.pop("text_format")
        if self.picture == "none":  # as it was before there were pictures
            del settings["picture"]
        return settings

    def check(self, tokenizer: Any) -> None:
        """See Recipe. A turn with a picture is not written by it."""
        if self.picture == "none":
            super().check(tokenizer)
        elif self.text_format == "chat":
            self.template(tokenizer).check()

    def texts(self, segments: Sequence[str]) -> Sequence[str]:
        """The segments of an example without its picture."""
        return segments[1:] if self.picture == "given" else segments

    def prompts(self, segments: Sequence[str]) -> list[str]:
        """The prompt of a row, or one for each question. Raises JobError for a template that names
        more segments than there are."""
        return [fill_template(template, segments) for template in self._templates]

    def prompts_without_text(self) -> list[str]:
        """Prompts that show what a model prefers whatever the text is: as many for each question,
        one question after the other."""
        if self.premise is not None:
            return [self.premise.replace(QUESTION, question) for question in self._asked]
        return [
            fill_template(template, (text,) * columns_of(template))
            for template in self._templates
            for text in self.content_free
        ]

    def recipe(self) -> Recipe:
        """How a prompt that is already made is written."""
        return self.model_copy(update={"prompt_template": TEXT, "user_template": TEXT})

    @property
    def _template(self) -> str:
        return self.user_template if self.text_format == "chat" else self.prompt_template

    @property
    def _asked(self) -> tuple[str, ...]:
        return self.questions or ("",)

    @property
    def _templates(self) -> list[str]:
        return [self._template.replace(QUESTION, question) for question in self._asked]

    def features(self, stored: StoredDtype) -> list[FeatureSpec]:
        """The features that follow from the answers."""
        return list(self._features(stored))

    def _features(self, stored: StoredDtype) -> Iterator[FeatureSpec]:
        read = "log-probabilities" + (f" a {self.per}" if self.per != "answer" else "")
        if self.content_free or self.premise is not None:
            read += ", less those without the text"
        if not self.questions:
            yield FeatureSpec(
                name="logits",
                shape=(len(self.classes),),
                dtype=stored,
                description=f"{read} of the answers",
                labels=self.classes,
            )
        elif len(self.answers) == 2:
            first, second = self.answers
            yield FeatureSpec(
                name="aspects",
                shape=(len(self.questions),),
                dtype=stored,
                description=f"{read} of {second!r} less those of {first!r}, for each question",
                labels=self.questions,
            )
        if self.values is not None:
            yield FeatureSpec(
                name="score",
                shape=(len(self._asked),),
                dtype=stored,
                description=f"expected value of the answers, {list(self.values)}",
            )


OF_PROMPTS = frozenset({"max_length", *Recipe.model_fields})
OF_ANSWERS = frozenset(ScoredAnswers.model_fields)
"""Options of scored choices that depend on no checkpoint: of prompts, and of the answers."""


def choices_of(options: ScoredAnswers) -> ChoicesOptions:
    """The scored choices among the options of another teacher: those that are set, and the defaults
    of `choices`. Raises ValueError."""
    names = (OF_PROMPTS | OF_ANSWERS) & options.model_fields_set
    given = {name: getattr(options, name) for name in names}
    try:
        return ChoicesOptions(**{k: v for k, v in given.items() if v is not None})
    except ValidationError as cause:
        problem = cause.errors()[0]
        field = "".join(f"{part}: " for part in problem["loc"][:1])
        raise ValueError(field + problem["msg"].removeprefix("Value error, ")) from None


def settings_of(choices: ChoicesOptions) -> dict[str, SettingValue]:
    """The settings of scored choices, whatever computes them."""
    own = (OF_PROMPTS | OF_ANSWERS | {"prompt_format"}) - {"text_format"}
    return {name: value for name, value in choices.settings().items() if name in own}
