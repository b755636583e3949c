"""Canonical JSON: one byte string per value, so that equal settings hash to equal fingerprints.

UTF-8, keys sorted by code point, no white space, no NaN or infinity, floats in Python's shortest
form that reads back equal. Integers and floats stay apart: 1 and 1.0 are different settings.
"""

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> bytes:
    """`value` as canonical JSON. Raises ValueError for NaN, infinity and foreign types."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")


def digest(value: Any) -> str:
    """The first 128 bits of the SHA-256 of the canonical JSON, as 32 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:32]
