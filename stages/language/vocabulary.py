"""Whether two tokenizers are one: digests of what they do, whatever files they were saved as.

Models of one family share a tokenizer and differ in how many rows of logits they round it up to
(151,936 and 152,064, say). What counts is the tokenizer: ids beyond its last word mean nothing, and
nobody teaches them. They may also differ in settings, such as which word ends a text: what is said
of a word is of the same word, whatever its role is (`words_digest`), and whether both split a text
alike is seen by its tokens.
"""

import json
from typing import Any

from ...cache_schemas.canonical import digest


def tokenizer_digest(tokenizer: Any) -> str:
    """128 bits, in hexadecimal, that tell a tokenizer from others; the same for one that was loaded
    and saved again. Padding and truncation, which are chosen call by call, do not count."""
    return digest({"model": _model(tokenizer), "special": sorted(tokenizer.all_special_tokens)})


def _model(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer without a fast form: its words and its kind
        return {"kind": type(tokenizer).__name__, "words": tokenizer.get_vocab()}
    document = json.loads(backend.to_str())
    return {part: value for part, value in document.items() if part not in _BY_CALL}


_BY_CALL = frozenset({"padding", "truncation", "version"})


def words_digest(tokenizer: Any, count: int | None = None) -> str:
    """128 bits, in hexadecimal, of which word each id stands for: of all ids, or of the first
    `count`. Roles, added words behind those, and how texts are split do not count."""
    vocabulary = tokenizer.get_vocab()
    return digest({word: at for word, at in vocabulary.items() if count is None or at < count})


def word_count(tokenizer: Any) -> int:
    """How many ids a tokenizer has, the highest one plus one."""
    return 1 + max(tokenizer.get_vocab().values(), default=-1)
