"""Texts of masked language models: their tokens, and which of them are hidden from whoever reads.

A mask is a function of the text's key, of a seed, and of the mask's number: teacher and student
read the same masked text although they never meet, whatever the batch, the order or the run; and so
does a student without a teacher. In it, `mask_share` of a text's tokens are chosen, at least one;
special tokens never are. Of the chosen, most become the mask token, some another token, and the
rest stay as they are: Devlin and others, BERT, arXiv 1810.04805, section 3.1.

Random numbers are SplitMix64's (Steele, Lea, Flood, 2014), one for each token from its position in
the text: nothing is done text by text. Shapes: N texts, S tokens of all, P chosen ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...cache_schemas.errors import InputError
from ...cache_schemas.keys import IntArray, KeyArray, key_words
from ..ragged import arange_each, positions_of
from ..tokenizing.long_texts import shortened
from .prompt_templates import JOINT
from .tokens import Ids, special_ends

_ENCODE_ROWS = 4096

_Unsigned = npt.NDArray[np.uint64]


class MaskSettings(BaseModel):
    """How texts are masked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mask_share: float = Field(
        default=0.15, gt=0, le=1, description="share of a text's tokens to predict, at least one"
    )
    mask_token_share: float = Field(
        default=0.8, ge=0, le=1, description="share of these that are read as the mask token"
    )
    random_token_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="share of these that are read as a random token; the rest are read as they are",
    )
    mask_seed: int = Field(default=0, ge=0, lt=2**63, description="seed of the masks")
    masks_per_text: int = Field(
        default=1,
        ge=1,
        le=64,
        description="different masks of each text, each of which a student sees once an epoch",
    )

    @model_validator(mode="after")
    def _shares_are_of_one_whole(self) -> Self:
        whole = self.mask_token_share + self.random_token_share
        if whole > 1 + 1e-9:
            raise ValueError(
                f"mask_token_share={self.mask_token_share:g} and random_token_share="
                f"{self.random_token_share:g}: are more than 1 together; lower one"
            )
        return self


@dataclass(frozen=True)
class WholeTexts:
    """Token ids of N texts, special ones around each, laid end to end; text i is
    `ids[offsets[i]:offsets[i + 1]]`. truncated [N]: those that were longer than is allowed."""

    ids: Ids
    offsets: IntArray
    truncated: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.truncated)

    @property
    def lengths(self) -> IntArray:
        """Tokens of each text [N]."""
        lengths: IntArray = np.diff(self.offsets)
        return lengths

    def of(self, text: int) -> Ids:
        """The ids of one text."""
        return self.ids[self.offsets[text] : self.offsets[text + 1]]

    def repeated(self, times: int) -> tuple["WholeTexts", IntArray]:
        """Each text so many times in a row, and the number of each repetition, from 0."""
        count = len(self)
        rows = np.repeat(np.arange(count), times)
        offsets = np.concatenate([[0], np.cumsum(self.lengths[rows])]).astype(np.int64)
        ids = self.ids[positions_of(rows, self.offsets)]
        return WholeTexts(ids, offsets, self.truncated[rows]), np.tile(np.arange(times), count)


@dataclass(frozen=True)
class MaskedTexts(WholeTexts):
    """Texts under a mask each: `read` [S] are the ids that a model reads, `chosen` [S] says which
    tokens it is to predict."""

    read: Ids
    chosen: npt.NDArray[np.bool_]

    @cached_property
    def predicted(self) -> IntArray:
        """Tokens of each text that are predicted [N]."""
        before = np.concatenate([[0], np.cumsum(self.chosen)])
        counts: IntArray = before[self.offsets[1:]] - before[self.offsets[:-1]]
        return counts

    @cached_property
    def positions(self) -> IntArray:
        """Where in its own text each predicted token is [P]."""
        positions: IntArray = arange_each(self.lengths)[self.chosen]
        return positions

    def take(self, rows: IntArray) -> "MaskedTexts":
        """Some of the texts, in the order of `rows` [B]."""
        at = positions_of(rows, self.offsets)
        offsets = np.concatenate([[0], np.cumsum(self.lengths[rows])]).astype(np.int64)
        return MaskedTexts(
            self.ids[at], offsets, self.truncated[rows], self.read[at], self.chosen[at]
        )


def encode_whole(tokenizer: Any, examples: Sequence[Sequence[str]], max_length: int) -> WholeTexts:
    """The tokens of examples, their segments as one text, at most `max_length` of each with the
    tokenizer's special tokens; longer ones are truncated at the end. A special token that is
    written out in a text is a text like any other."""
    ends = special_ends(tokenizer)
    room = max_length - len(ends.before) - len(ends.after)
    ids, truncated = list[Ids](), list[bool]()
    for start in range(0, len(examples), _ENCODE_ROWS):
        block = examples[start : start + _ENCODE_ROWS]
        texts = [JOINT.join(part for part in each if part.strip()) for each in block]
        how = {"split_special_tokens": True}
        texts = shortened(tokenizer, texts, max_length, **how)
        found = tokenizer(texts, add_special_tokens=False, verbose=False, **how)["input_ids"]
        truncated += [len(own) > room for own in found]
        ids += [np.array([*ends.before, *own[:room], *ends.after], np.int32) for own in found]
    lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    return WholeTexts(
        ids=np.concatenate([np.empty(0, np.int32), *ids]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        truncated=np.array(truncated, dtype=bool),
    )


@dataclass(frozen=True, slots=True)
class Masker:
    """Masks of a tokenizer's texts."""

    settings: MaskSettings
    mask_id: int
    special: Ids
    """Tokens that are never chosen, nor put in the place of others."""
    ordinary: Ids
    """All other tokens."""

    @classmethod
    def of(
        cls, tokenizer: Any, settings: MaskSettings, error: type[InputError], what: str
    ) -> "Masker":
        """The masks of a tokenizer. Raises `error` about `what` where it has no mask token."""
        if tokenizer.mask_token_id is None:
            raise error(
                f"{what}: its tokenizer has no mask token; use a masked language model, such as a "
                "BERT or RoBERTa, with its own tokenizer"
            )
        added = tokenizer.added_tokens_decoder.items()  # ModernBERT's have no role: <|padding|>
        written = [number for number, token in added if token.special]
        special = np.unique(np.array([*tokenizer.all_special_ids, *written], np.int32))
        known = np.array(sorted(tokenizer.get_vocab().values()), np.int32)
        return cls(settings, int(tokenizer.mask_token_id), special, np.setdiff1d(known, special))

    def mask(self, texts: WholeTexts, keys: KeyArray, numbers: IntArray) -> MaskedTexts:
        """Texts with keys [N, 16], each under the mask of its number [N]."""
        owners = np.repeat(np.arange(len(texts)), texts.lengths)
        states = _states(keys, self.settings.mask_seed, numbers)[owners]
        positions = arange_each(texts.lengths)
        chosen = self._chosen(texts, owners, _uniforms(states, positions, stream=0))
        at = np.flatnonzero(chosen)
        read = texts.ids.copy()
        read[at] = self._read(texts.ids[at], states[at], positions[at])
        return MaskedTexts(texts.ids, texts.offsets, texts.truncated, read, chosen)

    def _chosen(
        self, texts: WholeTexts, owners: IntArray, uniforms_S: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.bool_]:
        """In each text the tokens with the smallest numbers, so many as are its share."""
        maskable = np.flatnonzero(~np.isin(texts.ids, self.special))
        counts = np.bincount(owners[maskable], minlength=len(texts))
        wanted = np.floor(self.settings.mask_share * counts + 0.5).astype(np.int64)
        wanted = np.minimum(np.maximum(wanted, 1), counts)
        order = maskable[np.lexsort((uniforms_S[maskable], owners[maskable]))]
        chosen = np.zeros(len(texts.ids), dtype=bool)
        chosen[order[arange_each(counts) < np.repeat(wanted, counts)]] = True
        return chosen

    def _read(self, ids_P: Ids, states_P: _Unsigned, positions_P: IntArray) -> Ids:
        """What stands in the place of chosen tokens."""
        settings = self.settings
        drawn_P = _uniforms(states_P, positions_P, stream=1)
        which_P = (_uniforms(states_P, positions_P, stream=2) * len(self.ordinary)).astype(np.int64)
        random = drawn_P < settings.mask_token_share + settings.random_token_share
        read_P = np.where(random, self.ordinary[which_P], ids_P)
        return np.where(drawn_P < settings.mask_token_share, self.mask_id, read_P).astype(np.int32)


_GAMMA = 0x9E3779B97F4A7C15
_STREAMS = 3


def _states(keys: KeyArray, seed: int, numbers: IntArray) -> _Unsigned:
    """A random number for each text [N], of its key, the seed, and the number of its mask."""
    first, second = key_words(keys)
    seeds = np.full(len(first), seed, np.uint64)
    return _mixed(first ^ _mixed(second ^ _mixed(seeds ^ _mixed(numbers.astype(np.uint64)))))


def _uniforms(states: _Unsigned, positions: IntArray, stream: int) -> npt.NDArray[np.float64]:
    """Numbers from 0 to 1, without 1, for tokens at positions of texts with such states."""
    steps = positions.astype(np.uint64) * np.uint64(_STREAMS) + np.uint64(stream + 1)
    bits = _mixed(states + steps * np.uint64(_GAMMA)) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def _mixed(values: _Unsigned) -> _Unsigned:
    """SplitMix64's output of each state; products are modulo 2 ** 64."""
    values = values + np.uint64(_GAMMA)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
