"""How many tokens go through the vocabulary at a time, and the memory that they share."""

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20
"""What a chunk's float32 logits take, about."""


def chunk_tokens(vocabulary: int) -> int:
    """Tokens of a chunk, at least one."""
    return max(1, CHUNK_BYTES // (4 * vocabulary))


class Buffers:
    """[chunk, V] buffers that live as long as one call: made when first asked for, then used again
    by every chunk, so that no chunk waits for fresh pages."""

    def __init__(self, tokens: int, vocabulary: int, like: Tensor, dtype: torch.dtype) -> None:
        self._shape, self._like, self._dtype = (tokens, vocabulary), like, dtype
        self._made: dict[str, Tensor] = {}

    def take(self, name: str, tokens: int) -> Tensor:
        """The buffer of that name, cut to so many tokens; in it is whatever was left there."""
        if name not in self._made:
            self._made[name] = self._like.new_empty(self._shape, dtype=self._dtype)
        return self._made[name][:tokens]
