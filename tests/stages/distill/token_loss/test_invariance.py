"""What must not change the loss: chunks, what is masked, how a step is cut, what is frozen."""

from typing import Any

import pytest
import torch
from armada.stages.distill.token_loss.answers import (
    Answers,
    DenseAnswers,
    SampledAnswers,
    SparseAnswers,
)
from armada.stages.distill.token_loss.chunked import chunk_tokens
from armada.stages.distill.token_loss.loss import Tokens, token_loss
from armada.stages.language.logits import LogitTransform
from token_loss_reference import KINDS, SETTINGS, Case

CAPPED = {"softcap": 5.0, "scale": 0.5}


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_nothing_but_rounding(kind: str) -> None:
    case = Case(positions=13, **CAPPED)
    name = "forward_kl" if kind == "drawn" else "skew_kl"
    whole, expected = case.loss(kind, name, 2.0, 0.3)
    for chunk in (1, 4, 13, 1000):
        terms, found = case.loss(kind, name, 2.0, 0.3, chunk=chunk)
        torch.testing.assert_close(terms.total, whole.total, rtol=1e-14, atol=0)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_a_chunk_takes_64_mib_or_256_on_a_gpu() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert (chunk_tokens(128_256, cpu), chunk_tokens(128_256, gpu)) == (130, 523)
    assert chunk_tokens(10**9, gpu) == 1


def damaged(answers: Answers, rows: torch.Tensor) -> Answers:
    """With numbers that must not be used in some rows."""

    def spoilt(tensor: torch.Tensor, by: float) -> torch.Tensor:
        return tensor.clone().index_fill_(0, rows, by)

    if isinstance(answers, DenseAnswers):
        return DenseAnswers(spoilt(answers.log_probs_PV, torch.nan))
    if isinstance(answers, SampledAnswers):
        assert answers.log_probs_PK is not None
        return SampledAnswers(spoilt(answers.ids_PK, 99), spoilt(answers.log_probs_PK, torch.nan))
    tail = answers.log_tail_P
    return SparseAnswers(
        spoilt(answers.ids_Pk, -3),
        spoilt(answers.log_probs_Pk, torch.nan),
        None if tail is None else spoilt(tail, torch.nan),
    )


def grown(answers: Answers, by: int) -> Answers:
    """With more rows at the end: the first one again and again."""
    rows = torch.tensor([*range(len(answers)), *[0] * by])
    if isinstance(answers, DenseAnswers):
        return DenseAnswers(answers.log_probs_PV[rows])
    if isinstance(answers, SampledAnswers):
        assert answers.log_probs_PK is not None
        return SampledAnswers(answers.ids_PK[rows], answers.log_probs_PK[rows])
    tail = answers.log_tail_P
    return SparseAnswers(
        answers.ids_Pk[rows], answers.log_probs_Pk[rows], None if tail is None else tail[rows]
    )


def terms_and_gradients(tokens: Tokens, answers: Answers, name: str, **how: Any) -> list[Any]:
    """Everything that comes out."""
    inputs = [tokens.hidden_PH, tokens.weight_VH, tokens.bias_V]
    terms = token_loss(tokens, answers, SETTINGS[name], alpha=0.3, **how)
    return [terms.total, terms.task, terms.distillation, *torch.autograd.grad(terms.total, inputs)]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_masked_changes_no_bit(kind: str, dtype: torch.dtype, temperature: float) -> None:
    """Answers where there are none, hidden states of tokens that do not count, and whole chunks of
    such tokens at the end."""
    case = Case(positions=12, words=40, listed=6, teacher_words=40)
    name = "forward_kl" if kind == "drawn" else "reverse_kl"
    case.labels[[2, 7]] = -100  # where there is no answer either
    hidden, weight, bias = (torch.from_numpy(each).to(dtype) for each in case.inputs)
    found = []
    for ruined in (False, True):
        rows = torch.tensor([2, 7])
        states, answers = hidden.clone(), case.answers(kind, temperature)
        labels, answered = torch.from_numpy(case.labels), torch.from_numpy(case.answered)
        if ruined:
            states[rows] = torch.inf
            answers = grown(damaged(answers, rows), 4)
            states = torch.cat((states, torch.full((4, 3), torch.nan, dtype=dtype)))
            labels = torch.cat((labels, torch.full((4,), -100)))
            answered = torch.cat((answered, torch.zeros(4, dtype=torch.bool)))
        inputs = [each.clone().requires_grad_() for each in (states, weight, bias)]
        tokens = Tokens(inputs[0], inputs[1], labels, inputs[2], answered)
        found.append(terms_and_gradients(tokens, answers, name, temperature=temperature, chunk=4))
    assert not found[1][3][12:].any()
    found[1][3] = found[1][3][:12]
    assert all(map(torch.equal, *found))
    assert not found[0][3][[2, 7]].any()


@pytest.mark.parametrize("kind", KINDS)
def test_two_halves_with_the_counts_of_the_step_are_the_step(kind: str) -> None:
    case = Case(positions=11, **CAPPED)
    whole, expected = case.loss(kind, "forward_kl", 2.0, 0.3)
    labels, answered = torch.from_numpy(case.labels), torch.from_numpy(case.answered)
    inputs = [torch.from_numpy(array).requires_grad_() for array in case.inputs]
    # One as a number, one as a tensor, as a sum over processes would be.
    counts = {
        "labelled_count": int((labels != -100).sum()),
        "answered_count": answered.sum(),
    }
    total = torch.zeros((), dtype=torch.float64)
    for rows in (slice(0, 4), slice(4, 11)):
        tokens = Tokens(
            inputs[0][rows],
            inputs[1],
            labels[rows],
            inputs[2],
            answered[rows],
            LogitTransform(case.scale, case.softcap),
            **counts,
        )
        answers = case.answers(kind, 2.0).rows(rows)
        how = {"alpha": 0.3, "temperature": 2.0}
        part = token_loss(tokens, answers, SETTINGS["forward_kl"], **how).total
        part.backward()
        total += part.detach()
    torch.testing.assert_close(total, whole.total.detach(), rtol=1e-14, atol=0)
    found = [each.grad for each in inputs]
    torch.testing.assert_close(found, list(expected), rtol=1e-12, atol=1e-15)


def test_a_step_without_a_label_anywhere_has_no_cross_entropy() -> None:
    """Its count of labels is 0, and nothing is divided by that."""
    case = Case()
    case.labels[:] = -100
    tokens = case.tokens(labelled_count=torch.tensor(0), answered_count=4)
    how = {"alpha": 0.5, "temperature": 1.0}
    terms = token_loss(tokens, case.answers("tail", 1.0), SETTINGS["jsd"], **how)
    assert terms.task == 0
    assert terms.total == 0.5 * terms.distillation > 0


def test_a_share_of_a_small_count_may_be_less_than_one() -> None:
    """One word in four processes: three have none of it, and gradients are averaged."""
    case = Case(positions=1)
    case.labels[:], case.answered[:] = 1, True
    how = {"alpha": 0.5, "temperature": 1.0}
    answers = case.answers("tail", 1.0)
    whole = token_loss(case.tokens(), answers, SETTINGS["jsd"], **how)
    counts = {"labelled_count": 0.25, "answered_count": torch.tensor(0.25)}
    share = token_loss(case.tokens(**counts), answers, SETTINGS["jsd"], **how)
    assert share.task == 4 * whole.task > 0
    assert share.distillation == 4 * whole.distillation > 0


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(frozen: tuple[int, ...]) -> None:
    case = Case()
    _, expected = case.loss("tail", "jsd", 1.0, 0.3)
    inputs = [torch.from_numpy(array).requires_grad_() for array in case.inputs]
    for place in frozen:
        inputs[place].requires_grad_(False)
    answers = case.answers("tail", 1.0)
    how = {"alpha": 0.3, "temperature": 1.0}
    token_loss(case.tokens(*inputs), answers, SETTINGS["jsd"], **how).total.backward()
    for place, tensor in enumerate(inputs):
        assert (tensor.grad is None) == (place in frozen)
        if tensor.grad is not None:
            assert torch.equal(tensor.grad, expected[place])


def test_frozen_and_unwatched_heads_cost_fewer_products(monkeypatch: pytest.MonkeyPatch) -> None:
    from armada.stages.distill.token_loss.chunked import Head

    done: list[str] = []
    for name in ("logits", "hidden_gradient", "add_weight_gradient"):
        real = getattr(Head, name)

        def counted(*args: Any, name: str = name, real: Any = real) -> None:
            done.append(name)
            real(*args)

        monkeypatch.setattr(Head, name, counted)
    case = Case()
    inputs = [torch.from_numpy(array).requires_grad_() for array in case.inputs]
    how = {"alpha": 0.3, "temperature": 1.0}
    with torch.no_grad():
        value = token_loss(case.tokens(*inputs), case.answers("tail", 1.0), SETTINGS["jsd"], **how)
    assert done == ["logits"]
    assert not value.total.requires_grad
    done.clear()
    inputs[1].requires_grad_(False)
    token_loss(case.tokens(*inputs), case.answers("tail", 1.0), SETTINGS["jsd"], **how)
    assert done == ["logits", "hidden_gradient"]
    assert value.total == case.loss("tail", "jsd", 1.0, 0.3)[0].total


@pytest.mark.parametrize("positions", [0, 3])
def test_no_token_that_counts_makes_a_loss_of_nothing(positions: int) -> None:
    case = Case(positions=positions)
    case.labels[:], case.answered[:] = -100, False
    terms, found = case.loss("tail", "forward_kl", 2.0, 0.3)
    assert terms.total == terms.task == terms.distillation == 0
    assert not any(gradient.any() for gradient in found)
