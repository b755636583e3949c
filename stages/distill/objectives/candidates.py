"""Objectives of students that embed queries and passages apart: a text is compared with others of
its example, and of the batch.

    contrastive, cosent       learn from the corpus alone
    guided_contrastive        the same as the first, but for negatives that a teacher objects to
    margin_mse, listwise_kl   meet what a teacher says of a query and its candidates: scores of
                              pairs, as a cross-encoder gives them, or the cosines of embeddings
    similarity_bank           meets the similarities of a text to teacher embeddings in a bank

Shapes: as in `../losses/candidates.py`.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....cache_schemas.errors import MissingFeatureError
from ..embedding.candidates import Candidates
from ..losses import accumulated
from ..losses import candidates as losses
from ..losses.distances import products, unit
from ..order import Indices
from ..projectors import WithProjector, as_wide_as, make_projector
from .base import (
    Objective,
    Reads,
    Sizes,
    Sources,
    StudentSide,
    StudentTensor,
    named_terms,
)
from .contrast import ContrastObjective
from .options import (
    ContrastiveOptions,
    CosentOptions,
    GuidedContrastiveOptions,
    ListwiseKLOptions,
    MarginMSEOptions,
    ScoresOptions,
    SimilarityBankOptions,
)

_CANDIDATES: frozenset[StudentTensor] = frozenset({"candidates"})


def _candidates(side: StudentSide) -> Candidates:
    if side.candidates is None:
        raise MissingFeatureError("needs texts that are embedded apart; set task=embedding")
    return side.candidates


class ContrastiveObjective(Objective):
    """Each query picks its own passage out of all passages of the batch.

    Formula: mean of -log softmax(cos(q, p)/τ) at its own p, over all p of the batch
    Source: multiple negatives ranking, Henderson et al., arXiv 1705.00652; with further negatives:
    DPR, Karpukhin et al., arXiv 2004.04906.

    A passage that comes in several rows is one negative, and none of a query that has it, or has it
    in another row, as its positive, or is the same text. Owns nothing.
    """

    Options = ContrastiveOptions
    options: ContrastiveOptions
    reads: ClassVar[Reads] = Reads(
        features=0, student=_CANDIDATES, labels=False, headless=True, least_rows=2
    )

    def of_sources(
        self, side: StudentSide, sources: Sources, labels_B: Tensor | None
    ) -> dict[str, Tensor]:
        """total; contrastive, and with symmetric, backward: that of positives and queries."""
        found, temperature = _candidates(side), self.options.similarity_temperature
        embeddings_BCE = accumulated(found.embeddings_BCE)
        passages, own = _different_passages(found.places)
        positives = _positives(found.places, own, len(passages))
        query_BE = embeddings_BCE[:, 0]
        passage_ME = _chosen(embeddings_BCE[:, 1:].flatten(0, 1), passages)
        masked = positives | (found.places[:, :1] == found.places[:, 1:].ravel()[passages])
        masked[np.arange(len(own)), own] = False
        masked_BM = found.on_device(masked) if masked.any() else None
        masked_BM = self._masked(found, passages, own, masked_BM)
        own_B = _on(own, query_BE)
        forward = losses.contrastive_loss(query_BE, passage_ME, own_B, temperature, masked_BM)
        if not self.options.symmetric:
            return named_terms(forward, contrastive=forward)
        others = positives[:, own].T | (found.places[:, 1:2] == found.places[:, 0])
        np.fill_diagonal(others, False)
        masked_BB = found.on_device(others) if others.any() else None
        rows_B = _on(np.arange(len(own)), query_BE)
        backward = losses.contrastive_loss(
            embeddings_BCE[:, 1], query_BE, rows_B, temperature, masked_BB
        )
        return named_terms((forward + backward) / 2, contrastive=forward, backward=backward)

    def _masked(
        self, found: Candidates, passages: Indices, own: Indices, masked_BM: Tensor | None
    ) -> Tensor | None:
        """What is no negative, of the different `passages` of a batch, of which `own` are the
        queries' positives."""
        return masked_BM


class GuidedContrastiveObjective(ContrastiveObjective):
    """The same without negatives that the teacher takes for answers.

    Formula: mean of -log softmax(cos(q, p)/τ) at its own p, over all p but those with cos(t_q, t_p)
    above that of its own, less a margin
    Source: GISTEmbed, Solatorio, arXiv 2402.16829.

    Owns nothing.
    """

    Options = GuidedContrastiveOptions
    options: GuidedContrastiveOptions
    reads = replace(ContrastiveObjective.reads, features=1)

    def _masked(
        self, found: Candidates, passages: Indices, own: Indices, masked_BM: Tensor | None
    ) -> Tensor | None:
        feature = found.features.get(self.sources[0])
        if feature is None:
            raise MissingFeatureError(
                "guided_contrastive needs a teacher feature and the batch carries none"
            )
        teacher_BCH = accumulated(feature.detach()).flatten(start_dim=2)
        passage_MH = unit(_chosen(teacher_BCH[:, 1:].flatten(0, 1), passages))
        cosine_BM = products(unit(teacher_BCH[:, 0]), passage_MH)
        own_B1 = _on(own, cosine_BM)[:, None]
        near_BM = cosine_BM > cosine_BM.gather(1, own_B1) - self.options.margin
        near_BM = near_BM.scatter(1, own_B1, False)
        return near_BM if masked_BM is None else masked_BM | near_BM


class CosentObjective(Objective):
    """The cosines of pairs of texts get the order of the scores of a corpus.

    Formula: log(1 + sum of exp((c_j - c_i)/τ)) over pairs with y_i > y_j
    Source: CoSENT, Su 2022, kexue.fm/archives/8847.

    Owns nothing.
    """

    Options = CosentOptions
    options: CosentOptions
    reads = Reads(features=0, student=_CANDIDATES, headless=True, least_rows=2)

    def of_sources(
        self, side: StudentSide, sources: Sources, labels_B: Tensor | None
    ) -> dict[str, Tensor]:
        """total, cosent."""
        found = _candidates(side)
        assert labels_B is not None
        cosine_B = losses.similarities_of_first(accumulated(found.embeddings_BCE))[:, 0]
        temperature = self.options.similarity_temperature
        loss = losses.cosent_loss(cosine_B, labels_B.to(cosine_B.dtype), temperature)
        return named_terms(loss, cosent=loss)


class ScoresObjective(Objective):
    """An objective of what a teacher says of a query and each of its candidates."""

    options: ScoresOptions
    reads: ClassVar[Reads] = Reads(student=_CANDIDATES, labels=False, headless=True, scores=True)

    @abstractmethod
    def loss(
        self, student_BN: Tensor, teacher_BN: Tensor, cosines: bool, present_BN: Tensor | None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of a batch, and the terms to report; `cosines`: whether the teacher's numbers
        are cosines of its embeddings."""

    def of_sources(
        self, side: StudentSide, sources: Sources, labels_B: Tensor | None
    ) -> dict[str, Tensor]:
        """total, and what `loss` reports."""
        found = _candidates(side)
        feature = found.features.get(self.sources[0])
        if feature is None:
            raise MissingFeatureError(
                f"{type(self).__name__} needs a teacher feature and the batch carries none"
            )
        teacher = accumulated(feature.detach()).flatten(start_dim=2)
        cosines = teacher.shape[1] == found.places.shape[1]
        teacher_BN = losses.similarities_of_first(teacher) if cosines else teacher[..., 0]
        student_BN = losses.similarities_of_first(accumulated(found.embeddings_BCE))
        present_BC = found.present()
        present_BN = None if present_BC is None else present_BC[:, 1:]
        loss, reported = self.loss(student_BN, teacher_BN, cosines, present_BN)
        return named_terms(self.options.beta * loss, **reported)


class MarginMSEObjective(ScoresObjective):
    """A query's margins between its positive and its negatives meet the teacher's.

    Formula: beta · mean of ((s_pos - s_neg) - scale · (t_pos - t_neg))²
    Source: Hofstätter et al., arXiv 2010.02666.

    Owns nothing.
    """

    Options = MarginMSEOptions
    options: MarginMSEOptions

    def loss(
        self, student_BN: Tensor, teacher_BN: Tensor, cosines: bool, present_BN: Tensor | None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Reports margin_mse."""
        scaled_BN = self.options.score_scale * teacher_BN
        loss = losses.margin_mse_loss(student_BN, scaled_BN, present_BN)
        return loss, {"margin_mse": loss}


class ListwiseKLObjective(ScoresObjective):
    """The distribution over a query's candidates meets the teacher's.

    Formula: beta · mean of KL(softmax(t/τ_t) ‖ softmax(s/τ))
    Source: RocketQAv2, arXiv 2110.07367; ColBERTv2, arXiv 2112.01488.

    Owns nothing.
    """

    Options = ListwiseKLOptions
    options: ListwiseKLOptions

    def loss(
        self, student_BN: Tensor, teacher_BN: Tensor, cosines: bool, present_BN: Tensor | None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Reports listwise_kl."""
        own = self.options.similarity_temperature
        theirs = self.options.teacher_temperature or (own if cosines else 1.0)
        loss = losses.listwise_kl_loss(student_BN, teacher_BN, own, theirs, present_BN)
        return loss, {"listwise_kl": loss}


class SimilarityBankObjective(WithProjector, ContrastObjective):
    """A text's similarities to a bank of teacher embeddings meet the teacher's own.

    Formula: task + beta · mean of KL(softmax(cos(t, b)/τ_t) ‖ softmax(cos(projection(s), b)/τ))
    Source: SEED, arXiv 2101.04731; CompRess, arXiv 2010.14713. The bank is the batch and
    `negatives` of the cache, so there is no queue.

    Owns `projection`, D -> H, with a bias.
    """

    Options = SimilarityBankOptions
    options: SimilarityBankOptions

    def __init__(self, options: SimilarityBankOptions, sizes: Sizes) -> None:
        super().__init__(options, sizes)
        self.projection = make_projector("similarity_bank", options, sizes)

    def contrast(
        self, pooled_BD: Tensor, teacher_MH: Tensor, masked_BM: Tensor | None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Reports similarity_bank."""
        options = self.options
        student_BH = accumulated(self.projection(pooled_BD))
        loss = losses.similarity_bank_loss(
            student_BH,
            as_wide_as(student_BH, teacher_MH),
            teacher_MH,
            options.similarity_temperature,
            options.teacher_temperature or options.similarity_temperature,
            masked_BM,
        )
        return loss, {"similarity_bank": loss}


def _different_passages(places: Indices) -> tuple[Indices, Indices]:
    """The passages of a batch, each once, by their first use among [B * (C - 1)]; and which of them
    is the positive of each query [B]."""
    texts = places[:, 1:].ravel()
    numbers, first, found = np.unique(texts, return_index=True, return_inverse=True)
    absent = int((numbers < 0).any())
    return first[absent:], found.reshape(places[:, 1:].shape)[:, 0] - absent


def _positives(places: Indices, own: Indices, count: int) -> npt.NDArray[np.bool_]:
    """Which of so many passages are positives of which query [B, M], in whatever row."""
    _, queries = np.unique(places[:, 0], return_inverse=True)
    of_query = np.zeros((len(own), count), dtype=np.bool_)
    of_query[queries.reshape(-1), own] = True
    positives: npt.NDArray[np.bool_] = of_query[queries.reshape(-1)]
    return positives


def _chosen(rows: Tensor, chosen: Indices) -> Tensor:
    return rows.index_select(0, _on(chosen, rows))


def _on(numbers: Indices, beside: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(numbers)).to(beside.device, non_blocking=True)
