"""Examples as token ids, and which of them a language model has to predict.

A text is its prompt, which is given, and the rest, which is predicted token by token; special
tokens stand where the tokenizer puts them around a whole text. Prompt and response are tokenized
apart, for a model that is asked sees the prompt alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .recipe import Recipe, Written

_ENCODE_ROWS = 4096

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TokenTexts:
    """Token ids of N texts, laid end to end; text i is `offsets[i]:offsets[i + 1]`.

    prompts [N]: how many tokens at the start of a text are not predicted; at least one, for
    nothing comes before it. truncated [N]: those that were longer than is allowed. bytes [N]: of
    the text, in UTF-8, that the predicted tokens stand for."""

    ids: Ids
    offsets: npt.NDArray[np.int64]
    prompts: npt.NDArray[np.int64]
    truncated: npt.NDArray[np.bool_]
    bytes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text [N]."""
        lengths: npt.NDArray[np.int64] = np.diff(self.offsets)
        return lengths

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """Tokens of each text that are predicted [N]."""
        counts: npt.NDArray[np.int64] = np.maximum(self.lengths - self.prompts, 0)
        return counts

    def of(self, text: int) -> Ids:
        """The ids of one text."""
        return self.ids[self.offsets[text] : self.offsets[text + 1]]


@dataclass(frozen=True, slots=True)
class Ends:
    """The special tokens that a tokenizer puts before and after a text."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def special_ends(tokenizer: Any) -> Ends:
    """Those of a tokenizer. One that puts none after a text is given its end-of-sequence token."""
    inner = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    starts = range(len(whole) - len(inner) + 1)
    start = next((at for at in starts if whole[at : at + len(inner)] == inner), 0)
    after = whole[start + len(inner) :]
    if not after and tokenizer.eos_token_id is not None:
        after = [tokenizer.eos_token_id]
    return Ends(tuple(whole[:start]), tuple(after))


def encode_texts(
    tokenizer: Any, recipe: Recipe, examples: Sequence[Sequence[str]], max_length: int
) -> TokenTexts:
    """The tokens of examples, at most `max_length` of each; what is beyond is cut off its end."""
    ends = special_ends(tokenizer)
    texts: list[Ids] = []
    prompts: list[int] = []
    sizes: list[int] = []
    for start in range(0, len(examples), _ENCODE_ROWS):
        written = [recipe.write(tokenizer, each) for each in examples[start : start + _ENCODE_ROWS]]
        sizes += [len(each.response.encode()) for each in written]
        for prompt, response in _tokenized(tokenizer, recipe, ends, written):
            texts.append(np.array([*prompt, *response], dtype=np.int32))
            prompts.append(max(len(prompt), 1))
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    kept = np.minimum(lengths, max_length)
    return TokenTexts(
        ids=np.concatenate([np.empty(0, np.int32), *(text[:max_length] for text in texts)]),
        offsets=np.concatenate([[0], np.cumsum(kept)]),
        prompts=np.array(prompts, dtype=np.int64),
        truncated=lengths > max_length,
        bytes=_kept_bytes(tokenizer, texts, prompts, sizes, max_length),
    )


def _kept_bytes(
    tokenizer: Any, texts: list[Ids], prompts: list[int], sizes: list[int], max_length: int
) -> npt.NDArray[np.int64]:
    """Bytes of responses, of those that are cut by what is left of them."""
    kept = np.array(sizes, dtype=np.int64)
    for place, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        if len(text) > max_length:
            left = tokenizer.decode(text[prompt:max_length], skip_special_tokens=True)
            kept[place] = len(left.encode())
    return kept


def _tokenized(
    tokenizer: Any, recipe: Recipe, ends: Ends, written: Sequence[Written]
) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """Prompt and response ids of each text, special tokens among them."""
    responses = _ids(tokenizer, [each.response for each in written])
    if recipe.text_format == "chat":  # the template has written the special tokens
        yield from zip(_ids(tokenizer, [each.prompt for each in written]), responses, strict=True)
        return
    prompts = _ids(tokenizer, [each.prompt for each in written]) if recipe.has_prompt else None
    after = ends.after if recipe.end_token else ()
    for place, response in enumerate(responses):
        prompt = prompts[place] if prompts is not None else []
        yield (*ends.before, *prompt), (*response, *after)


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    return encoded
