"""Options of the rules that choose among responses. Each is declared in a job as `{rule: NAME}`.

finish       how a response finished
length       its characters and tokens
log_prob     its log-probability
pattern      whether it matches a regular expression
label        whether its answer is the row's label
majority     whether its answer is that of most responses to the prompt
agreement    whether its answer is that of another teacher
score        a critic's score
duplicates   whether it has been there before
best         whether it is among the best of its prompt
"""

import re
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..jobs import LocalFolder


class _Keys(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CachedTeacher(_Keys):
    """A teacher in a cache."""

    cache: LocalFolder = Field(description="folder of the cache")
    teacher: str | None = Field(
        default=None, description="fingerprint of the teacher, or a prefix no other one shares"
    )


class CriticKeys(CachedTeacher):
    """A feature of a teacher that read prompts with their responses, as a score."""

    feature: str | None = Field(
        default=None, description="feature with one number, or several; default the only one"
    )
    column: int | str | None = Field(
        default=None, description="which of several numbers: its place, from 0, or its name"
    )
    probability: bool = Field(
        default=False, description="the numbers are logits: take the number's probability"
    )
    each: Literal["token", "response"] = Field(
        default="token",
        description="of a feature with a number for each token, such as own_log_probs: mean, or "
        "sum",
    )
    reads: Literal["prompt_and_response", "response"] = Field(
        default="prompt_and_response", description="the text segments that the critic was given"
    )


class Rule(_Keys):
    """A rule."""

    rule: str
    name: str | None = Field(
        default=None, description="name in counts and lists; default that of the rule"
    )

    @property
    def shown(self) -> str:
        """Its name."""
        return self.name or self.rule


class AnswerRule(Rule):
    """A rule about the answer in a response."""

    answer: str | None = Field(
        default=None,
        description="regular expression of an answer: the first group of its last match, or all of "
        "that match; default: all of the response",
    )
    ignore_case: bool = Field(default=True, description="letters in upper and lower case are alike")
    as_number: bool = Field(
        default=False, description="compare as numbers: 1,000 is 1000.0; what is none is no answer"
    )

    @field_validator("answer")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        return value if value is None else _expression(value)


class FinishRule(Rule):
    """How a response finished."""

    rule: Literal["finish"]
    among: tuple[Literal["stop", "length", "other"], ...] = Field(
        default=("stop",), min_length=1, description="the ways that are kept"
    )


class LengthRule(Rule):
    """The length of a response."""

    rule: Literal["length"]
    least_characters: int = Field(default=1, ge=0, description="characters, at least")
    most_characters: int | None = Field(default=None, ge=0, description="characters, at most")
    least_tokens: int | None = Field(default=None, ge=0, description="tokens, at least")
    most_tokens: int | None = Field(default=None, ge=0, description="tokens, at most")


class LogProbRule(Rule):
    """The log-probability of a response."""

    rule: Literal["log_prob"]
    least: float = Field(description="the lowest that is kept, in nats")
    each: Literal["token", "response"] = Field(
        default="token", description="mean over its tokens, or sum"
    )


class PatternRule(Rule):
    """Whether a response matches."""

    rule: Literal["pattern"]
    pattern: str = Field(description="regular expression, searched anywhere in the response")
    reject: bool = Field(default=False, description="keep the responses that do not match")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        return _expression(value)


class LabelRule(AnswerRule):
    """Whether the answer is the label, in which it is found in the same way."""

    rule: Literal["label"]


class MajorityRule(AnswerRule):
    """Whether the answer is that of most responses to the prompt; none is where two are as many
    (self-consistency, arXiv 2203.11171)."""

    rule: Literal["majority"]
    least_share: float = Field(
        default=0.0, ge=0, le=1, description="share of the prompt's responses that have it"
    )


class AgreementRule(AnswerRule):
    """Whether the answer is that of most responses of another teacher."""

    rule: Literal["agreement"]
    other: CachedTeacher = Field(description="the other one's responses: {cache, teacher}")


class ScoreRule(Rule):
    """The score of a critic, which read prompts with responses."""

    rule: Literal["score"]
    critic: CriticKeys = Field(
        description="{cache, teacher, feature, column, probability, reads}: a cached score"
    )
    least: float | None = Field(default=None, description="the lowest that is kept")
    most: float | None = Field(default=None, description="the highest that is kept")

    @model_validator(mode="after")
    def _has_a_limit(self) -> "ScoreRule":
        if self.least is None and self.most is None:
            raise ValueError("least, most: set one of them")
        return self


class DuplicatesRule(Rule):
    """Whether a response has been there before, but for white space."""

    rule: Literal["duplicates"]
    among: Literal["prompt", "corpus"] = Field(
        default="prompt", description="responses to the same prompt, or all"
    )
    ignore_case: bool = Field(
        default=False, description="letters in upper and lower case are alike"
    )


class BestRule(Rule):
    """The best responses of a prompt; of equal ones the first."""

    rule: Literal["best"]
    count: int = Field(default=1, ge=1, description="how many are kept of each prompt")
    by: Literal["log_prob", "mean_log_prob", "score"] = Field(
        default="mean_log_prob", description="what is compared: log-probability, or a score"
    )
    critic: CriticKeys | None = Field(default=None, description="where by=score is from")

    @model_validator(mode="after")
    def _knows_its_critic(self) -> "BestRule":
        if (self.by == "score") != (self.critic is not None):
            raise ValueError("critic: is for by=score, which needs one")
        return self


AnyRule = Annotated[
    FinishRule
    | LengthRule
    | LogProbRule
    | PatternRule
    | LabelRule
    | MajorityRule
    | AgreementRule
    | ScoreRule
    | DuplicatesRule
    | BestRule,
    Field(discriminator="rule"),
]


RULES: dict[str, type[Rule]] = {
    kind.model_fields["rule"].annotation.__args__[0]: kind
    for kind in get_args(get_args(AnyRule)[0])
}
"""Name -> options of that rule."""


def _expression(value: str) -> str:
    try:
        re.compile(value)
    except re.error as cause:
        raise ValueError(f"is no regular expression: {cause}") from cause
    return value
