"""Labels of every kind become the numbers a loss sees, or are refused with the row."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from armada.cache_schemas.errors import CorpusError
from armada.stages.corpus.corpus import Corpus, read_corpus
from armada.stages.corpus.labels import (
    MISSING,
    LabelSpace,
    label_space,
    label_values,
    require_variety,
)

WriteParquet = Callable[[str, dict[str, Any]], str]
ReadLabels = Callable[..., Corpus]


@pytest.fixture
def labelled(write_parquet: WriteParquet) -> ReadLabels:
    """A corpus with one file for each column of labels."""

    def read(*columns: Any) -> Corpus:
        paths = [
            write_parquet(f"part{number}", {"a": [f"text {i}" for i in range(len(c))], "y": c})
            for number, c in enumerate(columns)
        ]
        return read_corpus(paths, ["a"], label_column="y")

    return read


CLASSES: dict[str, tuple[Any, int, Any, list[int]]] = {
    "integers": ([2, 0, 1], 3, None, [2, 0, 1]),
    "small integers": (pa.array([0, 1, 1], pa.uint8()), 2, None, [0, 1, 1]),
    "only one class": ([0, 0], 1, None, [0, 0]),
    "null": ([1, None, 0], 2, None, [1, MISSING, 0]),
    "-100": ([1, -100, 0], 2, None, [1, MISSING, 0]),
    "booleans": ([True, False, None], 2, None, [1, 0, MISSING]),
    "names": (["no", "yes", "maybe"], 3, ("maybe", "no", "yes"), [1, 2, 0]),
    "missing names": (["b", None, "a", "", " "], 2, ("a", "b"), [1, MISSING, 0, MISSING, MISSING]),
    "numerals": (["10", "9"], 2, ("10", "9"), [0, 1]),
    "dictionary": (pa.array(["b", "a", "b"]).dictionary_encode(), 2, ("a", "b"), [1, 0, 1]),
    "dictionary of integers": (pa.array([1, 0]).dictionary_encode(), 2, None, [1, 0]),
    "large text": (pa.array(["b", "a"], pa.large_string()), 2, ("a", "b"), [1, 0]),
    "text view": (pa.array(["b", "a"], pa.string_view()), 2, ("a", "b"), [1, 0]),
}


@pytest.mark.parametrize(("column", "count", "names", "values"), CLASSES.values(), ids=CLASSES)
def test_classes(
    labelled: ReadLabels, column: Any, count: int, names: Any, values: list[int]
) -> None:
    corpus = labelled(column)
    space = label_space(corpus)
    assert space == LabelSpace(task="classification", num_labels=count, names=names)
    assert not space.regression
    got = label_values(corpus, space)
    assert got.dtype == np.int64
    assert got.tolist() == values


@pytest.mark.parametrize(
    ("column", "task", "values"),
    [
        ([0.5, 2.0, None], None, [0.5, 2.0, np.nan]),
        ([0.5, float("nan")], None, [0.5, np.nan]),
        ([1.0, 3.0], "regression", [1.0, 3.0]),
        ([1, 3, None], "regression", [1.0, 3.0, np.nan]),
        (pa.array(np.array([0.5, 1.5], np.float16)), None, [0.5, 1.5]),
    ],
    ids=["floats", "not a number", "whole floats", "integers", "half precision"],
)
def test_numbers_to_come_near_to(
    labelled: ReadLabels, column: Any, task: Any, values: list[float]
) -> None:
    corpus = labelled(column)
    space = label_space(corpus, task)
    assert space == LabelSpace(task="regression", num_labels=1)
    assert space.regression
    got = label_values(corpus, space)
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, values)


def test_whole_floats_are_classes_if_the_job_says_so(labelled: ReadLabels) -> None:
    corpus = labelled([1.0, float("nan"), 0.0, -100.0])
    space = label_space(corpus, "classification")
    assert space.num_labels == 2
    assert label_values(corpus, space).tolist() == [1, MISSING, 0, MISSING]


def test_a_job_may_name_more_classes_than_are_seen(labelled: ReadLabels) -> None:
    assert label_space(labelled([0, 1]), num_labels=5).num_labels == 5


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "whole floats": ([1.0, 2.0], {}, r"floating point but integral \(1, \.\.\.\); set task="),
    "fractions as classes": ([0.5, 1.0], {"task": "classification"}, "label 0.5 is not a whole"),
    "negative": ([0, -1], {}, "row 2: label -1 is not a whole number from 0"),
    "too large": ([0, 3, 4], {"num_labels": 3}, r"row 2: label 3 .* 0 to 2 \(2 such rows\)"),
    "identifiers": ([2**60 + 1, 0], {}, "row 1: label 1152921504606846977 is not a whole number"),
    "infinite": ([0.5, float("inf")], {}, "row 2: label inf is not a finite number"),
    "numbers and names": (["1", "two"], {}, r"mix numbers and names \('1' and 'two'\)"),
    "names to come near to": (["a", "b"], {"task": "regression"}, "labels are text, not numbers"),
    "lists of lists": ([[[1]], [[2]]], {}, "not numbers"),
    "spaces": (
        ["pos", "neg", "pos "],
        {},
        r"row 1: label 'pos' differs from 'pos ' \(.*row 3\) only in spaces; make them equal",
    ),
    "all kept back": ([-1, -1, None], {}, "row 1: label -1 in all rows: no row has a label"),
    "numbers kept back": ([-1.0, -1.0], {"task": "regression"}, "label -1 in all rows"),
    "no label": ([None, None], {}, "no row has a label"),
    "only -100": ([-100, -100], {}, "no row has a label"),
    "only blank names": (["", " "], {}, "no row has a label"),
}


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([1, 1, None], "all labels are 1; nothing to learn"),
        (["a", "a"], "all labels are 'a'; nothing"),
        ([0.5, 0.5, float("nan")], r"all labels are 0\.5; nothing"),
    ],
)
def test_labels_that_are_all_the_same_teach_nothing(
    labelled: ReadLabels, column: Any, message: str
) -> None:
    corpus = labelled(column)
    space = label_space(corpus)
    with pytest.raises(CorpusError, match=message):
        require_variety(corpus, space, label_values(corpus, space))
    one = corpus.take(np.array([0]))
    require_variety(one, space, label_values(one, space))


@pytest.mark.parametrize(("column", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_labels_that_cannot_be_learnt_are_refused(
    labelled: ReadLabels, column: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CorpusError, match=message):
        label_space(labelled(column), **options)


NAMED = LabelSpace(task="classification", num_labels=2, names=("no", "yes"))
COUNTED = LabelSpace(task="classification", num_labels=2)
OTHER_SPACE: dict[str, tuple[Any, LabelSpace, str]] = {
    "unknown name": (["no", "maybe"], NAMED, "row 2: label 'maybe' is not one of no, yes"),
    "names for numbers": (["no"], COUNTED, "labels are names, but the training labels were"),
    "kept back": ([-1, -1], COUNTED, "row 1: label -1 in all rows"),
    "a label of -1": ([0, -1], COUNTED, r"row 2: label -1 is not .* \(a missing label is null or"),
    "unseen class": ([0, 2], COUNTED, "row 2: label 2 is not a whole number from 0 to 1"),
    "booleans": ([True], LabelSpace(task="regression", num_labels=1), "labels are bool"),
}


@pytest.mark.parametrize(("column", "space", "message"), OTHER_SPACE.values(), ids=OTHER_SPACE)
def test_labels_of_another_space_are_refused(
    labelled: ReadLabels, column: Any, space: LabelSpace, message: str
) -> None:
    with pytest.raises(CorpusError, match=message):
        label_values(labelled(column), space)


def test_a_corpus_without_labels_has_no_space(write_parquet: WriteParquet) -> None:
    with pytest.raises(CorpusError, match="no label column was named"):
        label_space(read_corpus([write_parquet("rows", {"a": ["x"]})], ["a"]))


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        (([0, 1], pa.array([1], pa.int8())), [0, 1, 1]),
        (([0, 1], pa.nulls(2)), [0, 1, MISSING, MISSING]),
        ((["b"], pa.array(["a"]).dictionary_encode()), [1, 0]),
        ((pa.array(["b"]).dictionary_encode(), pa.array(["a"]).dictionary_encode()), [1, 0]),
    ],
    ids=["widths", "one unlabelled", "plain and dictionary", "two dictionaries"],
)
def test_files_may_differ_in_how_they_hold_labels(
    labelled: ReadLabels, columns: Any, values: list[int]
) -> None:
    corpus = labelled(*columns)
    assert label_values(corpus, label_space(corpus)).tolist() == values


def test_files_may_not_differ_in_what_labels_are(labelled: ReadLabels) -> None:
    with pytest.raises(CorpusError, match=r"mixed types \(int64, large_string\)"):
        labelled([0, 1], ["no"])


def test_numbers_are_no_labels_of_a_student_trained_on_names(labelled: ReadLabels) -> None:
    space = label_space(labelled(["no", "yes"]))
    with pytest.raises(CorpusError, match="training labels are names: no, yes"):
        label_values(labelled([0, 1]), space)


def test_a_number_of_classes_must_be_that_of_the_names(labelled: ReadLabels) -> None:
    with pytest.raises(CorpusError, match="num_labels is 5, but there are 2 label names: no, yes"):
        label_space(labelled(["no", "yes"]), num_labels=5)


def test_a_negative_label_tells_what_a_missing_one_is(labelled: ReadLabels) -> None:
    with pytest.raises(CorpusError, match=r"label -1 is not a whole number from 0 \(a missing"):
        label_space(labelled([0, -1]))
