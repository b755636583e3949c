"""Caches of every format version stay readable, and today's writer makes the same bytes.

`tests/golden/cache_v1` was made once by `python tests/stages/store/test_old_caches.py`; it is never
made again. A change of the format is a new version, with a folder of its own.
"""

import json
import shutil
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from armada.cache_schemas.keys import example_key, keys_to_array
from armada.cache_schemas.manifest import CorpusRecord, RunRecord, TeacherManifest
from armada.stages.precompute.teachers.base import Example
from armada.stages.precompute.teachers.hash import HashOptions, HashTeacher
from armada.stages.store.reading.reader import open_cache
from armada.stages.store.writing.writer import CacheWriter

GOLDEN = Path(__file__).parents[2] / "golden" / "cache_v1"
PAIRS = [(f"premise {number}", f"hypothesis {number % 7}") for number in range(104)]
SHARDS = (PAIRS[:64], PAIRS[64:])
RUN = RunRecord(
    started="2026-01-01T00:00:00+00:00",
    versions={"python": "3.11.7"},
    hardware={"device": "cpu"},
    corpora=(CorpusRecord(name="golden/pairs.csv", rows=104, unique_examples=104, licence="CC0"),),
    teacher_seconds={0: 0.5, 1: 0.25},
    truncated_examples=1,
)


def make_cache(path: Path) -> None:
    """Answers of hash:4 about 104 pairs in shards of 64 rows; the last text counts as truncated."""
    teacher = HashTeacher("4", HashOptions(), torch.device("cpu"))
    spec = teacher.spec
    manifest = TeacherManifest(fingerprint=spec.fingerprint, rows_per_shard=64, spec=spec)
    with CacheWriter(path, manifest) as writer:
        for pairs in SHARDS:
            examples = [Example(example_key(pair), pair) for pair in pairs]
            truncated = np.array([pair == PAIRS[-1] for pair in pairs])
            keys = keys_to_array(example.key for example in examples)
            writer.commit(keys, teacher.encode(examples).features, truncated)
        writer.record_run("20260101T000000-000000", RUN)


def answer(key: bytes) -> Any:
    """What hash:4 says, without armada: standard normal numbers, seeded by a hash of the key."""
    seed = int.from_bytes(blake2b(key, digest_size=8, salt=bytes(8)).digest(), "little") >> 1
    return np.random.default_rng(seed).standard_normal(4).astype(np.float32)


def comparable(cache: Path) -> dict[str, Any]:
    """Files of a cache, without what depends on the Parquet library that wrote them."""
    content: dict[str, Any] = {}
    for file in sorted(path for path in cache.rglob("*") if path.is_file()):
        name = file.relative_to(cache).as_posix()
        if file.suffix == ".parquet":
            content[name] = pq.read_table(file, partitioning=None)
        elif file.parent.name == "commits":
            commit = json.loads(file.read_bytes())
            content[name] = commit | {"tables": sorted(commit["tables"])}
        else:
            content[name] = file.read_bytes()
    return content


def test_version_1_reads_with_equal_values() -> None:
    cache = open_cache(GOLDEN)
    assert len(cache) == 104
    assert cache.features == ("embedding",)
    rows = cache.lookup(PAIRS)
    assert rows.tolist() == list(range(104))
    expected = np.stack([answer(example_key(pair)) for pair in PAIRS])
    np.testing.assert_array_equal(cache["embedding"][rows], expected, strict=True)
    truncated = cache.table("rows", {"truncated": pa.bool_()})["truncated"]
    assert truncated.to_pylist() == [False] * 103 + [True]
    assert cache.runs() == [RUN]


def test_version_1_is_these_very_numbers() -> None:
    # Literally, so that a change of both the teacher and `answer` shows.
    first = open_cache(GOLDEN)["embedding"][0]
    assert [round(float(number), 4) for number in first] == [0.8758, -0.6129, -1.9981, -0.288]


def test_todays_writer_makes_the_same_files(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache")
    assert comparable(tmp_path / "cache") == comparable(GOLDEN)


def test_todays_writer_makes_the_same_bytes(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache")
    files = {
        path.relative_to(GOLDEN): path.read_bytes() for path in GOLDEN.rglob("*") if path.is_file()
    }
    table = next(path for path in files if path.suffix == ".parquet")
    if (
        pq.read_metadata(GOLDEN / table).created_by
        != pq.read_metadata(tmp_path / "cache" / table).created_by
    ):
        pytest.skip("tables were written by another version of the Parquet library")
    assert {path: (tmp_path / "cache" / path).read_bytes() for path in files} == files


def test_version_1_can_be_added_to(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "cache")
    manifest = open_cache(GOLDEN).teacher
    with CacheWriter(tmp_path / "cache", manifest) as writer:
        key = example_key("new")
        features = {"embedding": answer(key)[None]}
        writer.commit(keys_to_array([key]), features, np.zeros(1, bool))
    cache = open_cache(tmp_path / "cache")
    assert cache.lookup([*PAIRS, "new"]).tolist() == list(range(105))
    np.testing.assert_array_equal(cache["embedding"][104], answer(key), strict=True)


if __name__ == "__main__":
    make_cache(GOLDEN)
