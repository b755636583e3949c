"""The processes that hold one teacher's model together, each a part of every large weight.

All of them compute every batch; only the first knows the corpus, and reads and writes the cache. It
says to the others what it is about to do, they do the same, and drop what comes out. A step is a
JSON document of bytes, over the processor: no device waits for it.

One that fails ends, and the launcher ends the others, which would wait for it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ...cache_schemas.errors import ArmadaError, FollowerError, RunError
from ..memory import out_of_memory_as
from .teachers.base import Example, Teacher, load_teacher, matrix_products_of

PATIENCE = timedelta(hours=12)
"""The others wait so long: the first reads the corpus, and may wait for other writers."""

MADE, LOAD, COMPUTE, END = "made", "load", "compute", "end"


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes of a run. `first`: whether this is the one that says what to do; `count`: how
    many there are; `group`: those of torch that it is said to, of backend gloo."""

    first: bool = True
    count: int = 1
    group: Any = field(default=None, repr=False)

    @classmethod
    def of(cls, first: bool, count: int) -> "Ranks":
        """The processes that have met, if there are several; each of them calls this."""
        if count == 1:
            return ALONE
        return cls(first, count, dist.new_group(backend="gloo", timeout=PATIENCE))

    def say(self, step: str, *content: Any) -> None:
        """Say to the others what comes next, which they wait for in `hear`. Raises RunError when
        one of them has ended."""
        if self.count == 1:
            return
        said = torch.frombuffer(bytearray(json.dumps([step, *content]).encode()), dtype=torch.uint8)
        try:
            dist.broadcast(torch.tensor(len(said)), 0, self.group)
            dist.broadcast(said, 0, self.group)
        except RuntimeError as cause:
            raise RunError(
                "tensor_parallel: another process has ended; committed shards are kept, run the "
                "same command to continue"
            ) from cause

    def hear(self) -> tuple[str, list[Any]]:
        """What the first process is about to do; raises FollowerError when it has ended."""
        length = torch.tensor(0)
        try:
            dist.broadcast(length, 0, self.group)
            said = torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(said, 0, self.group)
        except RuntimeError as cause:
            raise FollowerError("tensor_parallel: the first process has ended") from cause
        step, *content = json.loads(said.numpy().tobytes())
        return step, content

    def say_batch(self, examples: Sequence[Example]) -> None:
        """Say that these examples are computed next."""
        if self.count > 1:
            self.say(COMPUTE, *([each.key.hex(), *each.segments] for each in examples))


ALONE = Ranks()


def follow(teacher: Teacher, ranks: Ranks) -> Any:
    """Compute what the first process computes until it says that the run has ended; returns what it
    says then. Raises FollowerError where this process fails, or another one has."""
    with matrix_products_of(teacher):
        while True:
            step, content = ranks.hear()
            if step == END:
                return content[0]
            try:
                _compute_along(teacher, step, content)
            except ArmadaError as cause:
                raise FollowerError(str(cause)) from cause


def _compute_along(teacher: Teacher, step: str, content: list[Any]) -> None:
    if step == LOAD:
        load_teacher(teacher)
        return
    examples = [Example(bytes.fromhex(key), tuple(texts)) for key, *texts in content]
    with torch.inference_mode(), out_of_memory_as(lambda: too_large(len(examples))):
        teacher.start(teacher.prepare(examples))


def too_large(rows: int) -> RunError:
    """The error of a batch that does not fit into the memory of one of several processes: those
    that wait for its part of the batch cannot be told to try a smaller one."""
    return RunError(
        f"device memory: a batch of {rows} texts does not fit, and with tensor_parallel no smaller "
        "ones are tried; set a smaller batch_size and run the same command to continue"
    )
