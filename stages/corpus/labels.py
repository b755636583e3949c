"""Labels: what a task predicts, and the numbers a loss sees.

Classification takes whole numbers from 0, booleans, or names (sorted, so that the numbering does
not depend on row order); regression takes numbers. A missing label is null, NaN, -100 or an empty
name: such a row trains the alignment terms only.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from ...cache_schemas.errors import CorpusError
from .corpus import Corpus

MISSING = -100
_WITHHELD = -1
ANY_NUMBER = 2**31
"""The number of classes while it is unknown."""
Task = Literal["classification", "regression"]
LabelValues = npt.NDArray[Any]


class LabelSpace(BaseModel):
    """Label space of a task; saved with the student."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Task | Literal["none"] = Field(description="none: trained on the teacher alone")
    num_labels: int = Field(ge=1, description="classes, or 1")
    names: tuple[str, ...] | None = Field(default=None, description="names of the classes")

    @property
    def regression(self) -> bool:
        """Whether labels are numbers to come near to."""
        return self.task == "regression"


NO_LABELS = LabelSpace(task="none", num_labels=1)
"""The space of a student that is trained on features alone."""


def label_space(
    corpus: Corpus, task: Task | None = None, num_labels: int | None = None
) -> LabelSpace:
    """The label space of a training corpus; `task` and `num_labels` decide ambiguous cases. Raises
    CorpusError."""
    column = _labels(corpus)
    if _is_text(column.type):
        if task == "regression":
            raise CorpusError(f"corpus {corpus.sources[0]}: labels are text, not numbers")
        names = tuple(sorted(set(_checked_names(corpus, column))))
        _check_spaces(corpus, column, names)
        _check_count(corpus, names, num_labels)
        return LabelSpace(task="classification", num_labels=len(names), names=names)
    _refuse_withheld(corpus, column)
    if (task or _task_of(corpus, column)) == "regression":
        return LabelSpace(task="regression", num_labels=1)
    open_space = LabelSpace(task="classification", num_labels=num_labels or ANY_NUMBER)
    values = label_values(corpus, open_space)
    if not (values != MISSING).any():
        raise CorpusError(f"corpus {corpus.sources[0]}: no row has a label")
    return LabelSpace(task="classification", num_labels=num_labels or int(values.max()) + 1)


def label_values(corpus: Corpus, space: LabelSpace) -> LabelValues:
    """The labels of a corpus [N]: int64 with -100 for missing ones, or float64 with NaN.

    Raises CorpusError naming the first row whose label is outside the space."""
    if space.task == "none":
        return np.full(len(corpus), MISSING, dtype=np.int64)
    column = _labels(corpus)
    if space.regression:
        _refuse_withheld(corpus, column)
        return _numbers(corpus, column)
    if _is_text(column.type):
        return _named(corpus, column, space)
    if space.names is not None and column.null_count < len(column):
        raise CorpusError(
            f"corpus {corpus.sources[0]}: labels are {column.type}, but the training labels are "
            f"names: {', '.join(space.names)}"
        )
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    _refuse_withheld(corpus, column)
    numbers = _numbers(corpus, column)
    values = np.where(np.isnan(numbers), MISSING, numbers)
    outside = (values != MISSING) & (
        (values < 0) | (values >= space.num_labels) | (values != np.floor(values))
    )
    _refuse(corpus, outside, _range(space, bool((values == _WITHHELD).any())))
    return values.astype(np.int64)


def _row_of(corpus: Corpus, column: pa.Array, name: str) -> str:
    return corpus.where(pc.index(column, pa.scalar(name, column.type)).as_py())


def _refuse_withheld(corpus: Corpus, column: pa.Array) -> None:
    """Test sets of benchmarks hide their labels, with -1 in each row."""
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return
    if pc.min_max(column).as_py() == {"min": _WITHHELD, "max": _WITHHELD}:
        raise CorpusError(
            f"{corpus.where(0)}: label -1 in all rows: no row has a label (usual for test sets "
            "with hidden labels); name a split with labels, such as validation"
        )


def _check_spaces(corpus: Corpus, column: pa.Array, names: tuple[str, ...]) -> None:
    """Two names that look the same are one class written in two ways."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(" ".join(name.split()), name)
        if other != name:
            rows = [
                pc.index(column, pa.scalar(each, column.type)).as_py() for each in (other, name)
            ]
            raise CorpusError(
                f"{corpus.where(rows[0])}: label {other!r} differs from {name!r} "
                f"({corpus.where(rows[1])}) only in spaces; make them equal"
            )


def _range(space: LabelSpace, withheld: bool) -> str:
    least = f" (a missing label is null or {MISSING})"
    if space.num_labels == ANY_NUMBER:
        return f"a whole number from 0{least}"
    return f"a whole number from 0 to {space.num_labels - 1}{least if withheld else ''}"


def require_variety(corpus: Corpus, space: LabelSpace, values: LabelValues) -> None:
    """Raises CorpusError if all labels of a training corpus are the same."""
    given = values[~np.isnan(values)] if space.regression else values[values != MISSING]
    if len(given) > 1 and (given == given[0]).all():
        one = repr(space.names[int(given[0])]) if space.names else f"{given[0]:g}"
        raise CorpusError(
            f"corpus {', '.join(corpus.sources)}: all labels are {one}; nothing to learn; name "
            "another file or label_column, or set num_labels if there are more classes than in "
            "these rows"
        )


def _check_count(corpus: Corpus, names: tuple[str, ...], num_labels: int | None) -> None:
    if num_labels is not None and num_labels != len(names):
        raise CorpusError(
            f"corpus {corpus.sources[0]}: num_labels is {num_labels}, but there are {len(names)} "
            f"label names: {', '.join(names)}; leave num_labels out"
        )


def is_missing(values: LabelValues) -> npt.NDArray[np.bool_]:
    """Which labels [N] are missing in the result of `label_values`."""
    return np.isnan(values) if values.dtype.kind == "f" else values == MISSING


def count_missing(values: LabelValues) -> int:
    """Number of missing labels among the result of `label_values`."""
    return int(is_missing(values).sum())


def _labels(corpus: Corpus) -> pa.Array:
    if corpus.labels is None:
        raise CorpusError(f"corpus {corpus.sources[0]}: no label column was named")
    if not _is_text(corpus.labels.type):
        return corpus.labels
    blank = pc.equal(pc.utf8_trim_whitespace(corpus.labels), "")
    return pc.if_else(blank, pa.scalar(None, corpus.labels.type), corpus.labels)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_large_string(kind))


def _task_of(corpus: Corpus, column: pa.Array) -> Task:
    if not pa.types.is_floating(column.type):
        return "classification"
    numbers = _numbers(corpus, column)
    given = numbers[~np.isnan(numbers)]
    if len(given) and (given == np.floor(given)).all():
        raise CorpusError(
            f"corpus {corpus.sources[0]}: labels are floating point but integral ({given[0]:g}, "
            "...); set task=classification or task=regression"
        )
    return "regression"


def _numbers(corpus: Corpus, column: pa.Array) -> npt.NDArray[np.float64]:
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        raise CorpusError(f"corpus {corpus.sources[0]}: labels are {kind}, not numbers")
    values: npt.NDArray[np.float64] = (
        column.cast(pa.float64(), safe=False).fill_null(float("nan")).to_numpy(zero_copy_only=False)
    )
    infinite = np.isinf(values)
    _refuse(corpus, infinite, "a finite number")
    return values


def _checked_names(corpus: Corpus, column: pa.Array) -> list[str]:
    names = [name for name in pc.unique(column).to_pylist() if name is not None]
    numeric = [name for name in names if _is_number(name)]
    if numeric and len(numeric) < len(names):
        other = next(name for name in names if name not in numeric)
        raise CorpusError(
            f"corpus {corpus.sources[0]}: labels mix numbers and names "
            f"({numeric[0]!r} and {other!r}); make them one type"
        )
    if not names:
        raise CorpusError(f"corpus {corpus.sources[0]}: no row has a label")
    return names


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _named(corpus: Corpus, column: pa.Array, space: LabelSpace) -> LabelValues:
    if space.names is None:
        raise CorpusError(
            f"corpus {corpus.sources[0]}: labels are names, but the training labels were numbers"
        )
    numbers = pc.index_in(column, value_set=pa.array(space.names, column.type))
    values: LabelValues = numbers.fill_null(MISSING).to_numpy(zero_copy_only=False).astype(np.int64)
    unknown = (values == MISSING) & ~column.is_null().to_numpy(zero_copy_only=False)
    _refuse(corpus, unknown, f"one of {', '.join(map(_plainly, space.names))}", space.names)
    return values


def _plainly(name: str) -> str:
    """A name, in quotation marks if it begins or ends with a space."""
    return name if name == name.strip() else repr(name)


def _refuse(
    corpus: Corpus, bad: npt.NDArray[np.bool_], limit: str, names: tuple[str, ...] = ()
) -> None:
    rows = np.flatnonzero(bad)
    if len(rows):
        value = _labels(corpus)[int(rows[0])].as_py()
        more = f" ({len(rows)} such rows)" if len(rows) > 1 else ""
        alike = [name for name in names if name.split() == value.split()]
        hint = f"; it differs from {alike[0]!r} only in spaces; make them equal" if alike else ""
        raise CorpusError(
            f"{corpus.where(int(rows[0]))}: label {value!r} is not {limit}{more}{hint}"
        )
