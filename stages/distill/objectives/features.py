"""Objectives that map the student's pooled text to a cached feature, which it has to meet."""

from torch import Tensor

from ....cache_schemas.errors import JobError
from .. import closed_forms
from ..losses import accumulated
from ..losses.features import norm_direction_loss
from ..projectors import WithProjector, as_wide_as, make_projector
from .base import Objective, Reads, Sizes, Sources, TeacherSide, named_terms
from .one_loss import BetaObjective
from .options import FeatureOptions, NormDirectionOptions


class FeatureObjective(WithProjector, Objective):
    """Regression of the student's pooled text onto a feature of the teacher.

    Formula: task + beta · distance(projection(s), t)
    Source: the hint loss of Romero et al., FitNets, arXiv 1412.6550, on cached features.

    Owns `projection`, D -> H, with a bias, for features are rarely centred.
    """

    Options = FeatureOptions
    options: FeatureOptions
    reads = Reads(labels=False, headless=True, task=False)

    def __init__(self, options: FeatureOptions, sizes: Sizes) -> None:
        super().__init__(options, sizes)
        self.projection = make_projector("feature", options, sizes)

    def forward(
        self,
        pooled_BD: Tensor,
        output_BK: Tensor | None,
        feature_BH: TeacherSide,
        labels_B: Tensor | None,
    ) -> dict[str, Tensor]:
        """total, task, feature. Without output or labels the feature is all there is to learn."""
        projection_BH = self.projection(pooled_BD)
        terms = closed_forms.feature_loss(
            projection=projection_BH,
            feature=as_wide_as(projection_BH, self._feature(feature_BH)),
            output=output_BK,
            labels=labels_B,
            beta=self.options.beta,
            distance=self.options.distance,
            regression=self.sizes.regression,
        )
        return named_terms(terms.total, task=terms.task, feature=terms.feature)

    def task_weight(self, sources: Sources) -> float:
        """1."""
        return 1.0

    def embedding(self, pooled_BD: Tensor) -> Tensor:
        """The projection, which is to meet the feature."""
        projected: Tensor = self.projection(pooled_BD)
        return projected


class NormDirectionObjective(WithProjector, BetaObjective):
    """The direction of the mean of the text's class, and a length of at least the teacher's.

    Formula: task + beta · mean of 1 - projection(s)·c / max(|projection(s)|, |t|), c the direction
    of the class mean
    Source: Wang et al., Improving Knowledge Distillation via Regularizing Feature Norm and
    Direction, arXiv 2305.17007.

    Reads a feature and its class mean, as `armada cache derive --rule class-means` makes it: that
    is another teacher, so of two teachers bge and means, `features: [pooled, means.class_mean]`.
    Owns `projection`, D -> H, with a bias.
    """

    Options = NormDirectionOptions
    options: NormDirectionOptions
    reads = Reads(features=2, labels=False, headless=True, task=False)

    def __init__(self, options: NormDirectionOptions, sizes: Sizes) -> None:
        super().__init__(options, sizes)
        self.projection = make_projector("norm_direction", options, sizes)

    @classmethod
    def require_inputs(cls, name: str, options: NormDirectionOptions, sizes: Sizes) -> None:
        """Raises JobError for features of two shapes."""
        shapes = (sizes.feature_shape, *sizes.more_shapes)
        if len(set(shapes)) > 1:
            raise JobError(
                f"objective {name}: features of the shapes {shapes[0]} and {shapes[1]}; name a "
                "feature and its class means, which have one shape"
            )

    def forward(
        self,
        pooled_BD: Tensor,
        output_BK: Tensor | None,
        feature_BH: TeacherSide,
        labels_B: Tensor | None,
    ) -> dict[str, Tensor]:
        """total, task, norm_direction. Without output or labels, the task's is 0."""
        both = feature_BH if isinstance(feature_BH, tuple) else (feature_BH, None)
        own_BH, mean_BH = (accumulated(self._feature(each).detach()) for each in both)
        student_BH = accumulated(self.projection(pooled_BD))
        own_BH, mean_BH = (as_wide_as(student_BH, each) for each in (own_BH, mean_BH))
        loss = norm_direction_loss(student_BH, own_BH, mean_BH)
        return self.beside_task(loss, output_BK, labels_B, norm_direction=loss)
