"""What an objective is: the trainable parts beside the student, and the loss that uses them.

A step calls `objective(pooled_BD, output_BK, feature_BH, labels_B)` and gets named scalars;
`total` is the one to backpropagate, all others are detached and there to be reported.
Shapes: B rows, D pooled student text, K classes (1 for regression), H numbers of a feature.
Other people's objectives subclass `Objective` and register under `armada.objectives`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ....cache_schemas.errors import MissingFeatureError
from ..aligner import AlignerAnswers
from ..losses import Distance, Manifold
from ..rotations import OrthogonalMap

TeacherSide = Tensor | AlignerAnswers | None
"""A batch's features [B, *shape]; or, for an objective whose aligner is frozen, what that reads out
of them, worked out ahead (`../replay.py`); None where there are none."""

Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["learned"]


class ObjectiveSettings(BaseModel):
    """The knobs of all objectives in one place; each objective reads those it has a use for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="weight of the teacher's outputs; the task has 1 - alpha (armada, kd)",
    )
    beta: float = Field(
        default=1.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of the manifold term (armada) or of the feature term (feature)",
    )
    gamma: float = Field(
        default=1.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of the auxiliary heads, which read the projections (armada)",
    )
    temperature: Temperature = Field(
        default=5.0, description="softening of the logits (armada, kd), or 'learned' (kd only)"
    )
    manifold: Manifold = Field(
        default="cosine",
        description="how projections are compared: cosine or euclid of the batch means, or "
        "pointwise (armada)",
    )
    distance: Distance = Field(
        default="mse", description="distance to the feature: mse, mae or cosine (feature)"
    )
    aligner_hidden_size: int = Field(
        default=768, ge=1, description="width of the aligner's hidden layers (armada)"
    )
    orthogonal_map: OrthogonalMap = Field(
        default="matrix_exp",
        description="how orthogonal maps are kept so: matrix_exp, as the reference, or cayley "
        "(armada, feature)",
    )
    orthogonal_projection: bool = Field(
        default=False,
        description="keep the student's projection orthogonal as well (armada, feature)",
    )
    dropout: float = Field(
        default=0.1, ge=0, lt=1, description="dropout of the aligner and of all heads (armada)"
    )


@dataclass(frozen=True, slots=True)
class Sizes:
    """What an objective has to fit: `feature_shape` is the shape of one example, None for none."""

    pooled_dim: int
    num_labels: int
    regression: bool
    feature_shape: tuple[int, ...] | None

    @property
    def feature_dim(self) -> int:
        """H, how many numbers one feature has. Raises MissingFeatureError if there is none."""
        if self.feature_shape is None:
            raise MissingFeatureError(
                "this objective needs a teacher feature and none is chosen; name one that the "
                "cache holds, or train with the objective undistilled"
            )
        return math.prod(self.feature_shape)


class Objective(nn.Module, ABC):
    """Turns a student's answers into named loss terms; owns what is trained beside the student."""

    needs_feature: ClassVar[bool] = True
    """Whether batches must carry a teacher feature."""
    needs_labels: ClassVar[bool] = True
    """Whether it takes labels to train anything of use."""
    has_aligner: ClassVar[bool] = False
    """Whether it trains an aligner, its part of that name, which a control can leave as drawn."""
    reads_logits: ClassVar[bool] = False
    """Whether the feature's numbers stand for the student's own classes, in their order."""
    settings_read: ClassVar[frozenset[str]] = frozenset(ObjectiveSettings.model_fields)
    """The settings that it has a use for, beside `dropout`, which every student's head has."""
    default_feature: ClassVar[str | None] = None
    """The feature to read when a job names none; None: the job must name one."""

    aligner: nn.Module | None

    def __init__(self, settings: ObjectiveSettings, sizes: Sizes) -> None:
        super().__init__()
        self.settings = settings
        self.sizes = sizes
        self.aligner = None

    @abstractmethod
    def forward(
        self, pooled_BD: Tensor, output_BK: Tensor, feature_BH: TeacherSide, labels_B: Tensor
    ) -> dict[str, Tensor]:
        """Named scalar terms of one batch; `total` is the one to backpropagate."""

    def train(self, mode: bool = True) -> Self:
        """As for any module; but an aligner that is frozen stays in eval mode."""
        super().train(mode)
        if self.aligner is not None and is_frozen(self.aligner):
            self.aligner.eval()
        return self

    def _feature(self, feature: TeacherSide) -> Tensor:
        """The feature as [B, H], whatever the shape of one example."""
        if not isinstance(feature, Tensor):
            raise MissingFeatureError(
                f"{type(self).__name__} needs a teacher feature and the batch carries none"
            )
        return feature.flatten(start_dim=1)


class AlignedObjective(Objective):
    """One whose aligner can be trained from features alone, and asked ahead of the student.

    Others with an aligner train it in `total`, along with the student, whatever the schedule."""

    has_aligner = True
    aligner: nn.Module
    joint: bool = False
    """Set by the schedule: whether `total` includes the aligner's own loss."""

    @abstractmethod
    def aligner_loss(self, feature_BH: Tensor, labels_B: Tensor) -> Tensor:
        """The loss that trains the aligner, with its graph and in the mode the module is in."""

    @abstractmethod
    def read(self, feature: Tensor) -> AlignerAnswers:
        """The aligner's answers to features [B, *shape], without dropout and without a graph."""


def freeze(part: nn.Module) -> None:
    """Eval mode, no gradients."""
    part.eval().requires_grad_(False)


def is_frozen(part: nn.Module) -> bool:
    """Whether nothing of a part learns."""
    return not any(parameter.requires_grad for parameter in part.parameters())


def named_terms(total: Tensor, **reported: Tensor) -> dict[str, Tensor]:
    """`total` with its graph and the others without, so that a log never keeps a graph alive."""
    return {"total": total, **{name: term.detach() for name, term in reported.items()}}
