"""Objectives that tell the teacher's feature of a text from those of other texts: of the batch, and
of others that are drawn from the cache for each batch (`../negatives.py`).

Shapes: as in `../losses/contrast.py`.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.parametrizations import spectral_norm

from ....cache_schemas.errors import JobError
from ..aligner import NormalLinear, ProjectionHead
from ..losses import accumulated, contrast, likeliest_classes
from ..losses.distances import unit
from ..negatives import Negatives
from ..projectors import WithProjector, as_wide_as, make_projector
from .base import Reads, Sizes, Sources, StudentSide
from .one_loss import BetaObjective
from .options import ContrastOptions, CRDOptions, InfoNCEOptions, WCoRDOptions


class ContrastObjective(BetaObjective):
    """An objective that compares each text with the teacher's features of itself and of others."""

    options: ContrastOptions
    reads: ClassVar[Reads] = Reads(labels=False, headless=True, task=False, least_rows=2)

    @classmethod
    def require_options(cls, name: str, options: ContrastOptions, sizes: Sizes) -> None:
        """Raises JobError for a mask by labels of which none is a class."""
        without = sizes.regression or sizes.multilabel or sizes.num_labels < 2
        if options.mask_same_label and without:
            raise JobError(
                f"objective {name}: mask_same_label=true needs one class for each text; leave it "
                "out of a regression, of multilabel and without labels"
            )

    @classmethod
    def negatives_of(cls, options: ContrastOptions) -> int:
        """The option of that name."""
        return options.negatives

    @abstractmethod
    def contrast(
        self, pooled_BD: Tensor, teacher_MH: Tensor, masked_BM: Tensor | None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of a batch, and the terms to report."""

    def of_sources(
        self, side: StudentSide, sources: Sources, labels_B: Tensor | None
    ) -> dict[str, Tensor]:
        """total, task and what `contrast` reports. Without output or labels, the task's is 0."""
        assert side.pooled_BD is not None
        pooled_BD = accumulated(side.pooled_BD)
        own_BH = self._feature(self.teacher_side(sources)).detach().to(pooled_BD.dtype)
        drawn = self.negatives_in(sources)
        teacher_MH = own_BH
        if drawn is not None:
            others_NH = drawn.features.flatten(start_dim=1).to(own_BH)
            teacher_MH = torch.cat([own_BH, others_NH])
        masked_BM = self._masked(side, labels_B, drawn, len(teacher_MH))
        loss, reported = self.contrast(pooled_BD, teacher_MH, masked_BM)
        return self.beside_task(loss, side.output_BK, labels_B, **reported)

    def _masked(
        self, side: StudentSide, labels_B: Tensor | None, drawn: Negatives | None, rows: int
    ) -> Tensor | None:
        """What is no negative: the text itself, where it comes again in the batch (no text of the
        batch is drawn), and texts of its label, where an option says so."""
        same_BB, alike_BM = self.same_text(side), self._same_label(labels_B, drawn)
        if same_BB is None:
            return alike_BM
        same_BM = F.pad(same_BB, (0, rows - len(same_BB)))
        return same_BM if alike_BM is None else same_BM | alike_BM

    def _same_label(self, labels_B: Tensor | None, drawn: Negatives | None) -> Tensor | None:
        if not self.options.mask_same_label or labels_B is None:
            return None
        labels_M = labels_B if drawn is None else torch.cat([labels_B, drawn.labels.to(labels_B)])
        classes_M = likeliest_classes(labels_M)
        return contrast.same_label(classes_M[: len(labels_B)], classes_M)


class InfoNCEObjective(WithProjector, ContrastObjective):
    """Each text picks its own teacher feature out of those of the batch and of drawn negatives.

    Formula: task + beta · mean of -log softmax(cos(projection(s), t')/τ) at its own t; symmetric:
    half of it, and half of the same of each t among the texts of the batch
    Source: van den Oord, Li and Vinyals, arXiv 1807.03748; with a teacher: DistilCSE, arXiv
    2112.05638; symmetric: CLIP, arXiv 2103.00020, figure 3. Negatives come from the cache, so there
    is no queue.

    Owns `projection`, D -> H, with a bias.
    """

    Options = InfoNCEOptions
    options: InfoNCEOptions

    def __init__(self, options: InfoNCEOptions, sizes: Sizes) -> None:
        super().__init__(options, sizes)
        self.projection = make_projector("infonce", options, sizes)

    def contrast(
        self, pooled_BD: Tensor, teacher_MH: Tensor, masked_BM: Tensor | None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Reports infonce; and with symmetric, backward: that of features and texts."""
        student_BH = accumulated(self.projection(pooled_BD))
        temperature = self.options.similarity_temperature
        teacher_MH = as_wide_as(student_BH, teacher_MH)
        loss = contrast.infonce_loss(student_BH, teacher_MH, temperature, masked_BM)
        if not self.options.symmetric:
            return loss, {"infonce": loss}
        own = len(student_BH)
        masked_BB = None if masked_BM is None else masked_BM[:, :own].T
        back = contrast.infonce_loss(teacher_MH[:own], student_BH, temperature, masked_BB)
        return (loss + back) / 2, {"infonce": loss, "backward": back}


class CRDObjective(ContrastObjective):
    """A critic tells pairs of student and teacher of one text from pairs of two texts.

    Formula: task + beta · mean of (-log h(s, t) - Σ log(1 - h(s, t'))), h = e^z / (e^z + N/M),
    z = cos(embedded s, embedded t)/τ
    Source: Tian, Krishnan and Isola, Contrastive Representation Distillation, arXiv 1910.10699,
    with negatives of a batch in place of a memory bank.

    N negatives of a row, of M training examples with a feature. Owns two linear maps to embeddings
    of the critic, of D and of H numbers. The critic has the
    student's texts as anchors; those of other steps, which a memory bank would have, it lacks.
    """

    Options = CRDOptions
    options: CRDOptions

    def __init__(self, options: CRDOptions, sizes: Sizes) -> None:
        super().__init__(options, sizes)
        size = options.embedding_size
        self.student_map = ProjectionHead(sizes.pooled_dim, size, bias=True)
        self.teacher_map = ProjectionHead(sizes.feature_dim, size, bias=True)

    def contrast(
        self, pooled_BD: Tensor, teacher_MH: Tensor, masked_BM: Tensor | None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Reports crd."""
        loss = contrast.crd_loss(
            accumulated(self.student_map(pooled_BD)),
            accumulated(self.teacher_map(teacher_MH)),
            self.options.similarity_temperature,
            self.examples or len(pooled_BD),
            masked_BM,
        )
        return loss, {"crd": loss}


class WCoRDObjective(ContrastObjective):
    """Wasserstein distances: a critic over negatives, and optimal transport within the batch.

    Formula: task + beta · (global_weight · (mean g(s, t') - mean g(s, t)) + local_weight · Σ P·C),
    g a critic of Lipschitz constant 1, P the transport plan at costs C = 1 - cos(projection(s), t)
    Source: Chen et al., Wasserstein Contrastive Representation Distillation, arXiv 2012.08674.

    Owns the critic's two maps, of spectral norm 1, and `projection`, D -> H, with a bias.
    """

    Options = WCoRDOptions
    options: WCoRDOptions
    reads = replace(ContrastObjective.reads, nonnegative=False)

    def __init__(self, options: WCoRDOptions, sizes: Sizes) -> None:
        super().__init__(options, sizes)
        size = options.embedding_size
        self.student_map = spectral_norm(NormalLinear(sizes.pooled_dim, size, bias=False))
        self.teacher_map = spectral_norm(NormalLinear(sizes.feature_dim, size, bias=False))
        self.projection = ProjectionHead(sizes.pooled_dim, sizes.feature_dim, bias=True)

    def contrast(
        self, pooled_BD: Tensor, teacher_MH: Tensor, masked_BM: Tensor | None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The weighted sum; reports global and local."""
        options = self.options
        across = contrast.wcord_global_loss(
            accumulated(self.student_map(unit(pooled_BD))),
            accumulated(self.teacher_map(unit(teacher_MH))),
            masked_BM,
        )
        within = contrast.transport_loss(
            accumulated(self.projection(pooled_BD)),
            teacher_MH[: len(pooled_BD)],
            options.transport_epsilon,
            options.transport_iterations,
        )
        total = options.global_weight * across + options.local_weight * within
        return total, {"global": across, "local": within}
