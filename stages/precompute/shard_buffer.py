"""The rows of one shard while it is computed: each example has its row, and outputs arrive in any
order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...cache_schemas.codings import Fidelity, combined
from ...cache_schemas.features import FeatureSpec
from ...cache_schemas.keys import IntArray, KeyArray
from ..ragged import joined
from ..store.writing.staged_shard import Values
from .teachers.base import Answers


@dataclass(frozen=True, slots=True)
class FinishedRows:
    """The computed rows of a shard buffer, in order: the arguments of a commit."""

    keys: KeyArray
    features: Mapping[str, Values]
    truncated: npt.NDArray[np.bool_]
    tables: Mapping[str, pa.Table]
    fidelity: Mapping[str, Fidelity]


@dataclass(frozen=True, slots=True)
class BadRow:
    """The problem of a row that is not kept. refused: the teacher has no answer; else its numbers
    are not finite."""

    problem: str
    refused: bool = False

    @classmethod
    def not_finite(cls, feature: str) -> "BadRow":
        """A row whose feature has numbers that are not finite."""
        return cls(f"the teacher's {feature!r} is not finite")


class ShardBuffer:
    """Buffer for N examples, of which those that were put are finished."""

    def __init__(self, keys: KeyArray, specs: Sequence[FeatureSpec]) -> None:
        """Keys [N, 16] of the examples, and the features that are kept."""
        self._keys = keys
        self._columns = {
            spec.name: (_Rows if spec.axis is None else _AlongAxis)(spec, len(keys))
            for spec in specs
        }
        self._answered = np.zeros(len(keys), dtype=bool)
        self._truncated = np.zeros(len(keys), dtype=bool)
        self._images: dict[int, bytes] = {}
        self._fidelity: dict[str, dict[int, Fidelity | None]] = {}

    def put(self, positions: IntArray, answers: Answers) -> dict[int, BadRow]:
        """Keep the outputs of the examples at rows `positions`, except refused and non-finite ones;
        returns these. Overflow in half precision is not finite."""
        invalid = answers.invalid.items()
        bad = {int(positions[at]): BadRow.not_finite(name) for at, name in invalid}
        for name, column in self._columns.items():
            finite = column.put(positions, answers.features[name])
            bad |= {int(position): BadRow.not_finite(name) for position in positions[~finite]}
        bad |= {
            int(positions[at]): BadRow(why, refused=True) for at, why in answers.refused.items()
        }
        self._answered[np.setdiff1d(positions, list(bad)) if bad else positions] = True
        self._truncated[positions] = answers.truncated
        self._images.update(zip(positions.tolist(), answers.images, strict=False))
        for name in answers.fidelity.keys() & self._columns.keys():
            measured = zip(positions.tolist(), answers.fidelity[name], strict=True)
            self._fidelity.setdefault(name, {}).update(measured)
        return bad

    def __len__(self) -> int:
        return int(self._answered.sum())

    def finished(self) -> FinishedRows:
        """The computed rows."""
        rows = np.flatnonzero(self._answered)
        positions = rows.tolist()
        tables = {}
        if self._images:
            png = pa.array([self._images[row] for row in positions], pa.binary())
            tables["images"] = pa.table({"png": png})
        return FinishedRows(
            keys=self._keys[rows],
            features={name: column.take(rows) for name, column in self._columns.items()},
            truncated=self._truncated[rows],
            tables=tables,
            fidelity=self._measured(positions),
        )

    def _measured(self, positions: list[int]) -> dict[str, Fidelity]:
        of_rows = {
            name: [found for position in positions if (found := each[position]) is not None]
            for name, each in sorted(self._fidelity.items())
        }
        return {name: combined(samples) for name, samples in of_rows.items() if samples}


class _Rows:
    """A feature of one row an example."""

    def __init__(self, spec: FeatureSpec, examples: int) -> None:
        self._stored: npt.NDArray[Any] = np.empty((examples, *spec.shape), dtype=spec.dtype)

    def put(self, positions: IntArray, values: Any) -> npt.NDArray[np.bool_]:
        """Keep values [B, *shape]; returns which examples' are finite, [B]."""
        with np.errstate(over="ignore"):
            rows = np.asarray(values).astype(self._stored.dtype, copy=False)
        self._stored[positions] = rows
        finite = _is_finite(rows)
        if finite.all():
            return np.ones(len(rows), dtype=bool)
        return np.array([each.all() for each in finite], dtype=bool)

    def take(self, rows: IntArray) -> Values:
        return self._stored if len(rows) == len(self._stored) else self._stored[rows]


class _AlongAxis:
    """A feature along an axis."""

    def __init__(self, spec: FeatureSpec, examples: int) -> None:
        self._spec = spec
        self._parts: list[npt.NDArray[Any]] = [np.empty((0, *spec.shape), spec.dtype)] * examples

    def put(self, positions: IntArray, values: Any) -> npt.NDArray[np.bool_]:
        """Keep the values [n, *shape] of each example; returns which examples' are finite, [B]."""
        with np.errstate(over="ignore"):
            parts = [part.astype(self._spec.dtype) for part in values]
        for position, part in zip(positions.tolist(), parts, strict=True):
            self._parts[position] = part
        return np.array([_is_finite(part).all() for part in parts], dtype=bool)

    def take(self, rows: IntArray) -> Values:
        parts = [self._parts[row] for row in rows.tolist()]
        return joined(parts, self._spec.shape, self._spec.dtype)


_HALF_EXPONENT = 0x7C00


def _is_finite(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which numbers are finite. Of half precision by their bits, infinite or NaN where those of the
    exponent are all set: NumPy's own `isfinite` takes 30 times as long for it as for float32."""
    finite: npt.NDArray[np.bool_]
    if values.dtype == np.float16:
        finite = (values.view(np.uint16) & _HALF_EXPONENT) != _HALF_EXPONENT
    else:
        finite = np.isfinite(values)
    return finite
