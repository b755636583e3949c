"""Tokens of the wire as the ids of a named tokenizer: exactly, or not at all.

A wrong id would teach a student another token without any sign of it, so nothing is guessed:

- A token that has an id on the wire has that id, if the tokenizer has it and spells by it the
  bytes that the server says. llama.cpp writes a character of several tokens as one entry, with
  all its bytes and the last token's id: that is seen here, and refused.
- A token that has bytes or a string alone has the id that spells just these. Of several ids, the
  one that encoding prefers: added tokens are looked for before all others, and single bytes stand
  only where no piece fits. Those that are left are refused.
- U+FFFD stands for what a server could not write, also as bytes (vLLM, Ollama). Refused.
- Tokenizers that lose the space before a token that is decoded alone need ids, as those of
  sentencepiece often do, and those that clean up spaces do before a full stop: `▁the` and `the`
  come as the same string.

At last the tokens of a response have to spell its text (`response_ids`): a server with another
tokenizer is seen by that, and a reply that lacks tokens.

Shapes: N tokens, T tokens of a response, K entries.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ....cache_schemas.errors import JobError
from ....cache_schemas.keys import IntArray
from .log_probs import Float32, Predictions, Tokens
from .wire import shown

_LOST = "\ufffd".encode()
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_LOOKED_AT = 64
"""Tokens with a space in front that are decoded to see whether it is lost."""


class UnmappedTokenError(Exception):
    """A token that is none of the tokenizer's, or may be several; the message names it."""


class Vocabulary:
    """The tokens of a fast tokenizer by what they spell: `spellings`, from ids to bytes."""

    def __init__(self, tokenizer: Any) -> None:
        """Raises JobError for a tokenizer whose tokens have no bytes of their own, such as a BERT
        model's."""
        self._name = str(getattr(tokenizer, "name_or_path", "")) or type(tokenizer).__name__
        self._added = tokenizer.added_tokens_decoder
        pieces = {token: piece for piece, token in tokenizer.get_vocab().items()}
        spell = _speller(tokenizer, self._name)
        self.spellings: dict[int, bytes] = {
            token: self._added[token].content.encode() if token in self._added else spell(piece)
            for token, piece in pieces.items()
        }
        self._single_bytes = {token for token, piece in pieces.items() if _BYTE.fullmatch(piece)}
        self._ids, self._ambiguous = self._by_spelling()
        self._loses_spaces = _loses_spaces(tokenizer, self.spellings)

    def ids(self, tokens: Tokens) -> IntArray:
        """The ids of tokens [N]. Raises UnmappedTokenError for the first that has none."""
        found = [
            self._by_bytes(tokens, at) if token is None else self._by_id(tokens, at, token)
            for at, token in enumerate(tokens.ids)
        ]
        return np.array(found, np.int64)

    def response_ids(self, predictions: Predictions, text: str) -> IntArray:
        """The ids [T] of a response's tokens. Raises UnmappedTokenError, also where the text is not
        a part of what they spell."""
        ids = self.ids(predictions.tokens)
        # Servers leave special tokens out of the text, if they are not told otherwise.
        whole = self._read(ids.tolist())
        plain = self._read([token for token in ids.tolist() if not self._special(token)])
        wanted = _without_spaces(text).rstrip("\ufffd")
        if wanted not in _without_spaces(plain) and wanted not in _without_spaces(whole):
            raise UnmappedTokenError(
                f"the tokens spell {shown(whole)}, and the text is {shown(text)}: the server left "
                f"some out, or has another tokenizer than {self._name}"
            )
        return ids

    def top_k(self, predictions: Predictions, k: int) -> tuple[IntArray, Float32]:
        """Ids and log-probabilities [T, K] of the `k` most probable alternatives, most probable
        first; absent ones have id 0 and -inf.

        Raises UnmappedTokenError as `ids`, and where two alternatives of a token are the same."""
        counts, log_probs = predictions.counts, predictions.alternative_log_probs
        ids = self.ids(predictions.alternatives)
        rows = np.repeat(np.arange(len(counts)), counts)
        self._refuse_twice(rows, ids)
        order = np.lexsort((-log_probs, rows))
        ranks = np.arange(len(ids)) - np.repeat(np.cumsum(counts) - counts, counts)
        kept = (ranks < k) & (log_probs[order] > -np.inf)
        top_ids = np.zeros((len(counts), k), np.int64)
        top_log_probs = np.full((len(counts), k), -np.inf, np.float32)
        places = rows[kept], ranks[kept]
        top_ids[places] = ids[order][kept]
        top_log_probs[places] = log_probs[order][kept]
        return top_ids, top_log_probs

    def check_top_k(self, ids_TK: IntArray, log_probs_TK: Float32) -> None:
        """Raises UnmappedTokenError for an id [T, K] that is no token, or twice at one place;
        those whose log-probability is -inf are absent."""
        there = log_probs_TK > -np.inf
        unknown = there & ~np.isin(ids_TK, np.fromiter(self.spellings, np.int64))
        if unknown.any():
            row, at = (int(each[0]) for each in np.nonzero(unknown))
            raise UnmappedTokenError(
                f"an alternative of predicted token {row} has id {ids_TK[row, at]}, and "
                f"{self._name} has no such token: name the tokenizer of the predictions"
            )
        rows = np.broadcast_to(np.arange(len(ids_TK))[:, None], ids_TK.shape)
        self._refuse_twice(rows[there], ids_TK[there])

    def may_be(self, tokens: Tokens, at: int, token: int) -> bool:
        """Whether a token of the wire may be that one, which was sent: it is, if it has an id; of
        one that is only spelled, what servers lose in writing it is no difference."""
        if tokens.ids[at] is not None:
            return tokens.ids[at] == token
        said = _said(tokens, at)
        if said is None or _LOST in said or token in self._added:
            return True
        return said.strip(b" ") == self.spellings[token].strip(b" ")

    def _by_id(self, tokens: Tokens, at: int, token: int) -> int:
        own, said = self.spellings.get(token), tokens.spellings[at]
        if own is None:
            raise UnmappedTokenError(
                f"token {at} has id {token}, and {self._name} has no such token: name the server's "
                "own tokenizer"
            )
        if said is None or said == own or _LOST in said or (not said and token in self._added):
            return token
        raise UnmappedTokenError(
            f"token {at}, id {token}, is {shown(said)} to the server and {shown(own)} to "
            f"{self._name}: several tokens in one entry, as llama.cpp writes a character of "
            "several tokens, or another tokenizer"
        )

    def _by_bytes(self, tokens: Tokens, at: int) -> int:
        said = _said(tokens, at)
        token = None if said is None else self._ids.get(said)
        if token is not None and not self._loses_spaces and said and _LOST not in said:
            return token
        raise UnmappedTokenError(f"token {at}, {shown(said)}, {self._trouble(said)}")

    def _trouble(self, said: bytes | None) -> str:
        """Why bytes name no token."""
        remedy = "tokens need ids (vLLM: return_tokens_as_token_ids; llama.cpp has them)"
        if not said:
            return f"is not named by the server: {remedy}"
        if _LOST in said:
            return f"is a part of a character that the server cannot write: {remedy}"
        if self._loses_spaces:
            return f"may have had a space in front, which {self._name} loses: {remedy}"
        if said in self._ambiguous:
            return f"may be each of {sorted(self._ambiguous[said])} of {self._name}: {remedy}"
        return f"is none of {self._name}: name the server's own tokenizer"

    def _by_spelling(self) -> tuple[dict[bytes, int], dict[bytes, list[int]]]:
        """The id of each spelling that means one, and the ids of those that may mean several."""
        found: dict[bytes, list[int]] = {}
        for token, spelled in self.spellings.items():
            found.setdefault(spelled, []).append(token)
        single, several = dict[bytes, int](), dict[bytes, list[int]]()
        for spelled, tokens in found.items():
            least = min(map(self._rank, tokens))
            preferred = [token for token in tokens if self._rank(token) == least]
            if len(preferred) == 1:
                single[spelled] = preferred[0]
            else:
                several[spelled] = preferred
        return single, several

    def _rank(self, token: int) -> int:
        """In which order encoding looks for tokens."""
        return 0 if token in self._added else 2 if token in self._single_bytes else 1

    def _read(self, ids: Sequence[int]) -> str:
        return b"".join(self.spellings[token] for token in ids).decode(errors="replace")

    def _special(self, token: int) -> bool:
        return token in self._added and bool(self._added[token].special)

    def _refuse_twice(self, rows: IntArray, ids: IntArray) -> None:
        size = max(self.spellings) + 1
        pairs = np.sort(rows * size + ids)
        twice = pairs[1:][pairs[1:] == pairs[:-1]]
        if len(twice):
            row, token = divmod(int(twice[0]), size)
            raise UnmappedTokenError(f"two alternatives of token {row} have the id {token}")


def _said(tokens: Tokens, at: int) -> bytes | None:
    """What a token spells to the server; None if it doesn't say."""
    spelled, string = tokens.spellings[at], tokens.strings[at]
    return string.encode() if spelled is None and string is not None else spelled


def _without_spaces(text: str) -> str:
    """A text without the spaces that servers and decoders take away at its ends, and before signs
    of punctuation."""
    return "".join(text.split())


def _speller(tokenizer: Any, name: str) -> Callable[[str], bytes]:
    """From a piece of the vocabulary to its bytes, by what the tokenizer's decoder does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise JobError(f"tokenizer={name}: is not a fast one; its tokens have no known bytes")
    steps = _decoder_steps(backend)
    kinds = {step["type"] for step in steps}
    if getattr(backend.model, "end_of_word_suffix", None):
        kinds.add("end_of_word_suffix")
    if kinds == {"ByteLevel"}:
        return _byte_level
    replaced = [_replaced(step) for step in steps if step["type"] in ("Replace", "Metaspace")]
    known = {"Replace", "Metaspace", "ByteFallback", "Fuse", "Strip"}
    if not kinds or kinds - known or None in replaced:
        raise JobError(
            f"tokenizer={name}: its tokens have no bytes of their own (decoder "
            f"{', '.join(sorted(kinds)) or 'none'}); a byte-level or a sentencepiece one is needed"
        )
    return _with_spaces([pair for pair in replaced if pair], "ByteFallback" in kinds)


def _decoder_steps(backend: Any) -> list[dict[str, Any]]:
    if backend.decoder is None:
        return []
    state = json.loads(backend.decoder.__getstate__())
    return list(state["decoders"]) if state["type"] == "Sequence" else [state]


def _replaced(step: dict[str, Any]) -> tuple[str, str] | None:
    """What a step of a decoder puts in which place; None for a pattern."""
    if step["type"] == "Metaspace":
        return step["replacement"], " "
    found = step["pattern"].get("String")
    return None if found is None else (found, step["content"])


def _with_spaces(replaced: Sequence[tuple[str, str]], falls_back: bool) -> Callable[[str], bytes]:
    def spell(piece: str) -> bytes:
        if falls_back and (found := _BYTE.fullmatch(piece)):
            return bytes.fromhex(found[1])
        for sign, content in replaced:
            piece = piece.replace(sign, content)
        return piece.encode()

    return spell


def _byte_level(piece: str) -> bytes:
    return b"".join(
        bytes([_BYTE_SIGNS[sign]]) if sign in _BYTE_SIGNS else sign.encode() for sign in piece
    )


def _byte_signs() -> dict[str, int]:
    """The byte of each sign of byte-level vocabularies (GPT-2): those that show are themselves,
    others are the next signs from 256 on."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {
        chr(256 + at): byte for at, byte in enumerate(hidden)
    }


_BYTE_SIGNS = _byte_signs()


def _loses_spaces(tokenizer: Any, spelled: dict[int, bytes]) -> bool:
    """Whether decoding a token alone may lose the space in front of it. The server's library may be
    older: what it cleans up is told by the setting."""
    if getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return True
    spaced = [token for token, its in spelled.items() if its[:1] == b" "][:_LOOKED_AT]
    return any(tokenizer.backend_tokenizer.decode([token])[:1] != " " for token in spaced)
