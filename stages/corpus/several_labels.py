"""Labels of several numbers: a list in each row, or a column for each class or output.

Columns come as a struct of them; a field of objects with a name for each class is one already.

multilabel       lists of names, or of class numbers: the classes that hold, an empty list for none;
                 lists or columns of true and false (0 and 1): one for each class
classification   lists or columns of probabilities, one for each class
regression       lists or columns of numbers, one for each output

A row without a label is null, or null (NaN; of classes also -100) throughout. In multilabel and in
a regression, some numbers of a row may be missing: whether that class holds is not known, and
neither the task's loss nor a metric counts it. Probabilities are given for all classes or for none.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...cache_schemas.errors import CorpusError
from .corpus import Corpus
from .label_kinds import (
    ANY_NUMBER,
    MISSING,
    LabelSpace,
    LabelValues,
    Task,
    check_count,
    count_missing,
    is_number,
    is_text,
    named_labels,
)

SUM_TOLERANCE = 1e-3
"""How far from 1 the probabilities of a row may add up to; they are divided by their sum."""

MOST_CLASSES = 100_000
"""How many classes numbers may mean without num_labels: more of them are ids by mistake."""

Matrix = npt.NDArray[np.float64]
Bad = npt.NDArray[np.bool_]


def holds_several(kind: pa.DataType) -> bool:
    """Whether labels of that type are lists, or fields of several columns."""
    return bool(pa.types.is_large_list(kind) or pa.types.is_struct(kind))


def several_space(corpus: Corpus, task: Task | None, num_labels: int | None) -> LabelSpace:
    """The label space of a training corpus of such labels; raises CorpusError where `task` has to
    tell what they are."""
    labels = _plain(corpus)
    task = task or _task_of(corpus, labels)
    names: tuple[str, ...] | None = None
    if pa.types.is_struct(labels.type):
        names = tuple(field.name for field in labels.type)
        check_count(corpus, names, num_labels)
        count = len(names)
    elif is_text(labels.type.value_type):
        if task != "multilabel":
            raise CorpusError(
                f"{_of(corpus)}: labels are lists of names, which are labels of task=multilabel"
            )
        names = _names(corpus, labels)
        check_count(corpus, names, num_labels)
        count = len(names)
    elif task == "multilabel" and pa.types.is_integer(labels.type.value_type):
        values = _class_numbers(corpus, labels, num_labels or ANY_NUMBER)
        count = num_labels or (int(values.max()) + 1 if len(values) else 0)
        if num_labels is None and count > MOST_CLASSES:
            raise CorpusError(
                f"{_of(corpus)}: labels name a class {count - 1}; set num_labels if there are more "
                f"than {MOST_CLASSES:,} classes"
            )
    else:
        count = num_labels or _common_length(labels)
    if not count:
        raise CorpusError(f"{_of(corpus)}: no row has a label")
    if task == "classification" and count < 2:
        raise CorpusError(f"{_of(corpus)}: one probability a row; name those of all classes")
    return LabelSpace(task=task, num_labels=count, names=names)


def several_values(corpus: Corpus, space: LabelSpace) -> LabelValues:
    """The labels of a corpus [N, K], as `label_kinds` describes them; [N] of a regression with one
    output. Raises CorpusError naming the first row outside of the space."""
    labels = _plain(corpus)
    if pa.types.is_struct(labels.type):
        matrix = _matrix_of_columns(corpus, labels, space)
    else:
        inner = labels.type.value_type
        sets = is_text(inner) or (space.multilabel and pa.types.is_integer(inner))
        if sets or (space.names is not None and labels.null_count < len(labels)):
            return _sets(corpus, labels, space)
        matrix = _matrix_of_lists(corpus, labels, space)
    if space.multilabel:
        matrix[matrix == MISSING] = np.nan
        _refuse(corpus, ~np.isin(matrix, (0, 1)) & ~np.isnan(matrix), "0 or 1", space)
        return np.where(np.isnan(matrix), MISSING, matrix).astype(np.int8)
    _refuse(corpus, np.isinf(matrix), "a finite number", space)
    if space.regression:
        return matrix[:, 0] if space.num_labels == 1 else matrix
    return _probabilities(corpus, matrix, space)


def several_are_alike(values: LabelValues) -> bool:
    """Whether the known labels [N, K] of each class or output are all the same."""
    numbers = np.where(values == MISSING, np.nan, values) if values.dtype.kind == "i" else values
    known = numbers[:, ~np.isnan(numbers).all(axis=0)]
    rows = len(values) - count_missing(values)
    return bool(rows > 1 and (np.nanmin(known, 0) == np.nanmax(known, 0)).all())


def _of(corpus: Corpus) -> str:
    return f"corpus {corpus.sources[0]}"


def _plain(corpus: Corpus) -> pa.Array:
    """The labels, lists of texts that are all written as numbers as lists of numbers."""
    labels = named_labels(corpus)
    if not pa.types.is_large_list(labels.type) or not is_text(labels.type.value_type):
        return labels
    texts = [text for text in pc.unique(labels.flatten()).to_pylist() if text is not None]
    numeric = [text for text in texts if is_number(text)]
    if not numeric:
        return labels
    if len(numeric) < len(texts):
        other = next(text for text in texts if text not in numeric)
        raise CorpusError(
            f"{_of(corpus)}: labels mix numbers and names ({numeric[0]!r} and {other!r}); make "
            "them one type"
        )
    digits = [text.strip().lstrip("+-") for text in texts]
    whole = all(each.isdecimal() and len(each) < 16 for each in digits)
    known = {text: int(text) if whole else float(text) for text in texts} | {None: None}
    rows = [None if row is None else [known[text] for text in row] for row in labels.to_pylist()]
    return pa.array(rows, pa.large_list(pa.int64() if whole else pa.float64()))


def _task_of(corpus: Corpus, labels: pa.Array) -> Task:
    """The task that such labels can only be of."""
    if pa.types.is_struct(labels.type):
        kinds = [field.type for field in labels.type]
        for field in labels.type:
            if is_text(field.type) or pa.types.is_nested(field.type):
                raise CorpusError(
                    f"{_of(corpus)}: label column {field.name!r} holds {field.type}, and several "
                    "columns hold numbers, one for each class or output; name one column"
                )
        if all(map(pa.types.is_boolean, kinds)):
            return "multilabel"
        if all(pa.types.is_integer(kind) or pa.types.is_boolean(kind) for kind in kinds):
            columns = [labels.field(index).cast(pa.int64()) for index in range(len(kinds))]
            found = {value for column in columns for value in pc.unique(column).to_pylist()}
            if found <= {0, 1, None, MISSING}:
                return "multilabel"
        what = "columns"
    else:
        inner = labels.type.value_type
        if pa.types.is_nested(inner):
            raise CorpusError(f"{_of(corpus)}: labels are lists of {inner}, not numbers or names")
        if not pa.types.is_floating(inner):
            return "multilabel"
        what = "lists"
    raise CorpusError(
        f"{_of(corpus)}: labels are {what} of numbers; set task=regression, or "
        "task=classification for probabilities of classes, or task=multilabel for 0 and 1"
    )


# --- classes that hold


def _names(corpus: Corpus, labels: pa.Array) -> tuple[str, ...]:
    """All names of lists, sorted. Raises CorpusError for two that differ in spaces alone."""
    names = tuple(sorted(name for name in pc.unique(labels.flatten()).to_pylist() if name))
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(" ".join(name.split()), name)
        if other != name:
            raise CorpusError(
                f"{_of(corpus)}: label {other!r} differs from {name!r} only in spaces; make them "
                "equal"
            )
    return names


def _class_numbers(corpus: Corpus, labels: pa.Array, count: int) -> npt.NDArray[np.int64]:
    """The numbers of all lists, one after the other."""
    elements = labels.flatten()
    _refuse_elements(corpus, labels, _as_numpy(elements.is_null()), "null among classes")
    numbers = _as_numpy(elements)
    limit = "a whole number from 0" if count == ANY_NUMBER else f"from 0 to {count - 1}"
    outside = (numbers < 0) | (numbers >= count)
    _refuse_elements(corpus, labels, outside, f"a class is {limit}")
    return numbers


def _sets(corpus: Corpus, labels: pa.Array, space: LabelSpace) -> LabelValues:
    """int8 [N, K] of lists of the classes that hold."""
    inner = labels.type.value_type
    if not space.multilabel:
        raise CorpusError(f"{_of(corpus)}: labels are {labels.type}, but the task is {space.task}")
    if is_text(inner) != (space.names is not None) and not pa.types.is_null(inner):
        trained = "class numbers" if space.names is None else ", ".join(space.names)
        raise CorpusError(
            f"{_of(corpus)}: labels are {labels.type}, but the training labels are {trained}"
        )
    elements = labels.flatten()
    if is_text(inner):
        indices = pc.index_in(elements, value_set=pa.array(space.shown_names, inner))
        unknown = _as_numpy(indices.is_null())
        _refuse_elements(corpus, labels, unknown, f"not one of {', '.join(space.shown_names)}")
        numbers = _as_numpy(indices)
    elif pa.types.is_null(inner):
        numbers = np.empty(0, dtype=np.int64)
    else:
        numbers = _class_numbers(corpus, labels, space.num_labels)
    rows = _rows_of(labels)
    values = np.zeros((len(labels), space.num_labels), dtype=np.int8)
    values[rows, numbers] = 1
    twice = values.sum(axis=1, dtype=np.int64) < np.bincount(rows, minlength=len(labels))
    if twice.any():
        row = int(twice.argmax())
        hint = "; of 0 and 1 for each class, write true and false" if space.names is None else ""
        raise CorpusError(
            f"{corpus.where(row)}: label {labels[row].as_py()!r} names a class twice{hint}"
        )
    values[_as_numpy(labels.is_null())] = MISSING
    return values


def _rows_of(labels: pa.Array) -> npt.NDArray[np.int64]:
    """The row of each element of lists."""
    lengths = _as_numpy(pc.fill_null(pc.list_value_length(labels), 0))
    return np.repeat(np.arange(len(labels)), lengths)


def _refuse_elements(corpus: Corpus, labels: pa.Array, bad: Bad, why: str) -> None:
    """Raises CorpusError about the row of the first bad one of all elements of lists."""
    found = _rows_of(labels)[bad]
    if len(found):
        row = int(found[0])
        rows = len(np.unique(found))
        more = f" ({rows} such rows)" if rows > 1 else ""
        raise CorpusError(
            f"{corpus.where(row)}: label {labels[row].as_py()!r}: {why}{more}; a row whose classes "
            "are not known has null instead of a list"
        )


# --- a number for each class or output


def _common_length(labels: pa.Array) -> int:
    lengths = pc.list_value_length(labels).drop_null()
    return int(lengths[0].as_py()) if len(lengths) else 0


def _matrix_of_lists(corpus: Corpus, labels: pa.Array, space: LabelSpace) -> Matrix:
    """float64 [N, K], NaN where there is none."""
    lengths = pc.list_value_length(labels)
    wrong = pc.fill_null(pc.not_equal(lengths, space.num_labels), False)
    row = pc.index(wrong, pa.scalar(True)).as_py()
    if row >= 0:
        raise CorpusError(
            f"{corpus.where(row)}: label has {lengths[row].as_py()} numbers, not "
            f"{space.num_labels}, one for each {_each(space)}"
        )
    matrix = np.full((len(labels), space.num_labels), np.nan)
    known = _as_numpy(labels.is_valid())
    elements = _numbers(corpus, labels.flatten(), "lists of", space)
    matrix[known] = elements.reshape(-1, space.num_labels)
    return matrix


def _matrix_of_columns(corpus: Corpus, labels: pa.Array, space: LabelSpace) -> Matrix:
    """float64 [N, K], NaN where there is none; columns in the order of the space's names."""
    names = tuple(field.name for field in labels.type)
    wanted = space.names or names
    if set(names) != set(wanted) or len(names) != space.num_labels:
        trained = f"{', '.join(space.names)}" if space.names else f"{space.num_labels} numbers"
        raise CorpusError(
            f"{_of(corpus)}: label columns are {', '.join(names)}, but the training labels are "
            f"{trained}"
        )
    # An absent object has null fields.
    columns = [
        _numbers(corpus, pc.struct_field(labels, [name]), f"of column {name!r}:", space)
        for name in wanted
    ]
    return np.stack(columns, axis=1)


def _numbers(corpus: Corpus, values: pa.Array, what: str, space: LabelSpace) -> Matrix:
    kind = values.type
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)
    if not numeric and not (space.multilabel and pa.types.is_boolean(kind)):
        raise CorpusError(f"{_of(corpus)}: labels are {what} {kind}, not numbers")
    if pa.types.is_boolean(kind):
        values = values.cast(pa.int8())
    return _as_numpy(pc.fill_null(values.cast(pa.float64(), safe=False), np.nan))


def _as_numpy(values: pa.Array) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return found


def _probabilities(corpus: Corpus, matrix: Matrix, space: LabelSpace) -> Matrix:
    """The probabilities of classes, of a sum of 1."""
    missing = np.isnan(matrix)
    _refuse(corpus, missing & ~missing.all(axis=1, keepdims=True), "a probability", space)
    _refuse(corpus, matrix < 0, "a probability, 0 to 1", space)
    sums: Matrix = matrix.sum(axis=1)
    wrong = np.abs(sums - 1) > SUM_TOLERANCE
    if wrong.any():
        row = int(wrong.argmax())
        more = f" ({int(wrong.sum())} such rows)" if wrong.sum() > 1 else ""
        raise CorpusError(
            f"{corpus.where(row)}: probabilities of {', '.join(space.shown_names[:4])}"
            f"{', ...' if space.num_labels > 4 else ''} add up to {sums[row]:.6g}, not 1{more}"
        )
    shares: Matrix = matrix / sums[:, None]
    return shares


def _refuse(corpus: Corpus, bad: Bad, limit: str, space: LabelSpace) -> None:
    """Raises CorpusError about the first bad number of labels [N, K]."""
    if not bad.any():
        return
    row, column = (int(index) for index in np.argwhere(bad)[0])
    value = named_labels(corpus)[row].as_py()
    number = value if value is None else _number_of(value, column, space)
    rows = int(bad.any(axis=1).sum())
    more = f" ({rows} such rows)" if rows > 1 else ""
    raise CorpusError(
        f"{corpus.where(row)}: label {number!r} of {_each(space)} "
        f"{space.shown_names[column]!r} is not {limit}{more}"
    )


def _number_of(value: object, column: int, space: LabelSpace) -> object:
    if isinstance(value, dict):
        return value[space.shown_names[column]] if space.names else list(value.values())[column]
    assert isinstance(value, list)
    return value[column]


def _each(space: LabelSpace) -> str:
    return "output" if space.regression else "class"
