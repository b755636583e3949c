"""No matrix of all tokens by all words, forward or backward."""

from typing import Any

import pytest
import torch
from armada.stages.distill.token_loss.loss import token_loss
from token_loss_reference import KINDS, SETTINGS, Case
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CHUNK = 4


class Watched(TorchDispatchMode):
    """Keeps the size of the largest memory that an operation gave back, and counts softmaxes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.operations: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {_storage(each) for each in tree_leaves((args, kwargs)) if _is_tensor(each)}
        made = [each for each in tree_leaves(out) if _is_tensor(each)]
        sizes = [e.untyped_storage().nbytes() for e in made if _storage(e) not in given]
        self.largest = max([self.largest, *sizes])
        self.operations.append(func.overloadpacket.__name__)
        return out


def _is_tensor(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def watched(kind: str, temperature: float, softcap: float | None = None) -> tuple[Watched, Case]:
    """A step of 64 tokens by 50 words."""
    case = Case(positions=64, words=50, teacher_words=50, softcap=softcap)
    inputs = [torch.from_numpy(array).float().requires_grad_() for array in case.inputs]
    tokens, answers = case.tokens(*inputs), case.answers(kind, temperature)
    how = {"alpha": 0.3, "temperature": temperature, "chunk": CHUNK}
    with Watched() as seen:
        token_loss(tokens, answers, SETTINGS["forward_kl"], **how).total.backward()
    return seen, case


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_that_of_a_chunk_or_of_a_gradient(kind: str, temperature: float) -> None:
    seen, case = watched(kind, temperature, softcap=3.0)
    widest = 8 if kind == "dense" else 4  # answers come in float64
    gradients = 4 * max(array.size for array in case.inputs)
    assert 0 < seen.largest <= max(CHUNK * case.words * widest, gradients, 8 * case.positions)


def test_one_softmax_a_chunk_at_temperature_one_and_two_at_others() -> None:
    """Cross entropy and divergence share their exponentials; backward makes none."""
    for temperature, expected in ((1.0, 1), (2.0, 2)):
        seen, case = watched("tail", temperature)
        assert seen.operations.count("softmax") == expected * case.positions / CHUNK


def test_nothing_is_read_back_from_the_device() -> None:
    """What would make a GPU wait."""
    for kind in KINDS:
        operations = set(watched(kind, 2.0, softcap=3.0)[0].operations)
        waiting = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "masked_select", "equal"}
        assert not operations & (waiting | {"index", "index_put_", "_to_cpu"})
        assert "mm" in operations
