"""A weighted sum of objectives, which is an objective.

    total = task? + sum of weight(progress) * objective's total

Each objective reads its own sources. Where none of the objectives scores the student's own task
(`Reads.task`), its labels or the tokens of the corpus, that loss is added once, with weight 1.
Weights are numbers, or functions of the progress of training: of the share of its steps that are
made, so that a run that is cut and resumed has the losses of one that was not. In each of several
stages of a run only some of the objectives are computed. A learned weight is exp(-s), and s / 2 is
added to the loss, with s the logarithm of a variance, 0 at the start, trained beside the student:
Kendall, Gal, Cipolla, Multi-Task Learning Using Uncertainty, arXiv 1705.07115, equation 10.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from .base import (
    TASK_PART,
    Objective,
    Sizes,
    Sources,
    StudentSide,
    named_terms,
    task_terms,
)
from .options import ObjectiveOptions, WeightSchedule

Weight = float | WeightSchedule | Literal["learned"]


class Stage(NamedTuple):
    """A part of a run in which only some objectives are computed."""

    until: float
    """Share of the steps after which it ends."""
    parts: frozenset[int]
    """Which objectives, counted from 0."""


class SummedObjective(Objective):
    """Several objectives at once. Owns the log-variances of learned weights."""

    def __init__(
        self,
        parts: Sequence[Objective],
        weights: Sequence[Weight],
        sizes: Sizes,
        stages: Sequence[Stage] = (),
    ) -> None:
        """`sizes` of the student; each part has been made for its own sources; without `stages`,
        all are computed in each step."""
        super().__init__(ObjectiveOptions(), sizes)
        self.each = nn.ModuleList(parts)
        self.weights = tuple(weights)
        self.stages = tuple(stages) or (Stage(1.0, frozenset(range(len(parts)))),)
        self.sources = tuple(dict.fromkeys(name for part in parts for name in part.sources))
        scored = {each for part in parts if part.reads.task for each in part.reads.student}
        self._adds_labels, self._adds_tokens = "output" not in scored, "tokens" not in scored
        count = self.weights.count("learned")
        self.log_variances = nn.Parameter(torch.zeros(count)) if count else None

    @property
    def parts(self) -> Sequence[Objective]:
        """The objectives that are summed up here."""
        return tuple(self.each)  # type: ignore[arg-type]

    @property
    def active_parts(self) -> Sequence[Objective]:
        """The objectives of this stage; in an evaluation, of the last."""
        stage = self._stage
        return [part for number, part in enumerate(self.parts) if number in stage.parts]

    @property
    def _stage(self) -> Stage:
        progress = self.progress if self.training else 1.0
        return next((each for each in self.stages if progress < each.until), self.stages[-1])

    def _weight(self, number: int) -> tuple[float | Tensor, float | Tensor]:
        """The weight of a part in this step, and what is added to the loss."""
        weight = self.weights[number]
        if isinstance(weight, WeightSchedule):
            # An evaluation in the middle of a run weighs as the end does, or epochs would not
            # compare.
            return weight.at(self.progress if self.training else 1.0), 0.0
        if weight != "learned":
            return weight, 0.0
        assert self.log_variances is not None
        log_variance = self.log_variances[self.weights[:number].count("learned")]
        return torch.exp(-log_variance), log_variance / 2

    def of_sources(
        self, side: StudentSide, sources: Sources, labels_B: Tensor | None
    ) -> dict[str, Tensor]:
        """total; task or language, where no part scores labels or tokens; the terms of each part as
        `label.term`, before its weight; and `label.weight`, where that moves."""
        total: Tensor | None = None
        reported: dict[str, Tensor] = {}
        for task in self._tasks(side, labels_B):
            terms = task_terms(task, labels_B, self.sizes.regression)
            scored = terms.pop("total")
            total = scored if total is None else total + scored
            reported |= terms
        task_part = total
        stage = self._stage
        for number, part in enumerate(self.parts):
            if number not in stage.parts:
                continue
            if part.reads.task:
                terms = part.of_batch(side, sources, labels_B)
            else:
                terms = part.of_batch(replace(side, output_BK=None), sources, labels_B)
            scored = terms.pop("total")
            prefix = f"{part.label}." if part.label else ""
            weight, added = self._weight(number)
            if not isinstance(self.weights[number], float | int):
                shown = torch.as_tensor(weight, dtype=torch.float32, device=scored.device)
                reported[f"{prefix}weight"] = shown
            total = weight * scored if total is None else total + weight * scored
            if self.weights[number] == "learned":
                total = total + added
            own = terms.pop(TASK_PART, None)
            if own is not None:
                task_part = weight * own if task_part is None else task_part + weight * own
            reported |= {f"{prefix}{name}": term for name, term in terms.items()}
        assert total is not None
        split = {TASK_PART: task_part} if self.splits and task_part is not None else {}
        return named_terms(total, **reported) | split

    def of_batch(
        self, side: StudentSide, sources: Sources, labels_B: Tensor | None
    ) -> dict[str, Tensor]:
        """The same: each part has rows of its own."""
        return self.of_sources(side, sources, labels_B)

    def _tasks(self, side: StudentSide, labels_B: Tensor | None) -> Iterator[StudentSide]:
        """Student tensors with a task that no part scores."""
        if self._adds_tokens and side.tokens is not None:
            yield side
        if self._adds_labels and side.output_BK is not None and labels_B is not None:
            yield replace(side, tokens=None)
