"""Labels: what a task predicts, and the numbers a loss sees.

Classification takes whole numbers from 0, booleans, or names (sorted, so that the numbering does
not depend on row order); regression takes numbers. A missing label is null, NaN, -100 or an empty
name: such a row trains the alignment terms only. Labels of several numbers a row are in
`several_labels.py`.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...cache_schemas.errors import CorpusError
from .corpus import Corpus
from .label_kinds import ANY_NUMBER, check_count, is_number, is_text, named_labels, refuse
from .label_kinds import MISSING as MISSING
from .label_kinds import NO_LABELS as NO_LABELS
from .label_kinds import LabelSpace as LabelSpace
from .label_kinds import LabelValues as LabelValues
from .label_kinds import Task as Task
from .label_kinds import count_known as count_known
from .label_kinds import count_missing as count_missing
from .label_kinds import is_missing as is_missing
from .several_labels import holds_several, several_are_alike, several_space, several_values

_WITHHELD = -1


def label_space(
    corpus: Corpus, task: Task | None = None, num_labels: int | None = None
) -> LabelSpace:
    """The label space of a training corpus; `task` and `num_labels` decide ambiguous cases. Raises
    CorpusError."""
    column = named_labels(corpus)
    if holds_several(column.type):
        return several_space(corpus, task, num_labels)
    if task == "multilabel":
        raise CorpusError(
            f"corpus {corpus.sources[0]}: task=multilabel: labels are {column.type}, one a row; "
            "name a column of lists, a column for each class, or the label_separator of texts"
        )
    if is_text(column.type):
        if task == "regression":
            raise CorpusError(f"corpus {corpus.sources[0]}: labels are text, not numbers")
        names = tuple(sorted(set(_checked_names(corpus, column))))
        _check_spaces(corpus, column, names)
        check_count(corpus, names, num_labels)
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
    """The labels of a corpus, [N] or [N, K], as `label_kinds` describes them.

    Raises CorpusError naming the first row whose label is outside the space."""
    if space.task == "none":
        return np.full(len(corpus), MISSING, dtype=np.int64)
    column = named_labels(corpus)
    if holds_several(column.type):
        return several_values(corpus, space)
    if space.multilabel or (space.regression and space.num_labels > 1):
        raise CorpusError(
            f"corpus {corpus.sources[0]}: labels are {column.type}, one a row, but the task is "
            f"{space.task} of {space.num_labels} {'outputs' if space.regression else 'classes'}"
        )
    if space.regression:
        _refuse_withheld(corpus, column)
        return _numbers(corpus, column)
    if is_text(column.type):
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
    refuse(corpus, outside, _range(space, bool((values == _WITHHELD).any())))
    return values.astype(np.int64)


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
    if values.ndim == 2:
        if several_are_alike(values):
            raise CorpusError(
                f"corpus {', '.join(corpus.sources)}: all rows have the same labels; nothing to "
                "learn; name another file or label_column"
            )
        return
    given = values[~np.isnan(values)] if space.regression else values[values != MISSING]
    if len(given) > 1 and (given == given[0]).all():
        one = repr(space.names[int(given[0])]) if space.names else f"{given[0]:g}"
        raise CorpusError(
            f"corpus {', '.join(corpus.sources)}: all labels are {one}; nothing to learn; name "
            "another file or label_column, or set num_labels if there are more classes than in "
            "these rows"
        )


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
    refuse(corpus, infinite, "a finite number")
    return values


def _checked_names(corpus: Corpus, column: pa.Array) -> list[str]:
    names = [name for name in pc.unique(column).to_pylist() if name is not None]
    numeric = [name for name in names if is_number(name)]
    if numeric and len(numeric) < len(names):
        other = next(name for name in names if name not in numeric)
        raise CorpusError(
            f"corpus {corpus.sources[0]}: labels mix numbers and names "
            f"({numeric[0]!r} and {other!r}); make them one type"
        )
    if not names:
        raise CorpusError(f"corpus {corpus.sources[0]}: no row has a label")
    return names


def _named(corpus: Corpus, column: pa.Array, space: LabelSpace) -> LabelValues:
    if space.names is None:
        raise CorpusError(
            f"corpus {corpus.sources[0]}: labels are names, but the training labels were numbers"
        )
    numbers = pc.index_in(column, value_set=pa.array(space.names, column.type))
    values: LabelValues = numbers.fill_null(MISSING).to_numpy(zero_copy_only=False).astype(np.int64)
    unknown = (values == MISSING) & ~column.is_null().to_numpy(zero_copy_only=False)
    refuse(corpus, unknown, f"one of {', '.join(map(_plainly, space.names))}", space.names)
    return values


def _plainly(name: str) -> str:
    """A name, in quotation marks if it begins or ends with a space."""
    return name if name == name.strip() else repr(name)
