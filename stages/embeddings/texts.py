"""How a sentence-transformers folder has its texts read: lower case, and where a prompt ends."""

from typing import Any


def lower_case(tokenizer: Any) -> None:
    """Has the tokenizer lower-case whatever it reads, prompts too, before anything else."""
    from tokenizers import normalizers

    backend = tokenizer.backend_tokenizer
    before = backend.normalizer
    own = [] if before is None else [before]
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])


def prompt_tokens(tokenizer: Any, prompt: str) -> int:
    """How many of a text's first tokens stand for the prompt before it: those of the prompt alone,
    but for the special token that closes a text."""
    ids = tokenizer(prompt, verbose=False)["input_ids"]
    return len(ids) - 1 if ids and ids[-1] in tokenizer.all_special_ids else len(ids)
