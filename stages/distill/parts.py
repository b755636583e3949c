"""A student that reads a batch in parts, where the whole does not fit into memory.

The loss is that of the whole batch all the same, whatever it compares: each part's outputs are kept
and its activations are not, but computed again when the part's turn in the backward pass comes. So
memory is that of one part, losses and gradients are those of the batch up to rounding, and a step
takes another forward pass. Dropout draws other numbers.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...cache_schemas.errors import TrainingError
from ..memory import free_cached_memory, is_out_of_memory

T = TypeVar("T")

_LOGGER = logging.getLogger("armada")


@dataclass(slots=True)
class Parts:
    """How many padded tokens a student reads at once; None: whole batches. `halves`: whether that
    may be halved where memory runs out."""

    halves: bool = False
    most_tokens: int | None = None
    most_rows: int | None = None
    """How many rows it reads at once, None: any number. The same for a batch that is to be larger
    than memory would hold (gradient caching: Gao et al., arXiv 2101.06983)."""

    def rows(self, ids_BT: Tensor) -> int:
        """Rows of each part of a batch."""
        count, width = ids_BT.shape
        if self.most_rows is not None:
            count = min(count, self.most_rows)
        return count if self.most_tokens is None else min(count, max(1, self.most_tokens // width))

    def halve(self, ids_BT: Tensor) -> None:
        """After a batch that did not fit. Raises TrainingError if it was read row by row."""
        rows = self.rows(ids_BT)
        if rows == 1:
            raise TrainingError(
                "device memory: a single example does not fit beside the student; set "
                "gradient_checkpointing=true, precision=bf16 or a smaller max_length, or use a "
                "device with more memory"
            )
        self.most_tokens = rows // 2 * ids_BT.shape[1]
        _LOGGER.warning(
            f"device memory: {rows} examples at a time do not fit; the student reads {rows // 2} "
            "of this length from here on, and computes each part again for its gradients: the "
            "same losses, in more time"
        )

    def fitted(self, compute: Callable[[bool], T], ids_BT: Tensor) -> T:
        """What `compute(False)` returns for a batch; where memory runs out and may be halved,
        `compute(True)`, as often as it takes."""
        again = False
        while True:
            try:
                return compute(again)
            except (RuntimeError, MemoryError) as error:
                if not self.halves or not is_out_of_memory(error):
                    raise
            free_cached_memory()  # outside the handler the failed call's tensors are free
            self.halve(ids_BT)
            again = True

    def read(self, student: Callable[..., Any], *inputs: Tensor | None, **more: Any) -> Any:
        """The outputs of `student` for inputs [B, ...], of which the first are the ids [B, T]:
        tensors [B, ...], or tuples of such."""
        ids_BT = inputs[0]
        assert ids_BT is not None
        rows, count = self.rows(ids_BT), len(ids_BT)
        if rows == count:
            return student(*inputs, **more)
        starts = range(0, count, rows)
        parts = [[each if each is None else each[n : n + rows] for each in inputs] for n in starts]
        return _joined([checkpoint(student, *part, use_reentrant=False, **more) for part in parts])


def _joined(parts: Any) -> Any:
    if torch.is_tensor(parts[0]):
        return torch.cat(parts)
    return tuple(_joined(each) for each in zip(*parts, strict=True))
