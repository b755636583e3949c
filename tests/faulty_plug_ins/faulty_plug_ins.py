"""Plug-ins that each break one promise, for the tests of plug-ins to find."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from armada.cache_schemas.features import FeatureSpec
from armada.stages.distill.losses import task_loss
from armada.stages.distill.objectives.base import (
    Objective,
    ObjectiveOptions,
    Reads,
    named_terms,
)
from armada.stages.precompute.teachers.base import (
    Answers,
    Example,
    Teacher,
    TeacherOptions,
    make_spec,
)
from pydantic import Field
from torch import nn


class Options(TeacherOptions):
    factor: float = Field(default=1.0, description="by which numbers are multiplied")
    fault: str = Field(default="none", description="the promise that is broken")

    def settings(self) -> dict[str, Any]:
        left_out = {"fault"} | ({"factor"} if self.fault == "fingerprint" else set())
        return self.model_dump(exclude=left_out)


class FaultyTeacher(Teacher):
    """Answers with the numbers of characters and words."""

    kind = "faulty"
    Options = Options

    def __init__(self, source: str, options: Options, device: torch.device) -> None:
        self._options, self._fault = options, options.fault
        counts = FeatureSpec(name="counts", shape=(2,), dtype="float16")
        self.spec = make_spec(self.kind, source, {}, options, [counts])

    def load(self) -> None:
        if self._fault == "load":
            self.spec = self.spec.model_copy(update={"settings": {}})

    def buckets(self, examples: Sequence[Example]) -> list[int]:
        """Of texts of one length, where padding is what is wrong."""
        lengths = [sum(map(len, example.segments)) for example in examples]
        return lengths if self._fault == "padding" else [0] * len(examples)

    def encode(self, examples: Sequence[Example]) -> Answers:
        texts = ["\n".join(example.segments) for example in examples]
        counts = np.array([[len(text), len(text.split())] for text in texts], dtype=np.float64)
        if self._fault != "unread":
            counts *= self._options.factor
        if self._fault == "batch":
            counts += counts.max()
        if self._fault == "padding":
            counts += max(self.buckets(examples))
        if self._fault == "generator":
            counts += np.random.random(counts.shape)
        if self._fault == "overflow":
            counts *= 1e4
        if self._fault == "shape":
            counts = counts[:, :1]
        if self._fault == "names":
            return Answers({"others": counts}, np.zeros(len(texts), dtype=bool))
        return Answers({"counts": counts}, np.zeros(len(texts), dtype=bool))


class LossOptions(ObjectiveOptions):
    share: float = Field(default=0.5, ge=0, le=1, description="weight of the feature")


class Sound(Objective):
    """Breaks none: the task, and the squared distance of a map of the student to the feature."""

    Options = LossOptions

    def __init__(self, options: LossOptions, sizes: Any) -> None:
        super().__init__(options, sizes)
        self.map = nn.Linear(sizes.pooled_dim, sizes.feature_dim)

    def forward(self, pooled_BD: Any, output_BK: Any, feature_BH: Any, labels_B: Any) -> Any:
        feature = self._feature(feature_BH).float()
        distance = self.distance(self.map(pooled_BD.to(self.map.weight.dtype)), feature)
        task = task_loss(output_BK, labels_B, self.sizes.regression)
        return self.terms(task, distance)

    def distance(self, mapped: torch.Tensor, feature: torch.Tensor) -> torch.Tensor:
        return (mapped - feature).square().mean()

    def terms(self, task: torch.Tensor, distance: torch.Tensor) -> Any:
        return named_terms(task + self.options.share * distance, task=task, distance=distance)


class Detached(Sound):
    """Half of the gradient is missing."""

    def distance(self, mapped: torch.Tensor, feature: torch.Tensor) -> torch.Tensor:
        return ((mapped - feature) * (mapped - feature).detach()).mean()


class Graphs(Sound):
    """What is reported keeps its graph."""

    def terms(self, task: torch.Tensor, distance: torch.Tensor) -> Any:
        return {"total": task + self.options.share * distance, "distance": distance}


class Ordered(Sound):
    """The first row weighs more."""

    def distance(self, mapped: torch.Tensor, feature: torch.Tensor) -> torch.Tensor:
        return super().distance(mapped, feature) + mapped[0].square().mean()


class Unbounded(Sound):
    """An exponential without a bound."""

    def distance(self, mapped: torch.Tensor, feature: torch.Tensor) -> torch.Tensor:
        return (mapped - feature).exp().mean()


class Coarse(Sound):
    """Sums in half precision."""

    def distance(self, mapped: torch.Tensor, feature: torch.Tensor) -> torch.Tensor:
        return (mapped - feature).bfloat16().square().mean()


class Blind(Sound):
    """Never looks at the feature."""

    def distance(self, mapped: torch.Tensor, feature: torch.Tensor) -> torch.Tensor:
        return mapped.square().mean()


class Unlabelled(Sound):
    """Says that it can do without labels, and cannot."""

    reads = Reads(task=False)


class Forgetful(Sound):
    """What it drew at the start is in no state."""

    def distance(self, mapped: torch.Tensor, feature: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "drawn"):
            self.drawn = torch.rand(())
        return self.drawn * super().distance(mapped, feature)


class Idle(Sound):
    """Has an option that it does not read."""

    def terms(self, task: torch.Tensor, distance: torch.Tensor) -> Any:
        return named_terms(task + distance, task=task, distance=distance)
