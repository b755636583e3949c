"""A second reader of coded rows: one token at a time, integers and floats of Python only.

Written from the laws in the docstrings of `stages/store/codec`, without their code.
"""

import math
from collections.abc import Iterator

import numpy as np
from armada.cache_schemas.codings import SamplesCoding, TopKCoding


class Row:
    """The bytes of one token, read from the front; loose bits are read from `bits`."""

    def __init__(self, row: np.ndarray, byte_count: int) -> None:
        data = row.tobytes()
        self.bytes = iter(data[:byte_count])
        whole = int.from_bytes(data[byte_count:], "little")
        self.bits = iter([whole >> i & 1 for i in range(8 * (len(data) - byte_count))])

    def number(self, size: int) -> int:
        return int.from_bytes([next(self.bytes) for _ in range(size)], "little")

    def columns(self, count: int, width: int) -> list[int]:
        """The whole bytes of numbers of some width."""
        numbers = [0] * count
        for place in range(width // 8):
            for i in range(count):
                numbers[i] |= next(self.bytes) << 8 * place
        return numbers

    def planes(self, numbers: list[int], width: int) -> list[int]:
        """The numbers with their loose bits."""
        for place in range(8 * (width // 8), width):
            numbers = [number | next(self.bits) << place for number in numbers]
        return numbers

    def rests(self, count: int) -> Iterator[int]:
        """The unary part of Elias and Fano."""
        zeros = 0
        while count:
            if next(self.bits):
                count -= 1
                yield zeros
            else:
                zeros += 1


def low_bits(universe: int, count: int) -> int:
    sizes = {low: count * low + count + (universe - 1 >> low) for low in range(32)}
    return min(sizes, key=lambda low: (sizes[low], low))


def read_top_k(coding: TopKCoding, row: np.ndarray) -> tuple[list[int], list[float], list[float]]:
    """Ids, log-probabilities relative to the first, and the mass of the tail at each
    temperature."""
    k, top = coding.k, 2**coding.bits - 1
    id_width, low = math.ceil(math.log2(coding.vocab_size)), low_bits(top + 1, coding.k)
    header = (coding.bits < 16) + 2 * len(coding.temperatures)
    reader = Row(row, header + k * (id_width // 8) + k * (low // 8))
    step = 1 / 1024 if coding.bits == 16 else reader.number(1) / 4 / (top - 1)
    tails = [tail_mass(reader.number(2)) for _ in coding.temperatures]
    ids, levels = reader.columns(k, id_width), reader.columns(k, low)
    ids, levels = reader.planes(ids, id_width), reader.planes(levels, low)
    levels = [rest << low | level for rest, level in zip(reader.rests(k), levels, strict=True)]
    relative = [-math.inf if level == top else -level * step for level in levels]
    return ids, relative, tails


def tail_mass(code: int) -> float:
    if code in (0, 65535):
        return float(code == 65535)
    return 1 / (1 + math.exp((32768 - code) / 1024))


def read_samples(coding: SamplesCoding, row: np.ndarray) -> tuple[list[int], list[float]]:
    """Ids and log-probabilities; none if they are not kept."""
    count, low = coding.samples, low_bits(coding.vocab_size, coding.samples)
    kept = 2 * count if coding.log_prob_bits else 0
    reader = Row(row[: len(row) - kept], count * (low // 8))
    ids = reader.planes(reader.columns(count, low), low)
    ids = [rest << low | number for rest, number in zip(reader.rests(count), ids, strict=True)]
    codes = np.frombuffer(row[len(row) - kept :].tobytes(), "<u2")
    return ids, [-int(code) / 1024 for code in codes]
