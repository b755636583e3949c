"""Every kind of corpus file gives the same examples; what cannot be read is named."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from armada.cache_schemas.errors import CorpusError
from armada.cache_schemas.keys import example_key
from armada.stages.corpus import json_files, text_files
from armada.stages.corpus.corpus import Corpus, corpus_name, read_corpus

ROWS = [
    {"a": "12", "b": "null", "label": 0},
    {"a": 'she said "no", twice', "b": "first line\nsecond line", "label": 1},
    {"a": "Grüße, 日本", "b": "NA", "label": 0},
    {"a": " spaced ", "b": "1e5", "label": 1},
]
TABLE = pa.Table.from_pylist(ROWS)
CSV = (
    'a,label,b\n12,0,null\n"she said ""no"", twice",1,"first line\nsecond line"\n'
    '"Grüße, 日本",0,NA\n spaced ,1,1e5\n'
)


def write_parquet(path: Path) -> None:
    pq.write_table(TABLE, path)


def write_text(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text, encoding="utf-8")


JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def compressed(write: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(write(JSONL.encode()))


def write_parquet_folder(path: Path) -> None:
    path.mkdir()
    pq.write_table(TABLE[:1], path / "part-0.parquet")
    pq.write_table(TABLE[1:], path / "part-1.parquet")


def write_saved_dataset(path: Path) -> None:
    """As `datasets.save_to_disk` does: Arrow streams, named in order by `state.json`."""
    path.mkdir()
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, part in zip(names, (TABLE[:3], TABLE[3:]), strict=True):
        with (
            pa.OSFile(str(path / name), "wb") as file,
            pa.ipc.new_stream(file, TABLE.schema) as out,
        ):
            out.write_table(part, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (path / "state.json").write_text(json.dumps(state))
    (path / "dataset_info.json").write_text("{}")


KINDS: dict[str, Callable[[Path], object]] = {
    "rows.parquet": write_parquet,
    "rows.jsonl": write_text(JSONL),
    "rows.ndjson": write_text(JSONL),
    "rows.json": write_text(JSONL),
    "rows.csv": write_text(CSV),
    "rows.CSV": write_text(CSV),
    "rows.bom.csv": write_text("\ufeff" + CSV),
    "rows.jsonl.gz": compressed(gzip.compress),
    "rows.jsonl.bz2": compressed(bz2.compress),
    "rows.jsonl.xz": compressed(lzma.compress),
    "parts": write_parquet_folder,
    "saved": write_saved_dataset,
}


def texts(corpus: Corpus) -> list[tuple[str, ...]]:
    return corpus.examples(np.arange(len(corpus)))


@pytest.mark.parametrize(("name", "write"), KINDS.items(), ids=KINDS)
def test_all_kinds_hold_the_same_examples(
    tmp_path: Path, name: str, write: Callable[[Path], object]
) -> None:
    write(tmp_path / name)
    corpus = read_corpus([str(tmp_path / name)], ["b", "a"], label_column="label")
    expected = [(row["b"], row["a"]) for row in ROWS]
    assert texts(corpus) == expected
    assert [example for batch in corpus.batches() for example in batch] == expected
    assert corpus.labels is not None
    assert corpus.labels.to_pylist() == [row["label"] for row in ROWS]
    assert corpus.keys().tobytes() == b"".join(map(example_key, expected))


def test_tab_separated_fields_are_never_quoted(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text('a\tb\n"stray\t5" pipe\nsaid "so"\tit\'s, "fine\n')
    assert texts(read_corpus([str(path)], ["a", "b"])) == [
        ('"stray', '5" pipe'),
        ('said "so"', "it's, \"fine"),
    ]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_rows_may_lie_across_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module in (json_files, text_files):
        monkeypatch.setattr(module, "BLOCK_BYTES", 100)
    rows = [f"row {number}\n, then 'this'\n" for number in range(100)]
    lines = [f'"{row}"\n' if name == "rows.csv" else json.dumps({"a": row}) + "\n" for row in rows]
    (tmp_path / name).write_text("".join(["a\n"] * (name == "rows.csv") + lines))
    assert texts(read_corpus([str(tmp_path / name)], ["a"])) == [(row,) for row in rows]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_a_text_may_be_long(tmp_path: Path, name: str) -> None:
    text = "word " * 600_000
    content = (
        f"a\n{text}\nshort\n" if name == "rows.csv" else f'{{"a":"{text}"}}\n{{"a":"short"}}\n'
    )
    (tmp_path / name).write_text(content)
    assert texts(read_corpus([str(tmp_path / name)], ["a"])) == [(text,), ("short",)]


def test_files_are_joined_in_the_order_given(tmp_path: Path) -> None:
    for name in ("rows.parquet", "rows.csv"):
        KINDS[name](tmp_path / name)
    sources = [str(tmp_path / "rows.csv"), str(tmp_path / "rows.parquet")]
    corpus = read_corpus(sources, ["a"], limit=3)
    assert texts(corpus) == [(row["a"],) for row in [*ROWS[:3], *ROWS[:3]]]
    assert corpus.source_of_row.tolist() == [0, 0, 0, 1, 1, 1]
    assert corpus.where(4) == f"{sources[1]} row 2"


def test_columns_that_are_not_asked_for_may_be_anything(tmp_path: Path) -> None:
    odd = pa.table({"a": ["x"], "id": [[1, 2]], "c": [{"d": None}], "c ": [b"\xff"]})
    pq.write_table(odd, tmp_path / "odd.parquet")
    with pytest.raises(CorpusError, match=r"column 'id' holds list<.*which cannot be an id"):
        read_corpus([str(tmp_path / "odd.parquet")], ["a"])
    pq.write_table(odd.drop_columns("id"), tmp_path / "odd.parquet")
    assert texts(read_corpus([str(tmp_path / "odd.parquet")], ["a"])) == [("x",)]


UNREADABLE: dict[str, tuple[str, bytes, str]] = {
    "cut archive": ("a.jsonl.gz", gzip.compress(JSONL.encode() * 99)[:-30], "cannot be read"),
    "damaged archive": ("a.jsonl.gz", gzip.compress(b"x")[:10] + b"\xff" * 20, "cannot be read"),
    "damaged xz": ("a.csv.xz", b"\xfd7zXZ\0" + b"0" * 50, "cannot be read"),
    "no archive": ("a.csv.gz", b"a\nx\n", "cannot be read"),
    "no Parquet": ("a.parquet", b"PAR1 and nothing else", "cannot be read"),
    "no JSON": ("a.jsonl", b'{"a": "x"}\n{"a": \n', "cannot be read"),
    "no UTF-8": ("a.csv", b"a\n\xff\xfe\n", "cannot be read.*UTF8"),
    "ragged": ("a.csv", b"a,b\nx,y\nz\n", "cannot be read.*Expected 2 columns, got 1"),
    "empty file": ("a.csv", b"", "cannot be read: Empty CSV"),
    "no rows": ("a.csv", b"a\n", "holds no rows to use"),
    "unknown kind": ("a.txt", b"x", r"unknown kind of file; name a \.parquet, \.jsonl"),
    "repeated column": ("a.csv", b"a,a\nx,y\n", "several columns 'a'"),
    "numbers in JSON": ("a.jsonl", b'{"a": 1}\n', "column 'a' holds int64, not text"),
}


@pytest.mark.parametrize(("name", "content", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message) as caught:
        read_corpus([str(tmp_path / name)], ["a"])
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


FOLDERS: dict[str, tuple[dict[str, str], str]] = {
    "splits": ({"dataset_dict.json": '{"splits": ["train", "test"]}'}, "name one: train, test"),
    "no splits": ({"dataset_dict.json": "{}"}, "cannot be read"),
    "no state": ({"state.json": "{}"}, "cannot be read"),
    "state is not JSON": ({"state.json": "{"}, "cannot be read"),
    "missing data file": ({"state.json": '{"_data_files": [{"filename": "x"}]}'}, "cannot be read"),
    "nothing": ({}, r"neither a saved dataset nor a folder of \*\.parquet"),
}


@pytest.mark.parametrize(("content", "message"), FOLDERS.values(), ids=FOLDERS)
def test_folders_that_cannot_be_read_are_named(
    tmp_path: Path, content: dict[str, str], message: str
) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CorpusError, match=message):
        read_corpus([str(tmp_path)], ["a"])


@pytest.mark.parametrize("source", ["absent.csv", "absent/", "nowhere://a/b.csv"])
def test_what_is_not_there_is_named(tmp_path: Path, source: str) -> None:
    where = source if "://" in source else str(tmp_path / source)
    with pytest.raises(CorpusError, match=r"absent|nowhere"):
        read_corpus([where], ["a"])


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    offsets = pa.py_buffer(np.array([0, 2], dtype="<i4").tobytes())
    wrong = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff\xfe")])
    pq.write_table(pa.table({"a": wrong}), tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match=r"a\.parquet row 1: column 'a' is not UTF-8.*as UTF-8"):
        read_corpus([str(tmp_path / "a.parquet")], ["a"])


@pytest.mark.parametrize(
    ("path", "name"),
    [("/data/glue/rte.csv", "rte.csv"), ("rte.csv", "rte.csv"), ("glue/rte/", "rte")],
)
def test_names_of_corpora_hold_no_folders_of_this_machine(path: str, name: str) -> None:
    assert corpus_name(path) == name


def test_text_types_make_no_difference(tmp_path: Path) -> None:
    words: list[Any] = ["x", "y", "x"]
    for kind in (
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
    ):
        pq.write_table(pa.table({"a": pa.array(words, kind)}), tmp_path / "a.parquet")
        assert texts(read_corpus([str(tmp_path / "a.parquet")], ["a"])) == [("x",), ("y",), ("x",)]


def test_json_texts_that_look_like_dates_stay_texts(tmp_path: Path) -> None:
    file = tmp_path / "dates.jsonl"
    file.write_text('{"text": "2020-01-02"}\n{"text": "2021-03-04"}\n')
    corpus = read_corpus([str(file)], ["text"])
    assert corpus.segments[0].to_pylist() == ["2020-01-02", "2021-03-04"]


def test_columns_that_nobody_asked_for_are_not_read(tmp_path: Path) -> None:
    """Features beside the texts may not fit into memory; here they cannot be read at all."""
    file = tmp_path / "a.parquet"
    columns = {"feature": [[1.0, 2.0]] * 3, "a": ["x", "y", "z"], "id": ["1", "2", "3"]}
    pq.write_table(pa.table(columns), file)
    chunk = pq.read_metadata(file).row_group(0).column(0)
    with file.open("r+b") as opened:
        opened.seek(chunk.dictionary_page_offset)
        opened.write(b"\xff" * chunk.total_compressed_size)
    with pytest.raises(CorpusError, match="cannot be read"):
        read_corpus([str(file)], ["a"], label_column="feature")
    corpus = read_corpus([str(file)], ["a"])
    assert texts(corpus) == [("x",), ("y",), ("z",)]
    assert corpus.ids is not None
