"""How many tokens go through the vocabulary at a time, and the memory that they share."""

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20
"""What a chunk's float32 logits take on a processor, about. A quarter of it made steps slower by a
half, four times as much no faster (128,256 tokens, width 256, 2 cores)."""

ACCELERATOR_CHUNK_BYTES = 256 * 2**20
"""The same on other devices. Each chunk reads and writes the whole gradient of the weight, in
float32: at 64 MiB that takes a GPU longer than the products do. Reckoned, not measured."""


def chunk_tokens(vocabulary: int, device: torch.device) -> int:
    """Tokens of a chunk, at least one."""
    most = CHUNK_BYTES if device.type == "cpu" else ACCELERATOR_CHUNK_BYTES
    return max(1, most // (4 * vocabulary))


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
