"""What people have as data: JSON arrays, encodings, delimiters, globs, splits, nested columns."""

import codecs
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from armada.cache_schemas.errors import CorpusError
from armada.stages.corpus import json_files, text_files
from armada.stages.corpus.corpus import Corpus, read_corpus
from armada.stages.corpus.hub_datasets import in_memory
from armada.stages.corpus.text_files import TextFormat
from command_line import RUN

ROWS = [
    {"text": "Grüße; viel", "label": 0, "note": 1},
    {"text": "naïve\nlines", "label": 1, "note": 2},
    {"text": '2020-01-01 "said"', "label": 0, "note": 3},
]
TEXTS = [row["text"] for row in ROWS]


def texts(corpus: Corpus) -> list[str]:
    return [segments[0] for segments in corpus.examples(np.arange(len(corpus)))]


def csv_text(delimiter: str = ",") -> str:
    rows = [f'"{row["text"]}"'.replace(' "said"', ' ""said""') for row in ROWS]
    body = (f"{text}{delimiter}{row['label']}" for text, row in zip(rows, ROWS, strict=True))
    return "\n".join([f"text{delimiter}label", *body, ""])


JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
ARRAYS = {
    "compact": json.dumps(ROWS),
    "indented": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "loose": " \n [ " + " ,\n\n ".join(json.dumps(row, indent=1) for row in ROWS) + "\n ]\n ",
    "with a mark": "\ufeff" + json.dumps(ROWS),
}


@pytest.mark.parametrize("content", ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize("block", [1, 7, 64, 2**20])
def test_an_array_of_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, block: int
) -> None:
    for module in (json_files, text_files):
        monkeypatch.setattr(module, "READ_BYTES", block)
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    corpus = read_corpus([str(tmp_path / "a.json")], ["text"], label_column="label")
    assert texts(corpus) == TEXTS
    assert corpus.labels is not None
    assert corpus.labels.to_pylist() == [0, 1, 0]


def test_an_array_may_be_compressed(tmp_path: Path) -> None:
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(ARRAYS["indented"].encode()))
    assert texts(read_corpus([str(tmp_path / "a.json.gz")], ["text"])) == TEXTS


BAD_ARRAYS = {
    "an element that is no object": ('[{"text": "x"}, "y"]', 'row 2: is not an object.*"y"'),
    "no comma": ('[{"text": "x"} {"text": "y"}]', "row 2: cannot be read: no comma"),
    "a fault": ('[{"text": "x"}, {"text": y}, {"text": "zzzzzzzzzzzzzz"}]', "row 2: cannot be"),
    "cut": ('[{"text": "x"}, {"text": "y', "row 2: cannot be read: Unterminated string"),
    "no end": ('[{"text": "x"}', "row 2: cannot be read: the array has no end"),
    "nothing in it": ("[]", "Empty JSON file|its array is empty"),
}


@pytest.mark.parametrize(("content", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_an_array_with_a_fault_names_the_row(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(CorpusError, match=message):
        read_corpus([str(tmp_path / "a.json")], ["text"])


ENCODED: dict[str, tuple[str, bytes, TextFormat]] = {
    "utf-16 csv": ("a.csv", csv_text().encode("utf-16"), TextFormat()),
    "utf-16-be csv": ("a.csv", codecs.BOM_UTF16_BE + csv_text().encode("utf-16-be"), TextFormat()),
    "utf-32 csv": ("a.csv", csv_text().encode("utf-32"), TextFormat()),
    "utf-16 lines": ("a.jsonl", JSONL.encode("utf-16"), TextFormat()),
    "utf-16 array": ("a.json", ARRAYS["indented"].encode("utf-16"), TextFormat()),
    "utf-16-le by name": ("a.csv", csv_text().encode("utf-16-le"), TextFormat("utf-16-le")),
    "latin-1 csv": ("a.csv", csv_text().encode("latin-1"), TextFormat("latin-1")),
    "latin-1 gz": ("a.csv.gz", gzip.compress(csv_text().encode("latin-1")), TextFormat("latin-1")),
    "latin-1 lines": ("a.jsonl", JSONL.encode("latin-1"), TextFormat("cp1252")),
    "marked lines": ("a.jsonl", codecs.BOM_UTF8 + JSONL.encode(), TextFormat()),
    "semicolons": ("a.csv", csv_text(";").encode(), TextFormat(delimiter=";")),
    "tabs": ("a.csv", csv_text("\t").encode(), TextFormat(delimiter="\t")),
}


@pytest.mark.parametrize(("name", "content", "form"), ENCODED.values(), ids=ENCODED)
def test_encodings_and_delimiters(
    tmp_path: Path, name: str, content: bytes, form: TextFormat
) -> None:
    (tmp_path / name).write_bytes(content)
    corpus = read_corpus([str(tmp_path / name)], ["text"], label_column="label", form=form)
    assert texts(corpus) == TEXTS
    assert corpus.labels is not None
    assert corpus.labels.to_pylist() == [0, 1, 0]


FAULTS: dict[str, tuple[str, bytes, TextFormat, str]] = {
    "latin-1": ("a.csv", csv_text().encode("latin-1"), TextFormat(), "row 1: column 'text' is not"),
    "latin-1 after a long row": (
        "a.csv",
        b'text,label\n"two\nlines",0\nx,caf\xe9\n',
        TextFormat(),
        r"row 2: column 'label' is not UTF-8 .*encoding=latin-1",
    ),
    "latin-1 lines": ("a.jsonl", JSONL.encode("latin-1"), TextFormat(), "encoding=latin-1"),
    "semicolons": ("a.csv", b"text;label\nx;1\n", TextFormat(), r"it has text;label;.*=';'"),
    "semicolons and commas": ("a.csv", b"text;label\nx, y;1\n", TextFormat(), r"row 1: .*=';'"),
    "ragged": ("a.csv", b"text,label\nx,1\ny,z,1\n", TextFormat(), "row 2: has 3 fields and"),
    "not what was named": ("a.csv", b"text\n\xff\n", TextFormat("ascii"), "line 2: is not ascii"),
    "no such line": ("a.jsonl", b'{"text": "x"}\n{"text"\n', TextFormat(), "row 2: Expecting"),
    "two types": (
        "a.jsonl",
        b'{"text": "x"}\n{"text": 1}\n',
        TextFormat(),
        r"\(/text\) changed.*make each column one type",
    ),
}


@pytest.mark.parametrize(("name", "content", "form", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_names_row_and_remedy(
    tmp_path: Path, name: str, content: bytes, form: TextFormat, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message) as caught:
        read_corpus([str(tmp_path / name)], ["text"], label_column="label", form=form)
    assert str(tmp_path / name) in str(caught.value)


def write(path: Path, *words: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": list(words)}), path)
    else:
        path.write_text("\n".join(["text", *words, ""]))


SPLITS: dict[str, tuple[dict[str, str], str]] = {
    "shards": (
        {
            "train-00000-of-00002.parquet": "a",
            "train-00001-of-00002.parquet": "b",
            "validation_matched-00000-of-00001.parquet": "c",
            "test-00000-of-00001.parquet": "d",
        },
        "test, train, validation_matched",
    ),
    "files": ({"train.csv": "a", "dev.csv": "c", "test.csv": "d"}, "dev, test, train"),
    "names around": ({"sst_train_v1.csv": "a", "sst-val-v1.csv": "c"}, "val, train"),
    "folders": ({"train/0.parquet": "a", "eval/0.parquet": "c"}, "eval, train"),
    "below": ({"data/train-0.parquet": "a", "data/test-0.parquet": "c"}, "test, train"),
}


@pytest.mark.parametrize(("held", "names"), SPLITS.values(), ids=SPLITS)
def test_a_folder_of_splits_must_be_told_which(
    tmp_path: Path, held: dict[str, str], names: str
) -> None:
    for name, word in held.items():
        write(tmp_path / name, word)
    with pytest.raises(CorpusError, match=f"holds several splits; name one: {names} ") as caught:
        read_corpus([str(tmp_path)], ["text"])
    assert f"'{tmp_path}?split=train'" in str(caught.value)
    train = [word for name, word in held.items() if "train" in name]
    assert texts(read_corpus([f"{tmp_path}?split=train"], ["text"])) == train
    both = "+".join(names.split(", "))
    assert sorted(texts(read_corpus([f"{tmp_path}?split={both}"], ["text"]))) == sorted(
        held.values()
    )
    with pytest.raises(CorpusError, match="has no split 'tran'; it has"):
        read_corpus([f"{tmp_path}?split=tran"], ["text"])


def test_a_folder_without_splits_is_read_whole(tmp_path: Path) -> None:
    for name in ("part-0.csv", "part-1.csv", "contrain.csv"):
        write(tmp_path / name, name)
    corpus = read_corpus([str(tmp_path)], ["text"])
    assert texts(corpus) == ["contrain.csv", "part-0.csv", "part-1.csv"]
    assert corpus.where(2) == f"{tmp_path / 'part-1.csv'} row 1"
    write(tmp_path / "more.jsonl", "x")
    with pytest.raises(CorpusError, match=r"several kinds \(\.csv, \.jsonl\); name those to read"):
        read_corpus([str(tmp_path)], ["text"])


def test_saved_splits_are_named(tmp_path: Path) -> None:
    split = {
        name: datasets.Dataset.from_dict({"text": [f"{name} {n}" for n in range(3)]})
        for name in ("train", "test")
    }
    datasets.DatasetDict(split).save_to_disk(tmp_path / "saved")
    with pytest.raises(CorpusError, match="name one: train, test "):
        read_corpus([str(tmp_path / "saved")], ["text"])
    corpus = read_corpus([f"{tmp_path / 'saved'}?split=test"], ["text"])
    assert texts(corpus) == ["test 0", "test 1", "test 2"]


def test_globs(tmp_path: Path) -> None:
    for name in ("data/train-0.csv", "data/train-1.csv", "data/test-0.csv", "other/train-2.csv"):
        write(tmp_path / name, name, f"{name} again")
    read = {"data/train-*.csv": 4, "data/train-[01].csv": 4, "*/train-?.csv": 6}
    for pattern, rows in read.items():
        assert len(read_corpus([f"{tmp_path}/{pattern}"], ["text"])) == rows
    assert len(read_corpus([f"{tmp_path}/**/train-*.csv"], ["text"], limit=3)) == 3
    with pytest.raises(CorpusError, match="holds several splits"):
        read_corpus([f"{tmp_path}/data/*.csv"], ["text"])
    assert len(read_corpus([f"{tmp_path}/data/*.csv?split=test"], ["text"])) == 2
    with pytest.raises(CorpusError, match=r"train-\*\.tsv: no file matches"):
        read_corpus([f"{tmp_path}/data/train-*.tsv"], ["text"])
    odd = tmp_path / "odd[1].csv"
    write(odd, "x")
    assert texts(read_corpus([str(odd)], ["text"])) == ["x"]


def test_globs_of_urls() -> None:
    files = fsspec.filesystem("memory")
    for number in range(2):
        files.pipe(f"/globs/train-{number}.csv", f"text\nrow {number}\n".encode())
    corpus = read_corpus(["memory://globs/train-*.csv"], ["text"])
    assert texts(corpus) == ["row 0", "row 1"]
    assert corpus.where(1) == "memory:///globs/train-1.csv row 1"
    with pytest.raises(CorpusError, match="no file matches"):
        read_corpus(["memory://globs/test-*.csv"], ["text"])


def test_what_is_not_there_is_said_not_to_exist(tmp_path: Path) -> None:
    gone = r"a\.csv: cannot be read: there is no such file or folder$"
    with pytest.raises(CorpusError, match=gone):
        read_corpus([str(tmp_path / "a.csv")], ["text"])
    with pytest.raises(CorpusError, match=r"there is no such.*nor is there a folder .*/b"):
        read_corpus([str(tmp_path / "b" / "a.csv")], ["text"])


NESTED = [
    {"translation": {"en": "one", "de": {"text": "eins"}}, "meta": {"day": "2020-01-02", "y": 1}},
    {"translation": {"en": "two", "de": {"text": "zwei"}}, "meta": {"day": "2020-01-03", "y": 0}},
]


@pytest.fixture(params=["parquet", "jsonl", "memory"])
def nested(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    path = tmp_path / f"rows.{request.param}"
    if request.param == "parquet":
        pq.write_table(pa.Table.from_pylist(NESTED), path)
    elif request.param == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in NESTED))
    else:
        return in_memory(pa.Table.from_pylist(NESTED))
    return str(path)


def test_fields_of_nested_columns(nested: str) -> None:
    columns = ["translation.en", "translation.de.text", "meta.day"]
    corpus = read_corpus([nested], columns, label_column="meta.y")
    assert corpus.examples(np.arange(2)) == [
        ("one", "eins", "2020-01-02"),
        ("two", "zwei", "2020-01-03"),
    ]
    assert corpus.labels is not None
    assert corpus.labels.to_pylist() == [1, 0]
    with pytest.raises(CorpusError, match=r"one of its fields: translation\.en, translation\.de"):
        read_corpus([nested], ["translation"])
    with pytest.raises(CorpusError, match=r"no column 'translation\.fr'; column 'tran"):
        read_corpus([nested], ["translation.fr"])


def test_a_column_of_that_very_name_comes_first(tmp_path: Path) -> None:
    both = pa.table({"a.b": ["column", "x"], "a": [{"b": "field"}, None]})
    pq.write_table(both, tmp_path / "a.parquet")
    assert texts(read_corpus([str(tmp_path / "a.parquet")], ["a.b"])) == ["column", "x"]
    pq.write_table(both.drop_columns("a.b"), tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match=r"row 2: column 'a\.b' is null"):
        read_corpus([str(tmp_path / "a.parquet")], ["a.b"])


def test_bytes_that_are_texts(tmp_path: Path) -> None:
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view()):
        source = in_memory(pa.table({"text": pa.array([b"x", "é".encode()], kind)}))
        assert texts(read_corpus([source], ["text"])) == ["x", "é"]
    wrong = pa.table({"text": pa.array([b"x", b"\xe9"], pa.binary())})
    pq.write_table(wrong, tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match=r"a\.parquet row 2: column 'text' is not UTF-8 .*as UTF"):
        read_corpus([str(tmp_path / "a.parquet")], ["text"])


def categories() -> pa.Table:
    """Columns of categories as polars hands them over: dictionaries of string views."""
    columns = pa.Table.from_pylist(ROWS)
    return pa.table(
        {
            name: pa.DictionaryArray.from_arrays(
                pa.array(range(len(ROWS)), pa.uint32()),
                columns[name].combine_chunks().cast(pa.string_view()),
            )
            for name in ("text", "label")
        }
    )


TABLES: dict[str, Callable[[], Any]] = {
    "categories": categories,
    "Arrow table": lambda: pa.Table.from_pylist(ROWS),
    "data frame": lambda: pd.DataFrame(ROWS),
    "data set": lambda: datasets.Dataset.from_list(ROWS),
    "data set, chosen": lambda: datasets.Dataset.from_list(ROWS[::-1]).select([2, 1, 0]),
}


@pytest.mark.parametrize("make", TABLES.values(), ids=TABLES)
def test_tables_in_memory(make: Callable[[], Any]) -> None:
    corpus = read_corpus([in_memory(make())], ["text"], label_column="label")
    assert texts(corpus) == TEXTS
    assert corpus.where(1) == "table of 3 rows row 2"
    with pytest.raises(CorpusError, match="table of 3 rows: no column 'txt'; did you mean 'text'"):
        read_corpus([in_memory(make())], ["txt"])


@pytest.mark.parametrize("what", [3, {"text": ["x"]}, datasets.DatasetDict()])
def test_what_is_no_table_is_refused(what: Any) -> None:
    with pytest.raises(CorpusError, match=r"is not a table|is not a single table"):
        in_memory(what)


@pytest.mark.parametrize(
    "what",
    [
        pd.Series(["x", "y"]),
        pd.DataFrame({"text": ["x", 2]}),
        pd.DataFrame([["x", "y"]], columns=["text", "text"]),
    ],
    ids=["one column", "values of two types", "a name twice"],
)
def test_a_frame_that_is_no_table_is_refused_in_one_line(what: Any) -> None:
    with pytest.raises(CorpusError, match=r"cannot be read as a table: .*; pass a data f") as said:
        in_memory(what)
    assert "\n" not in str(said.value)


def test_an_id_may_not_come_twice_in_the_files_of_a_folder(tmp_path: Path) -> None:
    for number, ids in enumerate((["a", "b"], ["c", "a"])):
        pq.write_table(pa.table({"text": ["x", "y"], "id": ids}), tmp_path / f"{number}.parquet")
    with pytest.raises(
        CorpusError, match=r"1\.parquet row 2: id 'a' is also that of .*0\.parquet row"
    ):
        read_corpus([str(tmp_path)], ["text"])
    corpus = read_corpus([str(tmp_path)], ["text"], skip_bad_rows=True)
    assert corpus.number_of_row.tolist() == [0, 1, 2]
    assert len(corpus.skipped) == 1


BAD_FILES = {
    "empty.csv": b"",
    "latin.csv": b"text\ncaf\xe9\n",
    "semicolons.csv": b"text;label\nx;1\n",
    "cut.jsonl": b'{"text": \n',
    "cut.json": b'[{"text": "x"}, ',
}


def ends(tmp_path: Path, name: str, times: int) -> list[int]:
    """How a process ends, each of several times, that is refused a file."""
    (tmp_path / name).write_bytes(BAD_FILES[name])
    words = ["precompute", "--corpus", str(tmp_path / name), "--text-column", "text"]
    words = [sys.executable, "-c", RUN, *words, "--teacher", "hash:4", "--cache", str(tmp_path)]
    return [subprocess.run(words, capture_output=True).returncode for _ in range(times)]


def test_a_refused_file_ends_the_process_cleanly(tmp_path: Path) -> None:
    """Arrow's threads aborted it, three times in ten."""
    assert ends(tmp_path, "empty.csv", times=5) == [2] * 5


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD_FILES)
def test_a_refused_file_always_ends_the_process_cleanly(tmp_path: Path, name: str) -> None:
    assert ends(tmp_path, name, times=30) == [2] * 30
