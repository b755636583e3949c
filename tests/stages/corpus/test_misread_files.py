"""Files that are not quite what they seem: each is refused in a line that says what to do."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from armada.cache_schemas.errors import CorpusError
from armada.stages.corpus.corpus import read_corpus
from armada.stages.corpus.files import require_use
from armada.stages.corpus.hub_datasets import in_memory
from armada.stages.corpus.labels import label_space, label_values
from armada.stages.corpus.text_files import TextFormat

ROWS = [{"text": "Grüße", "label": 0}, {"text": "日本", "label": 1}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
WRITTEN = {
    "csv": "text,label\nGrüße,0\n日本,1\n",
    "tsv": "text\tlabel\nGrüße\t0\n日本\t1\n",
    "jsonl": LINES,
    "json": json.dumps(ROWS, ensure_ascii=False),
}
UNMARKED = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")


def refusal(source: object, form: TextFormat = TextFormat()) -> str:  # noqa: B008
    with pytest.raises(CorpusError) as caught:
        read_corpus([str(source)], ["text"], form=form)
    return str(caught.value)


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("encoding", UNMARKED)
def test_zero_bytes_tell_an_encoding_without_a_mark(
    tmp_path: Path, kind: str, encoding: str
) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(WRITTEN[kind].encode(encoding))
    wrong = [None, "utf-8", "latin-1", "utf-16", "utf-16-le", "utf-16-be"]
    for declared in wrong:
        if declared != encoding:
            assert f"set encoding={encoding}" in refusal(path, TextFormat(declared)), declared
    corpus = read_corpus([str(path)], ["text"], form=TextFormat(encoding))
    assert corpus.segments[0].to_pylist() == [row["text"] for row in ROWS]


def test_a_zero_byte_in_a_text_is_no_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text\na\0b\n")
    assert read_corpus([str(tmp_path / "a.csv")], ["text"]).segments[0].to_pylist() == ["a\0b"]


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "ascii", "utf-7"])
def test_utf_8_that_is_declared_otherwise(tmp_path: Path, kind: str, encoding: str) -> None:
    (tmp_path / f"a.{kind}").write_text(WRITTEN[kind], encoding="utf-8")
    told = refusal(tmp_path / f"a.{kind}", TextFormat(encoding))
    assert f"is not {encoding} (" in told
    assert told.endswith("it looks like utf-8: leave encoding out")


JSON = {
    "an empty array": ("[ ]", "its array is empty; name another file"),
    "nothing": ("", "Empty JSON file; name one with rows"),
    "blank lines": ("\n \n", "Empty JSON file; name one with one object per row"),
    "objects of nothing": ("{}\n{}\n", "Empty JSON file; name one with one object per row"),
    "a cut array": (json.dumps(ROWS)[:-9], "row 2: .*; the file is truncated: write it again"),
    "a cut text": (json.dumps(ROWS)[:-22], "row 2: .*; the file is truncated: write it again"),
    "a comma too many": ('[{"text": "x"},]', "row 2: cannot be read: .*; fix the file"),
    "rows in a field": (json.dumps({"data": ROWS}), "the rows are in its 'data': make that array"),
    "deeper": (json.dumps({"v": 1, "a": {"rows": ROWS}}, indent=1), "rows are in its 'rows': make"),
    "rows with names": (
        json.dumps(dict(zip("01", ROWS, strict=True))),
        r"names \('0', ...\): make",
    ),
    "columns": (json.dumps({"text": ["x", "y"]}), "holds list<.*>, not text; write a row for each"),
    "texts": ('["x", "y"]', r'row 1: is not an object .* but "x"; make .* such as {"text": "..."}'),
    "numbers": ('[{"text": "x"}, 1]', "row 2: is not an object of columns, but 1; make"),
    "arrays": (
        json.dumps([ROWS]),
        r'row 1: is not an object .* but \[{"text": "Grü.*; make each row',
    ),
    "lines of texts": ('"x"\n"y"\n', 'row 1: is not an object .* but "x"; make each row an object'),
    "lines of arrays": (
        '["x", 1]\n["y", 2]\n',
        'row 1: is not an object .* but "x"; make each row an',
    ),
    "two arrays": ('[{"text": "x"}]\n[{"text": "y"}]\n', r"after the end of its array \(row 1\)"),
    "a number": ("3", "row 1: is not an object of columns, but 3; make each row"),
}


@pytest.mark.parametrize("ending", ["json", "jsonl"])
@pytest.mark.parametrize(("content", "told"), JSON.values(), ids=JSON)
def test_json_of_another_shape(tmp_path: Path, ending: str, content: str, told: str) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CorpusError, match=told):
        read_corpus([str(path)], ["text"])


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_lines_and_arrays_go_by_either_name(tmp_path: Path, ending: str) -> None:
    for content in (WRITTEN["json"], WRITTEN["jsonl"]):
        (tmp_path / f"a.{ending}").write_text(content, encoding="utf-8")
        corpus = read_corpus([str(tmp_path / f"a.{ending}")], ["text"])
        assert corpus.segments[0].to_pylist() == [row["text"] for row in ROWS]


READ = """
import sys
from armada.cache_schemas.errors import CorpusError
from armada.stages.corpus.corpus import read_corpus
try:
    read_corpus(sys.argv[1:], ["text"])
except CorpusError as error:
    print(error)
"""


@pytest.mark.parametrize("content", ["null", 'null\n{"text": "x"}\n', "\n null\nnull\n"])
def test_a_row_that_is_null_does_not_end_the_process(tmp_path: Path, content: str) -> None:
    """Arrow's reader ends it by a signal if the first row is null."""
    (tmp_path / "a.jsonl").write_text(content)
    words = [sys.executable, "-c", READ, str(tmp_path / "a.jsonl")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "row 1: is not an object of columns, but null; make" in done.stdout


@pytest.mark.parametrize(
    "asked", ["spilt=train", "Split=train", "split", "split=", "split=train&limit=1", "name=x"]
)
@pytest.mark.parametrize("place", ["", "/*.csv"], ids=["folder", "glob"])
def test_what_is_no_split_is_said_to_be_none(tmp_path: Path, place: str, asked: str) -> None:
    (tmp_path / "train.csv").write_text("text\nx\n")
    told = refusal(f"{tmp_path}{place}?{asked}")
    assert "folders and globs take only ?split=NAME" in told
    assert told.endswith(f"'{tmp_path}{place}?split=train'")
    assert "check the pattern" in refusal(f"{tmp_path}/?.tsv")


def test_a_saved_data_set_is_of_one_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["x"]}, split="train").save_to_disk(tmp_path / "saved")
    assert len(read_corpus([f"{tmp_path}/saved?split=train"], ["text"])) == 1
    assert "has no split 'test'; it has train" in refusal(f"{tmp_path}/saved?split=test")


def test_what_no_file_has_is_not_set(tmp_path: Path) -> None:
    rows = pa.table({"text": ["x"]})
    pq.write_table(rows, tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "parts").mkdir()
    pq.write_table(rows, tmp_path / "parts" / "0.parquet")
    parquet, lines, folder = (str(tmp_path / name) for name in ("a.parquet", "a.jsonl", "parts"))
    encoding, delimiter = TextFormat("latin-1"), TextFormat(delimiter=";")
    tables = [in_memory(rows), "hf-dataset:name?split=train", "https://host/a.parquet?key=1"]
    for sources in ([parquet], [folder], [f"{tmp_path}/*.parquet"], [parquet, folder], tables):
        with pytest.raises(
            CorpusError, match=r"'latin-1': applies only to \.jsonl.* files, .* leave"
        ):
            require_use(encoding, sources)
    for sources in ([parquet], [lines], [folder, lines], tables):
        with pytest.raises(CorpusError, match=r"';': applies only to \.csv, \.tsv files, .* leave"):
            require_use(delimiter, sources)
    require_use(encoding, [parquet, lines])
    require_use(delimiter, [parquet, "https://host/a.csv"])
    require_use(delimiter, [str(tmp_path / "absent")])  # which is refused for what it is
    require_use(TextFormat(), [parquet])


@pytest.mark.parametrize(("known", "other"), [("bad", "bad "), ("very  bad", "very bad")])
def test_labels_that_differ_from_those_of_training_in_spaces(known: str, other: str) -> None:
    tables = [
        in_memory(pa.table({"text": ["x", "y"], "label": ["good", name]}))
        for name in (known, other)
    ]
    train, validation = (read_corpus([t], ["text"], label_column="label") for t in tables)
    with pytest.raises(
        CorpusError, match=f"row 2: label '{other}' .* differs from '{known}' only in s"
    ):
        label_values(validation, label_space(train))
