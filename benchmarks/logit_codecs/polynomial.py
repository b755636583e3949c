"""An exact head and a polynomial over rank for the rest: the idea of DistillKit's codec.

This is a re-implementation from a description of it, not that code: the first log-probabilities in
bfloat16; for the others coefficients of a least-squares fit with the terms 1, t, t^2, t^3, t^4 and
sqrt t of the rank t, normalised to 0 .. 1 (its recommended settings leave the rank as it is, which
is ill-conditioned and loses far more); ids packed at ceil(log2 V) bits by way of one 64-bit number
a bit. `ParquetLists` stores the same bytes as lists of lists of bytes, one row a text, and reads
them by way of Python lists.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .answers import Answers
from .codec import Decoded

POWERS = (0.0, 1.0, 2.0, 3.0, 4.0, 0.5)
TOKENS_PER_TEXT = 256


class Polynomial:
    """k = 128: 16 exact, float32 coefficients (the recommended layout, 328 bytes for 128,256 ids).
    k = 50: 1 exact, float16 coefficients (121 bytes: a guess at the settings for a budget)."""

    peer, drawn = True, False

    def __init__(self, k: int) -> None:
        self.name, self.k = f"DistillKit-like polynomial, k = {k}", k
        self.exact = 16 if k == 128 else 1
        self.dtype = np.float32 if k == 128 else np.float16
        ranks = np.linspace(0, 1, k - self.exact)
        self.terms = np.stack([ranks**power for power in POWERS], axis=1)
        self.fit = np.linalg.pinv(self.terms)

    def refusal(self, answers: Answers) -> str:
        return ""

    def encode(self, answers: Answers) -> tuple[np.ndarray, np.ndarray, int]:
        ids, log_probs, _ = answers.top(self.k)
        coefficients = log_probs[:, self.exact :].astype(np.float64) @ self.fit.T
        head = _to_bfloat16(log_probs[:, : self.exact])
        numbers = [head.view(np.uint8), coefficients.astype(self.dtype).view(np.uint8)]
        width = (answers.vocabulary - 1).bit_length()
        bits = (ids[:, :, None] >> np.arange(width)) & 1
        packed = np.packbits(bits.reshape(len(ids), -1).astype(np.uint8), axis=1)
        return np.concatenate(numbers, axis=1), packed, width

    def stored_bytes(self, stored: tuple[np.ndarray, np.ndarray, int]) -> int:
        return stored[0].nbytes + stored[1].nbytes

    def decode(self, stored: tuple[np.ndarray, np.ndarray, int]) -> Decoded:
        numbers, packed, width = stored
        bits = np.unpackbits(packed, axis=1, count=self.k * width)
        bits = bits.reshape(len(packed), self.k, width).astype(np.int64)
        ids = (bits << np.arange(width)).sum(axis=2).astype(np.int32)
        split = 2 * self.exact
        head = np.ascontiguousarray(numbers[:, :split]).view(np.uint16).astype(np.uint32) << 16
        coefficients = np.ascontiguousarray(numbers[:, split:]).view(self.dtype)
        rest = coefficients.astype(np.float32) @ self.terms.T.astype(np.float32)
        return Decoded(ids, np.concatenate([head.view(np.float32), rest], axis=1), None)


class ParquetLists(Polynomial):
    """The same bytes in a Parquet file, as `list<list<uint8>>`, one row a text of 256 tokens."""

    def __init__(self, k: int, folder: Path) -> None:
        super().__init__(k)
        self.name += ", Parquet lists"
        self.file = folder / f"{k}.parquet"

    def encode(self, answers: Answers) -> int:
        numbers, packed, width = super().encode(answers)
        kind = pa.list_(pa.list_(pa.uint8()))
        columns = {
            name: pa.array(_texts(part), kind)
            for name, part in (("compressed_logprobs", numbers), ("bytepacked_indices", packed))
        }
        pq.write_table(pa.table(columns), self.file)
        return width

    def stored_bytes(self, stored: int) -> int:
        return self.file.stat().st_size

    def decode(self, stored: int) -> Decoded:
        numbers, packed = (
            np.array([token for text in column.to_pylist() for token in text], np.uint8)
            for column in pq.read_table(self.file).columns
        )
        return super().decode((numbers, packed, stored))


def _texts(tokens: np.ndarray) -> list[list[np.ndarray]]:
    return [
        list(tokens[at : at + TOKENS_PER_TEXT]) for at in range(0, len(tokens), TOKENS_PER_TEXT)
    ]


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper halves of 32-bit floats, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
