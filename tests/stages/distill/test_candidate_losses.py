"""Losses of queries and candidates: by hand, against NumPy in float64, and against
sentence-transformers."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from armada.stages.distill.embedding.candidates import Candidates
from armada.stages.distill.losses import candidates as losses
from armada.stages.distill.objectives import OBJECTIVES
from armada.stages.distill.objectives.base import Sizes, StudentSide
from numpy.typing import NDArray
from tiny_embeddings import quiet_sentence_transformers

SIZES = Sizes(4, 2, False, (4,))


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def units(x: NDArray[Any]) -> NDArray[Any]:
    found: NDArray[Any] = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return found


def terms(
    name: str,
    embeddings: torch.Tensor,
    places: NDArray[Any] | None = None,
    labels: torch.Tensor | None = None,
    feature: torch.Tensor | None = None,
    **options: Any,
) -> dict[str, torch.Tensor]:
    kind = OBJECTIVES.load(name)
    objective = kind(kind.Options(**options), SIZES)
    objective.sources = ("teacher",)
    if places is None:
        places = np.arange(embeddings[..., 0].numel()).reshape(embeddings.shape[:2])
    given = {} if feature is None else {"teacher": feature}
    side = StudentSide(candidates=Candidates(embeddings, places, given))
    found: dict[str, torch.Tensor] = objective.of_sources(side, {}, labels)
    return found


def test_contrastive_by_hand() -> None:
    """Two queries, each along its own passage: e^(1/τ) against e^0."""
    embeddings = torch.tensor([[[1.0, 0], [2, 0]], [[0, 3.0], [0, 1]]])
    found = terms("contrastive", embeddings, similarity_temperature=0.5)
    expected = math.log(1 + math.exp(-2))
    torch.testing.assert_close(found["total"].item(), expected, rtol=1e-6, atol=0)


def test_contrastive_against_numpy_with_repeated_and_absent_texts() -> None:
    """Rows 0 and 3 have one query with two positives; row 1's negative is row 2's positive; row 2
    lacks its negative."""
    embeddings = rows(4, 3, 5)
    places = np.array([[0, 1, 2], [3, 4, 6], [5, 6, -1], [0, 7, 8]])
    embeddings[1, 2], embeddings[3, 0] = embeddings[2, 1], embeddings[0, 0]
    found = terms("contrastive", embeddings, places, symmetric=True, similarity_temperature=0.1)
    by_text = {
        int(text): units(embeddings[row, column].numpy())
        for row in range(4)
        for column, text in enumerate(places[row])
        if text >= 0
    }
    passages = [1, 2, 4, 6, 7, 8]
    positives = {0: {1, 7}, 3: {4}, 5: {6}}
    forward, backward = [], []
    for query, positive, _ in places:
        left = [p for p in passages if p == positive or p not in positives[query]]
        logits = np.array([by_text[query] @ by_text[p] for p in left]) / 0.1
        forward.append(np.log(np.exp(logits).sum()) - logits[left.index(positive)])
        queries = [q for q, *_ in places if positive not in positives[q]]
        logits = np.array([by_text[positive] @ by_text[q] for q in [query, *queries]]) / 0.1
        backward.append(np.log(np.exp(logits).sum()) - logits[0])
    assert float(found["contrastive"]) == pytest.approx(np.mean(forward), rel=1e-12)
    assert float(found["backward"]) == pytest.approx(np.mean(backward), rel=1e-12)
    assert float(found["total"]) == pytest.approx(np.mean(forward + backward), rel=1e-12)


def test_guided_contrastive_leaves_out_what_the_teacher_objects_to() -> None:
    """The teacher finds the second row's passage nearer to the first row's query than its own."""
    embeddings, axes = rows(3, 2, 5), torch.eye(6, dtype=torch.float64)
    teacher = torch.stack([axes[:3], axes[:3]], dim=1)
    teacher[0, 1] = axes[0] + axes[5]
    teacher[1, 1] = axes[0]
    found = terms("guided_contrastive", embeddings, feature=teacher, similarity_temperature=0.2)
    q, p = units(embeddings[:, 0].numpy()), units(embeddings[:, 1].numpy())
    logits = q @ p.T / 0.2
    # Query 1's own passage is at 0 for the teacher, as are all others: nothing is above it.
    logits[0, 1] = -np.inf
    expected = np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits))
    assert float(found["total"]) == pytest.approx(expected, rel=1e-12)


def test_cosent_by_hand_and_without_order() -> None:
    """One of two pairs is ahead in score, and behind in cosine."""
    loss = losses.cosent_loss(torch.tensor([0.2, 0.5]), torch.tensor([4.0, 1.0]), 0.1)
    torch.testing.assert_close(loss.item(), math.log(1 + math.exp(3)), rtol=1e-5, atol=0)
    assert losses.cosent_loss(torch.tensor([0.2, 0.5]), torch.tensor([2.0, 2.0]), 0.1) == 0
    unknown = torch.tensor([math.nan, 1.0])
    assert losses.cosent_loss(torch.tensor([0.2, 0.5]), unknown, 0.1) == 0


def test_margins_and_distributions_by_hand() -> None:
    student, teacher = torch.tensor([[3.0, 1, 0]]), torch.tensor([[5.0, 4, 1]])
    # Margins 2 and 3 of the student, 1 and 4 of the teacher.
    assert losses.margin_mse_loss(student, teacher, None) == 1
    present = torch.tensor([[True, True, False]])
    assert losses.margin_mse_loss(student, teacher, present) == 1
    assert losses.margin_mse_loss(student[:, :1], teacher[:, :1], None) == 0
    two = losses.listwise_kl_loss(student, teacher, 1.0, 1.0, present)
    p, q = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    torch.testing.assert_close(two.item(), expected, rtol=1e-5, atol=0)
    same = losses.listwise_kl_loss(teacher / 2, teacher, 0.5, 1.0, None)
    torch.testing.assert_close(same.item(), 0.0, rtol=0, atol=1e-7)


def test_scores_of_embeddings_are_cosines() -> None:
    embeddings, teacher = rows(3, 4, 5), rows(3, 4, 7, seed=1)
    s, t = units(embeddings.numpy()), units(teacher.numpy())
    student = (s[:, :1] * s[:, 1:]).sum(-1)
    theirs = (t[:, :1] * t[:, 1:]).sum(-1)
    margins = (student[:, :1] - student[:, 1:]) - 2 * (theirs[:, :1] - theirs[:, 1:])
    found = terms("margin_mse", embeddings, feature=teacher, score_scale=2.0)
    assert float(found["total"]) == pytest.approx(np.square(margins).mean(), rel=1e-12)
    p = np.exp(theirs / 0.1) / np.exp(theirs / 0.1).sum(1, keepdims=True)
    q = np.exp(student / 0.1) / np.exp(student / 0.1).sum(1, keepdims=True)
    found = terms("listwise_kl", embeddings, feature=teacher, similarity_temperature=0.1)
    assert float(found["total"]) == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-12)
    raw = terms("listwise_kl", embeddings, feature=theirs_as_scores(theirs))
    p = np.exp(theirs) / np.exp(theirs).sum(1, keepdims=True)
    q = np.exp(student / 0.05) / np.exp(student / 0.05).sum(1, keepdims=True)
    assert float(raw["total"]) == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-10)


def theirs_as_scores(scores: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(scores)[..., None]


def test_similarity_bank_against_numpy() -> None:
    student, teacher = rows(3, 4), rows(5, 6, seed=1)
    bank = teacher[:, :4]
    found = losses.similarity_bank_loss(student, bank, teacher, 0.1, 0.3)
    s = units(student.numpy()) @ units(bank.numpy()).T / 0.1
    t = units(teacher.numpy())[:3] @ units(teacher.numpy()).T / 0.3
    p, q = (np.exp(each) / np.exp(each).sum(1, keepdims=True) for each in (t, s))
    assert float(found) == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-12)


@pytest.mark.parametrize("name", ["contrastive", "both ways", "cosent", "margin", "listwise"])
def test_equal_to_sentence_transformers(name: str) -> None:
    """On embeddings that are given; its margins are of dot products, which are cosines of units."""
    embeddings = torch.nn.functional.normalize(rows(6, 3, 8), dim=-1)
    scores, labels = rows(6, 2, seed=1), rows(6, seed=2)
    parts = [embeddings[:, column] for column in range(3)]
    with quiet_sentence_transformers():
        from sentence_transformers.sentence_transformer import losses as theirs

        if name == "contrastive":
            module = theirs.MultipleNegativesRankingLoss(None, scale=20.0)
            expected = module.compute_loss_from_embeddings(parts, None)
            ours = terms("contrastive", embeddings)
        elif name == "both ways":
            module = theirs.MultipleNegativesSymmetricRankingLoss(None, scale=20.0)
            expected = module.compute_loss_from_embeddings(parts, None)
            ours = terms("contrastive", embeddings, symmetric=True)
        elif name == "cosent":
            expected = theirs.CoSENTLoss(None, 20.0).compute_loss_from_embeddings(parts[:2], labels)
            ours = terms("cosent", embeddings[:, :2], labels=labels)
        elif name == "margin":
            margins = scores[:, 0] - scores[:, 1]
            expected = theirs.MarginMSELoss(None).compute_loss_from_embeddings(parts, margins)
            ours = terms("margin_mse", embeddings, feature=scores[..., None])
        else:
            loss = theirs.DistillKLDivLoss(None, temperature=1.0)
            expected = loss.compute_loss_from_embeddings(parts, scores)
            ours = terms(
                "listwise_kl", embeddings, feature=scores[..., None], similarity_temperature=1.0
            )
    assert float(ours["total"]) == pytest.approx(float(expected), rel=1e-6)
