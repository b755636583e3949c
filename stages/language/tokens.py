"""Examples as token ids, the part that a language model predicts, and the digest of their
vocabulary.

A text is its prompt, which is given, and the rest, which is predicted token by token; special
tokens stand where the tokenizer puts them around a whole text. Prompt and response are tokenized
separately, as in generation, where the model sees the prompt alone.

Two tokenizers are one if they do the same, whatever files they were saved as: digests compare them.
Models of one family share a tokenizer and differ in how many rows of logits they round it up to
(151,936 and 152,064, say). Only the tokenizer counts: ids beyond its last token have no meaning.
They may also differ in settings, such as which word ends a text: what is said of a word is of the
same word, whatever its role is (`vocab_digest`), and whether both split a text alike is seen by its
tokens.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache_schemas.chats import answered, turns_of
from ...cache_schemas.errors import JobError
from ...cache_schemas.keys import IntArray, digest
from ..ragged import arange_each, positions_of
from ..tokenizing.long_texts import shortened
from .recipe import Recipe, Written

_ENCODE_ROWS = 4096

Ids = npt.NDArray[np.int32]

INSIDE = 2**32 - 1
"""Sentinel: the token starts inside a multi-byte character."""


@dataclass(frozen=True, slots=True)
class TokenTexts:
    """Token ids of N texts, laid end to end; text i is `offsets[i]:offsets[i + 1]`.

    prompts [N]: how many tokens at the start of a text are not predicted; at least one, for
    nothing comes before it. truncated [N]: those that were longer than is allowed. bytes [N]: of
    the text, in UTF-8, that the predicted tokens stand for."""

    ids: Ids
    offsets: IntArray
    prompts: IntArray
    truncated: npt.NDArray[np.bool_]
    bytes: IntArray
    read: npt.NDArray[np.uint32] | None = None
    """Number of characters of the example's own response before each token; INSIDE within a
    character, and outside of the response. None: not requested."""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths(self) -> IntArray:
        """Tokens of each text [N]."""
        lengths: IntArray = np.diff(self.offsets)
        return lengths

    @property
    def predicted(self) -> IntArray:
        """Tokens of each text that are predicted [N]."""
        counts: IntArray = np.maximum(self.lengths - self.prompts, 0)
        return counts

    def of(self, text: int) -> Ids:
        """The ids of one text."""
        return self.ids[self.offsets[text] : self.offsets[text + 1]]

    def take(self, rows: IntArray) -> "TokenTexts":
        """Some of the texts, in the order of `rows` [B]."""
        positions = positions_of(rows, self.offsets)
        return TokenTexts(
            ids=self.ids[positions],
            offsets=np.concatenate([[0], np.cumsum(self.lengths[rows])]),
            prompts=self.prompts[rows],
            truncated=self.truncated[rows],
            bytes=self.bytes[rows],
            read=None if self.read is None else self.read[positions],
        )


@dataclass(frozen=True, slots=True)
class Ends:
    """The special tokens that a tokenizer puts before and after a text."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def special_ends(tokenizer: Any) -> Ends:
    """Special tokens of a tokenizer. One that puts none after a text gets its end-of-sequence
    token."""
    inner = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    starts = range(len(whole) - len(inner) + 1)
    start = next((at for at in starts if whole[at : at + len(inner)] == inner), 0)
    after = whole[start + len(inner) :]
    if not after and tokenizer.eos_token_id is not None:
        after = [tokenizer.eos_token_id]
    return Ends(tuple(whole[:start]), tuple(after))


def end_ids(tokenizer: Any, recipe: Recipe, generation_config: Any) -> frozenset[int]:
    """The tokens that end a generated response: those of a model's `generation_config`, those that
    end texts, and the special token that a chat template writes after a response."""
    configured = generation_config.eos_token_id
    known = {*(configured if isinstance(configured, list) else [configured])}
    known |= {tokenizer.eos_token_id, *special_ends(tokenizer).after}
    if recipe.text_format == "chat":
        behind = tokenizer(recipe.after_response(tokenizer), add_special_tokens=False)["input_ids"]
        known |= {*behind[:1]} & {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return frozenset(known - {None})


@dataclass(frozen=True, slots=True)
class _Text:
    """One text: its ids, how many of them are the prompt, bytes and characters of its response."""

    ids: Ids
    prompt: int
    bytes: int
    read: npt.NDArray[np.uint32] | None


def encode_texts(
    tokenizer: Any,
    recipe: Recipe,
    examples: Sequence[Sequence[str]],
    max_length: int,
    with_characters: bool = False,
) -> TokenTexts:
    """The tokens of examples, at most `max_length` of each; longer ones are truncated at the end.

    `with_characters`: also count the characters before each token; raises JobError for a tokenizer
    without offsets."""
    ends, blocks = special_ends(tokenizer), list[TokenTexts]()
    for start in range(0, max(len(examples), 1), _ENCODE_ROWS):
        written = [recipe.write(tokenizer, each) for each in examples[start : start + _ENCODE_ROWS]]
        texts = list(_tokenized(tokenizer, recipe, ends, written, max_length, with_characters))
        blocks.append(_together(tokenizer, texts, max_length, with_characters))
    return _end_to_end(blocks)


def encode_prompts(
    tokenizer: Any, recipe: Recipe, examples: Sequence[Sequence[str]], max_length: int
) -> TokenTexts:
    """The tokens of prompts alone, with nothing to predict: all segments are the prompt, or the
    turns of a chat that ends before an answer. One longer than `max_length` is truncated."""
    chats = recipe.text_format == "chat"
    given = [
        (answered(segments[0], "x"),)
        if chats and len(segments) == 1 and turns_of(segments[0])
        else (*segments, "x" if chats else "")
        for segments in examples
    ]
    texts = encode_texts(tokenizer, recipe, given, max_length)
    lengths = np.minimum(texts.prompts, texts.lengths)
    positions = np.repeat(texts.offsets[:-1], lengths) + arange_each(lengths)
    return TokenTexts(
        ids=texts.ids[positions],
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        prompts=texts.prompts,
        truncated=texts.prompts > max_length,
        bytes=np.zeros_like(texts.bytes),
    )


def _together(
    tokenizer: Any, texts: Sequence[_Text], max_length: int, with_characters: bool
) -> TokenTexts:
    lengths = np.fromiter((len(text.ids) for text in texts), dtype=np.int64, count=len(texts))
    read = [text.read[:max_length] for text in texts if text.read is not None]
    return TokenTexts(
        ids=np.concatenate([np.empty(0, np.int32), *(text.ids[:max_length] for text in texts)]),
        offsets=np.concatenate([[0], np.cumsum(np.minimum(lengths, max_length))]),
        prompts=np.array([max(text.prompt, 1) for text in texts], dtype=np.int64),
        truncated=lengths > max_length,
        bytes=np.array([_kept_bytes(tokenizer, each, max_length) for each in texts], dtype="i8"),
        read=np.concatenate([np.empty(0, np.uint32), *read]) if with_characters else None,
    )


def _end_to_end(blocks: Sequence[TokenTexts]) -> TokenTexts:
    """All texts of some blocks as one."""
    lengths = np.concatenate([block.lengths for block in blocks])
    read = [block.read for block in blocks if block.read is not None]
    return TokenTexts(
        ids=np.concatenate([block.ids for block in blocks]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        prompts=np.concatenate([block.prompts for block in blocks]),
        truncated=np.concatenate([block.truncated for block in blocks]),
        bytes=np.concatenate([block.bytes for block in blocks]),
        read=np.concatenate(read) if read else None,
    )


def _kept_bytes(tokenizer: Any, text: _Text, max_length: int) -> int:
    """Bytes of the predicted part, after truncation; without the first token if nothing comes
    before it."""
    if len(text.ids) > max_length:
        kept = text.ids[max(text.prompt, 1) : max_length]
        return len(tokenizer.decode(kept, skip_special_tokens=True).encode())
    if text.prompt or not len(text.ids):
        return text.bytes
    first = tokenizer.decode(text.ids[:1], skip_special_tokens=True)
    return max(text.bytes - len(first.encode()), 0)


def _tokenized(
    tokenizer: Any,
    recipe: Recipe,
    ends: Ends,
    written: Sequence[Written],
    max_length: int,
    with_characters: bool,
) -> Iterator[_Text]:
    """Prompts and responses, special tokens among them; of each more tokens than `max_length`, or
    all."""
    chat = recipe.text_format == "chat"  # the template has written the special tokens
    how = {"split_special_tokens": not chat}
    given = [
        shortened(tokenizer, texts, max_length, **how)
        for texts in ([each.response for each in written], [each.prompt for each in written])
    ]
    responses = _Encoded.of(tokenizer, given[0], with_characters, **how)
    prompts = _Encoded.of(tokenizer, given[1], False, **how)
    before = () if chat else ends.before
    after = ends.after if recipe.end_token and not chat else ()
    for index, one in enumerate(written):
        prompt = [*before, *prompts.ids[index]]
        read = None
        if with_characters:
            inside = np.full(len(prompt), INSIDE, dtype=np.uint32)
            counted = _of_content(responses.read(index, len(after)), one)
            read = np.concatenate([inside, counted])
        ids = np.array([*prompt, *responses.ids[index], *after], dtype=np.int32)
        yield _Text(ids, len(prompt), len(one.content.encode()), read)


def _of_content(read: npt.NDArray[np.uint32], written: Written) -> npt.NDArray[np.uint32]:
    """Characters counted from the start of the example's own response, and at most its length."""
    counted = read.astype(np.int64) - written.start
    own = (read != INSIDE) & (counted >= 0) & (counted <= len(written.content))
    return np.where(own, counted, INSIDE).astype(np.uint32)


@dataclass(frozen=True, slots=True)
class _Encoded:
    """Strings as ids, and the offsets of each token if requested."""

    ids: list[list[int]]
    offsets: list[list[tuple[int, int]]] | None

    @classmethod
    def of(
        cls, tokenizer: Any, texts: list[str], with_offsets: bool, split_special_tokens: bool
    ) -> "_Encoded":
        """`split_special_tokens`: whether a special token that is written out in a string is none:
        in a text of the corpus it is a text like any other, and ends nothing."""
        more: dict[str, Any] = {"return_offsets_mapping": True} if with_offsets else {}
        more["split_special_tokens"] = split_special_tokens
        if with_offsets and not tokenizer.is_fast:
            raise JobError(
                "characters: the tokenizer has no character offsets; use a fast tokenizer"
            )
        if not texts:  # of which tokenizers make an error
            return cls([], [] if with_offsets else None)
        found = tokenizer(texts, add_special_tokens=False, verbose=False, **more)
        return cls(found["input_ids"], found.get("offset_mapping"))

    def read(self, index: int, more: int) -> npt.NDArray[np.uint32]:
        """Characters that have been read before each token of a string, and before `more` tokens
        after it. A piece of a character ends where the next piece, or all of it, begins later."""
        assert self.offsets is not None
        starts, ends = np.array(self.offsets[index], dtype=np.int64).reshape(-1, 2).T
        whole = ends[:-1] <= starts[1:]
        inner = np.where(whole, ends[:-1], INSIDE)
        after = [ends[-1] if len(ends) else 0, *[INSIDE] * (more - 1)][:more]
        return np.array([*([0] if len(ends) else []), *inner, *after], dtype=np.uint32)


def by_text(rows: npt.NDArray[Any], counts: IntArray) -> list[npt.NDArray[Any]]:
    """Values of all texts, concatenated, split into one array per text."""
    return np.split(rows, np.cumsum(counts)[:-1])


def read_before_predicted(texts: TokenTexts) -> list[npt.NDArray[np.uint32]]:
    """`read` of the predicted tokens of each text; it must have been requested."""
    assert texts.read is not None
    inside = np.arange(len(texts.ids)) - np.repeat(texts.offsets[:-1], texts.lengths)
    predicted = inside >= np.repeat(texts.prompts, texts.lengths)
    return by_text(texts.read[predicted], texts.predicted)


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest of a tokenizer: 128 bits in hexadecimal, the same after loading and saving. Padding
    and truncation, which are set per call, do not count."""
    return digest({"model": _model(tokenizer), "special": sorted(tokenizer.all_special_tokens)})


def _model(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer without a fast form: its tokens and its kind
        return {"kind": type(tokenizer).__name__, "words": tokenizer.get_vocab()}
    document = json.loads(backend.to_str())
    return {part: value for part, value in document.items() if part not in _BY_CALL}


_BY_CALL = frozenset({"padding", "truncation", "version"})


def vocab_digest(tokenizer: Any, count: int | None = None) -> str:
    """128 bits, in hexadecimal, of which word each id stands for: of all ids, or of the first
    `count`. Roles, added words behind those, and how texts are split do not count."""
    vocabulary = tokenizer.get_vocab()
    return digest({word: at for word, at in vocabulary.items() if count is None or at < count})


def vocab_size_of(tokenizer: Any) -> int:
    """Vocabulary size of a tokenizer: its highest id plus one."""
    return 1 + max(tokenizer.get_vocab().values(), default=-1)
