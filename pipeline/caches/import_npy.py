"""Features in .npy files: one file an example, or one array for all of them."""

import math
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa

from ...cache_schemas.errors import CorpusError
from ...stages.corpus.corpus import Corpus
from ...stages.store.format.dense import DenseArray
from ...stages.store.format.index import Rows
from .import_source import FeatureSource, described, find_ids, in_row_order, require_ids

SUFFIX = ".npy"

_MALFORMED = (OSError, ValueError, EOFError, TypeError, RecursionError)


@dataclass(frozen=True, slots=True)
class NpyHeader:
    """What a .npy file says it holds; its size was found to fit."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: Literal["C", "F"]
    offset: int

    def map(self) -> DenseArray:
        """The array, read when it is touched."""
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, self.order)

    def read(self) -> DenseArray:
        """The array."""
        count = math.prod(self.shape)
        values = np.fromfile(self.path, self.dtype, count, offset=self.offset)
        return values.reshape(self.shape, order=self.order)


def read_header(path: Path) -> NpyHeader:
    """Raises CorpusError for a file that is no array, or shorter than it says."""
    try:
        with path.open("rb") as file:
            shape, fortran, dtype = _parse(file)
            offset, size = file.tell(), os.fstat(file.fileno()).st_size
    except _MALFORMED as cause:
        reason = " ".join(str(cause).split())
        raise CorpusError(f"{path}: is no .npy array: {reason:.200}") from cause
    if dtype.hasobject:
        raise CorpusError(f"{path}: holds Python objects, which are never read; save numbers")
    if min(shape, default=1) < 0 or offset + math.prod(shape) * dtype.itemsize > size:
        raise CorpusError(f"{path}: is shorter than the {described(shape, dtype)} it says it holds")
    return NpyHeader(path, shape, dtype, "F" if fortran else "C", offset)


def _parse(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"format version {version} is for arrays with named fields")


class NpyPerExample(FeatureSource):
    """A folder with a file `<id>.npy` for each example; the place of a row is the row."""

    layout = "npy_per_example"

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        names = [_file_name(corpus, row, name) for row, name in enumerate(_ids(corpus))]
        with os.scandir(folder) as entries:
            files = {entry.name for entry in entries if entry.name.endswith(SUFFIX)}
        self._files = [folder / name for name in names]
        self.count = len(files)
        there = np.array([name in files for name in names], dtype=bool)
        self.place_of_row = np.where(there, np.arange(len(names)), -1)
        first = self._first(np.flatnonzero(there))
        self.shape, self.dtype = first.shape, first.dtype

    def _first(self, places: Rows) -> NpyHeader:
        if not len(places):
            raise CorpusError(
                f"{self._files[0].parent}: none of its {self.count} {SUFFIX} files is named after "
                f"an id of the corpus, such as {self._files[0].name}"
            )
        for place in places.tolist():
            with suppress(CorpusError):
                return read_header(self._files[place])
        return read_header(self._files[places[0]])  # says what is wrong with it

    def take(self, places: Rows) -> tuple[DenseArray, dict[int, str]]:
        """One file after another."""
        values = np.zeros((len(places), *self.shape), self.dtype)
        problems = {}
        for position, place in enumerate(places.tolist()):
            try:
                values[position] = self._read(self._files[place])
            except CorpusError as error:
                problems[position] = str(error)
        return values, problems

    def _read(self, path: Path) -> DenseArray:
        header = read_header(path)
        if (header.shape, header.dtype) != (self.shape, self.dtype):
            raise CorpusError(
                f"{path}: holds {described(header.shape, header.dtype)}, others "
                f"{described(self.shape, self.dtype)}"
            )
        return header.read()


def _ids(corpus: Corpus) -> list[str]:
    ids: list[str] = require_ids(corpus).to_pylist()
    return ids


def _file_name(corpus: Corpus, row: int, name: str) -> str:
    if not name or any(sign in name for sign in "/\\\0"):
        raise CorpusError(f"{corpus.where(row)}: its id cannot be the name of a file; mend the id")
    return name + SUFFIX


class NpyRows(FeatureSource):
    """One array [N, *shape], in the order of the corpus or of a file with one id a line."""

    layout = "npy_rows"

    def __init__(self, path: Path, corpus: Corpus, ids: Path | None) -> None:
        header = read_header(path)
        if not header.shape or 0 in header.shape:
            raise CorpusError(f"{path}: holds {described(header.shape, header.dtype)}, not rows")
        self.count, *shape = header.shape
        self.shape, self.dtype = tuple(shape), header.dtype
        self._header = header
        if ids is None:
            self.place_of_row = in_row_order(corpus, self.count, path)
        else:
            self.place_of_row = find_ids(corpus, _lines(ids, path, self.count), ids)

    def take(self, places: Rows) -> tuple[DenseArray, dict[int, str]]:
        """Mapped rows."""
        return self._values[places], {}

    @cached_property
    def _values(self) -> DenseArray:
        return self._header.map()


def _lines(file: Path, array: Path, count: int) -> pa.Array:
    try:
        # Not `splitlines`: an id may hold what Unicode takes for the end of a line.
        lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as cause:
        raise CorpusError(f"{file}: cannot be read: {cause}") from cause
    if len(lines) != count:
        raise CorpusError(f"{file}: has {len(lines)} lines, {array} {count} rows")
    return pa.array([line.removesuffix("\r") for line in lines], pa.string())
