"""The loss of tokens as a GPU takes it, on tensors that are said to be on one and have no numbers:
products leave bfloat16 in float32 there, by operations that no CPU has. Forward passes, which work
gradients out as well; a backward pass needs a real device."""

import pytest
import torch
from armada.stages.distill.token_loss.answers import (
    Answers,
    DenseAnswers,
    SampledAnswers,
    SparseAnswers,
)
from armada.stages.distill.token_loss.loss import Tokens, token_loss
from armada.stages.distill.token_loss.uld import uld_loss
from token_loss_reference import DIVERGENCES, KINDS, SETTINGS
from torch._subclasses.fake_tensor import FakeTensorMode

POSITIONS, WIDTH, VOCAB, LISTED = 64, 32, 500, 16
HOW = {"alpha": 0.5, "chunk": 16}


def there(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="cuda")


def answers(kind: str) -> Answers:
    ids = there(POSITIONS, LISTED, dtype=torch.int32)
    log_probs, tail = there(POSITIONS, LISTED), there(POSITIONS)
    return {
        "tail": SparseAnswers(ids, log_probs, tail),
        "renormalised": SparseAnswers(ids, log_probs, None),
        "drawn": SampledAnswers(ids, log_probs),
        "dense": DenseAnswers(there(POSITIONS, VOCAB, dtype=torch.float16)),
    }[kind]


def tokens(dtype: torch.dtype) -> Tokens:
    hidden, weight = (there(n, WIDTH, dtype=dtype).requires_grad_() for n in (POSITIONS, VOCAB))
    labels, bias = there(POSITIONS, dtype=torch.int64), there(VOCAB, dtype=dtype)
    return Tokens(hidden, weight, labels, bias_V=bias, labelled_count=40, answered_count=64)


DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_of_tokens(kind: str, divergence: str, dtype: torch.dtype) -> None:
    temperature = 1.0 if kind == "drawn" else 2.0
    with FakeTensorMode():
        terms = token_loss(
            tokens(dtype), answers(kind), SETTINGS[divergence], temperature=temperature, **HOW
        )
    assert terms.total.requires_grad
    for term in (terms.total, terms.task, terms.distillation):
        assert (term.device.type, term.dtype) == ("cuda", torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["tail", "dense"])
def test_two_tokenizers(kind: str, dtype: torch.dtype) -> None:
    with FakeTensorMode():
        terms = uld_loss(tokens(dtype), answers(kind), **HOW)
    assert terms.total.requires_grad
    assert terms.distillation.device.type == "cuda"
