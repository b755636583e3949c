"""Names made of content: the key of an example, and the digest of settings.

The key of an example is the BLAKE2b hash (16-byte digest, no key, salt or personalisation) of its
text segments in order, each preceded by its byte length as an unsigned 64-bit little-endian
integer, each in UTF-8 without normalisation. The prefix makes the encoding of a segment list
unique: ("ab", "c") and ("a", "bc") never share a key. Nothing else enters: not the row, not the
file, not the label. So a text is computed once, whatever corpora it appears in. Cost: about 1 µs an
example; two different examples among 10^12 collide with probability 10^-15.

Equal settings hash to equal fingerprints by canonical JSON, one byte string per value: UTF-8, keys
sorted by code point, no white space, no NaN or infinity, floats in Python's shortest form that
reads back equal. Integers and floats stay apart: 1 and 1.0 are different settings.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

KEY_BYTES = 16

KeyArray = npt.NDArray[np.uint8]
"""Keys of N examples, shape [N, 16]."""

IntArray = npt.NDArray[np.int64]
"""Whole numbers [N]: rows, positions, lengths."""


def example_key(segments: str | Sequence[str]) -> bytes:
    """The 16-byte key of one example; a bare string is an example of one segment."""
    hasher = hashlib.blake2b(digest_size=KEY_BYTES)
    for segment in (segments,) if isinstance(segments, str) else segments:
        data = segment.encode("utf-8")
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    return hasher.digest()


def keys_to_array(keys: Iterable[bytes]) -> KeyArray:
    """Stack 16-byte keys to [N, 16]."""
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, KEY_BYTES)


def key_words(keys: KeyArray) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Each key as two 64-bit numbers, most significant first: numbers sort as the bytes do."""
    words = np.ascontiguousarray(keys).view(">u8").astype(np.uint64)
    return words[:, 0], words[:, 1]


def first_occurrences(keys: KeyArray) -> IntArray:
    """Positions, ascending, at which a key appears for the first time."""
    if len(keys) == 0:
        return np.empty(0, dtype=np.int64)
    high, low = key_words(keys)
    order = np.argsort(high, kind="stable")  # equal keys stay in order of appearance
    new = np.ones(len(order), dtype=bool)
    new[1:] = np.diff(high[order]) != 0
    if (np.diff(low[order])[~new[1:]] != 0).any():  # never of hashes: sort by both words, slower
        order = np.lexsort((low, high))
        new[1:] = (np.diff(high[order]) != 0) | (np.diff(low[order]) != 0)
    return np.sort(order[new])


def canonical_json(value: Any) -> bytes:
    """`value` as canonical JSON. Raises ValueError for NaN, infinity and foreign types."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")


def digest(value: Any) -> str:
    """The first 128 bits of the SHA-256 of the canonical JSON, as 32 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:32]
