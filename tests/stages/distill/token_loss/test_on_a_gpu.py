"""What holds on a GPU only; skipped where there is none."""

import pytest
import torch
from armada.stages.distill.token_loss.answers import (
    Answers,
    DenseAnswers,
    SampledAnswers,
    SparseAnswers,
)
from armada.stages.distill.token_loss.loss import Tokens, token_loss
from token_loss_reference import KINDS, SETTINGS, Case

pytestmark = pytest.mark.gpu


def on(device: str, answers: Answers) -> Answers:
    """The same answers there."""
    if isinstance(answers, DenseAnswers):
        return DenseAnswers(answers.log_probs_PV.to(device))
    if isinstance(answers, SampledAnswers):
        assert answers.log_probs_PK is not None
        return SampledAnswers(answers.ids_PK.to(device), answers.log_probs_PK.to(device))
    tail = answers.log_tail_P
    return SparseAnswers(
        answers.ids_Pk.to(device),
        answers.log_probs_Pk.to(device),
        None if tail is None else tail.to(device),
    )


def results(case: Case, kind: str, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Value and gradients from numbers that bfloat16 has, read back."""
    inputs = [torch.from_numpy(each).bfloat16().to(device, dtype) for each in case.inputs[:2]]
    inputs = [each.requires_grad_() for each in inputs]
    labels = torch.from_numpy(case.labels).to(device)
    answers = on(device, case.answers(kind, 1.0))
    tokens = Tokens(inputs[0], inputs[1], labels, labelled_count=40, answered_count=64)
    how = {"alpha": 0.5, "temperature": 1.0, "chunk": 16}
    for watched in (False, True):  # libraries may wait when they are loaded
        torch.cuda.set_sync_debug_mode("error" if watched else "default")
        try:
            total = token_loss(tokens, answers, SETTINGS["forward_kl"], **how).total
            found = torch.autograd.grad(total, inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [total.detach().cpu().double(), *(each.cpu().double() for each in found)]


@pytest.mark.parametrize(
    ("dtype", "limit"),
    [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 2.2e-3)],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_gives_the_same_and_never_waits(kind: str, dtype: torch.dtype, limit: float) -> None:
    case = Case(positions=64, width=32, words=500, listed=16, teacher_words=500, samples=12)
    exact = results(case, kind, "cpu", torch.float64)
    for one, other in zip(results(case, kind, "cuda", dtype), exact, strict=True):
        assert (one - other).norm() / other.norm() < limit
