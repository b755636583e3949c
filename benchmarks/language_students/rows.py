"""Lines of the table: a student's size, what it is worth and what it cost, over several seeds."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from figures import ABSENT
from safetensors import safe_open

from .caches import Cost

HEADER = (
    *("student", "parameters", "perplexity", "bits per byte"),
    *("bytes a token", "training s", "teacher s"),
)


@dataclass(slots=True)
class Row:
    """One kind of student; a figure a seed."""

    parameters: int = 0
    perplexity: list[float] = field(default_factory=list)
    bits_per_byte: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, folder: Path, metrics: dict[str, Any]) -> None:
        """A finished run."""
        self.parameters = parameters(folder / "student")
        self.perplexity.append(metrics["validation"]["perplexity"])
        self.bits_per_byte.append(metrics["validation"]["bits_per_byte"])
        self.seconds.append(metrics["train_seconds"])

    def cells(self, name: str, cost: Cost | None) -> tuple[str, ...]:
        """As they are shown."""
        size = f"{cost.bytes_per_token:,.1f}" if cost else ABSENT
        asked = f"{cost.seconds:.0f}" if cost else ABSENT
        worth = (shown(self.perplexity, 2), shown(self.bits_per_byte, 4))
        return (name, f"{self.parameters:,}", *worth, size, f"{mean(self.seconds):.0f}", asked)


def parameters(folder: Path) -> int:
    """Of a model's folder."""
    with safe_open(folder / "model.safetensors", "numpy") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    return sum(map(math.prod, shapes))


def shown(figures: list[float], digits: int) -> str:
    """`87.31`, or mean and standard deviation of several."""
    spread = f" ± {pstdev(figures):.{digits}f}" if len(figures) > 1 else ""
    return f"{mean(figures):.{digits}f}{spread}"
