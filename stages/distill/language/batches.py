"""Batches of a language model: rows of tokens, those to predict, and what is known of them.

In: token texts, how they share rows, and maybe a teacher's answers to their predictions. Out: for
chosen rows, padded ids [B, T], and for each of the P predicted tokens its place and its token.
Nothing is done token by token in Python.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...language.tokens import TokenTexts
from ...store.format.rows import arange_each, places_of
from .cached_answers import Tensors
from .packs import Packs, one_each, packed
from .settings import Packing
from .teachers import Answering

Ints = npt.NDArray[np.int64]
EVEN_WIDTH = 8
"""Rows are as wide as the longest of a batch, rounded up to what matrix units like."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Predicted tokens that the corpus has, those that each teacher answered, and in how many
    batches they are."""

    labelled: int
    answered: Mapping[str, int] = field(default_factory=dict)
    batches: int = 1

    def __add__(self, other: "Counts") -> "Counts":
        names = self.answered.keys() | other.answered.keys()
        return Counts(
            self.labelled + other.labelled,
            {name: self.answered.get(name, 0) + other.answered.get(name, 0) for name in names},
            self.batches + other.batches,
        )


@dataclass(frozen=True)
class PackedTexts:
    """The texts of a data set in rows. What `tokens.Tokens` is to other students."""

    texts: TokenTexts
    packs: Packs
    packing: Packing
    pad_id: int
    teachers: Mapping[str, Answering] = field(default_factory=dict)
    prompted: bool = False
    """Whether texts begin with a prompt; then they are pooled at its end, where a student knows
    what is asked and not yet the answer."""

    def __len__(self) -> int:
        return len(self.packs)

    @cached_property
    def offsets(self) -> Ints:
        """Where each row's tokens begin, all rows laid end to end."""
        lengths = np.concatenate([[0], np.cumsum(self.texts.lengths[self.packs.texts])])
        return lengths[self.packs.offsets]

    @property
    def truncated(self) -> int:
        """Texts that were cut."""
        return int(self.texts.truncated.sum())

    def counts(self, rows: Ints) -> Counts:
        """Of some rows."""
        texts = self._texts_of(rows)
        predicted = self.texts.predicted[texts]
        answered = {name: each.count(texts, predicted) for name, each in self.teachers.items()}
        return Counts(int(predicted.sum()), answered)

    def bytes_of(self, rows: Ints) -> int:
        """Bytes of text that the predicted tokens of some rows stand for."""
        return int(self.texts.bytes[self._texts_of(rows)].sum())

    def pad(self, rows: Ints) -> dict[str, Any]:
        """A batch of rows [B, T]: `input_ids`; `attention_mask`, or `position_ids` of texts that
        share rows and do not see each other; `predicted_at` [P], the place, counted over B x T, of
        the token before each predicted one, and `targets` [P]; `answers` by the name of the source,
        each with `answered` [P] where not all have one; `pooled_at` [B], the last token that is
        given."""
        texts = self._texts_of(rows)
        lengths, prompts = self.texts.lengths[texts], self.texts.prompts[texts]
        rows_of_texts = np.repeat(np.arange(len(rows)), np.diff(self.packs.offsets)[rows])
        starts = _starts(lengths, rows_of_texts)
        width = _width(int((starts + lengths).max(initial=1)))
        inside = arange_each(lengths)
        at = np.repeat(rows_of_texts * width + starts, lengths) + inside
        ids = np.full(len(rows) * width, self.pad_id, dtype=np.int64)
        ids_of_texts = self.texts.ids[places_of(texts, self.texts.offsets)].astype(np.int64)
        ids[at] = ids_of_texts
        predicted = inside >= np.repeat(prompts, lengths)
        batch = {
            "input_ids": ids.reshape(-1, width),
            **self._seen(len(rows), width, at, inside),
            "predicted_at": at[predicted] - 1,
            "targets": ids_of_texts[predicted],
        }
        if self.packing == "none":
            given = prompts if self.prompted else lengths
            batch["pooled_at"] = np.arange(len(rows)) * width + np.minimum(given, lengths) - 1
        return {name: torch.from_numpy(each) for name, each in batch.items()} | self._answers(texts)

    def _texts_of(self, rows: Ints) -> Ints:
        return self.packs.texts[places_of(rows, self.packs.offsets)]

    def _seen(self, rows: int, width: int, at: Ints, inside: Ints) -> dict[str, npt.NDArray[Any]]:
        """What tells a model which tokens see which."""
        if self.packing != "apart":
            mask = np.zeros(rows * width, dtype=np.int64)
            mask[at] = 1
            return {"attention_mask": mask.reshape(-1, width)}
        # Positions that do not go on from the one before begin a text; padding is texts, too.
        positions = np.zeros(rows * width, dtype=np.int64)
        positions[at] = inside
        return {"position_ids": positions.reshape(-1, width)}

    def _answers(self, texts: Ints) -> dict[str, Any]:
        predicted = self.texts.predicted[texts]
        said = {name: _said(each, texts, predicted) for name, each in self.teachers.items()}
        return {"answers": said} if said else {}


def pack(
    texts: TokenTexts,
    packing: Packing,
    most: int,
    pad_id: int,
    teachers: Mapping[str, Answering] | None = None,
    prompted: bool = False,
) -> PackedTexts:
    """Texts in rows of at most `most` tokens."""
    packs = one_each(len(texts)) if packing == "none" else packed(texts.lengths, most)
    return PackedTexts(texts, packs, packing, pad_id, teachers or {}, prompted)


def _said(teacher: Answering, texts: Ints, predicted: Ints) -> Tensors:
    found, answered = teacher.read(texts, predicted)
    return found if answered is None else found | {"answered": answered}


def _width(longest: int) -> int:
    return -(-longest // EVEN_WIDTH) * EVEN_WIDTH


def _starts(lengths: Ints, rows: Ints) -> Ints:
    """Where each text begins in its row; `rows` ascend."""
    before = np.cumsum(lengths) - lengths
    first = np.searchsorted(rows, rows)
    return before - before[first] if len(rows) else before
