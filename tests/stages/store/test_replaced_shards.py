"""A shard number does not tell a shard: one that was dropped and made again is another."""

import os
from pathlib import Path

import numpy as np
import pytest
from armada.cache_schemas.errors import DamagedCacheError, OutputError
from armada.cache_schemas.manifest import RunRecord
from armada.stages.store.files.lock import locked
from armada.stages.store.reading.reader import open_cache
from armada.stages.store.writing.teacher_folder import drop_shard, drop_teacher
from armada.stages.store.writing.writer import CacheWriter, Work
from small_caches import answer, commit, keys_of, make_manifest, numbered_texts, write_cache

MANIFEST = make_manifest(rows_per_shard=64)
OLD, NEW, MORE = numbered_texts(0, 64), numbered_texts(100, 164), numbered_texts(200, 264)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_cache(tmp_path / "cache", MANIFEST, [OLD, MORE])
    return tmp_path / "cache"


def drop(path: Path) -> None:
    with locked(path):
        drop_shard(path, MANIFEST.fingerprint, 0)


def test_an_open_reader_refuses_what_took_the_place_of_a_shard(path: Path) -> None:
    cache, early = open_cache(path), open_cache(path)
    np.testing.assert_array_equal(
        early["pooled"][:1], answer(early.feature_spec("pooled"), OLD[:1])
    )
    drop(path)
    with pytest.raises(DamagedCacheError, match=r"pooled/c/0/0: is missing"):
        cache["pooled"][:1]
    write_cache(path, MANIFEST, [NEW])  # takes the lowest number, with equally many rows
    with pytest.raises(DamagedCacheError, match=r"000000\.json: the shard was dropped or replaced"):
        cache["pooled"][:1]
    expected = answer(cache.feature_spec("pooled"), MORE)
    np.testing.assert_array_equal(cache["pooled"][64:], expected)
    # What was mapped before stays what it was; who opens now sees what is there.
    np.testing.assert_array_equal(
        early["pooled"][:1], answer(early.feature_spec("pooled"), OLD[:1])
    )
    assert open_cache(path).lookup(NEW).tolist() == list(range(64))


def test_a_writer_counts_a_shard_that_was_made_again(path: Path) -> None:
    with CacheWriter(path, MANIFEST) as writer:
        work = Work(writer, keys_of([*OLD, *NEW]))
        assert work.pending == 64
        drop(path)
        write_cache(path, MANIFEST, [NEW])
        assert work.reserve() is None
        assert work.done_elsewhere == 64
        assert [record.shard for record in writer.commits] == [0, 1]
    keys = open_cache(path).keys
    assert len(np.unique(keys, axis=0)) == len(keys) == 128


def test_nothing_is_written_for_a_teacher_that_was_removed(path: Path) -> None:
    run = RunRecord(started="2026-01-01T00:00:00+00:00", versions={}, hardware={}, corpora=())
    with CacheWriter(path, MANIFEST) as writer:
        work = Work(writer, keys_of(NEW))
        with locked(path):
            drop_teacher(path, MANIFEST.fingerprint)
        for attempt in (
            work.reserve,
            lambda: commit(writer, NEW),
            lambda: writer.record_run("1", run),
        ):
            with pytest.raises(OutputError, match="was removed by another process"):
                attempt()
    assert not (path / "teachers" / MANIFEST.fingerprint).exists()
    write_cache(path, MANIFEST, [NEW])
    assert len(open_cache(path)) == 64


def test_a_relative_path_is_no_url(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    os.rename("cache", "s3:")
    assert open_cache(Path("s3:")).lookup(OLD).tolist() == list(range(64))
