"""A weighted sum of objectives, which is an objective.

    total = task? + sum of weight(progress) * objective's total

Each objective reads its own sources. Where none of the objectives scores the student's own task
(`Reads.task`), its labels or the tokens of the corpus, that loss is added once, with weight 1.
Weights are numbers, or functions of the progress of training: of the share of its steps that are
made, so that a run that is cut and resumed has the losses of one that was not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

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

Weight = float | WeightSchedule


class SummedObjective(Objective):
    """Several objectives at once."""

    def __init__(self, parts: Sequence[Objective], weights: Sequence[Weight], sizes: Sizes) -> None:
        """`sizes` of the student; each part has been made for its own sources."""
        super().__init__(ObjectiveOptions(), sizes)
        self.each = nn.ModuleList(parts)
        self.weights = tuple(weights)
        self.sources = tuple(dict.fromkeys(name for part in parts for name in part.sources))
        scored = {each for part in parts if part.reads.task for each in part.reads.student}
        self._adds_labels, self._adds_tokens = "output" not in scored, "tokens" not in scored

    @property
    def parts(self) -> Sequence[Objective]:
        """The objectives that are summed up here."""
        return tuple(self.each)  # type: ignore[arg-type]

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
        # An evaluation in the middle of a run weighs as the end does, or epochs would not compare.
        progress = self.progress if self.training else 1.0
        for part, weight in zip(self.parts, self.weights, strict=True):
            if part.reads.task:
                terms = part.of_batch(side, sources, labels_B)
            else:
                terms = part.of_batch(replace(side, output_BK=None), sources, None)
            scored = terms.pop("total")
            prefix = f"{part.label}." if part.label else ""
            if isinstance(weight, WeightSchedule):
                weight = weight.at(progress)
                reported[f"{prefix}weight"] = torch.full((), weight, device=scored.device)
            total = weight * scored if total is None else total + weight * scored
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
