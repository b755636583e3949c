"""The features of a teacher as array-likes, read from their shards.

FeatureArray    [rows, *shape]. Plain shards are mapped: a batch costs one copy of its rows and no
                system call on warm pages, as from one np.memmap of the same rows (random batches of
                256 and of 32 rows of 2 KiB: within a few per cent). What another Zarr writer left
                in some other order or layout is read through zarr-python: same values.
JoinedArray     A feature that was added to a teacher later: rows counted as the teacher's, stored
                elsewhere, by a teacher that computed them in another order, and maybe about fewer
                texts. A map from rows to rows, made once from the keys of both; 8 bytes per row.
StackedArray    The rows of two arrays, one behind the other: of one model that read passages, and
                queries with another prompt.
RaggedArray     A feature along an axis: any examples' rows, end to end. The values of all examples
                are one feature array; offsets say which rows are whose, 8 bytes per example. A
                batch costs one gather.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ....cache_schemas.errors import MissingKeysError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.keys import IntArray
from ...ragged import Ragged, positions_of
from ..format.rows import Rows
from ..format.zarr_shards import DenseArray
from .feature_shards import Check, FeatureShards, Prepare
from .memory import Access, choose_access
from .side_by_side import SideBySide

RowIndex = int | slice | Sequence[int] | npt.NDArray[Any]

# What is read from disk ahead of the copying: no more than takes a moment.
_PART_BYTES = 32 * 2**20
_UNSIGNED = np.dtype(np.uint64)


class FeatureArray:
    """Read-only array-like of all committed rows; safe to pickle to worker processes, safe to use
    from several threads and after a fork."""

    def __init__(
        self,
        folder: Path,
        spec: FeatureSpec,
        rows_per_shard: int,
        shards: Sequence[tuple[int, int]],
        prepare: Prepare | None = None,
        access: Access = "auto",
        check: Check | None = None,
    ) -> None:
        self.spec = spec
        self._length = sum(rows for _, rows in shards)
        self._access = choose_access(access, self._length * spec.row_bytes)
        files = FeatureShards(folder, spec, rows_per_shard, tuple(shards), prepare, check)
        self._shards = SideBySide(files, self._access)
        self._cold = self._access == "cold"
        self._native = self._shards.array.dtype == self.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, *shape of one example)."""
        return (self._length, *self.spec.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers."""
        return np.dtype(self.spec.dtype)

    @property
    def ndim(self) -> int:
        """Number of dimensions, rows included."""
        return len(self.shape)

    @property
    def access(self) -> Literal["warm", "cold"]:
        """Access to rows; see `memory.py`."""
        return self._access

    @property
    def mapped(self) -> DenseArray | None:
        """All rows as one read-only array [N, *shape] over the files, without a copy; None where
        that cannot be: a shard that is not plain, or one before the last that does not end with a
        page. It stays good for as long as anything refers to it.

        For PyTorch: `torch.from_dlpack(feature.mapped).index_select(0, rows)`; a tensor does not
        know that it must not be written to."""
        shards = self._shards
        whole = self._native and not shards.gaps and shards.map_all()
        return shards.array if whole else None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.spec.name}: {self.dtype} {list(self.shape)}>"

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> DenseArray:
        if copy is False:
            raise ValueError("a feature is read from its shards; there is no array without a copy")
        return self[:].astype(dtype or self.dtype, copy=False)

    def __getitem__(self, index: RowIndex) -> DenseArray:
        """Rows by number, slice, or array of row numbers (negative ones count from the end) or
        booleans."""
        if isinstance(index, (int, np.integer)) and not isinstance(index, bool):
            return np.asarray(self[[int(index)]][0])
        if isinstance(index, slice):
            return self.gather(np.arange(*index.indices(len(self)), dtype=np.int64))
        rows = np.asarray(index)
        if isinstance(index, tuple) or rows.ndim != 1 or rows.dtype.kind not in "iubf":
            raise IndexError(f"index {index!r:.80}: is not a row, a slice or an array of rows")
        if rows.dtype == bool:
            if rows.shape != (len(self),):
                raise IndexError(f"boolean index of shape {rows.shape} on {len(self)} rows")
            rows = np.flatnonzero(rows)
        rows = rows.astype(np.int64, casting="same_kind") if rows.size else rows.astype(np.int64)
        from_the_end = rows < 0
        return self.gather(rows + from_the_end * len(self) if from_the_end.any() else rows)

    def gather(self, rows: Rows, out: DenseArray | None = None) -> DenseArray:
        """Rows [B] as an array [B, *shape], into `out` if given; one copy, no Python per row.

        `out` may be any array of that shape that can be written to and whose type holds all values
        of the feature's: with the same type, and contiguous, rows go there straight from the pages
        (the NumPy view of a pinned tensor, say). Raises IndexError for a row outside 0 to len - 1,
        ValueError for such an `out`."""
        rows = self._checked(rows)
        shards = self._shards
        if not (shards.all_mapped or shards.map(rows)):
            room = self._room(len(rows), out)
            shards.gather_apart(rows, room)
            return room
        indices = shards.indices(rows) if shards.gaps else rows
        if self._cold or not (self._native if out is None else out.dtype == shards.array.dtype):
            return self._gather_in_parts(indices, self._room(len(rows), out))
        try:
            # The mode looks for nothing that was not looked for, and needs no buffer between.
            # Sorted rows would come no faster (3.07 against 3.04 million rows/s).
            return shards.array.take(indices, 0, out, "clip")
        except ValueError:
            self._room(len(rows), out)
            raise

    def will_need(self, rows: Rows) -> None:
        """Begin to read rows that are gathered soon; returns before they are in memory.

        Their shards are prepared and mapped first, which may take long and raise what `gather`
        does."""
        rows = self._checked(rows)
        self._shards.map(rows)
        self._shards.will_need(rows)

    def require_whole(self, rows: Rows) -> None:
        """Raise DamagedCacheError if a file that holds some of the rows was cut after it was
        mapped: `gather` does not look, and would end the process."""
        self._shards.require_whole(self._checked(rows))

    def in_file_order(self, rows: Rows) -> Rows:
        """Numbers that grow along the files, for the same rows: those that lie together have
        numbers close to each other."""
        return rows

    def _gather_in_parts(self, indices: Rows, room: DenseArray) -> DenseArray:
        """Rows that are on disk, or of another type than `room`; what comes next is being read
        while a part is copied."""
        shards = self._shards
        step = max(1, _PART_BYTES // max(1, self.spec.row_bytes))
        for start in range(-step, len(indices), step):
            following = indices[start + step : start + 2 * step]
            if self._cold and len(following):
                shards.read_ahead(following)
            if start >= 0:
                here = slice(start, start + step)
                room[here] = shards.array.take(indices[here], 0, None, "clip")
        return room

    def _checked(self, rows: Rows) -> Rows:
        if rows.dtype != np.int64:
            rows = rows.astype(np.int64, casting="same_kind")
        # As unsigned numbers, those below zero are the largest: one look finds both.
        unsigned = rows.view(_UNSIGNED)
        if len(rows) and unsigned[unsigned.argmax()] >= self._length:
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {self._length}")
        return rows

    def _room(self, rows: int, out: DenseArray | None) -> DenseArray:
        """The output array for rows: `out`, if it is suitable."""
        shape = (rows, *self.spec.shape)
        if out is None:
            return np.empty(shape, self.dtype)
        same = out.dtype == self._shards.array.dtype or np.can_cast(self.dtype, out.dtype)
        if out.shape != shape or not out.flags.writeable or not same:
            kind = "an array" if out.flags.writeable else "a read-only array"
            raise ValueError(
                f"out: {kind} of {out.dtype} {list(out.shape)}; to hold {rows} rows it has to be a "
                f"writable one of {self.dtype} {list(shape)}"
            )
        return out


class JoinedArray(FeatureArray):
    """A feature array whose row i is row `rows[i]` of another; -1 where the other has none."""

    def __init__(self, stored: FeatureArray, rows: Rows, remedy: str) -> None:
        """`remedy`: what to do about rows that are not there."""
        self.spec = stored.spec
        self._stored, self._rows, self._remedy = stored, rows, remedy
        self._length = len(rows)
        self._access = stored.access

    @property
    def mapped(self) -> None:
        """The rows lie in another order than they are counted in."""
        return None

    def gather(self, rows: Rows, out: DenseArray | None = None) -> DenseArray:
        """Rows [B] as an array [B, *shape], into `out` if given; see FeatureArray.

        Raises MissingKeysError, too, for rows of texts without the feature."""
        return self._stored.gather(self._joined(rows), out)

    def will_need(self, rows: Rows) -> None:
        """Begin to read rows that are gathered soon; raises what `gather` does."""
        self._stored.will_need(self._joined(rows))

    def require_whole(self, rows: Rows) -> None:
        """As for the array that holds them."""
        self._stored.require_whole(self._joined(rows))

    def in_file_order(self, rows: Rows) -> Rows:
        """Numbers that grow along the files, for the same rows."""
        return self._rows[self._checked(rows)]

    def _joined(self, rows: Rows) -> Rows:
        return require_stored(self.spec.name, self.in_file_order(rows), self._remedy)


class StackedArray(FeatureArray):
    """The rows of two feature arrays of one shape, those of the second behind those of the
    first."""

    def __init__(self, first: FeatureArray, second: FeatureArray) -> None:
        self.spec = first.spec
        self._parts = (first, second)
        self._length = len(first) + len(second)
        self._access = first.access

    @property
    def dtype(self) -> np.dtype[Any]:
        """A type that holds the numbers of both."""
        return np.result_type(*(part.dtype for part in self._parts))

    @property
    def mapped(self) -> None:
        """The rows lie in the files of two."""
        return None

    def gather(self, rows: Rows, out: DenseArray | None = None) -> DenseArray:
        """Rows [B] as an array [B, *shape], into `out` if given; see FeatureArray."""
        found = np.empty((len(rows), *self.spec.shape), self.dtype) if out is None else out
        for part, where, own in self._divided(rows):
            found[where] = part.gather(own)
        return found

    def will_need(self, rows: Rows) -> None:
        """Begin to read rows that are gathered soon."""
        for part, _, own in self._divided(rows):
            part.will_need(own)

    def require_whole(self, rows: Rows) -> None:
        """As for the arrays that hold them."""
        for part, _, own in self._divided(rows):
            part.require_whole(own)

    def in_file_order(self, rows: Rows) -> Rows:
        """Numbers that grow along the files, first those of the first array."""
        found, start = np.empty(len(rows), np.int64), 0
        parts = {id(part): (where, own) for part, where, own in self._divided(rows)}
        for part in self._parts:
            where, own = parts[id(part)]
            found[where] = part.in_file_order(own) + start
            start += len(part)
        return found

    def _divided(self, rows: Rows) -> list[tuple[FeatureArray, npt.NDArray[np.bool_], Rows]]:
        """Each array, which of the rows are its, and their numbers in it."""
        rows = self._checked(rows)
        first, second = self._parts
        behind = rows >= len(first)
        return [(first, ~behind, rows[~behind]), (second, behind, rows[behind] - len(first))]


def require_stored(feature: str, rows: Rows, remedy: str) -> Rows:
    """The same rows, if each of them is there; raises MissingKeysError if some are -1."""
    missing = np.flatnonzero(rows < 0)
    if len(missing):
        raise MissingKeysError(
            f"feature {feature!r}: {len(missing)} of {len(rows)} rows do not have it yet; {remedy}",
            missing.tolist(),
        )
    return rows


class RaggedArray:
    """Read-only rows of N examples; safe to pickle, to use from several threads, after a fork."""

    def __init__(
        self,
        values: FeatureArray,
        lengths: IntArray,
        rows: Rows | None = None,
        remedy: str = "",
    ) -> None:
        """`values` [S, *shape] of examples with `lengths`. `rows`: example i is their i-th, -1 for
        one that is not there, and `remedy` is the advice for such."""
        self._values, self._rows, self._remedy = values, rows, remedy
        self._lengths = lengths
        self._offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    @property
    def spec(self) -> FeatureSpec:
        """Shape and type of the numbers at one position."""
        return self._values.spec

    @property
    def values(self) -> FeatureArray:
        """The values at all positions [S, *shape], in the order of the files."""
        return self._values

    def __repr__(self) -> str:
        return f"<RaggedArray {self.spec.name}: {self.spec.shown} of {len(self)} examples>"

    def __len__(self) -> int:
        return len(self._lengths if self._rows is None else self._rows)

    def __getitem__(self, row: int) -> npt.NDArray[Any]:
        """The values of one example, [n, *shape]."""
        return self.gather(np.array([row], dtype=np.int64)).values

    def lengths(self, rows: Rows) -> IntArray:
        """The lengths of examples [B]. Raises IndexError and MissingKeysError."""
        return self._lengths[self._stored(rows)]

    def gather(self, rows: Rows) -> Ragged:
        """The values of examples [B], one after another. Raises IndexError for a row outside 0 to
        len - 1, MissingKeysError for one whose text lacks the feature."""
        stored = self._stored(rows)
        return Ragged(
            self._values.gather(positions_of(stored, self._offsets)), self._lengths[stored]
        )

    def gather_at(self, rows: Rows, positions: Rows, counts: Rows) -> npt.NDArray[Any]:
        """Chosen values of examples [B]: `counts` of each, at `positions` [sum of counts] within
        it, one example after another."""
        stored = self._stored(rows)
        assert (positions < np.repeat(self._lengths[stored], counts)).all(), "outside of it"
        return self._values.gather(np.repeat(self._offsets[stored], counts) + positions)

    def will_need(self, rows: Rows) -> None:
        """Begin to read what is gathered soon; raises what `gather` does."""
        self._values.will_need(positions_of(self._stored(rows), self._offsets))

    def require_whole(self, rows: Rows) -> None:
        """Raise DamagedCacheError if a file of some examples was cut after it was mapped."""
        stored = self._stored(rows)
        self._values.require_whole(self._offsets[stored][self._lengths[stored] > 0])

    def in_file_order(self, rows: Rows) -> Rows:
        """Numbers that grow along the files, for the same examples."""
        return rows if self._rows is None else self._rows[rows]

    def _stored(self, rows: Rows) -> Rows:
        rows = rows.astype(np.int64, casting="same_kind", copy=False)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        if self._rows is None:
            return rows
        return require_stored(self.spec.name, self._rows[rows], self._remedy)
