"""Seconds a step with each objective beside those of plain training, by turns.

One student, an encoder as it is, takes whole steps: forward, loss, backward, clipping, AdamW. Both
objectives get the same batch; features are random, and lie in memory.
"""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from armada.pipeline.objectives import Description
from armada.stages.corpus.labels import LabelSpace
from armada.stages.distill.model import DistillModel, attention_dims, layer_dims
from armada.stages.distill.objectives import OBJECTIVES
from armada.stages.distill.objectives.base import Sizes
from armada.stages.distill.settings import StudentSettings
from armada.stages.distill.student_source import load_student
from torch import Tensor

ROWS, TOKENS, CLASSES, FEATURE = 32, 32, 4, 384
SPACE = LabelSpace(task="classification", num_labels=CLASSES)


def costs(
    encoder: Path,
    chosen: Iterable[Description],
    options: Mapping[str, Mapping[str, Any]],
    rounds: int,
) -> dict[str, tuple[float, float, float]]:
    """Ratio of each objective's step to the plain one's of the same round: median and quartiles."""
    student, _ = load_student(StudentSettings(student=str(encoder)), SPACE, [], dropout=0.1)
    widths = {"layers": layer_dims(student), "attention": attention_dims(student)}
    plain = _Steps(student, "undistilled", {}, {})
    found = {}
    for objective in chosen:
        steps = _Steps(student, objective.name, options.get(objective.name, {}), widths)
        ratios = []
        for at in range(rounds + 2):
            pair = [plain.step(), steps.step()] if at % 2 else [steps.step(), plain.step()][::-1]
            if at >= 2:  # the first ones allocate memory
                ratios.append(pair[1] / pair[0])
        low, _, high = quantiles(ratios, n=4)
        found[objective.name] = (median(ratios), low, high)
    return found


class _Steps:
    """Steps of the student with one objective."""

    def __init__(
        self,
        student: Any,
        name: str,
        options: Mapping[str, Any],
        widths: Mapping[str, tuple[int, ...]],
    ) -> None:
        torch.manual_seed(0)
        objective = OBJECTIVES.load(name)
        reads = objective.reads
        shape: tuple[int, ...] = (CLASSES,) if reads.classes else (FEATURE,)
        if "attention" in reads.student:
            shape = (3, FEATURE)  # queries, keys and values
        count = 2 if reads.features is None else reads.features
        sizes = Sizes(
            student.dim,
            CLASSES,
            False,
            shape if count else None,
            more_shapes=(shape,) * max(0, count - 1),
            layer_dims=widths["layers"] if "layers" in reads.student else (),
            attention_dims=widths["attention"] if "attention" in reads.student else (),
        )
        built = objective(objective.Options(**options), sizes)
        built.sources = tuple(f"teacher {at}" for at in range(count))
        self._model = DistillModel(student, built).train()
        self._trained = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=1e-6)
        rows = (ROWS, TOKENS) if reads.axis == "tokens" else (ROWS,)
        self._batch: dict[str, Any] = {
            "input_ids": torch.randint(5, student.backbone.config.vocab_size, (ROWS, TOKENS)),
            "attention_mask": torch.ones(ROWS, TOKENS, dtype=torch.long),
            "labels": torch.randint(CLASSES, (ROWS,)),
            "features": {source: torch.randn(*rows, *shape) for source in built.sources},
            "rows": ROWS,
        }

    def step(self) -> float:
        """One step; returns its seconds."""
        started = time.perf_counter()
        loss: Tensor = self._model(**self._batch)["loss"]
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return time.perf_counter() - started
