"""`armada cache import`: features computed elsewhere become a cache that says what they are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from armada import open_cache
from armada.stages.store.format.manifests import list_teachers
from command_line import CommandLine
from small_caches import numbered_texts, stored_bytes
from tiny_runs import TEXTS as SENTENCES
from tiny_runs import class_labels

TEXTS = numbered_texts(0, 150)
IDS = [f"id-{number}" for number in range(150)]
ROWS = np.random.default_rng(3).standard_normal((150, 8)).astype(np.float32)
"""What was computed elsewhere for each text."""

Write = Callable[..., str]


@pytest.fixture
def corpus(write_parquet: Write) -> str:
    """Columns `text` and `id`."""
    return write_parquet("corpus", {"text": TEXTS, "id": IDS})


@pytest.fixture
def words(corpus: str, tmp_path: Path) -> Callable[..., list[Any]]:
    """The command that imports a source from the corpus."""

    def make(source: object, *more: object) -> list[Any]:
        start = ["cache", "import", tmp_path / "cache", source, "--name", "elsewhere"]
        return [*start, "--corpus", corpus, "--text-column", "text", "--quiet", *more]

    return make


def write_folder(folder: Path, rows: np.ndarray[Any, Any] = ROWS) -> Path:
    """One .npy file an example, as the paper's code leaves them."""
    folder.mkdir(exist_ok=True)
    for name, row in zip(IDS, rows, strict=False):
        np.save(folder / f"{name}.npy", row)
    return folder


def check(path: Path, rows: np.ndarray[Any, Any] = ROWS, texts: list[str] = TEXTS) -> None:
    cache = open_cache(path)
    assert len(cache) == len(texts)
    found = cache["embedding"][cache.lookup(texts)]
    np.testing.assert_array_equal(found, rows, strict=True)


def test_one_file_an_example(
    armada: CommandLine, words: Callable[..., list[Any]], tmp_path: Path
) -> None:
    source = write_folder(tmp_path / "features", ROWS.astype(np.float16))
    np.save(source / "of-nobody.npy", ROWS[0])
    result = armada(*words(source, "--declare", "model=sd v1-4", "--declare", "steps=20"))
    assert result.code == 0, result.err
    assert result.out.startswith("150 rows; 0 already cached, 150 imported as embedding\nteacher ")
    assert result.err == "warning: 1 of the features match no row of the corpus\n"
    check(tmp_path / "cache", ROWS.astype(np.float16))
    spec = open_cache(tmp_path / "cache").teacher.spec
    assert (spec.kind, spec.name, spec.weights) == ("imported", "elsewhere", {})
    assert spec.settings == {
        "name": "elsewhere",
        "layout": "npy_per_example",
        "model": "sd v1-4",
        "steps": 20,
    }
    assert spec.features[0].description == ""


def test_one_array_in_the_order_of_the_corpus(
    armada: CommandLine, words: Callable[..., list[Any]], tmp_path: Path
) -> None:
    np.save(tmp_path / "all.npy", np.asfortranarray(ROWS.reshape(150, 2, 4)))
    armada.done(*words(tmp_path / "all.npy", "--set", "rows_per_shard=64"))
    check(tmp_path / "cache", ROWS.reshape(150, 2, 4))
    cache = open_cache(tmp_path / "cache")
    assert [commit.rows for commit in cache.commits] == [64, 64, 22]
    assert cache.teacher.spec.settings["layout"] == "npy_rows"


def test_one_array_and_a_file_of_ids(
    armada: CommandLine, words: Callable[..., list[Any]], tmp_path: Path
) -> None:
    order = np.random.default_rng(1).permutation(150)
    np.save(tmp_path / "all.npy", ROWS[order].astype(">f4"))
    (tmp_path / "ids.txt").write_text("\r\n".join(IDS[i] for i in order) + "\r\n")
    armada.done(*words(tmp_path / "all.npy", "--ids", tmp_path / "ids.txt"))
    check(tmp_path / "cache")


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 8)])
def test_parquet_with_texts(armada: CommandLine, tmp_path: Path, kind: pa.DataType) -> None:
    for number, start in enumerate((0, 100)):
        part = {
            "text": TEXTS[start : start + 100],
            "vector": pa.array(list(ROWS[start : start + 100]), kind),
        }
        (tmp_path / "source").mkdir(exist_ok=True)
        pq.write_table(pa.table(part), tmp_path / "source" / f"{number}.parquet", row_group_size=7)
    words = ["cache", "import", tmp_path / "cache", tmp_path / "source", "--name", "x", "--quiet"]
    armada.done(*words, "--text-column", "text", "--column", "vector")
    check(tmp_path / "cache")


def test_parquet_with_single_numbers(
    armada: CommandLine, write_parquet: Write, tmp_path: Path
) -> None:
    source = write_parquet("source", {"text": TEXTS, "score": ROWS[:, 0].astype(np.float64)})
    words = ["cache", "import", tmp_path / "cache", source, "--name", "x", "--text-column", "text"]
    armada.done(*words, "--feature", "score", "--store-dtype", "float32", "--quiet")
    cache = open_cache(tmp_path / "cache")
    np.testing.assert_array_equal(cache["score"][cache.lookup(TEXTS)], ROWS[:, 0], strict=True)


def test_parquet_with_ids(
    armada: CommandLine, words: Callable[..., list[Any]], tmp_path: Path
) -> None:
    order = np.random.default_rng(1).permutation(150)
    vectors = pa.array(list(ROWS[order].astype(np.float16)), pa.large_list(pa.float16()))
    columns = {"id": [IDS[i] for i in order], "embedding": vectors}
    pq.write_table(pa.table(columns), tmp_path / "source.parquet", row_group_size=40)
    armada.done(*words(tmp_path / "source.parquet", "--set", "rows_per_shard=64"))
    check(tmp_path / "cache", ROWS.astype(np.float16))


def test_lists_that_cannot_be_kept_are_named_or_left_out(
    armada: CommandLine, write_parquet: Write, tmp_path: Path
) -> None:
    lists: list[Any] = [list(row) for row in ROWS[:10]]
    lists[0] = None
    lists[3], lists[6] = lists[3][:7], [*lists[6][:7], None]
    source = write_parquet(
        "source", {"text": TEXTS[:10], "embedding": pa.array(lists, pa.list_(pa.float32()))}
    )
    words = ["cache", "import", tmp_path / "cache", source, "--name", "x", "--text-column", "text"]
    told = armada(*words, "--quiet").error
    assert "3 rows have invalid features" in told
    assert "row 1: holds no list; " in told
    assert "row 4: holds 7 numbers, the first row 8; " in told
    assert "row 7: is not finite as float32" in told
    armada.done(*words, "--quiet", "--skip-bad-rows")
    kept = [1, 2, 4, 5, 7, 8, 9]
    check(tmp_path / "cache", ROWS[kept], [TEXTS[i] for i in kept])


def test_what_was_exported_can_be_imported(
    armada: CommandLine, words: Callable[..., list[Any]], corpus: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "all.npy", ROWS.astype(np.float16))
    armada.done(*words(tmp_path / "all.npy"))
    export = ["cache", "export", tmp_path / "cache", "--corpus", corpus, "--text-column", "text"]
    armada.done(*export, "--output", tmp_path / "out", "--format", "parquet", "--quiet")
    back = ["cache", "import", tmp_path / "back", tmp_path / "out", "--name", "back", "--quiet"]
    armada.done(*back, "--text-column", "text")
    check(tmp_path / "back", ROWS.astype(np.float16))


def test_the_same_declarations_again_add_what_is_missing(
    armada: CommandLine, words: Callable[..., list[Any]], tmp_path: Path
) -> None:
    source = write_folder(tmp_path / "features", ROWS[:100])
    first = json.loads(armada.done(*words(source, "--skip-bad-rows", "--json")))
    assert (first["imported"], len(first["skipped"])) == (100, 50)
    write_folder(source)
    second = json.loads(armada.done(*words(source, "--json")))
    assert (second["imported"], second["already_cached"]) == (50, 100)
    assert second["fingerprint"] == first["fingerprint"]
    check(tmp_path / "cache")
    before = stored_bytes(tmp_path / "cache")
    assert json.loads(armada.done(*words(source, "--json")))["imported"] == 0
    assert stored_bytes(tmp_path / "cache") == before


def test_other_declarations_are_other_teachers(
    armada: CommandLine,
    words: Callable[..., list[Any]],
    refused: Callable[..., str],
    tmp_path: Path,
) -> None:
    source = write_folder(tmp_path / "features")
    armada.done(*words(source, "--declare", "steps=20"))
    told = refused(*words(source, "--declare", "steps=50"))
    assert "holds an import named 'elsewhere'" in told
    assert "steps: cached 20, requested 50" in told
    armada.done(*words(source, "--set", "name=other"))
    assert len({known.fingerprint for known in list_teachers(tmp_path / "cache")}) == 2


def test_the_run_says_what_is_known(
    armada: CommandLine, words: Callable[..., list[Any]], tmp_path: Path
) -> None:
    np.save(tmp_path / "all.npy", ROWS)
    armada.done(*words(tmp_path / "all.npy"))
    (run,) = open_cache(tmp_path / "cache").runs()
    assert [(c.name, c.rows, c.unique_examples) for c in run.corpora] == [
        ("corpus.parquet", 150, 150)
    ]
    assert (run.teacher_seconds, run.hardware) == ({0: 0.0}, {})
    assert set(run.versions) == {"python", "armada-kd", "numpy", "pyarrow"}


def test_rows_that_repeat_a_text_share_features(
    armada: CommandLine, write_parquet: Write, tmp_path: Path
) -> None:
    corpus = write_parquet("twice", {"text": ["a", "b", "a"]})
    np.save(tmp_path / "all.npy", ROWS[:3])
    words = ["cache", "import", tmp_path / "cache", tmp_path / "all.npy", "--name", "x", "--quiet"]
    result = armada(*words, "--corpus", corpus, "--text-column", "text")
    assert result.err == "warning: 1 rows repeat the text of another row and share its features\n"
    check(tmp_path / "cache", ROWS[:2], ["a", "b"])


def test_rows_without_features_are_named_or_left_out(
    armada: CommandLine,
    words: Callable[..., list[Any]],
    refused: Callable[..., str],
    tmp_path: Path,
) -> None:
    source = write_folder(tmp_path / "features")
    (source / "id-3.npy").unlink()
    (source / "id-140.npy").unlink()
    told = refused(*words(source))
    assert f"2 of 150 rows have no features in {source}" in told
    assert "corpus.parquet row 4 (id 'id-3'); " in told
    report = json.loads(armada.done(*words(source, "--skip-bad-rows", "--json")))
    assert report["imported"] == 148
    assert [row.partition(": ")[2] for row in report["skipped"]] == ["no features"] * 2


def test_numbers_that_are_not_finite_are_named_or_left_out(
    armada: CommandLine, words: Callable[..., list[Any]], tmp_path: Path
) -> None:
    bad = ROWS.copy()
    bad[5, 2], bad[149, 0], bad[70, 7] = np.nan, -np.inf, 1e6
    np.save(tmp_path / "all.npy", bad)
    result = armada(*words(tmp_path / "all.npy", "--store-dtype", "float16"))
    assert result.code == 2
    assert "3 rows have invalid features" in result.error
    for row in (6, 71, 150):
        assert f"row {row} (id 'id-{row - 1}'): is not finite as float16" in result.error
    again = words(tmp_path / "all.npy", "--store-dtype", "float16", "--skip-bad-rows", "--json")
    assert len(json.loads(armada.done(*again))["skipped"]) == 3
    kept = np.setdiff1d(np.arange(150), [5, 70, 149])
    check(tmp_path / "cache", ROWS[kept].astype(np.float16), [TEXTS[i] for i in kept])


def test_files_that_are_no_such_arrays_are_named_or_left_out(
    armada: CommandLine, words: Callable[..., list[Any]], tmp_path: Path
) -> None:
    source = write_folder(tmp_path / "features")
    np.save(source / "id-5.npy", ROWS[0][:5])
    np.save(source / "id-2.npy", np.array([{"code": "os.system"}] * 8), allow_pickle=True)
    data = (source / "id-3.npy").read_bytes()
    (source / "id-3.npy").write_bytes(data[:-1])
    (source / "id-4.npy").write_bytes(b"PK\x03\x04")
    told = armada(*words(source)).error
    for problem in (
        "4 rows have invalid features",
        "id-5.npy: holds float32[5], others float32[8]",
        "id-2.npy: holds Python objects, which are never read",
        "id-3.npy: is shorter than the float32[8] of its header",
        "id-4.npy: is no .npy array",
    ):
        assert problem in told
    (source / "id-0.npy").write_bytes(b"")
    report = json.loads(armada.done(*words(source, "--skip-bad-rows", "--json")))
    assert (report["imported"], len(report["skipped"])) == (145, 5)


def test_a_header_is_checked_before_memory_is_taken(
    words: Callable[..., list[Any]], refused: Callable[..., str], tmp_path: Path
) -> None:
    with (tmp_path / "all.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**15, 10**15)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(ROWS.tobytes())
    assert "is shorter than the float32[" in refused(*words(tmp_path / "all.npy"))


def test_float64_is_stored_as_told(
    armada: CommandLine,
    words: Callable[..., list[Any]],
    refused: Callable[..., str],
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "all.npy", ROWS.astype(np.float64))
    told = refused(*words(tmp_path / "all.npy"))
    assert "holds float64, which is not a cache dtype; set store_dtype=float32" in told
    armada.done(*words(tmp_path / "all.npy", "--store-dtype", "float32"))
    check(tmp_path / "cache")


def test_a_student_learns_from_what_was_imported(
    armada: CommandLine, write_parquet: Write, tmp_path: Path
) -> None:
    corpus = write_parquet("train", {"text": SENTENCES, "label": class_labels(len(SENTENCES))})
    np.save(tmp_path / "all.npy", ROWS[: len(SENTENCES)])
    start = ["cache", "import", tmp_path / "cache", tmp_path / "all.npy", "--name", "x", "--quiet"]
    armada.done(*start, "--corpus", corpus, "--text-column", "text")
    columns = ["--text-column", "text", "--label-column", "label", "--cache", tmp_path / "cache"]
    small = ["student_hidden_size=16", "student_heads=2", "epochs=1", "aligner_hidden_size=8"]
    settings = [word for setting in small for word in ("--set", setting)]
    student = ["--student", "scratch:bert", "--output", tmp_path / "run", "--quiet"]
    armada.done("distill", "--train", corpus, *columns, *student, *settings)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["train_examples"] == len(SENTENCES)


REFUSALS: dict[str, tuple[list[str], str]] = {
    "no name": (["all.npy", "--set", "name="], "job key 'name'"),
    "no source": (["nothing.npy"], "nothing.npy is not there"),
    "an unknown kind": (["ids.txt"], "ids.txt is neither .npy nor .parquet"),
    "whole numbers": (["ints.npy"], "ints.npy: holds int64; features are float16, float32"),
    "too few rows": (["few.npy"], "few.npy: has 3 rows, the corpus 150"),
    "too few ids": (["all.npy", "--ids=ids.txt"], "ids.txt: has 2 lines, "),
    "an id twice": (["two.npy", "--ids=ids.txt"], "ids.txt: id 'id-0' is there twice"),
    "no ids": (
        ["folder", "--id-column=text", "--set", "id_column=false"],
        "'id_column' is missing",
    ),
    "ids for a folder": (["folder", "--ids=ids.txt"], "'ids': is for one .npy array"),
    "a folder of others": (["folder"], "none of its 1 .npy files is named after an id"),
    "ids that lead elsewhere": (
        ["folder", "--id-column=path"],
        "row 1 (id '../secret'): its id is not valid as a file name",
    ),
    "a reserved key": (["all.npy", "--declare", "layout=x"], "layout is set by the import itself"),
    "no declaration": (["all.npy", "--declare", "steps"], "--declare steps: is not KEY=VALUE"),
    "an endless number": (["all.npy", "--declare", "x=.inf"], "x is not a finite number"),
    "a column": (["list.parquet", "--column", "no"], "list.parquet: no column 'no'; it has id"),
    "a column of texts": (["list.parquet", "--column", "word"], "column 'word' holds string"),
    "a reserved feature": (["all.npy", "--feature", "runs"], "'runs' is the name of a folder"),
    "no rows at all": (["scalar.npy"], "scalar.npy: holds float32[], not rows"),
}


@pytest.mark.parametrize(("more", "told"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_imported_is_refused(
    refused: Callable[..., str], write_parquet: Write, tmp_path: Path, more: list[str], told: str
) -> None:
    columns = {
        "text": TEXTS,
        "id": IDS,
        "path": [f"../secret{'' if i == 0 else i}" for i in range(150)],
    }
    corpus = write_parquet("odd", columns)
    arrays = {
        "all": ROWS,
        "few": ROWS[:3],
        "two": ROWS[:2],
        "ints": np.arange(150),
        "scalar": ROWS[0, 0],
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "ids.txt").write_text("id-0\nid-0\n")
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "other.npy", ROWS[0])
    write_parquet("list", {"id": IDS, "word": IDS})
    source, *rest = more
    rest = [word.replace("=ids", f"={tmp_path}/ids") for word in rest]
    words = ["cache", "import", tmp_path / "cache", tmp_path / source, "--name", "x", "--quiet"]
    assert told in refused(*words, "--corpus", corpus, "--text-column", "text", *rest)
