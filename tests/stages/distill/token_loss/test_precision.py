"""Half precision: logits, statistics and sums stay in float32, gradients are rounded once."""

from typing import Any

import pytest
import torch
from armada.stages.distill.language.teachers import as_answers
from armada.stages.distill.token_loss import chunked
from armada.stages.distill.token_loss.answers import DenseAnswers
from armada.stages.distill.token_loss.loss import Tokens, token_loss
from armada.stages.distill.token_loss.uld import uld_loss
from token_loss_reference import KINDS, SETTINGS, Case

DIVERGENCE = {"drawn": "forward_kl"}


def results(case: Case, kind: str, temperature: float, dtypes: tuple[Any, Any]) -> list[Any]:
    """Value and gradients with states and weights in two dtypes, from numbers that bfloat16 has."""
    hidden, weight, _ = (torch.from_numpy(each).bfloat16() for each in case.inputs)
    inputs = [hidden.to(dtypes[0]).requires_grad_(), weight.to(dtypes[1]).requires_grad_()]
    tokens = Tokens(inputs[0], inputs[1], torch.from_numpy(case.labels))
    name = DIVERGENCE.get(kind, "jsd")
    how = {"alpha": 0.5, "temperature": temperature, "chunk": 16}
    total = token_loss(tokens, case.answers(kind, temperature), SETTINGS[name], **how).total
    total.backward()
    return [total.detach(), *(each.grad for each in inputs)]


def big() -> Case:
    return Case(positions=64, width=32, words=500, listed=16, teacher_words=500, samples=12)


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_gradients_are_off_by_what_rounding_them_once_costs(
    kind: str, temperature: float
) -> None:
    case = big()
    found = results(case, kind, temperature, (torch.bfloat16, torch.bfloat16))
    exact = results(case, kind, temperature, (torch.float64, torch.float64))
    assert [each.dtype for each in found] == [torch.float32, torch.bfloat16, torch.bfloat16]
    assert error(found[0], exact[0]) < 1e-6
    for one, other in zip(found[1:], exact[1:], strict=True):
        assert error(one, other) < 1.02 * error(other.bfloat16(), other)


@pytest.mark.parametrize("by_rank", [False, True])
def test_dense_answers_are_widened_chunk_by_chunk(by_rank: bool) -> None:
    """As they lie in a cache, and no bit differs."""
    case = big()
    found = []
    for widened in (torch.float16, torch.float32):
        inputs = [torch.from_numpy(each).float().requires_grad_() for each in case.inputs]
        answers = DenseAnswers(torch.from_numpy(case.log_p).half().to(widened))
        if by_rank:
            terms = uld_loss(case.tokens(*inputs), answers, alpha=0.5, chunk=16)
        else:
            how = {"alpha": 0.5, "temperature": 2.0, "chunk": 16}
            terms = token_loss(case.tokens(*inputs), answers, SETTINGS["jsd"], **how)
        terms.total.backward()
        found.append([terms.total.detach(), *(each.grad for each in inputs)])
    assert all(map(torch.equal, *found))


def test_dense_answers_of_a_cache_are_not_copied() -> None:
    dense = torch.zeros(3, 5, dtype=torch.float16)
    answers = as_answers({"dense": dense})
    assert isinstance(answers, DenseAnswers)
    assert answers.log_probs_PV is dense


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Products of bfloat16 matrices that come out in float32, as CUDA has them."""
    multiplied: list[torch.dtype] = []
    real = torch.mm

    def mm(left: Any, right: Any, *, out_dtype: Any = None, out: Any = None) -> Any:
        if out_dtype is None:
            return real(left, right, out=out)
        multiplied.append(left.dtype)
        assert left.dtype == right.dtype == torch.bfloat16
        return real(left.to(out_dtype), right.to(out_dtype), out=out)

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(chunked, "can_leave_float32", lambda _: True)
    return multiplied


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_products_as_on_a_gpu(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = big()
    exact = results(case, kind, 1.0, (torch.float64, torch.float64))
    multiplied = as_on_a_gpu(monkeypatch)
    monkeypatch.setattr(chunked, "BLOCK_BYTES", 4 * 32 * 120)
    found = results(case, kind, 1.0, (torch.bfloat16, torch.bfloat16))
    assert len(multiplied) == 4 * (2 + 5)  # chunks; whole products, and blocks of the weight
    assert error(found[0], exact[0]) < 1e-6
    for one, other in zip(found[1:], exact[1:], strict=True):
        # The slopes in the logits are rounded as well.
        assert error(one, other) < 1.3 * error(other.bfloat16(), other)


def test_blocks_of_the_weight_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    case, half = big(), (torch.bfloat16, torch.bfloat16)
    expected = results(case, "tail", 1.0, half)
    monkeypatch.setattr(chunked, "BLOCK_BYTES", 4 * 32 * 77)
    torch.testing.assert_close(results(case, "tail", 1.0, half), expected)


@pytest.mark.parametrize(
    ("dtypes", "limit"),
    [
        ((torch.float32, torch.float32), 1e-6),
        ((torch.float16, torch.float16), 4e-4),
        ((torch.bfloat16, torch.float32), 1.8e-3),
        ((torch.float32, torch.bfloat16), 1.8e-3),
    ],
)
def test_gradients_come_back_in_the_inputs_dtypes(dtypes: tuple[Any, Any], limit: float) -> None:
    case = big()
    found = results(case, "tail", 2.0, dtypes)
    exact = results(case, "tail", 2.0, (torch.float64, torch.float64))
    assert found[0].dtype == torch.float32
    for one, other, dtype in zip(found[1:], exact[1:], dtypes, strict=True):
        assert one.dtype == dtype
        assert error(one, other) < limit


def test_autocast_multiplies_as_a_linear_layer_would() -> None:
    """Full-precision inputs, rounded to bfloat16 for the products only."""
    case = Case(positions=64, width=32, words=500, listed=16, teacher_words=500)
    hidden, weight, _ = (torch.from_numpy(each).float() for each in case.inputs)
    found = []
    for cast in (True, False):
        inputs = [hidden.clone(), weight.clone()]
        if not cast:
            inputs = [each.bfloat16().float() for each in inputs]
        inputs = [each.requires_grad_() for each in inputs]
        tokens = Tokens(inputs[0], inputs[1], torch.from_numpy(case.labels))
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            how = {"alpha": 0.5, "temperature": 1.0}
            total = token_loss(tokens, case.answers("tail", 1.0), SETTINGS["jsd"], **how).total
        total.backward()
        found.append([total.detach(), *(each.grad for each in inputs)])
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other)
