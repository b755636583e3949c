"""Measures of a language model by its teacher: by hand, and by whole logits in float64."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from armada.stages.distill.language.token_measures import (
    MeasureSums,
    TokenObserver,
    kl_to_teacher,
    most_probable,
)
from armada.stages.distill.losses import MISSING_LABEL
from armada.stages.distill.token_loss.answers import (
    Answers,
    DenseAnswers,
    SparseAnswers,
    TokenAnswers,
)
from armada.stages.distill.token_loss.loss import Tokens, cross_entropy, token_loss
from armada.stages.distill.token_loss.settings import TokenLossSettings
from scipy.special import log_softmax
from torch import Tensor

TOKENS, WIDTH, VOCAB, LISTED = 30, 8, 17, 4


def drawn(seed: int = 0) -> tuple[Tokens, Tensor]:
    """A student's tokens, the last two without a label, and a teacher's log-probabilities."""
    random = torch.Generator().manual_seed(seed)
    hidden_PH = torch.randn(TOKENS, WIDTH, generator=random)
    weight_VH = torch.randn(VOCAB, WIDTH, generator=random)
    labels_P = torch.randint(VOCAB, (TOKENS,), generator=random)
    labels_P[-2:] = MISSING_LABEL
    teacher_PV = torch.randn(TOKENS, VOCAB, generator=random).mul(2).log_softmax(1)
    return Tokens(hidden_PH, weight_VH, labels_P), teacher_PV


def top_of(log_probs_PV: Tensor, listed: int = LISTED) -> SparseAnswers:
    found = log_probs_PV.topk(listed, dim=1)
    rest = log_probs_PV.scatter(1, found.indices, -math.inf).logsumexp(1)
    return SparseAnswers(found.indices, found.values, rest)


def measured(tokens: Tokens, chunk: int | None = None, **teachers: TokenAnswers) -> dict[str, Any]:
    observer = TokenObserver(tokens.labels_P, teachers)
    nothing = top_of(torch.zeros(TOKENS, VOCAB).log_softmax(1))
    told = {"alpha": 0.0, "temperature": 1.0, "chunk": chunk, "observe": observer}
    token_loss(tokens, nothing, TokenLossSettings(), **told)
    sums = MeasureSums()
    sums.add(observer.seen)
    return sums.figures()


def by_numpy(tokens: Tokens, teacher_PV: Tensor, answered: Any) -> dict[str, float]:
    """The same from whole distributions over k tokens and the rest, in float64."""
    logits = (tokens.hidden_PH.double() @ tokens.weight_VH.double().T).numpy()
    log_q, log_p = log_softmax(logits, axis=1), teacher_PV.double().numpy()
    labels = tokens.labels_P.numpy()
    given = labels != MISSING_LABEL
    kl = []
    for p, q in zip(np.exp(log_p), np.exp(log_q), strict=True):
        listed = np.argsort(-p)[:LISTED]
        p, q = (np.append(each[listed], np.delete(each, listed).sum()) for each in (p, q))
        kl.append((p * np.log(p / q)).sum())

    def ece(log_probs: Any, chosen: Any) -> float:
        confidence, right = (
            np.exp(log_probs.max(1))[chosen],
            (log_probs.argmax(1) == labels)[chosen],
        )
        bins = np.ceil(confidence * 15)
        return sum(
            abs(right[bins == b].sum() - confidence[bins == b].sum()) for b in np.unique(bins)
        ) / len(bins)

    answered = answered & given
    return {
        "ece": ece(log_q, given),
        "agreement": (log_q.argmax(1) == log_p.argmax(1))[answered].mean(),
        "teacher_kl": np.array(kl)[answered].mean(),
        "teacher_accuracy": (log_p.argmax(1) == labels)[answered].mean(),
        "teacher_ece": ece(log_p, answered),
    }


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("some", [False, True], ids=["all tokens", "some tokens"])
def test_against_whole_distributions(chunk: int | None, some: bool) -> None:
    tokens, teacher_PV = drawn()
    answered_P = torch.arange(TOKENS) % 3 > 0 if some else None
    found = measured(tokens, chunk, one=TokenAnswers(top_of(teacher_PV), answered_P))
    answered = np.ones(TOKENS, bool) if answered_P is None else answered_P.numpy()
    assert found == pytest.approx(by_numpy(tokens, teacher_PV, answered), rel=2e-5)


def test_by_hand() -> None:
    # Logits (log 2, 0, 0): q = (1/2, 1/4, 1/4). The teacher lists token 0 with 3/4, others 1/4.
    answers = SparseAnswers(
        torch.tensor([[0]]), torch.tensor([[0.75]]).log(), torch.tensor([0.25]).log()
    )
    logits = torch.tensor([[math.log(2), 0.0, 0.0]])
    found = kl_to_teacher(logits, answers, torch.tensor([True]))
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert found.item() == pytest.approx(expected, rel=1e-6)
    assert logits.tolist() == [[pytest.approx(math.log(2)), 0.0, 0.0]], "left as they are"


def test_more_listed_tokens_tell_a_larger_distance_up_to_the_exact_one() -> None:
    tokens, teacher_PV = drawn()
    found = [
        measured(tokens, one=TokenAnswers(top_of(teacher_PV, listed)))["teacher_kl"]
        for listed in (1, 4, 8, 17)
    ]
    assert found == sorted(found)
    whole = measured(tokens, one=TokenAnswers(DenseAnswers(teacher_PV)))
    assert found[-1] == pytest.approx(whole["teacher_kl"], rel=1e-5)
    assert measured(tokens, one=TokenAnswers(top_of(teacher_PV)))["agreement"] == whole["agreement"]


def test_a_student_that_is_its_teacher() -> None:
    tokens, _ = drawn()
    own_PV = (tokens.hidden_PH @ tokens.weight_VH.T).log_softmax(1)
    found = measured(tokens, one=TokenAnswers(top_of(own_PV)))
    assert found["agreement"] == 1
    assert found["teacher_kl"] == pytest.approx(0, abs=1e-6)
    assert found["teacher_ece"] == pytest.approx(found["ece"], rel=1e-5)


def test_the_cross_entropy_is_the_same_bit_for_bit() -> None:
    tokens, teacher_PV = drawn()
    observer = TokenObserver(tokens.labels_P, {"one": TokenAnswers(top_of(teacher_PV))})
    assert cross_entropy(tokens, observer).equal(cross_entropy(tokens))


def test_several_teachers_have_their_names_and_batches_add_up() -> None:
    sums, whole = MeasureSums(), []
    for seed in (0, 1):
        tokens, teacher_PV = drawn(seed)
        answers: dict[str, Answers] = {"one": top_of(teacher_PV), "two": DenseAnswers(teacher_PV)}
        teachers = {name: TokenAnswers(each) for name, each in answers.items()}
        observer = TokenObserver(tokens.labels_P, teachers)
        cross_entropy(tokens, observer)
        sums.add(observer.seen)
        whole.append(measured(tokens, **teachers))
    found = sums.figures()
    assert found.keys() == whole[0].keys()
    assert {"ece", "one.agreement", "two.teacher_kl", "two.teacher_ece"} < found.keys()
    for name in ("one.agreement", "one.teacher_kl", "two.teacher_kl", "two.teacher_accuracy"):
        assert found[name] == pytest.approx(np.mean([each[name] for each in whole]), rel=1e-6)


def test_a_prediction_without_a_token_is_none() -> None:
    tokens, teacher_PV = drawn()
    answers = top_of(teacher_PV)
    empty_Pk = torch.full_like(answers.log_probs_Pk, -math.inf)
    nothing = SparseAnswers(answers.ids_Pk, empty_Pk, torch.zeros(TOKENS))
    assert measured(tokens, one=TokenAnswers(nothing)).keys() == {"ece"}
    assert most_probable(answers).ids_C.equal(teacher_PV.argmax(1))
