"""The keys of a `precompute` job about which texts to compute, where a budget is set."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from .jobs import Job

Rule = Literal["random", "balanced", "k-center", "k-means++", "uncertainty"]

NEEDS: dict[Rule, str] = {
    "balanced": "label_column",
    "k-center": "budget_feature",
    "k-means++": "budget_feature",
    "uncertainty": "budget_predictions",
}
"""Rule -> the key that it needs."""


class BudgetKeys(Job):
    """How many texts to compute, and which."""

    budget: Annotated[int | float, Field(gt=0)] | None = Field(
        default=None,
        description="compute only so many distinct texts of the corpus, or, below 1, such a share "
        "of them, chosen by budget_rule; students are trained on the others with "
        "missing=without_teacher",
    )
    budget_rule: Rule = Field(
        default="random",
        description="random; balanced, by the classes of label_column; k-center or k-means++, by "
        "the distances of budget_feature; uncertainty, by budget_predictions. A larger budget of "
        "one rule contains a smaller one",
    )
    budget_seed: int = Field(default=0, ge=0, lt=2**63, description="seed of the choice")
    label_column: str | None = Field(
        default=None, description="column of classes, for budget_rule=balanced"
    )
    budget_feature: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{1,32}/.+$",
        description="TEACHER/FEATURE of the same cache, for k-center and k-means++: TEACHER is a "
        "fingerprint, or a prefix no other one shares",
    )
    budget_predictions: Path | None = Field(
        default=None,
        description="file that `predict` wrote for this corpus with a student of classes, for "
        "budget_rule=uncertainty",
    )

    @field_validator("budget")
    @classmethod
    def _is_a_number_or_a_share(cls, value: int | float | None) -> int | float | None:
        if isinstance(value, float) and value >= 1:
            raise ValueError(f"{value} is neither a whole number of texts nor a share below 1")
        return value

    @model_validator(mode="after")
    def _has_what_its_rule_needs(self) -> "BudgetKeys":
        if self.budget is None:
            for key, field in BudgetKeys.model_fields.items():
                if getattr(self, key) != field.default:
                    raise ValueError(f"job key {key!r}: is for a budget, and none is set")
            return self
        needed = NEEDS.get(self.budget_rule)
        if needed is not None and getattr(self, needed) is None:
            raise ValueError(f"budget_rule={self.budget_rule}: job key {needed!r} is missing")
        for key in dict.fromkeys(NEEDS.values()):
            if key != needed and getattr(self, key) is not None:
                rules = " or ".join(rule for rule, needs in NEEDS.items() if needs == key)
                raise ValueError(f"job key {key!r}: is for budget_rule={rules}; leave it out")
        return self
