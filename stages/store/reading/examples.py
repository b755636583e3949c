"""What a cache can be asked about: texts, sequences of text segments, or 16-byte keys."""

from collections.abc import Sequence
from typing import TypeGuard

import numpy as np

from ....cache_schemas.errors import CacheError
from ....cache_schemas.keys import KEY_BYTES, KeyArray, example_key, keys_to_array

Example = str | bytes | Sequence[str]


def keys_of(examples: Sequence[Example] | KeyArray) -> KeyArray:
    """The keys of examples, [N, 16]; raises CacheError for what is no key."""
    if isinstance(examples, np.ndarray) and examples.dtype == np.uint8:
        if examples.ndim != 2 or examples.shape[1] != KEY_BYTES:
            raise CacheError(f"keys of shape {examples.shape}: keys are [N, {KEY_BYTES}] bytes")
        return examples
    return keys_to_array(_key(example) for example in examples)


def _key(example: Example) -> bytes:
    if not isinstance(example, bytes):
        return example_key(example)
    if len(example) != KEY_BYTES:
        raise CacheError(f"key {example!r}: has {len(example)} bytes; a key has {KEY_BYTES}")
    return example


def is_example(item: object) -> TypeGuard[Example]:
    """Whether a cache can be asked about it."""
    if isinstance(item, bytes):
        return len(item) == KEY_BYTES
    if isinstance(item, str):
        return True
    return isinstance(item, list | tuple) and all(isinstance(part, str) for part in item)


def shown(example: object) -> str:
    """An example for people."""
    if isinstance(example, (bytes, np.ndarray)):
        return bytes(example).hex()
    text = example if isinstance(example, str) else " | ".join(example)  # type: ignore[arg-type]
    return repr(text if len(text) <= 60 else text[:57] + "...")
