"""The ARMADA objective: a TS aligner on the teacher's side, a projection on the student's.

The aligner never sees the student: `aligner_loss` trains it from cached features alone, and the
student's loss reads it frozen, in eval mode. A schedule that alternates calls the two in turn; one
that trains both at once sets `joint`, and `total` holds both losses. Their gradients do not mix.
"""

import torch
from torch import Tensor

from ....cache_schemas.errors import JobError
from .. import closed_forms
from ..aligner import AlignerAnswers, ClassificationHead, ProjectionHead, TSAligner
from ..losses import ArmadaTerms, aligner_loss
from .base import AlignedObjective, ObjectiveSettings, Sizes, TeacherSide, named_terms


class ArmadaObjective(AlignedObjective):
    """Owns `aligner` (teacher side), `projection` Q and `aux_head` (student side)."""

    settings_read = frozenset(ObjectiveSettings.model_fields) - {"distance"}
    aligner: TSAligner

    def __init__(self, settings: ObjectiveSettings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self._temperature = _fixed_temperature(settings)
        labels, regression, dropout = sizes.num_labels, sizes.regression, settings.dropout
        self.aligner = TSAligner(
            sizes.feature_dim,
            settings.aligner_hidden_size,
            labels,
            regression,
            dropout,
            settings.orthogonal_map,
        )
        self.projection = ProjectionHead(
            sizes.pooled_dim,
            sizes.feature_dim,
            settings.orthogonal_projection,
            settings.orthogonal_map,
        )
        self.aux_head = ClassificationHead(sizes.feature_dim, labels, regression, dropout)

    def forward(
        self, pooled_BD: Tensor, output_BK: Tensor, feature_BH: TeacherSide, labels_B: Tensor
    ) -> dict[str, Tensor]:
        """total, task, output, manifold; and aligner if `joint`, where total includes it."""
        terms = self._student_terms(pooled_BD, output_BK, self._answers(feature_BH), labels_B)
        parts = {"task": terms.task, "output": terms.output, "manifold": terms.manifold}
        if not self.joint:
            return named_terms(terms.total, **parts)
        aligner = self.aligner_loss(self._feature(feature_BH), labels_B)
        return named_terms(terms.total + aligner, **parts, aligner=aligner)

    def aligner_loss(self, feature_BH: Tensor, labels_B: Tensor) -> Tensor:
        """The loss that trains the aligner, with its graph and in the mode the module is in."""
        output_BK, aux_output_BK, _ = self.aligner(self._feature(feature_BH))
        return aligner_loss(
            output_BK, aux_output_BK, labels_B, self.settings.gamma, self.sizes.regression
        )

    def _student_terms(
        self, pooled_BD: Tensor, output_BK: Tensor, aligner: AlignerAnswers, labels_B: Tensor
    ) -> ArmadaTerms:
        projection_BH = self.projection(pooled_BD)
        return closed_forms.armada_loss(
            student_output=output_BK,
            student_aux_output=self.aux_head(projection_BH),
            student_projection=projection_BH,
            aligner_output=aligner.output,
            aligner_aux_output=aligner.aux_output,
            aligner_projection=aligner.projection,
            labels=labels_B,
            alpha=self.settings.alpha,
            beta=self.settings.beta,
            gamma=self.settings.gamma,
            temperature=self._temperature,
            manifold=self.settings.manifold,
            regression=self.sizes.regression,
        )

    def _answers(self, feature: TeacherSide) -> AlignerAnswers:
        return feature if isinstance(feature, AlignerAnswers) else self.read(self._feature(feature))

    def read(self, feature: Tensor) -> AlignerAnswers:
        """The aligner's answers to features [B, *shape], without dropout and without a graph; its
        mode is kept."""
        training = self.aligner.training
        self.aligner.eval()
        try:
            with torch.no_grad():
                answers: AlignerAnswers = self.aligner(self._feature(feature))
        finally:
            self.aligner.train(training)
        return answers


def _fixed_temperature(settings: ObjectiveSettings) -> float:
    if settings.temperature == "learned":
        raise JobError(
            "temperature 'learned' is for the objective kd; armada needs a number, such as 5"
        )
    return settings.temperature
