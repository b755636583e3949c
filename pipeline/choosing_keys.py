"""The rules of a `distill` job that choose among its training rows: `select: [{rule: NAME, ...}]`.

difference    texts that a larger model finds more probable than a smaller one does
learnability  texts that are hard for a learner and easy for a reference
balance       as many of each cluster, or of each class
entropy       by the entropy of a teacher's class probabilities
confidence    by its largest class probability
score         by its score of the row's texts
agreement     where its largest class is the label
domain_gap    keeps all, and draws more from domains where a learner lags behind a teacher

They act one after another, each on the rows that the ones before it left. All read cached features
of teachers in the job, so no model is loaded.
"""

from math import nan
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Keep = Annotated[int | float, Field(gt=0)]
_KEEP = "how many rows to keep: a number of them, or, below 1, a share"


def _number(value: Any) -> int | float:
    """A whole number where it is one, as the text of one is; raises what `float` raises."""
    if isinstance(value, bool):
        raise TypeError("is no number")
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, str) and value.strip().isdecimal() else float(value)


class SelectRule(BaseModel):
    """A rule."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def name(self) -> str:
        """Its name in a job."""
        return str(getattr(self, "rule"))  # noqa: B009

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names of the teachers whose features it reads."""
        return ()

    @field_validator("keep", mode="before", check_fields=False)
    @classmethod
    def _is_a_number_or_a_share(cls, value: Any) -> Any:
        try:
            number = value if value is None else _number(value)
        except (TypeError, ValueError, OverflowError):
            number = nan
        if number is not None and not (0 < number < 1 or (number >= 1 and isinstance(number, int))):
            raise ValueError("is neither a number of rows from 1 nor a share between 0 and 1")
        return number


class DifferenceRule(SelectRule):
    """The rows with the largest (log p_larger - log p_smaller) / tokens of the larger's text."""

    rule: Literal["difference"]
    larger: str = Field(description="teacher that is the larger model")
    smaller: str = Field(description="teacher that is the smaller model")
    feature: str = Field(
        default="own_log_probs", description="their log-probabilities of each text's own tokens"
    )
    keep: Keep = Field(description=_KEEP)
    seed: int = Field(default=0, ge=0, lt=2**63, description="seed for the order of equal rows")

    @property
    def teachers(self) -> tuple[str, ...]:
        return (self.larger, self.smaller)


class LearnabilityRule(SelectRule):
    """The rows with the largest loss of the learner less that of the reference."""

    rule: Literal["learnability"]
    learner: str = Field(description="teacher that stands for the student: hard texts are chosen")
    reference: str = Field(description="teacher that has learned: texts easy for it are chosen")
    feature: str = Field(
        default="own_log_probs",
        description="log-probabilities of each text's own tokens, or class logits, whose loss is "
        "the cross-entropy with the label",
    )
    keep: Keep = Field(description=_KEEP)
    seed: int = Field(default=0, ge=0, lt=2**63, description="seed for the order of equal rows")

    @property
    def teachers(self) -> tuple[str, ...]:
        return (self.learner, self.reference)


class BalanceRule(SelectRule):
    """Rows of all clusters in turn, as long as each has any, or at most so many of each."""

    rule: Literal["balance"]
    teacher: str | None = Field(
        default=None, description="teacher of the clusters; default: classes of label_column"
    )
    feature: str = Field(
        default="cluster",
        description="numbers of clusters, as `armada cache derive --rule clusters` makes them, or "
        "logits, of which the largest counts",
    )
    keep: Keep | None = Field(default=None, description=_KEEP)
    most: int | None = Field(default=None, ge=1, description="most rows of a cluster")
    seed: int = Field(default=0, ge=0, lt=2**63, description="seed of the choice in a cluster")

    @model_validator(mode="after")
    def _has_one_of_two(self) -> "BalanceRule":
        if (self.keep is None) == (self.most is None):
            raise ValueError("keep, most: set one of them")
        # Not whether it was named: the job file of a run names all keys.
        if self.teacher is None and self.feature != BalanceRule.model_fields["feature"].default:
            raise ValueError("feature: is one of a teacher; name the teacher, too")
        return self

    @property
    def teachers(self) -> tuple[str, ...]:
        return () if self.teacher is None else (self.teacher,)


class BetweenRule(SelectRule):
    """Rows with a value between two bounds."""

    teacher: str = Field(description="teacher of the logits")
    feature: str = Field(default="logits", description="class logits")
    least: float | None = Field(default=None, ge=0, description="smallest value that is kept")
    most: float | None = Field(default=None, ge=0, description="largest value that is kept")

    @model_validator(mode="after")
    def _has_a_bound(self) -> Any:
        if self.least is None and self.most is None:
            raise ValueError("least, most: set at least one of them")
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ValueError(f"least {self.least} is above most {self.most}")
        return self

    @property
    def teachers(self) -> tuple[str, ...]:
        return (self.teacher,)


class EntropyRule(BetweenRule):
    """Rows whose teacher's probabilities have an entropy, in nats, between two bounds."""

    rule: Literal["entropy"]


class ConfidenceRule(BetweenRule):
    """Rows whose teacher's largest probability is between two bounds."""

    rule: Literal["confidence"]


class ScoreRule(BetweenRule):
    """Rows whose teacher's number for their texts is between two bounds."""

    rule: Literal["score"]
    teacher: str = Field(description="teacher of the numbers, such as a cross_encoder")
    feature: str = Field(default="score", description="one number for a text, or texts together")
    least: float | None = Field(default=None, description="smallest score that is kept")
    most: float | None = Field(default=None, description="largest score that is kept")


class AgreementRule(SelectRule):
    """Rows whose teacher's largest class is the label; those without a label are kept."""

    rule: Literal["agreement"]
    teacher: str = Field(description="teacher of the logits")
    feature: str = Field(default="logits", description="class logits")

    @property
    def teachers(self) -> tuple[str, ...]:
        return (self.teacher,)


class DomainGapRule(SelectRule):
    """Domains by the gap between a learner's and a teacher's loss: how often rows are drawn."""

    rule: Literal["domain_gap"]
    domain_column: str = Field(description="column of the domain's name")
    learner: str = Field(description="teacher that stands for the student")
    teacher: str = Field(description="teacher that has learned")
    feature: str = Field(
        default="own_log_probs",
        description="log-probabilities of each text's own tokens, or class logits, whose loss is "
        "the cross-entropy with the label",
    )
    strength: float = Field(
        default=0.5, gt=0, le=1, description="share of draws by the gap, the rest evenly by domain"
    )

    @property
    def teachers(self) -> tuple[str, ...]:
        return (self.learner, self.teacher)


AnySelectRule = Annotated[
    DifferenceRule
    | LearnabilityRule
    | BalanceRule
    | EntropyRule
    | ConfidenceRule
    | ScoreRule
    | AgreementRule
    | DomainGapRule,
    Field(discriminator="rule"),
]

SELECT_RULES: dict[str, type[SelectRule]] = {
    kind.model_fields["rule"].annotation.__args__[0]: kind
    for kind in get_args(get_args(AnySelectRule)[0])
}
"""Name -> options of that rule."""
