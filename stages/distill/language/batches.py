"""Batches of a language model: rows of tokens, the predicted ones, and the teachers' predictions.

In: token texts, their packing or their masks, and optionally teachers' predictions. Out: for chosen
rows, padded ids [B, T], and for each of the P predicted tokens its position and its id. Nothing is
done token by token in Python.
"""

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...language.masking import MaskedTexts
from ...language.tokens import TokenTexts
from ...ragged import arange_each, positions_of
from ...tokenizing.padding import pad
from ..batches import Batch, DistillDataset
from ..order import Indices
from ..settings import Packing
from .teachers import Answering, Tensors

Ints = npt.NDArray[np.int64]
EVEN_WIDTH = 8
"""Rows are as wide as the longest of a batch, rounded up to what matrix units like."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Number of predicted tokens with a label, with each teacher's prediction, and of batches;
    where texts have weights, each token counts as much as that of its text."""

    labelled: float
    answered: Mapping[str, float] = field(default_factory=dict)
    batches: int = 1
    rows: float = 0
    """Number of rows with two responses to a prompt, or the sum of their weights."""

    def __add__(self, other: "Counts") -> "Counts":
        names = self.answered.keys() | other.answered.keys()
        return Counts(
            self.labelled + other.labelled,
            {name: self.answered.get(name, 0) + other.answered.get(name, 0) for name in names},
            self.batches + other.batches,
            self.rows + other.rows,
        )


class PredictedRows(ABC):
    """Rows of tokens of which some are predicted. What `tokens.Tokens` is to other students."""

    teachers: Mapping[str, Answering]

    @property
    @abstractmethod
    def offsets(self) -> Ints:
        """Start of each row's tokens, all rows concatenated."""

    @property
    @abstractmethod
    def truncated(self) -> int:
        """Number of truncated texts."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def counts(self, rows: Ints) -> Counts:
        """Counts of some rows."""

    @abstractmethod
    def bytes_of(self, rows: Ints) -> int:
        """Bytes of text of the predicted tokens of some rows; 0 where they are not counted."""

    @abstractmethod
    def pad(self, rows: Ints) -> dict[str, Any]:
        """A batch of rows [B, T]: `input_ids` and `attention_mask`; `predicted_at` [P], where the
        prediction of each predicted token is made, counted over B x T, and `targets` [P]; `answers`
        by the name of the source, each with `answered` [P] if some are missing."""


@dataclass(frozen=True)
class PackedTexts(PredictedRows):
    """The texts of a data set in rows, which are read from the left."""

    texts: TokenTexts
    packs: "Packs"
    packing: Packing
    pad_id: int
    teachers: Mapping[str, Answering] = field(default_factory=dict)
    prompted: bool = False
    """Whether texts begin with a prompt; then they are pooled at its end, before the response."""
    weights: npt.NDArray[np.float64] | None = None
    """Weights of the texts in the losses of their tokens [N]; None: 1."""

    def __len__(self) -> int:
        return len(self.packs)

    @cached_property
    def offsets(self) -> Ints:
        """Start of each row's tokens, all rows concatenated."""
        lengths = np.concatenate([[0], np.cumsum(self.texts.lengths[self.packs.texts])])
        return lengths[self.packs.offsets]

    @property
    def truncated(self) -> int:
        """Number of truncated texts."""
        return int(self.texts.truncated.sum())

    def counts(self, rows: Ints) -> Counts:
        """Counts of some rows."""
        texts = self._texts_of(rows)
        predicted = self.texts.predicted[texts]
        answered = {name: each.counts(texts, predicted) for name, each in self.teachers.items()}
        if self.weights is None:
            known = {name: int(each.sum()) for name, each in answered.items()}
            return Counts(int(predicted.sum()), known)
        weights = self.weights[texts]
        weighted = {name: float(weights @ each) for name, each in answered.items()}
        return Counts(float(weights @ predicted), weighted)

    def bytes_of(self, rows: Ints) -> int:
        """Bytes of text of the predicted tokens of some rows."""
        return int(self.texts.bytes[self._texts_of(rows)].sum())

    def pad(self, rows: Ints) -> dict[str, Any]:
        """See PredictedRows; with `position_ids` in place of `attention_mask` for packed texts that
        are masked from each other. A prediction is made at the token before; `pooled_at` [B] is the
        last given token."""
        texts = self._texts_of(rows)
        lengths, prompts = self.texts.lengths[texts], self.texts.prompts[texts]
        lengths_of_rows = self.offsets[rows + 1] - self.offsets[rows]
        width = _width(int(lengths_of_rows.max(initial=1)))
        ids = self.texts.ids[positions_of(texts, self.texts.offsets)].astype(np.int64)
        inside = arange_each(lengths)
        columns = {"input_ids": ids}
        if self.packing == "document_mask":
            # A position that does not follow the one before starts a text; padding is texts, too.
            columns["position_ids"] = inside
        fills = {"input_ids": self.pad_id}
        batch: dict[str, Any] = {**pad(columns, lengths_of_rows, fills, width=width)}
        at = np.flatnonzero(batch["attention_mask"].numpy() == 1)
        if self.packing == "document_mask":
            del batch["attention_mask"]
        predicted = inside >= np.repeat(prompts, lengths)
        batch["predicted_at"] = torch.from_numpy(at[predicted] - 1)
        batch["targets"] = torch.from_numpy(ids[predicted])
        if self.packing == "none":
            given = prompts if self.prompted else lengths
            last = np.arange(len(rows)) * width + np.minimum(given, lengths) - 1
            batch["pooled_at"] = torch.from_numpy(last)
        return batch | self._weights(texts) | self._answers(texts)

    def _texts_of(self, rows: Ints) -> Ints:
        return self.packs.texts[positions_of(rows, self.packs.offsets)]

    def _weights(self, texts: Ints) -> dict[str, torch.Tensor]:
        """`weights` [P] of the predicted tokens of some texts, if these have any."""
        if self.weights is None:
            return {}
        weights = np.repeat(self.weights[texts], self.texts.predicted[texts])
        return {"weights": torch.from_numpy(weights.astype(np.float32))}

    def _answers(self, texts: Ints) -> dict[str, Any]:
        return all_answers(self.teachers, texts, self.texts.predicted[texts])


def pack(
    texts: TokenTexts,
    packing: Packing,
    most: int,
    pad_id: int,
    teachers: Mapping[str, Answering] | None = None,
    prompted: bool = False,
    weights: npt.NDArray[np.float64] | None = None,
) -> PackedTexts:
    """Texts in rows of at most `most` tokens."""
    packs = one_each(len(texts)) if packing == "none" else packed(texts.lengths, most)
    return PackedTexts(texts, packs, packing, pad_id, teachers or {}, prompted, weights)


@dataclass(frozen=True)
class MaskedRows(PredictedRows):
    """Masked texts, a row each, of at most `most` tokens."""

    texts: MaskedTexts
    most: int
    pad_id: int
    teachers: Mapping[str, Answering] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def offsets(self) -> Ints:
        """Start of each row's tokens, all rows concatenated."""
        return self.texts.offsets

    @property
    def truncated(self) -> int:
        """Number of truncated texts."""
        return int(self.texts.truncated.sum())

    def counts(self, rows: Ints) -> Counts:
        """Counts of some rows."""
        predicted = self.texts.predicted[rows]
        answered = {
            name: int(each.counts(rows, predicted).sum()) for name, each in self.teachers.items()
        }
        return Counts(int(predicted.sum()), answered)

    def bytes_of(self, rows: Ints) -> int:
        """See PredictedRows."""
        return 0

    def pad(self, rows: Ints) -> dict[str, Any]:
        """See PredictedRows. A prediction is made at the token itself; `pooled_at` [B] is the first
        token."""
        texts = self.texts.take(rows)
        longest = int(texts.lengths.max(initial=1))
        width = max(longest, min(_width(longest), self.most))
        fills = {"input_ids": self.pad_id}
        batch: dict[str, Any] = {
            **pad({"input_ids": texts.read}, texts.lengths, fills, width=width)
        }
        owners = np.repeat(np.arange(len(rows)), texts.predicted)
        batch["predicted_at"] = torch.from_numpy(owners * width + texts.positions)
        batch["targets"] = torch.from_numpy(texts.ids[texts.chosen].astype(np.int64))
        batch["pooled_at"] = torch.arange(len(rows)) * width
        return batch | all_answers(self.teachers, rows, texts.predicted)


def all_answers(teachers: Mapping[str, Answering], texts: Ints, predicted: Ints) -> dict[str, Any]:
    """`answers` of a batch of texts, with so many predictions each; nothing without teachers."""
    answers = {name: _answers_of(each, texts, predicted) for name, each in teachers.items()}
    return {"answers": answers} if answers else {}


def _answers_of(teacher: Answering, texts: Ints, predicted: Ints) -> Tensors:
    found, answered = teacher.read(texts, predicted)
    return found if answered is None else found | {"answered": answered}


def _width(longest: int) -> int:
    return -(-longest // EVEN_WIDTH) * EVEN_WIDTH


# --- Whole texts in rows of limited length, as few rows as can be.
#
# Best-fit decreasing: the longest text first, each into the fullest row that still takes it. A row
# shows its texts in the order of the corpus. Measured on lines of WikiText-2 with rows of 512:
# 99.9 % of all positions are used.


@dataclass(frozen=True, slots=True)
class Packs:
    """Rows of texts: row i has `texts[offsets[i]:offsets[i + 1]]`."""

    texts: Ints
    offsets: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1


def one_each(count: int) -> Packs:
    """A row for each text."""
    return Packs(np.arange(count, dtype=np.int64), np.arange(count + 1, dtype=np.int64))


def packed(lengths: Ints, most: int) -> Packs:
    """Texts of some lengths, each at most `most`, in rows of at most `most` tokens."""
    assert lengths.max(initial=0) <= most, "a text fits into a row"
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), ascending
    for text in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[text])
        index = bisect_left(room, (length, -1))
        left, row = room.pop(index) if index < len(room) else (most, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(text)
        insort(room, (left - length, row))
    ordered = sorted(sorted(row) for row in rows)
    counts = np.array([len(row) for row in ordered], dtype=np.int64)
    texts = np.array([text for row in ordered for text in row], dtype=np.int64)
    return Packs(texts, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


# --- The next batch of a language model is made while the student is at the one before it.
#
# Decoding a teacher's predictions takes a microsecond or two a token: 10 to 20 ms for a batch of
# 8,192, which a student on a GPU need not wait for. NumPy frees the interpreter meanwhile.


@dataclass(frozen=True, slots=True)
class _Coming:
    """A batch in the making."""

    indices: Indices
    batch: Future[Batch]


class AheadDataset(DistillDataset):
    """Makes the batch that is expected next in a thread. Batches are what they are without it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batch")
        self._expected: Indices | None = None
        self._coming: _Coming | None = None

    @property
    def reads_cache(self) -> bool:
        """Whether something of a cache is in its batches; a teacher's tokens are."""
        rows = self.tokens
        return super().reads_cache or (isinstance(rows, PredictedRows) and bool(rows.teachers))

    def expect(self, indices: Indices | None) -> None:
        """Started when the batch before it is requested: skipped ones cost nothing."""
        self._expected = indices

    def _batch(self, whole: Indices) -> Batch:
        coming, self._coming = self._coming, None
        if coming is not None and np.array_equal(coming.indices, whole):
            batch = coming.batch.result()
        else:
            batch = super()._batch(whole)
        if self._expected is not None:
            made = self._pool.submit(super()._batch, self._expected)
            self._coming = _Coming(self._expected, made)
        return batch
