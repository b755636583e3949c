"""Rows to export: those of a corpus, in its order, each with its key and features.

for part in rows.slices():                                # memory: one batch
    feature.read(rows.cache_rows[part])                   # columns of B rows

A feature is exported as columns of numbers, decoded.

one row an example    `<name>`: a number, or a list of fixed size, flat in C order
along an axis         `<name>`: a list with one of these for each position of the example
top_k                 `top_k_ids`, `top_k_log_probs` of each position's tokens, most probable first,
                      and `top_k_log_tail` of all other tokens together, at temperature 1
samples               `samples_ids`, and `samples_log_probs` if they are kept
generated_ids         the ids, and `generated_text`, where the teacher's tokenizer is at hand; of
                      several responses, a list of texts

Log-probabilities are natural; where a row has fewer tokens, they are -inf and the id is 0.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...cache_schemas.codings import SamplesCoding, TopKCoding
from ...cache_schemas.errors import JobError
from ...cache_schemas.features import GENERATED_TEXT, FeatureSpec
from ...cache_schemas.keys import KEY_BYTES, KeyArray
from ...stages.corpus.corpus import Corpus
from ...stages.retrieval.quantization import Quantizer, cut
from ...stages.store.codec.samples import decode_samples
from ...stages.store.codec.top_k import decode_top_k
from ...stages.store.format.rows import Rows
from ...stages.store.reading.feature_array import FeatureArray, RaggedArray

BATCH_ROWS = 2048
BATCH_BYTES = 64 * 2**20
KEY_COLUMN = "key"

Numbers = npt.NDArray[Any]


class FeatureColumns(Protocol):
    """The columns of one feature."""

    @property
    def spec(self) -> FeatureSpec:
        """Spec of the cached feature."""

    @property
    def fields(self) -> list[pa.Field]:
        """Names and types of the columns."""

    def read(self, rows: Rows) -> list[pa.Array]:
        """The columns of rows [B] of the cache."""

    def row_bytes(self, rows: Rows) -> npt.NDArray[np.int64]:
        """About how many bytes each of rows [B] takes, as columns."""


@dataclass(frozen=True, slots=True)
class OneRow:
    """A feature of one row an example; of vectors, maybe their codes instead, cut to as many
    numbers as the quantizer takes."""

    feature: FeatureArray
    quantizer: Quantizer | None = None

    @property
    def spec(self) -> FeatureSpec:
        return self.feature.spec

    @property
    def fields(self) -> list[pa.Field]:
        return [_field(self.spec.name, self.none)]

    @property
    def none(self) -> Numbers:
        """The numbers of no rows [0, ...], for their type and shape."""
        return self._kept(np.empty((0, *self.spec.shape), self.feature.dtype))

    def numbers(self, rows: Rows) -> Numbers:
        """The numbers of rows [B, ...]."""
        return self._kept(self.feature.gather(rows))

    def _kept(self, numbers: Numbers) -> Numbers:
        if self.quantizer is None:
            return numbers
        return self.quantizer.codes(cut(numbers, self.quantizer.width))

    def read(self, rows: Rows) -> list[pa.Array]:
        return [_array(self.numbers(rows))]

    def row_bytes(self, rows: Rows) -> npt.NDArray[np.int64]:
        return np.full(len(rows), self.spec.row_bytes, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class AlongAxis:
    """A feature along an axis; `tokenizer` decodes ids to a text, or to several, of which each
    has so many tokens (`lengths`)."""

    feature: RaggedArray
    tokenizer: Any = None
    lengths: FeatureArray | None = None

    @property
    def spec(self) -> FeatureSpec:
        return self.feature.spec

    @property
    def fields(self) -> list[pa.Field]:
        parts = [_field(name, values) for name, values in self._decoded_none().items()]
        lists = [pa.field(each.name, pa.list_(each.type), metadata=each.metadata) for each in parts]
        text = pa.string() if self.lengths is None else pa.list_(pa.string())
        return [*lists, *([pa.field(GENERATED_TEXT, text)] if self.tokenizer else [])]

    def read(self, rows: Rows) -> list[pa.Array]:
        found = self.feature.gather(rows)
        offsets = pa.array(found.offsets, pa.int32())
        columns = [
            pa.ListArray.from_arrays(offsets, _array(values))
            for values in _decoded(self.spec, found.values).values()
        ]
        if self.tokenizer and self.lengths is not None:
            columns.append(self._several_texts(found.values, self.lengths.gather(rows)))
        elif self.tokenizer:
            columns.append(self._texts(found.parts()))
        return columns

    def _texts(self, ids: Sequence[Numbers]) -> pa.Array:
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return pa.array(texts, pa.string())

    def _several_texts(self, ids: Numbers, lengths_BN: Numbers) -> pa.Array:
        return _of_each(self._texts(_split(ids, lengths_BN)), lengths_BN)

    def row_bytes(self, rows: Rows) -> npt.NDArray[np.int64]:
        row_bytes = sum(
            each.itemsize * math.prod(each.shape[1:]) for each in self._decoded_none().values()
        )
        return self.feature.lengths(rows) * row_bytes

    def _decoded_none(self) -> dict[str, Numbers]:
        return _decoded(self.spec, np.empty((0, *self.spec.shape), self.spec.dtype))


@dataclass(frozen=True, slots=True)
class ByteText:
    """Text that is kept as bytes of UTF-8: one, or several, of which each has so many (`lengths`).
    What is no UTF-8 is replaced."""

    feature: RaggedArray
    lengths: FeatureArray | None = None

    @property
    def spec(self) -> FeatureSpec:
        return self.feature.spec

    @property
    def fields(self) -> list[pa.Field]:
        text = pa.string() if self.lengths is None else pa.list_(pa.string())
        return [pa.field(self.spec.name, text)]

    def read(self, rows: Rows) -> list[pa.Array]:
        found = self.feature.gather(rows)
        if self.lengths is None:
            return [self._texts(found.parts())]
        lengths_BN = self.lengths.gather(rows)
        return [_of_each(self._texts(_split(found.values, lengths_BN)), lengths_BN)]

    def row_bytes(self, rows: Rows) -> npt.NDArray[np.int64]:
        return self.feature.lengths(rows)

    @staticmethod
    def _texts(parts: Sequence[Numbers]) -> pa.Array:
        return pa.array([bytes(part).decode(errors="replace") for part in parts], pa.string())


def _split(values: Numbers, lengths_BN: Numbers) -> list[Numbers]:
    """The parts of so many values each, one example's after another's."""
    return np.split(values, np.cumsum(lengths_BN)[:-1])


def _of_each(texts: pa.Array, lengths_BN: Numbers) -> pa.Array:
    """The texts [B * N] as a list of N for each example."""
    offsets = np.arange(0, lengths_BN.size + 1, lengths_BN.shape[1])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), texts)


def _decoded(spec: FeatureSpec, values: Numbers) -> dict[str, Numbers]:
    """Values [S, *shape] as columns [S, ...]. Raises DamagedCacheError."""
    named: dict[str, Numbers | None] = {spec.name: values}
    if isinstance(spec.coding, TopKCoding):
        found = decode_top_k(spec.coding, values)
        named = {
            f"{spec.name}_ids": found.ids_Nk,
            f"{spec.name}_log_probs": found.log_probs_Nk,
            f"{spec.name}_log_tail": found.log_tail_N,
        }
    elif isinstance(spec.coding, SamplesCoding):
        drawn = decode_samples(spec.coding, values)
        named = {f"{spec.name}_ids": drawn.ids_NK, f"{spec.name}_log_probs": drawn.log_probs_NK}
    return {name: each for name, each in named.items() if each is not None}


def _field(name: str, values: Numbers) -> pa.Field:
    """Arrow field of values [S, *shape]; a shape of several dimensions is in its metadata."""
    shape = values.shape[1:]
    metadata = {"shape": json.dumps(shape)} if len(shape) > 1 else None
    return pa.field(name, _array(values).type, metadata=metadata)


def _array(values: Numbers) -> pa.Array:
    flat = pa.array(values.reshape(-1))
    size = math.prod(values.shape[1:])
    return pa.FixedSizeListArray.from_arrays(flat, size) if values.ndim > 1 else flat


def column_names(features: Sequence[FeatureColumns]) -> list[str]:
    """Names of all columns of the features."""
    return [field.name for feature in features for field in feature.fields]


@dataclass(frozen=True, slots=True)
class ExportRows:
    """N rows. `teacher`: name of the teacher; `columns`: name -> column of the corpus, its ids
    among them; `cache_rows`: cache row of each row; `features`: the features written."""

    teacher: str
    columns: dict[str, pa.Array]
    ids: pa.Array | None
    keys: KeyArray
    cache_rows: Rows
    features: Sequence[FeatureColumns]

    def __len__(self) -> int:
        return len(self.cache_rows)

    def ends(self) -> npt.NDArray[np.int64]:
        """About how many bytes all rows take, up to each one and with it [N]."""
        columns = sum(column.nbytes for column in self.columns.values())
        sizes = np.full(len(self), columns // max(len(self), 1) + KEY_BYTES, dtype=np.int64)
        for feature in self.features:
            sizes += feature.row_bytes(self.cache_rows)
        return np.cumsum(sizes)

    def slices(self) -> Iterator[slice]:
        """All rows in order, so many at once as fit into memory."""
        ends, start = self.ends(), 0
        while start < len(self):
            full = (ends[start - 1] if start else 0) + BATCH_BYTES
            fitting = int(np.searchsorted(ends, full, side="right"))
            stop = min(max(fitting, start + 1), start + BATCH_ROWS, len(self))
            yield slice(start, stop)
            start = stop


def corpus_columns(
    corpus: Corpus, text: Sequence[str], label: str | None, ids: str | None, features: Sequence[str]
) -> dict[str, pa.Array]:
    """The columns of a corpus under their own names; refuses names that something else has."""
    columns = dict(zip(text, corpus.segments, strict=True))
    if corpus.labels is not None and label is not None:
        columns[label] = corpus.labels
    if corpus.ids is not None:
        columns[ids or "id"] = corpus.ids
    for name in (KEY_COLUMN, *features):
        if name in columns:
            what = "the key" if name == KEY_COLUMN else "a feature"
            raise JobError(f"column {name!r}: {what} has this name; rename it in the corpus")
    return columns
