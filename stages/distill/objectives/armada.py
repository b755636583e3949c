"""The ARMADA objective: a TS aligner on the teacher's side, a projection on the student's.

The aligner never sees the student: `aligner_loss` trains it from cached features alone, and the
student's loss reads it frozen, in eval mode. A schedule that alternates calls the two in turn; one
that trains both at once sets `joint`, and `total` holds both losses. Their gradients do not mix.
"""

import torch
from torch import Tensor

from .. import closed_forms
from ..aligner import AlignerAnswers, ClassificationHead, ProjectionHead, TSAligner
from ..losses import MANIFOLDS, ArmadaTerms, aligner_loss, choose
from .base import AlignedObjective, Reads, Sizes, Sources, TeacherSide, named_terms
from .options import ArmadaOptions


class ArmadaObjective(AlignedObjective):
    """Class outputs and the manifold of a text, as a TS aligner reads them out of a feature.

    Formula: alpha · T²·mse of softmaxes of both heads + (1 - alpha) · task of both heads + beta ·
    distance of projections; the second heads count gamma times
    Source: From Images to Words (ARMADA), arXiv 2603.10877.

    Owns `aligner` (teacher side), `projection` Q and `aux_head` (student side).
    """

    Options = ArmadaOptions
    options: ArmadaOptions
    reads = Reads(headless=True)
    aligner: TSAligner

    def __init__(self, options: ArmadaOptions, sizes: Sizes) -> None:
        super().__init__(options, sizes)
        labels, regression, dropout = sizes.num_labels, sizes.regression, sizes.dropout
        self.aligner = TSAligner(
            sizes.feature_dim,
            options.aligner_hidden_size,
            labels,
            regression,
            dropout,
            options.orthogonal_map,
        )
        self.projection = ProjectionHead(
            sizes.pooled_dim,
            sizes.feature_dim,
            options.orthogonal_projection,
            options.orthogonal_map,
        )
        self.aux_head = ClassificationHead(sizes.feature_dim, labels, regression, dropout)

    def forward(
        self,
        pooled_BD: Tensor,
        output_BK: Tensor | None,
        feature_BH: TeacherSide,
        labels_B: Tensor | None,
    ) -> dict[str, Tensor]:
        """total, task, output, manifold; and aligner if `joint`, where total includes it. Without
        output or labels, only beta · manifold, with an aligner at its initialisation."""
        if output_BK is None or labels_B is None:
            projection = self._answers(feature_BH).projection.float()
            measure = choose(MANIFOLDS, "manifold", self.options.manifold)
            manifold = measure(projection, self.projection(pooled_BD).float())
            return named_terms(self.options.beta * manifold, manifold=manifold)
        terms = self._student_terms(pooled_BD, output_BK, self._answers(feature_BH), labels_B)
        parts = {"task": terms.task, "output": terms.output, "manifold": terms.manifold}
        if not self.joint:
            return named_terms(terms.total, **parts)
        aligner = self.aligner_loss(self._feature(feature_BH), labels_B)
        return named_terms(terms.total + aligner, **parts, aligner=aligner)

    def task_weight(self, sources: Sources) -> float:
        """1 - alpha; the auxiliary heads' labels count as distillation."""
        return 1 - self.options.alpha

    def aligner_loss(self, feature_BH: Tensor, labels_B: Tensor) -> Tensor:
        """The loss that trains the aligner, with its graph and in the mode the module is in."""
        output_BK, aux_output_BK, _ = self.aligner(self._feature(feature_BH))
        return aligner_loss(
            output_BK, aux_output_BK, labels_B, self.options.gamma, self.sizes.regression
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
            alpha=self.options.alpha,
            beta=self.options.beta,
            gamma=self.options.gamma,
            temperature=self.options.temperature,
            manifold=self.options.manifold,
            regression=self.sizes.regression,
        )

    def _answers(self, feature: TeacherSide) -> AlignerAnswers:
        return feature if isinstance(feature, AlignerAnswers) else self.read(self._feature(feature))

    def read(self, feature: Tensor) -> AlignerAnswers:
        """The aligner's outputs for features [B, *shape], without dropout and without a graph; its
        mode is kept."""
        training = self.aligner.training
        self.aligner.eval()
        try:
            with torch.no_grad():
                answers: AlignerAnswers = self.aligner(self._feature(feature))
        finally:
            self.aligner.train(training)
        return answers
