"""What every codec of the benchmark does."""

from typing import Any, NamedTuple, Protocol

import numpy as np

from .answers import Answers


class Decoded(NamedTuple):
    """What a training step would take: 32-bit ids and log-probabilities."""

    ids: np.ndarray  # [N, k] int32
    log_probs: np.ndarray | None  # [N, k] float32
    log_tail: np.ndarray | None  # [N] float32, where the codec keeps it


class Codec(Protocol):
    """One way to write answers."""

    name: str
    k: int
    """Ids kept of a token."""
    peer: bool
    """Somebody else's."""
    drawn: bool
    """Ids are samples, not the most probable ones."""

    def refusal(self, answers: Answers) -> str:
        """Why these answers cannot be written; empty if they can."""

    def encode(self, answers: Answers) -> Any:
        """What is stored."""

    def stored_bytes(self, stored: Any) -> int:
        """Of all tokens."""

    def decode(self, stored: Any) -> Decoded:
        """What is read."""
