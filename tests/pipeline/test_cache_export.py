"""`armada cache export`: row for row the corpus, opened by the libraries people use."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from armada.cache_schemas.features import FeatureSpec
from armada.cache_schemas.keys import example_key
from armada.pipeline.caches import export_formats, export_rows
from armada.stages.store.writing.writer import CacheWriter
from command_line import CommandLine
from small_caches import answer, commit, keys_of, make_manifest, numbered_texts

FEATURES = (
    FeatureSpec(name="pooled", shape=(5,), dtype="float16"),
    FeatureSpec(name="grid", shape=(2, 3), dtype="float32", description="two by three"),
    FeatureSpec(name="score", shape=(), dtype="float32"),
)
TEXTS = numbered_texts(0, 150)
ORDER = np.random.default_rng(0).permutation(200) % 150
"""Of the corpus: not that of the cache, and some texts come twice."""
CORPUS = [TEXTS[i] for i in ORDER]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    with CacheWriter(tmp_path / "cache", make_manifest(FEATURES, rows_per_shard=64)) as writer:
        for start in range(0, 150, 64):
            commit(writer, TEXTS[start : start + 64])
    return tmp_path / "cache"


@pytest.fixture
def words(cache: Path, write_parquet: Callable[..., str], tmp_path: Path) -> list[Any]:
    """The command, but for the format."""
    columns = {"name": [f"n{i}" for i in range(200)], "text": CORPUS, "label": list(range(200))}
    files = [
        write_parquet(str(start), {name: values[start:stop] for name, values in columns.items()})
        for start, stop in ((0, 120), (120, 200))
    ]
    corpus = [word for file in files for word in ("--corpus", file)]
    columns_of = ["--text-column", "text", "--label-column", "label", "--id-column", "name"]
    output = ["--output", tmp_path / "out", "--quiet"]
    return ["cache", "export", cache, *corpus, *columns_of, *output, "--format"]


def hexed(texts: list[str]) -> list[str]:
    return [example_key(text).hex() for text in texts]


def check(columns: dict[str, Any]) -> None:
    """Whether columns are the corpus with its features; these as [200, ...] arrays."""
    assert list(columns["text"]) == CORPUS
    assert list(columns["label"]) == list(range(200))
    assert list(columns["name"]) == [f"n{i}" for i in range(200)]
    assert list(columns["key"]) == hexed(CORPUS)
    for spec in FEATURES:
        values = np.stack(list(columns[spec.name]))
        np.testing.assert_array_equal(values, answer(spec, CORPUS).reshape(values.shape))


def test_parquet_holds_the_corpus_with_typed_features(
    armada: CommandLine, words: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_formats, "MAX_FILE_BYTES", 8_000)
    monkeypatch.setattr(export_rows, "BATCH_ROWS", 30)
    report = json.loads(armada.done(*words, "parquet", "--json"))
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == [f"part-{i:05d}-of-00002.parquet" for i in range(2)]
    assert (report["rows"], report["files"], report["skipped"]) == (200, 2, [])
    assert report["bytes"] == sum(file.stat().st_size for file in files)
    table = pyarrow.dataset.dataset(files).to_table()
    assert table.schema.field("pooled").type == pa.list_(pa.float16(), 5)
    assert table.schema.field("grid").type == pa.list_(pa.float32(), 6)
    assert table.schema.field("score").type == pa.float32()
    assert json.loads(table.schema.field("grid").metadata[b"shape"]) == [2, 3]
    groups = pq.ParquetFile(files[0]).metadata
    assert {groups.row_group(i).num_rows for i in range(groups.num_row_groups)} == {30}
    check({name: table[name].to_pylist() for name in table.column_names})


def test_datasets_opens_a_train_split(
    armada: CommandLine, words: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for switch in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(switch, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    import datasets

    armada.done(*words, "datasets")
    opened = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "home"))
    assert list(opened) == ["train"]
    train = opened["train"]
    types = {name: str(feature) for name, feature in train.features.items()}
    assert types["pooled"] == "List(Value('float16'), length=5)"
    assert types["grid"] == "List(Value('float32'), length=6)"
    assert types["score"] == "Value('float32')"
    assert types["label"] == "Value('int64')"
    check(train.to_dict())
    assert "`grid`: float32[2, 3], two by three" in (tmp_path / "out" / "README.md").read_text()


def test_numpy_opens_arrays_in_the_order_of_the_corpus(
    armada: CommandLine, words: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_rows, "BATCH_ROWS", 30)
    del words[words.index("--label-column") : words.index("--label-column") + 2]
    armada.done(*words, "npy", "--feature", "grid", "--feature", "score")
    out = tmp_path / "out"
    names = ["features_grid.npy", "features_score.npy", "ids.txt", "keys.npy"]
    assert sorted(file.name for file in out.iterdir()) == names
    for spec in FEATURES[1:]:
        array = np.load(out / f"features_{spec.name}.npy", mmap_mode="r", allow_pickle=False)
        np.testing.assert_array_equal(array, answer(spec, CORPUS), strict=True)
    np.testing.assert_array_equal(np.load(out / "keys.npy", allow_pickle=False), keys_of(CORPUS))
    assert (out / "ids.txt").read_text().split() == [f"n{i}" for i in range(200)]


def test_rows_that_are_not_cached_are_named_or_left_out(
    armada: CommandLine, refused: Callable[..., str], words: list[Any], write_parquet: Any
) -> None:
    more = write_parquet(
        "more", {"text": ["new", CORPUS[0], "newer"], "name": list("xyz"), "label": [0, 1, 2]}
    )
    words = [*words, "parquet", "--corpus", more]
    told = refused(*words)
    assert "2 of 203 rows are not in the cache of teacher" in told
    assert "more.parquet row 1 (id 'x'); " in told
    assert "more.parquet row 3 (id 'z')" in told
    result = armada(*words, "--skip-bad-rows", "--json")
    report = json.loads(result.out)
    assert report["rows"] == 201
    assert report["skipped"] == [
        f"{more} row 1 (id 'x'): not in the cache",
        f"{more} row 3 (id 'z'): not in the cache",
    ]
    assert "warning: 2 rows were skipped" in result.err
    table = pyarrow.dataset.dataset(Path(report["output"])).to_table()
    assert table["text"].to_pylist() == [*CORPUS, CORPUS[0]]


def test_nothing_is_written_over(
    refused: Callable[..., str], words: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert "out: is not empty; choose another folder" in refused(*words, "npy")


def test_an_empty_folder_is_taken(armada: CommandLine, words: list[Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    armada.done(*words, "parquet")
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_what_fails_half_way_leaves_nothing(
    armada: CommandLine, words: list[Any], cache: Path, tmp_path: Path
) -> None:
    (file,) = cache.glob("teachers/*/grid/c/1/0/0")
    file.write_bytes(file.read_bytes()[:-1])
    before = sorted(tmp_path.rglob("*"))
    assert armada(*words, "parquet").code == 1
    assert sorted(tmp_path.rglob("*")) == before


REFUSALS: dict[str, tuple[list[str], str]] = {
    "a format": (
        ["csv"],
        "job key 'format': 'csv': Input should be 'parquet', 'datasets' or 'npy'",
    ),
    "a feature": (["npy", "--feature", "nope", "--set", "label_column=null"], "feature 'nope'"),
    "labels as npy": (["npy"], "'label_column': format npy holds no labels"),
    "a column called as a feature": (
        ["parquet", "--set", "text_column=score"],
        "column 'score': a feature has this name",
    ),
    "ids of two lines": (
        ["npy", "--set", "label_column=null", "--set", "id_column=lines"],
        "row 3: id 'two\\nlines' is no line of ids.txt",
    ),
}


@pytest.mark.parametrize(("more", "told"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_exported_is_refused(
    refused: Callable[..., str], words: list[Any], write_parquet: Any, more: list[str], told: str
) -> None:
    lines = ["a", "b", "two\nlines"]
    columns = {
        "text": TEXTS[:3],
        "score": TEXTS[:3],
        "lines": lines,
        "name": lines,
        "label": [1, 2, 3],
    }
    corpus = write_parquet("odd", columns)
    words = [word for word in words if ".parquet" not in str(word) and word != "--corpus"]
    assert told in refused(*words, *more, "--corpus", corpus)


def test_vectors_may_be_exported_as_codes(
    armada: CommandLine, words: list[Any], tmp_path: Path, refused: Callable[..., str]
) -> None:
    from sentence_transformers.util.quantization import quantize_embeddings

    vectors = answer(FEATURES[0], CORPUS).astype(np.float32)
    words = [*words, "npy", "--feature", "pooled"]
    at = words.index("--label-column")  # which npy holds none of
    words = [*words[:at], *words[at + 2 :]]
    output = words.index(tmp_path / "out")

    def exported(name: str, *settings: str) -> Path:
        told = [word for each in settings for word in ("--set", each)]
        armada.done(*words[:output], tmp_path / name, *words[output + 1 :], *told)
        return tmp_path / name

    folder = exported("int8", "precision=int8")
    ranges = np.load(folder / "ranges_pooled.npy")
    np.testing.assert_array_equal(ranges, [vectors.min(axis=0), vectors.max(axis=0)])
    found = np.load(folder / "features_pooled.npy")
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, quantize_embeddings(vectors, "int8", ranges=ranges))
    again = exported("uint8", "precision=uint8", f"ranges={folder / 'ranges_pooled.npy'}")
    found = np.load(again / "features_pooled.npy")
    np.testing.assert_array_equal(found, quantize_embeddings(vectors, "uint8", ranges=ranges))
    bits = exported("bits", "precision=ubinary", "truncate_dim=3")
    found = np.load(bits / "features_pooled.npy")
    np.testing.assert_array_equal(found, quantize_embeddings(vectors[:, :3], "ubinary"))
    assert not (bits / "ranges_pooled.npy").exists()
    whole = exported("cut", "truncate_dim=3")
    found = np.load(whole / "features_pooled.npy")
    cosines = (found * vectors[:, :3]).sum(axis=1)
    cosines /= np.linalg.norm(found, axis=1) * np.linalg.norm(vectors[:, :3], axis=1)
    np.testing.assert_allclose(cosines, 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(vectors, axis=1), 1e-5)

    words[output] = tmp_path / "no"
    np.save(tmp_path / "wrong.npy", np.zeros((2, 4), np.float32))
    (tmp_path / "text.npy").write_text("no array")
    for settings, told in {
        ("precision=int8", f"ranges={tmp_path / 'wrong.npy'}"): "ranges of int8: [2, 4]; it takes",
        ("precision=int8", f"ranges={tmp_path / 'text.npy'}"): "is no .npy file of numbers",
        ("precision=binary", f"ranges={tmp_path / 'wrong.npy'}"): "ranges: are those of int8",
        ("truncate_dim=5",): "truncate_dim 5: feature 'pooled' has 5 numbers; choose fewer",
    }.items():
        assert told in refused(*words, *(word for each in settings for word in ("--set", each)))
    line = refused(*words, "--feature", "grid", "--set", "precision=int8")
    assert "are of vectors, and feature 'grid' is float32[2, 3]" in line


def test_codes_in_parquet_are_typed_and_told(
    armada: CommandLine, words: list[Any], tmp_path: Path
) -> None:
    armada.done(*words, "datasets", "--feature", "pooled", "--set", "precision=binary")
    table = pyarrow.dataset.dataset(tmp_path / "out" / "data").to_table()
    assert table["pooled"].type == pa.list_(pa.int8(), 1)
    told = (tmp_path / "out" / "README.md").read_text()
    assert "- `pooled`: binary codes of 5 numbers" in told
