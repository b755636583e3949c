"""The two sides of retrieval: queries that a teacher read with a prompt of theirs."""

from pathlib import Path

import armada as library
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from armada.cache_schemas.errors import ArmadaError
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.embedding.data import EmbeddingData
from armada.pipeline.jobs import make
from armada.pipeline.run_data import read_data
from armada.pipeline.terms import terms_of
from armada.stages.store.reading.feature_array import FeatureArray, StackedArray
from armada.stages.store.reading.reader import open_cache
from language_processes import losses
from small_caches import make_manifest, numbered_texts, write_cache
from tiny_checkpoints import make_bert
from tiny_runs import freeze_dropout, sentences

ROWS, WIDTH = 18, 16


def fingerprint(root: Path, column: str, seed: int) -> str:
    """A teacher of its own for the texts of a column."""
    report = library.precompute(
        corpus=root / "train.parquet",
        text_column=[column],
        teacher=f"hash:{WIDTH}",
        seed=seed,
        cache=root / "cache",
        add_teacher=True,
        quiet=True,
    )
    return report.fingerprint


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, of which one passage has the words of a query, and a student without dropout."""
    folder = tmp_path_factory.mktemp("sides")
    asked, said = sentences(0, ROWS), sentences(200, 200 + ROWS)
    said[5] = asked[2]
    pq.write_table(pa.table({"query": asked, "positive": said}), folder / "train.parquet")
    freeze_dropout(make_bert(folder / "student", [*asked, *said]))
    return folder


@pytest.fixture(scope="module")
def teachers(root: Path) -> tuple[str, str]:
    """Fingerprints of the teachers of passages and of queries."""
    return fingerprint(root, "positive", 0), fingerprint(root, "query", 1)


def job(root: Path, output: Path, **keys: object) -> dict[str, object]:
    return {
        **{"train": str(root / "train.parquet"), "text_column": ["query", "positive"]},
        **{"student": str(root / "student"), "cache": str(root / "cache"), "task": "embedding"},
        **{"output": str(output), "device": "cpu", "epochs": 1, "batch_size": 6},
        **{"learning_rate": 2e-3, "logging_steps": 1, "report_to": "none", "quiet": True},
        **keys,
    }


def test_rows_of_two_arrays(tmp_path: Path) -> None:
    """As of one array that has the rows of both."""
    texts = numbered_texts(0, 150)
    for name, own in (("a", texts[:70]), ("b", texts[70:])):
        write_cache(tmp_path / name, make_manifest(), [own[:64], own[64:]])
    parts = [open_cache(tmp_path / name)["pooled"] for name in "ab"]
    stacked: FeatureArray = StackedArray(*parts)
    whole = np.concatenate([part[:] for part in parts])
    rows = np.random.default_rng(0).permutation(len(texts))[:90]
    np.testing.assert_array_equal(stacked.gather(rows), whole[rows], strict=True)
    np.testing.assert_array_equal(stacked[-1], whole[-1])
    assert stacked.shape == (len(texts), 5)
    out = np.empty((90, 5), np.float32)
    assert stacked.gather(rows, out) is out
    np.testing.assert_array_equal(out, whole[rows])
    np.testing.assert_array_equal(np.argsort(stacked.in_file_order(rows)), np.argsort(rows))
    stacked.will_need(rows)
    stacked.require_whole(rows)
    with pytest.raises(IndexError):
        stacked.gather(np.array([len(texts)]))


def test_queries_meet_what_their_own_teacher_said(
    root: Path, teachers: tuple[str, str], tmp_path: Path
) -> None:
    passages, queries = teachers
    keys = job(root, tmp_path / "run", teacher=passages, query_teacher=queries, distance="cosine")
    made = make(DistillJob, {name: value for name, value in keys.items() if name != "quiet"})
    data = read_data(made, terms_of(made))
    assert isinstance(data, EmbeddingData)
    (gather,), (places,) = data.gathers(0).values(), data.joined.places.values()
    table = pq.read_table(root / "train.parquet").to_pydict()
    for column, (name, teacher) in enumerate((("query", queries), ("positive", passages))):
        cache = open_cache(root / "cache", teacher)
        (feature,) = cache.features
        expected = cache[feature][cache.lookup(table[name])]
        np.testing.assert_array_equal(gather(places[:, column]), expected, strict=True)
    library.distill(**keys)
    log = (tmp_path / "run" / "run.json").read_text()
    assert f'"query_teacher_fingerprint": "{queries}"' in log


def test_their_features_may_be_kept_anywhere(
    root: Path, teachers: tuple[str, str], tmp_path: Path
) -> None:
    both = {"teacher": teachers[0], "query_teacher": teachers[1]}
    found = []
    for placement in ("mapped", "resident", "streamed"):
        keys = job(root, tmp_path / placement, placement=placement, objective="infonce", **both)
        library.distill(**keys, negatives=3)
        found.append(losses(tmp_path / placement))
    assert found[0] == found[1]
    assert len(found[2]) == len(found[0])


def test_what_is_refused(root: Path, teachers: tuple[str, str], tmp_path: Path) -> None:
    both = {"teacher": teachers[0], "query_teacher": teachers[1]}
    with pytest.raises(ArmadaError, match="query_teacher: reads queries, the first of several"):
        library.distill(**job(root, tmp_path / "run", **both) | {"text_column": ["positive"]})
    labelled = job(root, tmp_path / "run", **both) | {"task": None, "objective": "feature"}
    with pytest.raises(ArmadaError, match="query_teacher: is for students that embed"):
        library.distill(**labelled)
    swapped = {"teacher": teachers[1], "query_teacher": teachers[0]}
    with pytest.raises(ArmadaError, match=r"rows are not in the cache of teacher"):
        library.distill(**job(root, tmp_path / "run", **swapped))
    wide = library.precompute(
        corpus=root / "train.parquet",
        text_column=["query"],
        teacher="hash:24",
        cache=root / "cache",
        add_teacher=True,
        quiet=True,
    ).fingerprint
    with pytest.raises(ArmadaError, match="name one model with two prompts"):
        library.distill(
            **job(root, tmp_path / "run", teacher=teachers[0], query_teacher=wide),
        )
