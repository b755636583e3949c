"""Labels of several numbers a row: classes that hold, probabilities, outputs of a regression."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from armada.cache_schemas.errors import CorpusError
from armada.stages.corpus.corpus import Corpus, read_corpus
from armada.stages.corpus.labels import (
    MISSING,
    LabelSpace,
    count_known,
    count_missing,
    is_missing,
    label_space,
    label_values,
    require_variety,
)

NAN = float("nan")
WriteParquet = Callable[[str, dict[str, Any]], str]
Read = Callable[..., Corpus]


@pytest.fixture
def labelled(write_parquet: WriteParquet) -> Read:
    """A corpus with such columns of labels."""

    def read(columns: dict[str, Any]) -> Corpus:
        texts = [f"text {i}" for i in range(len(next(iter(columns.values()))))]
        path = write_parquet("part", {"a": texts, **columns})
        return read_corpus([path], ["a"], label_column=tuple(columns))

    return read


def lists(values: Any, kind: Any = None) -> dict[str, Any]:
    return {"y": values if kind is None else pa.array(values, pa.list_(kind))}


GOOD: dict[str, tuple[Any, Any, LabelSpace, list[list[float]] | list[float]]] = {
    "names": (
        lists([["b", "a"], [], None, ["c"]]),
        None,
        LabelSpace(task="multilabel", num_labels=3, names=("a", "b", "c")),
        [[1, 1, 0], [0, 0, 0], [MISSING] * 3, [0, 0, 1]],
    ),
    "class numbers": (
        lists([[2, 0], [1]]),
        None,
        LabelSpace(task="multilabel", num_labels=3),
        [[1, 0, 1], [0, 1, 0]],
    ),
    "booleans": (
        lists([[True, False], [None, True], None]),
        None,
        LabelSpace(task="multilabel", num_labels=2),
        [[1, 0], [MISSING, 1], [MISSING, MISSING]],
    ),
    "zeros and ones": (
        lists([[1.0, 0.0], [NAN, -100.0]]),
        "multilabel",
        LabelSpace(task="multilabel", num_labels=2),
        [[1, 0], [MISSING, MISSING]],
    ),
    "columns": (
        {"rude": [1, 0, None], "kind": [0, 1, -100]},
        None,
        LabelSpace(task="multilabel", num_labels=2, names=("rude", "kind")),
        [[1, 0], [0, 1], [MISSING, MISSING]],
    ),
    "a field for each class": (
        {"y": [{"rude": True, "kind": None}, None, {"rude": False, "kind": True}]},
        None,
        LabelSpace(task="multilabel", num_labels=2, names=("rude", "kind")),
        [[1, MISSING], [MISSING, MISSING], [0, 1]],
    ),
    "probabilities": (
        lists([[0.25, 0.75], None, [0.333, 0.6666]], pa.float32()),
        "classification",
        LabelSpace(task="classification", num_labels=2),
        [[0.25, 0.75], [NAN, NAN], [0.333 / 0.9996, 0.6666 / 0.9996]],
    ),
    "columns of probabilities": (
        {"no": [0.5, 1.0], "yes": [0.5, 0.0]},
        "classification",
        LabelSpace(task="classification", num_labels=2, names=("no", "yes")),
        [[0.5, 0.5], [1, 0]],
    ),
    "outputs": (
        {"valence": [0.5, None], "arousal": [-2.0, 3.0]},
        "regression",
        LabelSpace(task="regression", num_labels=2, names=("valence", "arousal")),
        [[0.5, -2], [NAN, 3]],
    ),
    "lists of outputs": (
        {"y": pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2))},
        "regression",
        LabelSpace(task="regression", num_labels=2),
        [[1, 2], [3, 4]],
    ),
    "lists of one output": (
        lists([[1.5], [0.5], None]),
        "regression",
        LabelSpace(task="regression", num_labels=1),
        [1.5, 0.5, NAN],
    ),
}


@pytest.mark.parametrize(("columns", "task", "space", "values"), GOOD.values(), ids=GOOD)
def test_numbers_of_several_labels(
    labelled: Read, columns: Any, task: Any, space: LabelSpace, values: Any
) -> None:
    corpus = labelled(columns)
    assert label_space(corpus, task) == space
    found = label_values(corpus, space)
    assert found.dtype == (np.int8 if space.multilabel else np.float64)
    np.testing.assert_allclose(found, values, rtol=1e-6)
    require_variety(corpus, space, found)
    # Rows keep their labels when some of them are taken.
    np.testing.assert_array_equal(label_values(corpus.take(np.array([1, 0])), space), found[[1, 0]])


def test_labels_are_missing_by_number_and_by_row() -> None:
    values = np.array([[1, MISSING], [MISSING, MISSING], [0, 0]], dtype=np.int8)
    assert is_missing(values).tolist() == [False, True, False]
    assert (count_missing(values), count_known(values)) == (1, 3)
    soft = np.array([[0.5, 0.5], [NAN, NAN]])
    assert is_missing(soft).tolist() == [False, True]
    assert (count_missing(soft), count_known(soft)) == (1, 2)


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "floats of any task": (
        lists([[0.5, 0.5]]),
        {},
        "labels are lists of numbers; set task=regression, or task=classification",
    ),
    "columns of text": (
        {"p": ["x", "y"], "q": [0, 1]},
        {},
        "label column 'p' holds large_string, and several columns hold numbers, one for each class",
    ),
    "columns of any task": ({"p": [1, 5], "q": [0, 3]}, {}, "labels are columns of numbers; set"),
    "one label a row": ({"y": [1, 0]}, {"task": "multilabel"}, "int64, one a row; name a column"),
    "names to come near to": (lists([["a"]]), {"task": "regression"}, "lists of names, which"),
    "a class twice": (
        lists([[0, 1], [1, 1]]),
        {},
        r"row 2: label \[1, 1\] names a class twice; of",
    ),
    "a name twice": (lists([["a", "a"]]), {}, r"row 1: label \['a', 'a'\] names a class twice$"),
    "a negative class": (lists([[0], [-1]]), {}, r"row 2: label \[-1\]: a class is a whole number"),
    "beyond": (lists([[0], [7]]), {"num_labels": 3}, r"row 2: label \[7\]: a class is from 0 to 2"),
    "null among classes": (lists([[0, None]]), {}, r"row 1: label \[0, None\]: null among classes"),
    "null among names": (lists([["a", None]]), {}, r"row 1: label \['a', None\]: not one of a; a"),
    "spaces": (lists([["a b"], ["a  b"]]), {}, "label 'a  b' differs from 'a b' only in spaces"),
    "numbers and names": (lists([["1"], ["x"]]), {}, "labels mix numbers and names"),
    "other lengths": (
        lists([[True, False], [True]]),
        {},
        "row 2: label has 1 numbers, not 2, one for each class",
    ),
    "neither 0 nor 1": (
        {"p": [0.0, 1.0], "q": [1.0, 0.5]},
        {"task": "multilabel"},
        "row 2: label 0.5 of class 'q' is not 0 or 1",
    ),
    "no distribution": (
        lists([[0.5, 0.5], [0.5, 0.4]]),
        {"task": "classification"},
        "row 2: probabilities of 0, 1 add up to 0.9, not 1",
    ),
    "a negative probability": (
        {"p": [1.5], "q": [-0.5]},
        {"task": "classification"},
        "row 1: label -0.5 of class 'q' is not a probability, 0 to 1",
    ),
    "half a distribution": (
        lists([[1.0, None]]),
        {"task": "classification"},
        "row 1: label None of class '1' is not a probability",
    ),
    "one probability": (lists([[1.0]]), {"task": "classification"}, "one probability a row; name"),
    "infinite": (
        {"p": [1.0, float("inf")], "q": [0.0, 0.0]},
        {"task": "regression"},
        "row 2: label inf of output 'p' is not a finite number",
    ),
    "texts": ({"p": ["x"], "q": ["y"]}, {"task": "multilabel"}, "of column 'p': large_string, not"),
    "true and false to come near to": (
        lists([[True, False]]),
        {"task": "regression"},
        "labels are lists of bool, not numbers",
    ),
    "ids": (lists([[0], [123456]]), {}, "labels name a class 123456; set num_labels if there are"),
    "nothing": (lists([None, None], pa.int64()), {}, "no row has a label"),
    "empty lists": (lists([[], []], pa.string()), {}, "no row has a label"),
    "other number of names": (lists([["a"], ["b"]]), {"num_labels": 3}, "num_labels is 3, but"),
    "other number of columns": (
        {"p": [0], "q": [1]},
        {"num_labels": 3},
        "num_labels is 3, but there are 2 label names: p, q",
    ),
}


@pytest.mark.parametrize(("columns", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_several_labels_that_cannot_be_learnt_are_refused(
    labelled: Read, columns: Any, options: dict[str, Any], message: str
) -> None:
    corpus = labelled(columns)
    with pytest.raises(CorpusError, match=message):
        label_values(corpus, label_space(corpus, **options))


NAMED = LabelSpace(task="multilabel", num_labels=2, names=("kind", "rude"))
NUMBERED = LabelSpace(task="multilabel", num_labels=2)
OTHER_SPACE: dict[str, tuple[Any, LabelSpace, str]] = {
    "a new name": (
        lists([["kind"], ["odd"]]),
        NAMED,
        r"row 2: label \['odd'\]: not one of kind, rude",
    ),
    "numbers for names": (
        lists([[0]]),
        NAMED,
        "labels are large_list<.*>, but the training labels",
    ),
    "names for numbers": (lists([["kind"]]), NUMBERED, "but the training labels are class numbers"),
    "other columns": ({"kind": [1], "odd": [0]}, NAMED, "label columns are kind, odd, but"),
    "one label": ({"y": [1]}, NAMED, "one a row, but the task is multilabel of 2 classes"),
    "one number": (
        {"y": [1.5]},
        LabelSpace(task="regression", num_labels=2),
        "one a row, but the task is regression of 2 outputs",
    ),
    "classes of a regression": (
        lists([["kind"]]),
        LabelSpace(task="regression", num_labels=2),
        "but the task is regression",
    ),
}


@pytest.mark.parametrize(("columns", "space", "message"), OTHER_SPACE.values(), ids=OTHER_SPACE)
def test_several_labels_of_another_space_are_refused(
    labelled: Read, columns: Any, space: LabelSpace, message: str
) -> None:
    with pytest.raises(CorpusError, match=message):
        label_values(labelled(columns), space)


def test_columns_are_found_by_the_names_of_classes(labelled: Read) -> None:
    corpus = labelled({"rude": [1, 0], "kind": [0, 0]})
    assert label_values(corpus, NAMED).tolist() == [[0, 1], [0, 0]]


def test_a_classifier_of_probabilities_also_meets_classes(labelled: Read) -> None:
    space = LabelSpace(task="classification", num_labels=2, names=("no", "yes"))
    assert label_values(labelled({"y": ["yes", "no"]}), space).tolist() == [1, 0]


def test_the_same_labels_in_all_rows_teach_nothing(labelled: Read) -> None:
    corpus = labelled({"p": [1, 1, None], "q": [0, 0, 0]})
    space = label_space(corpus)
    with pytest.raises(CorpusError, match="all rows have the same labels"):
        require_variety(corpus, space, label_values(corpus, space))


# --- text files


def test_a_separator_parts_names_in_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,y\none,kind; rude\ntwo,\nthree,;\nfour,kind\n")
    corpus = read_corpus([str(path)], ["a"], label_column="y", label_separator=";")
    space = label_space(corpus)
    assert space == NAMED
    assert label_values(corpus, space).tolist() == [[1, 1], [MISSING, MISSING], [0, 0], [1, 0]]


def test_a_separator_parts_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("a\ty\none\t0 2\ntwo\t1\n")
    corpus = read_corpus([str(path)], ["a"], label_column="y", label_separator=" ")
    assert label_values(corpus, label_space(corpus)).tolist() == [[1, 0, 1], [0, 1, 0]]
    path.write_text("a\ty\none\t0.5|\ntwo\t1|-2\n")
    corpus = read_corpus([str(path)], ["a"], label_column="y", label_separator="|")
    space = label_space(corpus, "regression")
    np.testing.assert_array_equal(label_values(corpus, space), [[0.5, NAN], [1, -2]])


@pytest.mark.parametrize(
    ("cells", "values"),
    [(("+1", "0"), [[0, 1], [1, 0]]), (("1_0 ;2", "3;4"), [[10, 2], [3, 4]])],
)
def test_numbers_as_python_reads_them(tmp_path: Path, cells: Any, values: Any) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,y\n" + "".join(f"x,{cell}\n" for cell in cells))
    corpus = read_corpus([str(path)], ["a"], label_column="y", label_separator=";")
    task = "regression" if ";" in cells[0] else None
    assert label_values(corpus, label_space(corpus, task)).tolist() == values


def test_a_separator_needs_text(labelled: Read, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "x", "y": 1}\n')
    message = "label_separator ';': column 'y' holds int64, not text; leave it out"
    with pytest.raises(CorpusError, match=message):
        read_corpus([str(path)], ["a"], label_column="y", label_separator=";")


def test_a_separator_leaves_lists_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,y\nx,p;q\n")
    (tmp_path / "rows.jsonl").write_text('{"a": "z", "y": ["q"]}\n')
    files = [str(tmp_path / name) for name in ("rows.csv", "rows.jsonl")]
    corpus = read_corpus(files, ["a"], label_column="y", label_separator=";")
    assert label_values(corpus, label_space(corpus)).tolist() == [[1, 1], [0, 1]]


def test_lists_of_json_may_be_empty_in_some_files(tmp_path: Path) -> None:
    files = []
    for number, rows in enumerate([[[], None], [["b"], ["a", "b"]], [None, None]]):
        files.append(str(tmp_path / f"{number}.jsonl"))
        lines = [json.dumps({"a": f"text {number} {i}", "y": y}) for i, y in enumerate(rows)]
        Path(files[-1]).write_text("\n".join(lines))
    corpus = read_corpus(files, ["a"], label_column="y")
    expected = [[0, 0], [MISSING] * 2, [0, 1], [1, 1], [MISSING] * 2, [MISSING] * 2]
    assert label_values(corpus, label_space(corpus)).tolist() == expected


def test_columns_may_be_empty_in_some_files(tmp_path: Path) -> None:
    for name, rows in (("a", "x,1,\ny,0,\n"), ("b", "z,0,1\n")):
        (tmp_path / f"{name}.csv").write_text(f"a,p,q\n{rows}")
    corpus = read_corpus(
        [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")], ["a"], label_column=("p", "q")
    )
    assert label_values(corpus, label_space(corpus)).tolist() == [
        [1, MISSING],
        [0, MISSING],
        [0, 1],
    ]
    with pytest.raises(CorpusError, match="no column 'r'"):
        read_corpus([str(tmp_path / "a.csv")], ["a"], label_column=("p", "r"))


def test_kinds_that_differ_by_file_are_refused(write_parquet: WriteParquet) -> None:
    files = [
        write_parquet("one", {"a": ["x"], "y": [["n"]]}),
        write_parquet("two", {"a": ["y"], "y": [[1]]}),
    ]
    with pytest.raises(CorpusError, match=r"mixed types \(large_list.*int64.*, large_list"):
        read_corpus(files, ["a"], label_column="y")
