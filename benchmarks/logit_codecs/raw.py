"""Plain numbers: float16 log-probabilities beside 32-bit ids, or ids as Megatron-LM packs them.

Megatron-LM's offline distillation keeps float16 log-probabilities and 16 bits of each id, with the
17th bit packed eight to a byte; larger vocabularies it refuses. Written here from its description.
"""

import numpy as np

from .answers import Answers
from .codec import Decoded


class Raw:
    """float16 + int32: 6 bytes an entry."""

    peer, drawn = True, False

    def __init__(self, k: int) -> None:
        self.name, self.k = f"raw fp16 + int32, k = {k}", k

    def refusal(self, answers: Answers) -> str:
        return ""

    def encode(self, answers: Answers) -> tuple[np.ndarray, ...]:
        ids, log_probs, _ = answers.top(self.k)
        return ids.astype(np.int32), log_probs.astype(np.float16)

    def stored_bytes(self, stored: tuple[np.ndarray, ...]) -> int:
        return sum(part.nbytes for part in stored)

    def decode(self, stored: tuple[np.ndarray, ...]) -> Decoded:
        ids, log_probs = stored
        return Decoded(ids.copy(), log_probs.astype(np.float32), None)


class Packed(Raw):
    """float16 + 17-bit ids."""

    def __init__(self, k: int) -> None:
        self.name, self.k = f"Megatron-style fp16 + 17-bit ids, k = {k}", k

    def refusal(self, answers: Answers) -> str:
        return "" if answers.vocabulary <= 2**17 else "at most 131,072 ids"

    def encode(self, answers: Answers) -> tuple[np.ndarray, ...]:
        ids, log_probs, _ = answers.top(self.k)
        high = np.packbits((ids >> 16).astype(np.uint8), axis=1, bitorder="little")
        return ids.astype(np.uint16), high, log_probs.astype(np.float16)

    def decode(self, stored: tuple[np.ndarray, ...]) -> Decoded:
        low, high, log_probs = stored
        bits = np.unpackbits(high, axis=1, count=self.k, bitorder="little")
        ids = low.astype(np.int32)
        ids |= bits.astype(np.int32) << 16
        return Decoded(ids, log_probs.astype(np.float32), None)
