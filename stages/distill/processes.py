"""The processes that train one student together, as `torchrun` or `accelerate launch` start them.

Each has a share of every batch. A loss compares means over the batch, and these are not the means
of the shares' losses; so the student's outputs for all shares are gathered, and every process
computes the loss of the whole batch. The results are those of one process.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from .order import Indices

PATIENCE = timedelta(hours=12)
"""Processes wait so long for each other: one of a node reads the corpus and fills a mirror first,
which takes longer than the 10 minutes that are usual. A launcher ends the others of one that
died."""


@dataclass(frozen=True, slots=True)
class Processes:
    """Rank of this process in a run; `local_rank` is the rank within its node."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files."""
        return self.rank == 0

    def share(self, batch: Indices) -> Indices:
        """This process's part of a batch. All parts have one size: the end is filled with the last
        example, and `joined` removes that again."""
        rows = -(-len(batch) // self.count)
        own = np.arange(self.rank * rows, (self.rank + 1) * rows)
        return batch[np.minimum(own, len(batch) - 1)]

    def joined(self, part: Tensor, rows: int) -> Tensor:
        """The parts of all processes [share, ...] as the whole batch [rows, ...], on each of them;
        with gradients."""
        whole: Tensor = _Joined.apply(part, self.count, self.rank)
        return whole[:rows]

    def widest(self, part: Tensor) -> int:
        """The largest size along the second axis that a tensor has in any of them."""
        if self.count == 1:
            return part.shape[1]
        width = torch.tensor(part.shape[1], device=part.device)
        dist.all_reduce(width, dist.ReduceOp.MAX)
        return int(width)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of what all processes have, on each of them; without gradients."""
        if self.count > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value / self.count

    def meet(self, device: torch.device) -> None:
        """Find the others."""
        if self.count > 1:
            PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
            self.wait()

    @contextmanager
    def one_of_a_node_first(self) -> Iterator[None]:
        """The others of a node do the same after it, and find it done."""
        if self.local_rank > 0:
            self.wait()
        yield
        if self.local_rank == 0:
            self.wait()

    def wait(self) -> None:
        """Wait for all other processes."""
        if self.count > 1:
            dist.barrier()

    def draw_apart(self, seed: int) -> None:
        """Random numbers of each process's own from here on: dropout of other examples is other
        dropout."""
        if self.count > 1:
            torch.manual_seed(int(np.random.SeedSequence([seed, self.rank]).generate_state(1)[0]))

    def agree(self, tensors: list[Tensor]) -> None:
        """Overwrite tensors with those of the first process."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)


ALONE = Processes()


def processes() -> Processes:
    """Processes by the environment of a launcher; one without it."""
    given = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if None in given:  # a cluster may set one of them for purposes of its own
        return ALONE
    rank, count, local_rank = (int(value or 0) for value in given)
    return Processes(rank, count, local_rank) if count > 1 else ALONE


class _Joined(torch.autograd.Function):
    """Parts in a row. Every process works out the same loss from them and sends back what its own
    part is due; afterwards gradients are averaged over processes, hence times their number."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, count: int, rank: int) -> Tensor:
        ctx.count, ctx.rank, ctx.rows = count, rank, len(part)
        whole = part.new_empty(count * len(part), *part.shape[1:])
        dist.all_gather_into_tensor(whole, part.contiguous())
        return whole

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        start = ctx.rank * ctx.rows
        return gradient[start : start + ctx.rows] * ctx.count, None, None
