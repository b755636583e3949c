"""The objectives that are installed: what each is, needs and takes, by its own docstring.

The docstring of an objective's class begins with one line of summary. Paragraphs or lines that
begin with `Formula:` and `Source:` are what those columns show; an objective of another package may
lack them.
"""

import inspect
import re
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel

from ..stages.distill.objectives import OBJECTIVES
from ..stages.distill.objectives.base import Objective, Reads

_ENTRY = r"^{}:\s*(.*(?:\n(?!\s*$|\w+:).*)*)"
"""A line that begins with a name, and those that go on with it."""


@dataclass(frozen=True, slots=True)
class Needs:
    """Inputs of an objective. `features`: how many of a teacher, None for as many as a job names;
    `axis`: what they run along, None for one per text; `classes`: whether they are logits of the
    student's own classes; `student`: student tensors."""

    features: int | None
    default_feature: str | None
    axis: str | None
    classes: bool
    student: tuple[str, ...]
    labels: bool
    regression: bool
    least_rows: int

    @classmethod
    def of(cls, reads: Reads) -> "Needs":
        """The inputs that an objective declares."""
        return cls(
            features=reads.features,
            default_feature=reads.default_feature,
            axis=reads.axis,
            classes=reads.classes,
            student=tuple(sorted(reads.student)),
            labels=reads.labels,
            regression=reads.regression,
            least_rows=reads.least_rows,
        )

    def _read(self) -> list[str]:
        """What it reads of teachers, or of rows in place of single texts."""
        if "pairs" in self.student:
            known = "no teacher" if self.features == 0 else "own_log_probs of a teacher"
            return [known, "two responses to each prompt"]
        if "candidates" in self.student:
            known = "a feature of texts, or scores of pairs" if self.features else "no teacher"
            return [known, "queries and passages"]
        if self.axis is not None:
            return [f"{self.axis} of a teacher"]
        if self.classes:
            return ["class logits"]
        if self.features == 0:
            return ["no teacher"]
        if self.features == 1:
            return ["a feature"]
        return ["features" if self.features is None else f"{self.features} features"]

    def in_words(self) -> str:
        """One line for people."""
        parts = self._read()
        if "layers" in self.student:
            parts.append("layers of the student")
        if "attention" in self.student:
            parts.append("attention layers of the student")
        if "tokens" in self.student and (self.axis is not None or "pairs" in self.student):
            parts.append("a language model")
        if self.labels and self.features != 0:
            parts.append("labels")
        if self.least_rows > 1:
            parts.append(f"{self.least_rows} rows a batch")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Description:
    """An objective by its name; `formula` and `source` are None where its docstring has none."""

    name: str
    summary: str
    formula: str | None
    source: str | None
    needs: Needs
    options: dict[str, dict[str, Any]]
    """Default and description of each option."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def descriptions() -> list[Description]:
    """All installed objectives, sorted by name."""
    return [description_of(name) for name in OBJECTIVES.names()]


def description_of(name: str) -> Description:
    """One objective. Raises JobError for one that is not installed."""
    objective: type[Objective] = OBJECTIVES.load(name)
    text = inspect.getdoc(objective) or ""
    options: type[BaseModel] = objective.Options
    return Description(
        name=name,
        summary=" ".join(text.partition("\n\n")[0].split()),
        formula=_entry(text, "Formula"),
        source=_entry(text, "Source"),
        needs=Needs.of(objective.reads),
        options={
            key: {"default": field.default, "description": field.description}
            for key, field in options.model_fields.items()
        },
    )


def _entry(text: str, name: str) -> str | None:
    found = re.search(_ENTRY.format(name), text, re.MULTILINE)
    return " ".join(found[1].split()) if found else None
