"""Rows are checked once: bad ones stop the run and are named, or are left out and listed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from armada.cache_schemas.errors import CorpusError
from armada.cache_schemas.keys import example_key
from armada.stages.corpus.corpus import read_corpus

WriteParquet = Callable[[str, dict[str, Any]], str]

BAD_ROWS: dict[str, tuple[dict[str, Any], list[int], str]] = {
    "null": ({"a": ["x", None], "b": ["y", "z"]}, [2], "row 2: column 'a' is null"),
    "empty": ({"a": ["", "x"], "b": ["y", "z"]}, [1], "row 1: column 'a' is empty"),
    "blank": ({"a": ["x", "y"], "b": ["z", " \t\n\u3000"]}, [2], "row 2: column 'b' is empty"),
    "several": (
        {"a": ["x", None, "y", ""], "b": ["x", "x", "y", None]},
        [2, 4],
        r"row 2: column 'a' is null \(2 such rows\)",
    ),
    "repeated id": (
        {"a": ["x", "y", "z", "x"], "b": ["x"] * 4, "id": [7, 8, 7, 7]},
        [3, 4],
        r"row 3: id '7' is also that of row 1 \(2 such rows\)",
    ),
    "null ids": (
        {"a": ["x", "y"], "b": ["x", "y"], "id": [None, None]},
        [2],
        "row 2: id None is also that of row 1",
    ),
}
CASES = pytest.mark.parametrize(("columns", "rows", "message"), BAD_ROWS.values(), ids=BAD_ROWS)


@CASES
def test_bad_rows_stop_the_run(
    write_parquet: WriteParquet, columns: dict[str, Any], rows: list[int], message: str
) -> None:
    with pytest.raises(CorpusError, match=f"{message}; fix the file, or set skip_bad_rows"):
        read_corpus([write_parquet("bad", columns)], ["a", "b"])


@CASES
def test_bad_rows_are_left_out_and_listed(
    write_parquet: WriteParquet, columns: dict[str, Any], rows: list[int], message: str
) -> None:
    good = write_parquet("good", {"a": ["first"], "b": ["first"]})
    bad = write_parquet("bad", columns)
    corpus = read_corpus([good, bad], ["a", "b"], skip_bad_rows=True)
    kept = [row for row in range(len(columns["a"])) if row + 1 not in rows]
    expected = [("first", "first"), *((columns["a"][row], columns["b"][row]) for row in kept)]
    assert corpus.examples(np.arange(len(corpus))) == expected
    assert [line.partition(":")[0] for line in corpus.skipped] == [
        f"corpus {bad} row {row}" for row in rows
    ]
    # Numbers of rows are those of the file.
    assert corpus.number_of_row.tolist() == [0, *kept]


def test_a_corpus_of_bad_rows_only_is_refused(write_parquet: WriteParquet) -> None:
    path = write_parquet("bad", {"a": pa.nulls(3)})
    with pytest.raises(CorpusError, match="holds no rows to use"):
        read_corpus([path], ["a"], skip_bad_rows=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_columns": ["sentense"]}, "no column 'sentense'; did you mean 'sentence'?"),
        ({"text_columns": ["xyz"]}, "no column 'xyz'; it has sentence, label, id"),
        ({"label_column": "labels"}, "no column 'labels'; did you mean 'label'?"),
        ({"id_column": "idx"}, "no column 'idx'; did you mean 'id'?"),
        ({"text_columns": []}, "give at least one of each"),
        ({"text_columns": ["sentence", "sentence"]}, "no column twice"),
        ({"text_columns": ["label"]}, "column 'label' holds int64, not text"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_columns_that_are_not_there_are_refused(
    write_parquet: WriteParquet, options: dict[str, Any], message: str
) -> None:
    path = write_parquet("rows", {"sentence": ["x"], "label": [1], "id": ["r1"]})
    with pytest.raises(CorpusError) as caught:
        read_corpus([path], **{"text_columns": ["sentence"]} | options)
    assert message in str(caught.value)


def test_no_corpus_is_refused() -> None:
    with pytest.raises(CorpusError, match="give at least one of each"):
        read_corpus([], ["a"])


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_a_limit_is_one_of_each_file(write_parquet: WriteParquet, limit: int) -> None:
    one = write_parquet("one", {"a": ["x", "y", "z"]})
    other = write_parquet("other", {"a": ["u"]})
    assert len(read_corpus([one, other], ["a"], limit=limit)) == min(limit, 3) + 1


def test_rows_beyond_the_limit_are_not_checked(write_parquet: WriteParquet) -> None:
    assert len(read_corpus([write_parquet("rows", {"a": ["x", None]})], ["a"], limit=1)) == 1


def test_ids_are_in_the_words_for_a_row(write_parquet: WriteParquet) -> None:
    named = write_parquet("named", {"a": ["x", "y"], "name": ["n1", "n2"]})
    assert read_corpus([named], ["a"], id_column="name").where(1) == f"{named} row 2 (id 'n2')"
    numbered = write_parquet("numbered", {"a": ["x"], "id": [17]})
    bare = write_parquet("bare", {"a": ["z"]})
    both = read_corpus([bare, numbered], ["a"])
    assert both.where(1) == f"{numbered} row 1 (id '17')"


def test_the_same_id_in_two_files_is_fine(write_parquet: WriteParquet) -> None:
    one = write_parquet("one", {"a": ["x"], "id": [1]})
    other = write_parquet("other", {"a": ["y"], "id": [1]})
    assert len(read_corpus([one, other], ["a"])) == 2


INSTRUCTIONS = {
    "instruction": ["say", "tell", "sum", None],
    "context": ["here", "", None, " "],
    "response": ["a", "b", "c", ""],
}


def test_a_column_with_a_question_mark_may_be_blank(write_parquet: WriteParquet) -> None:
    three = {name: values[:3] for name, values in INSTRUCTIONS.items()}
    source = write_parquet("three", three)
    corpus = read_corpus([source], ["instruction", "context?", "response"])
    expected = [("say", "here", "a"), ("tell", "", "b"), ("sum", "", "c")]
    assert corpus.examples(np.arange(3)) == expected
    np.testing.assert_array_equal(corpus.keys()[1], list(example_key(expected[1])))
    with pytest.raises(CorpusError, match="row 2: column 'context' is empty"):
        read_corpus([source], ["instruction", "context", "response"])


def test_a_row_of_blanks_is_no_example(write_parquet: WriteParquet) -> None:
    source = write_parquet("all", INSTRUCTIONS)
    columns = ["instruction?", "context?", "response?"]
    with pytest.raises(CorpusError, match=r"row 4: all of its columns are empty"):
        read_corpus([source], columns)
    assert len(read_corpus([source], columns, skip_bad_rows=True)) == 3


def test_a_column_is_not_named_twice_with_and_without_the_mark(
    write_parquet: WriteParquet,
) -> None:
    with pytest.raises(CorpusError, match="no column twice"):
        read_corpus([write_parquet("all", INSTRUCTIONS)], ["context?", "context"])
