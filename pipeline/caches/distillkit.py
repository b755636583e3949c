"""Folders of DistillKit (`distillkit.sample_logits_vllm`) as a source of predictions: Parquet files
with a row for each text, and `compression_config.yaml`.

    input_ids             the tokens of a text, T of them
    compressed_logprobs   with bytepacked_indices: bytes in place of each token, distillkit_codec.py
    token_ids             with top_values: ids and log-probabilities as they are, without settings

A row has T - 1 places, for all tokens but the first; of T places, the last one is of what comes
behind the text. The sampler's pad token behind a text is a token like others: what is predicted
in its place is of use where texts end with it.

Refused: `packed_indices`, `exact_values`, `coeffs` of former versions. They hold logits less their
mean, of which log-probabilities cannot be computed. Files are those of the folder itself; nothing
that a file says is taken for a path. Memory: READ_ROWS rows.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from ...cache_schemas.errors import CorpusError, JobError
from ...cache_schemas.keys import IntArray
from ...stages.precompute.remote.log_probs import (
    MOST_MASS,
    ROUNDING,
    Predictions,
    TopPredictions,
)
from ...stages.precompute.remote.token_ids import Vocabulary
from ..jobs import make
from .distillkit_codec import CompressionSettings, bounded, decoded, unpacked
from .prediction_sources import FoundText, Place, PredictionSource

SETTINGS_FILE = "compression_config.yaml"
COMPRESSED = ("bytepacked_indices", "compressed_logprobs")
RAW = ("token_ids", "top_values")
FORMER = ("packed_indices", "exact_values", "coeffs")
READ_ROWS = 16
REMEDY = (
    "decompress the rows with DistillKit into token_ids and top_values, or take vLLM's "
    "prompt_logprobs"
)
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_MOST_SETTINGS = 2**16
_MALFORMED = (OSError, pa.ArrowException)


class _BadRowError(Exception):
    """A row that cannot be kept; the message says why."""


class DistillKitRows(PredictionSource):
    """A place is a file, and the row in it."""

    layout: ClassVar[str] = "distillkit"
    unit = "row"
    own_settings: ClassVar[set[str]] = {
        *("value_dtype", "rows"),
        *(f"compression.{name}" for name in CompressionSettings.model_fields),
    }

    def __init__(self, path: Path, top_k: int) -> None:
        """Raises JobError or CorpusError for a folder that is not one of DistillKit, and
        settings that cannot be decoded."""
        super().__init__(path, top_k)
        self._files = sorted(path.absolute().glob("*.parquet"))
        if not self._files:
            raise CorpusError(f"{path}: has no Parquet files")
        self._columns = _columns(self._files[0])
        kinds = _types(self._files[0], self._columns)
        for file in self._files[1:]:
            if _types(file, self._columns) != kinds:
                raise CorpusError(f"{file}: its columns are not those of {self._files[0].name}")
        self._compression = None if self._columns == RAW else _read_settings(path)
        if self._compression is None:
            self.settings = {"rows": "raw", "value_dtype": _dtype(kinds["top_values"])}
        else:
            self.settings = {"rows": "compressed", **self._compression.listed()}
            if top_k > self._compression.k:
                raise JobError(
                    f"job key 'top_k': {top_k} is above the {self._compression.k} tokens that "
                    f"{path} has in each place (k of {SETTINGS_FILE})"
                )
        self._cursor = _Cursor(self._files, ("input_ids", *self._columns))

    def check(self, vocabulary: Vocabulary) -> None:
        """Refuse ids of fewer bits than the vocabulary needs."""
        settings, highest = self._compression, max(vocabulary.spellings)
        if settings is not None and highest >= 2**settings.id_bits:
            raise CorpusError(
                f"{self.path}: d: {settings.d} of {SETTINGS_FILE} means ids of {settings.id_bits} "
                f"bits, and the tokenizer has id {highest}; name the tokenizer of the predictions"
            )

    def texts(self) -> Iterator[FoundText]:
        """See PredictionSource."""
        for place, row in _Cursor(self._files, ("input_ids",)):
            self.count += 1
            try:
                yield FoundText(place, self.count, _tokens(row["input_ids"]).tolist())
            except _BadRowError as problem:
                self.problems[self.count] = str(problem)

    def take(self, places: Sequence[Place]) -> list[Predictions | TopPredictions | str]:
        """See PredictionSource."""
        found: list[Predictions | TopPredictions | str] = []
        for place in places:
            row = self._cursor.at(place)
            if row is None:
                raise self.changed()
            try:
                found.append(self._predictions(row))
            except _BadRowError as problem:
                file, number = place
                found.append(f"{self._files[file].name} row {number + 1}: {problem}")
        return found

    def _predictions(self, row: dict[str, Any]) -> TopPredictions:
        """Raises _BadRowError."""
        tokens = _tokens(row["input_ids"])
        ids, log_probs = self._raw(row) if self._compression is None else self._decoded(row)
        if len(ids) not in (len(tokens) - 1, len(tokens)):
            raise _BadRowError(
                f"has predictions in {len(ids)} places for {len(tokens)} tokens, and all but the "
                "first have one"
            )
        ids, log_probs = ids[: len(tokens) - 1], log_probs[: len(tokens) - 1]
        log_probs = self._checked(log_probs)
        order = np.argsort(-log_probs, axis=1, kind="stable")[:, : self.top_k]
        ids = np.take_along_axis(ids, order, axis=1)
        log_probs = np.take_along_axis(log_probs, order, axis=1)
        ids[log_probs == -np.inf] = 0  # the sampler leaves memory as it was where a rank lacks
        return TopPredictions(
            tokens,
            np.pad(ids, ((1, 0), (0, 0))),
            np.pad(log_probs, ((1, 0), (0, 0)), constant_values=-np.inf),
        )

    def _raw(self, row: dict[str, Any]) -> tuple[IntArray, npt.NDArray[np.float32]]:
        ids = _matrix(row["token_ids"], "token_ids")
        values = _matrix(row["top_values"], "top_values")
        if ids.shape != values.shape:
            raise _BadRowError(
                f"token_ids holds {_shown(ids)} numbers, and top_values {_shown(values)}"
            )
        if ids.shape[1] < self.top_k and len(ids):
            raise _BadRowError(
                f"has {ids.shape[1]} tokens in each place, and top_k is {self.top_k}: name the "
                "number that was stored"
            )
        with np.errstate(over="ignore"):
            log_probs = values.astype(np.float32)
        unknown = (ids < 0) | (ids >= 2**32)
        if (unknown & (log_probs > -np.inf)).any():
            raise _BadRowError(f"token_ids holds {ids[unknown][0]}, which is no id")
        return ids.astype(np.int64), log_probs

    def _decoded(self, row: dict[str, Any]) -> tuple[IntArray, npt.NDArray[np.float32]]:
        settings = self._compression
        assert settings is not None
        packed, values = (_matrix(row[name], name) for name in COMPRESSED)
        wanted = (settings.id_bytes, settings.value_bytes)
        for name, found, width in zip(COMPRESSED, (packed, values), wanted, strict=True):
            if found.shape[1] != width and len(found):
                raise _BadRowError(
                    f"{name} has {found.shape[1]} bytes in each place, and {SETTINGS_FILE} means "
                    f"{width}: these are not the settings with which it was written"
                )
            if (found != found.astype(np.uint8)).any():
                raise _BadRowError(f"{name} holds numbers that are no bytes")
        if len(packed) != len(values):
            raise _BadRowError(
                f"{COMPRESSED[0]} has {len(packed)} places, and {COMPRESSED[1]} {len(values)}"
            )
        if not len(packed):
            return np.zeros((0, settings.k), np.int64), np.zeros((0, settings.k), np.float32)
        ids = unpacked(packed.astype(np.uint8), settings.id_bits, settings.k)
        return ids, decoded(settings, values.astype(np.uint8))

    def _checked(self, log_probs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Log-probabilities that can be ones. Raises _BadRowError."""
        if np.isnan(log_probs).any():
            raise _BadRowError(f"a value of token {_first(np.isnan(log_probs))} is not a number")
        stored = (
            log_probs if self._compression is None else log_probs[:, : self._compression.exact_k]
        )
        above = stored > ROUNDING
        if above.any():
            raise _BadRowError(
                f"a value of token {_first(above)} is {stored[above][0]:.4g}, and "
                "log-probabilities do not exceed 0: these may be logits"
            )
        masses = np.exp(stored.astype(np.float64)).sum(axis=1, keepdims=True)
        if (masses > MOST_MASS).any():
            raise _BadRowError(
                f"the probabilities of token {_first(masses > MOST_MASS)} sum up to "
                f"{masses.max():.4g}: these are not log-probabilities"
            )
        nothing = (log_probs == -np.inf).all(axis=1, keepdims=True)
        if nothing.any():
            raise _BadRowError(f"no token is predicted in place of token {_first(nothing)}")
        return np.minimum(bounded(log_probs, stored.shape[1]), 0)


class _Cursor:
    """Rows of Parquet files, read forward; back only if a place is behind."""

    def __init__(self, files: Sequence[Path], columns: Sequence[str]) -> None:
        self._files, self._columns = files, list(columns)
        self._rows = iter(self)
        self._next: Place = (0, 0)

    def __iter__(self) -> Iterator[tuple[Place, dict[str, Any]]]:
        return self._from((0, 0))

    def at(self, place: Place) -> dict[str, Any] | None:
        """The row at a place; None if the files have no such row."""
        if place < self._next or place[0] > self._next[0]:
            self._rows = self._from(place)
        for found, row in self._rows:
            self._next = (found[0], found[1] + 1)
            if found == place:
                return row
        return None

    def _from(self, start: Place) -> Iterator[tuple[Place, dict[str, Any]]]:
        """All rows from the row group of a place on; those before the place are not decoded."""
        for number, file in enumerate(self._files):
            if number < start[0]:
                continue
            first = start[1] if number == start[0] else 0
            try:
                yield from self._of_file(number, file, first)
            except _MALFORMED as cause:
                reason = str(cause).partition("\n")[0]
                raise CorpusError(f"{file}: cannot be read: {reason}") from cause

    def _of_file(
        self, number: int, file: Path, first: int
    ) -> Iterator[tuple[Place, dict[str, Any]]]:
        with pq.ParquetFile(file, memory_map=True) as parquet:
            begin = 0
            groups = range(parquet.num_row_groups)
            sizes = [parquet.metadata.row_group(group).num_rows for group in groups]
            kept = list(groups)
            while kept and begin + sizes[kept[0]] <= first:
                begin += sizes[kept.pop(0)]
            for batch in parquet.iter_batches(
                READ_ROWS, row_groups=kept, columns=self._columns, use_threads=False
            ):
                for at in range(max(first - begin, 0), len(batch)):
                    yield (
                        (number, begin + at),
                        {name: batch.column(name)[at] for name in self._columns},
                    )
                begin += len(batch)


def _columns(file: Path) -> tuple[str, str]:
    """The two columns of predictions; raises CorpusError."""
    names = _schema(file).names
    if "input_ids" not in names:
        raise CorpusError(f"{file}: no column 'input_ids'; it has {', '.join(names)}")
    for columns in (RAW, COMPRESSED):
        if set(columns) <= set(names):
            return columns
    if set(FORMER) <= set(names):
        raise CorpusError(
            f"{file}: columns {', '.join(FORMER)} are of DistillKit's legacy compression; they "
            "hold logits less their mean, from which log-probabilities cannot be computed; take "
            "vLLM's prompt_logprobs"
        )
    raise CorpusError(
        f"{file}: has neither columns {' and '.join(COMPRESSED)} nor {' and '.join(RAW)}; it has "
        f"{', '.join(names)}"
    )


def _types(file: Path, columns: tuple[str, str]) -> dict[str, pa.DataType]:
    """Types of the columns, which are lists of numbers and lists of these; raises CorpusError."""
    schema, found = _schema(file), {}
    for name, depth in (("input_ids", 1), *((column, 2) for column in columns)):
        if name not in schema.names:
            raise CorpusError(f"{file}: no column {name!r}; it has {', '.join(schema.names)}")
        found[name] = kind = schema.field(name).type
        wanted = pa.types.is_floating if name == "top_values" else pa.types.is_integer
        if _depth(kind) != depth or not wanted(_number(kind)):
            of = "numbers" if name == "top_values" else "whole numbers"
            lists = "lists of lists" if depth > 1 else "lists"
            raise CorpusError(f"{file}: column {name!r} is {kind}, not {lists} of {of}")
    return found


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except _MALFORMED as cause:
        reason = str(cause).partition("\n")[0]
        raise CorpusError(f"{file}: cannot be read: {reason}") from cause


def _depth(kind: pa.DataType) -> int:
    depth = 0
    while any(is_list(kind) for is_list in _LISTS):
        kind, depth = kind.value_type, depth + 1
    return depth


def _number(kind: pa.DataType) -> pa.DataType:
    while any(is_list(kind) for is_list in _LISTS):
        kind = kind.value_type
    return kind


def _dtype(kind: pa.DataType) -> str:
    return str(np.dtype(_number(kind).to_pandas_dtype()))


def _read_settings(folder: Path) -> CompressionSettings:
    """compression_config.yaml; raises CorpusError or JobError."""
    file = folder / SETTINGS_FILE
    try:
        with file.open("rb") as opened:
            text = opened.read(_MOST_SETTINGS + 1)
        if len(text) > _MOST_SETTINGS:
            raise CorpusError(f"{file}: is longer than {_MOST_SETTINGS} bytes")
        keys = yaml.safe_load(text.decode())
    except FileNotFoundError:
        raise CorpusError(
            f"{file}: is not there; its settings say how {' and '.join(COMPRESSED)} are read"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as cause:
        reason = " ".join(str(cause).split())
        raise CorpusError(f"{file}: cannot be read: {reason:.200}") from cause
    if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys):
        raise CorpusError(f"{file}: is no mapping of settings")
    try:
        return make(CompressionSettings, keys, "compression")
    except JobError as problem:
        raise CorpusError(f"{file}: {problem}; {REMEDY}") from None


def _tokens(value: Any) -> IntArray:
    """The tokens of a row. Raises _BadRowError."""
    if not value.is_valid or value.values.null_count:
        raise _BadRowError("input_ids holds nothing, or null")
    tokens = value.values.to_numpy(zero_copy_only=False)
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < 2**32:
        raise _BadRowError("input_ids holds a number that is no id")
    found: IntArray = tokens.astype(np.int64)
    return found


def _matrix(value: Any, name: str) -> npt.NDArray[Any]:
    """A list of lists of one length. Raises _BadRowError."""
    if not value.is_valid:
        raise _BadRowError(f"{name} holds nothing")
    lengths = pc.list_value_length(value.values).fill_null(-1).to_numpy(zero_copy_only=False)
    if len(set(lengths.tolist())) > 1 or (len(lengths) and lengths[0] < 0):
        raise _BadRowError(
            f"{name} has {lengths.min()} to {lengths.max()} numbers in a place, not the same in all"
        )
    numbers = value.values.flatten()
    if numbers.null_count:
        raise _BadRowError(f"{name} holds null")
    width = int(lengths[0]) if len(lengths) else 0
    found: npt.NDArray[Any] = numbers.to_numpy(zero_copy_only=False)
    return found.reshape(len(lengths), width)


def _shown(numbers: npt.NDArray[Any]) -> str:
    return " x ".join(map(str, numbers.shape))


def _first(wrong: npt.NDArray[np.bool_]) -> int:
    """The token in whose place something is wrong: the first place is of token 1."""
    return int(np.flatnonzero(wrong.any(axis=1))[0]) + 1
