"""Kinds of labels: what a task predicts, and the numbers of its labels.

N rows, K classes or outputs:

classification   int64 [N], a class each; or float64 [N, K], probabilities of all classes
multilabel       int8 [N, K], 1 for each class that holds and 0 for each other one
regression       float64 [N], or [N, K] of several outputs

A missing label is -100 among integers, NaN among floats. A row has no label if all of its numbers
are missing.
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
ANY_NUMBER = 2**31
"""The number of classes while it is unknown."""
Task = Literal["classification", "multilabel", "regression"]
LabelValues = npt.NDArray[Any]


class LabelSpace(BaseModel):
    """Label space of a task; saved with the student."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Task | Literal["none"] = Field(description="none: trained on the teacher alone")
    num_labels: int = Field(ge=1, description="classes, or outputs of a regression")
    names: tuple[str, ...] | None = Field(default=None, description="names of classes or outputs")

    @property
    def regression(self) -> bool:
        """Whether labels are numbers to come near to."""
        return self.task == "regression"

    @property
    def multilabel(self) -> bool:
        """Whether any number of classes may hold for a text."""
        return self.task == "multilabel"

    @property
    def rectified(self) -> bool:
        """Whether outputs below 0 stand for 0, as in the paper: those of a regression with one
        output. Several outputs may be of any sign."""
        return self.regression and self.num_labels == 1

    def has_probabilities(self, values: LabelValues) -> bool:
        """Whether labels are probabilities of the classes of a classification."""
        return self.task == "classification" and values.ndim == 2

    @property
    def shown_names(self) -> tuple[str, ...]:
        """Names of classes or outputs; their numbers where they have none."""
        return self.names or tuple(map(str, range(self.num_labels)))


NO_LABELS = LabelSpace(task="none", num_labels=1)
"""The space of a student that is trained on features alone."""


def missing_numbers(values: LabelValues) -> npt.NDArray[np.bool_]:
    """Which numbers of labels, [N] or [N, K], are missing."""
    missing: npt.NDArray[np.bool_] = (
        np.isnan(values) if values.dtype.kind == "f" else values == MISSING
    )
    return missing


def is_missing(values: LabelValues) -> npt.NDArray[np.bool_]:
    """Which rows [N] of labels have none."""
    missing = missing_numbers(values)
    return missing if missing.ndim == 1 else np.logical_and.reduce(missing, axis=1)


def count_missing(values: LabelValues) -> int:
    """Number of rows without a label."""
    return int(is_missing(values).sum())


def count_known(values: LabelValues) -> int:
    """Number of labels: what a mean of the task's loss is taken over."""
    return values.size - int(missing_numbers(values).sum())


def one_a_row(values: LabelValues, space: LabelSpace) -> LabelValues:
    """One value [N] for labels of several, to colour points by: the most probable class, the first
    output, or the names of the classes that hold, such as `kind+rude`."""
    if values.ndim == 1:
        return values
    if space.multilabel:
        names = np.array(space.shown_names)
        shown = ["+".join(names[row == 1]) or "none" for row in values]
        return np.where(is_missing(values), "no label", np.array(shown))
    if space.regression:
        return values[:, 0]
    return np.where(is_missing(values), MISSING, values.argmax(axis=1))


def is_text(kind: pa.DataType) -> bool:
    """Whether labels of that type are names."""
    return bool(pa.types.is_large_string(kind))


def is_number(text: str) -> bool:
    """Whether a text is written as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def named_labels(corpus: Corpus) -> pa.Array:
    """The labels of a corpus, blank names as null. Raises CorpusError if it has no such column."""
    if corpus.labels is None:
        raise CorpusError(f"corpus {corpus.sources[0]}: no label column was named")
    if not is_text(corpus.labels.type):
        return corpus.labels
    blank = pc.equal(pc.utf8_trim_whitespace(corpus.labels), "")
    return pc.if_else(blank, pa.scalar(None, corpus.labels.type), corpus.labels)


def check_count(corpus: Corpus, names: tuple[str, ...], num_labels: int | None) -> None:
    """Raises CorpusError for a number of labels that is not that of their names."""
    if num_labels is not None and num_labels != len(names):
        raise CorpusError(
            f"corpus {corpus.sources[0]}: num_labels is {num_labels}, but there are {len(names)} "
            f"label names: {', '.join(names)}; leave num_labels out"
        )


def refuse(
    corpus: Corpus, bad: npt.NDArray[np.bool_], limit: str, names: tuple[str, ...] = ()
) -> None:
    """Raises CorpusError about the first of the bad rows [N], what their labels had to be, and the
    name that differs from it in spaces alone."""
    rows = np.flatnonzero(bad)
    if len(rows):
        value = named_labels(corpus)[int(rows[0])].as_py()
        more = f" ({len(rows)} such rows)" if len(rows) > 1 else ""
        alike = [name for name in names if name.split() == value.split()]
        hint = f"; it differs from {alike[0]!r} only in spaces; make them equal" if alike else ""
        raise CorpusError(
            f"{corpus.where(int(rows[0]))}: label {value!r} is not {limit}{more}{hint}"
        )
