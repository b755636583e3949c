"""Rows of some caches, copied into another: what is there, what stays away, who paid."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from armada.cache_schemas.errors import CacheError, DamagedCacheError
from armada.cache_schemas.layout import TEACHER_PART, shard_file, table_file
from armada.cache_schemas.manifest import CorpusRecord, PartRecord, RunRecord, TeacherManifest
from armada.stages.store.reading.reader import Cache, open_cache
from armada.stages.store.upkeep.merge import Merged, merge_teacher
from armada.stages.store.writing.writer import CacheWriter
from small_caches import (
    answer,
    keys_of,
    make_manifest,
    numbered_texts,
    stored_bytes,
    write_cache,
)

MANIFEST = make_manifest(rows_per_shard=64)


def merge(path: Path, *sources: Path, manifest: TeacherManifest = MANIFEST) -> Merged:
    """Merge caches of one teacher, each with its own rows per shard."""
    offered = [(source, open_cache(source).teacher) for source in sources]
    return merge_teacher(path, manifest, offered)


def check(cache: Cache, texts: Sequence[str], shards: Sequence[int]) -> None:
    """Whether a cache holds these texts in this order, with their answers, in such shards."""
    assert [record.rows for record in cache.commits] == list(shards)
    np.testing.assert_array_equal(cache.keys, keys_of(texts))
    for spec in cache.teacher.spec.features:
        np.testing.assert_array_equal(cache[spec.name][:], answer(spec, texts), strict=True)
    truncated = cache.table("rows", {"truncated": pa.bool_()})["truncated"].to_pylist()
    assert truncated == [text.endswith("7") for text in texts]


def run(seconds: dict[int, float], truncated: int = 0, name: str = "a.csv") -> RunRecord:
    return RunRecord(
        started="2026-01-01T00:00:00+00:00",
        versions={"python": "3.11"},
        hardware={"device": "cpu"},
        corpora=(CorpusRecord(name=name, rows=7, unique_examples=6, licence="CC0"),),
        teacher_seconds=seconds,
        truncated_examples=truncated,
    )


def record_run(path: Path, run_id: str, record: RunRecord) -> None:
    with CacheWriter(path, open_cache(path).teacher) as writer:
        writer.record_run(run_id, record)


def cost(path: Path) -> float:
    """What `cache ls` shows."""
    return sum(sum(run.teacher_seconds.values()) for run in open_cache(path).runs())


def test_missing_rows_come_in_full_shards_and_in_the_order_of_the_sources(tmp_path: Path) -> None:
    texts = numbered_texts(0, 260)
    write_cache(tmp_path / "to", MANIFEST, [texts[10:40]])
    write_cache(tmp_path / "a", MANIFEST, [texts[0:50], texts[50:60], texts[60:100]])
    write_cache(tmp_path / "b", make_manifest(rows_per_shard=192), [texts[90:250][::-1]])
    merged = merge(tmp_path / "to", tmp_path / "a", tmp_path / "b")
    expected = [*texts[10:40], *texts[0:10], *texts[40:100], *texts[100:250][::-1]]
    check(open_cache(tmp_path / "to"), expected, [30, 64, 64, 64, 28])
    assert (merged.rows, merged.copied, merged.already_there, merged.shards) == (260, 220, 40, 4)


def test_a_second_merge_changes_nothing(tmp_path: Path) -> None:
    write_cache(tmp_path / "a", MANIFEST, [numbered_texts(0, 60), numbered_texts(60, 100)])
    record_run(tmp_path / "a", "one", run({0: 6.0, 1: 4.0}))
    merge(tmp_path / "to", tmp_path / "a")
    before = stored_bytes(tmp_path / "to")
    merged = merge(tmp_path / "to", tmp_path / "a")
    assert (merged.copied, merged.already_there, merged.shards) == (0, 100, 0)
    assert stored_bytes(tmp_path / "to") == before
    assert cost(tmp_path / "to") == 10.0


def test_full_shards_are_copied_byte_for_byte(tmp_path: Path) -> None:
    texts = numbered_texts(0, 150)
    write_cache(tmp_path / "a", MANIFEST, [texts[:64], texts[64:128], texts[128:]])
    merge(tmp_path / "to", tmp_path / "a")
    assert stored_bytes(tmp_path / "to") == stored_bytes(tmp_path / "a")


def test_a_merge_that_was_cut_goes_on_to_the_same_cache(tmp_path: Path) -> None:
    texts = numbered_texts(0, 150)
    write_cache(tmp_path / "a", MANIFEST, [texts[:50], texts[50:100], texts[100:]])
    merge(tmp_path / "whole", tmp_path / "a")

    def stop(rows: int) -> None:
        if rows:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_teacher(tmp_path / "cut", MANIFEST, [(tmp_path / "a", MANIFEST)], stop)
    assert len(open_cache(tmp_path / "cut")) == 64
    assert merge(tmp_path / "cut", tmp_path / "a").copied == 86
    assert stored_bytes(tmp_path / "cut") == stored_bytes(tmp_path / "whole")


def test_where_answers_differ_the_first_ones_stay(tmp_path: Path) -> None:
    """As on two GPUs: equal keys, other last bits."""
    texts = numbered_texts(0, 20)
    for name, count, shift in (("to", 5, 0), ("a", 10, 1), ("b", 20, 2)):
        features = {
            spec.name: (answer(spec, texts[:count]) + shift).astype(spec.dtype)
            for spec in MANIFEST.spec.features
        }
        with CacheWriter(tmp_path / name, MANIFEST) as writer:
            writer.commit(keys_of(texts[:count]), features, np.zeros(count, bool))
    merged = merge(tmp_path / "to", tmp_path / "a", tmp_path / "b")
    assert (merged.copied, merged.already_there) == (15, 15)
    cache = open_cache(tmp_path / "to")
    shift = np.repeat([0, 1, 2], [5, 5, 10])
    for spec in MANIFEST.spec.features:
        expected = (answer(spec, texts).T + shift).T.astype(spec.dtype)
        np.testing.assert_array_equal(cache[spec.name][cache.lookup(texts)], expected)


def commit_images(path: Path, texts: Sequence[str], **columns: Any) -> None:
    """One shard with a table `images`."""
    table = pa.table({"png": pa.array([text.encode() for text in texts], pa.binary()), **columns})
    with CacheWriter(path, MANIFEST) as writer:
        features = {spec.name: answer(spec, texts) for spec in MANIFEST.spec.features}
        keys, truncated = keys_of(texts), np.zeros(len(texts), bool)
        writer.commit(keys, features, truncated, {"images": table})


def test_tables_come_along_with_all_columns(tmp_path: Path) -> None:
    texts = numbered_texts(0, 100)
    for start in (0, 30, 60):
        size = pa.array([len(text) for text in texts[start : start + 30]])
        commit_images(tmp_path / "a", texts[start : start + 30], size=size)
    write_cache(tmp_path / "to", MANIFEST, [texts[20:40]])
    merge(tmp_path / "to", tmp_path / "a")
    cache = open_cache(tmp_path / "to")
    assert [sorted(record.tables) for record in cache.commits] == [
        ["rows"],
        ["images", "rows"],
        ["images", "rows"],
    ]
    kept = [*texts[0:20], *texts[40:90]]
    parts = [_whole(cache, record.shard) for record in cache.commits[1:]]
    assert pa.concat_tables(parts).to_pydict() == {
        "png": [text.encode() for text in kept],
        "size": [len(text) for text in kept],
    }


def _whole(cache: Cache, shard: int) -> pa.Table:
    return pq.ParquetFile(table_file(cache.folder, "images", shard)).read()


def test_rows_with_and_without_a_table_fill_shards_of_their_own(tmp_path: Path) -> None:
    texts = numbered_texts(0, 120)
    for start in range(0, 120, 40):
        write_cache(tmp_path / "a", MANIFEST, [texts[start : start + 20]])
        commit_images(tmp_path / "a", texts[start + 20 : start + 40])
    merge(tmp_path / "to", tmp_path / "a")
    cache = open_cache(tmp_path / "to")
    shards = [(record.rows, "images" in record.tables) for record in cache.commits]
    assert shards == [(60, False), (60, True)]
    plain = [text for start in (0, 40, 80) for text in texts[start : start + 20]]
    np.testing.assert_array_equal(cache.keys[:60], keys_of(plain))


def test_tables_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    texts = numbered_texts(0, 40)
    commit_images(tmp_path / "a", texts[:20])
    commit_images(tmp_path / "b", texts[20:], size=pa.array([1] * 20))
    with pytest.raises(CacheError, match="table 'images': its columns differ between the sources"):
        merge(tmp_path / "to", tmp_path / "a", tmp_path / "b")
    assert len(open_cache(tmp_path / "to")) == 0


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("part", ["pooled", "images", "rows"])
def test_rows_of_damaged_files_are_not_taken(tmp_path: Path, part: str) -> None:
    texts = numbered_texts(0, 128)
    commit_images(tmp_path / "a", texts[:64])
    commit_images(tmp_path / "a", texts[64:])
    folder = open_cache(tmp_path / "a").folder
    damaged = {
        "pooled": shard_file(folder, "pooled", 1, 1),
        "images": table_file(folder, "images", 1),
        "rows": table_file(folder, "rows", 1),
    }[part]
    flip(damaged, 40)
    with pytest.raises(DamagedCacheError, match=f"{damaged}: .*xxh3_128"):
        merge(tmp_path / "to", tmp_path / "a")
    if part == "rows":  # the keys say what is to be done: nothing was
        assert not (tmp_path / "to").exists()
    else:
        assert len(open_cache(tmp_path / "to")) == 64


def test_a_shard_that_is_there_already_may_be_damaged(tmp_path: Path) -> None:
    texts = numbered_texts(0, 128)
    for path in (tmp_path / "a", tmp_path / "to"):
        write_cache(path, MANIFEST, [texts[:64]])
    write_cache(tmp_path / "a", MANIFEST, [texts[64:]])
    flip(shard_file(open_cache(tmp_path / "a").folder, "pooled", 0, 1), 40)
    assert merge(tmp_path / "to", tmp_path / "a").copied == 64


def test_each_row_brings_its_share_of_the_cost(tmp_path: Path) -> None:
    texts = numbered_texts(0, 200)
    write_cache(tmp_path / "to", MANIFEST, [texts[:25]])
    record_run(tmp_path / "to", "mine", run({0: 1.0}))
    write_cache(tmp_path / "a", MANIFEST, [texts[0:50], texts[50:100]])
    record_run(tmp_path / "a", "early", run({0: 50.0}, truncated=5))
    record_run(tmp_path / "a", "late", run({1: 200.0}, truncated=5, name="b.csv"))
    merged = merge(tmp_path / "to", tmp_path / "a")
    assert merged.teacher_seconds == 225.0
    runs = open_cache(tmp_path / "to").runs_by_id()
    assert set(runs) == {"mine", "early", "late"}
    # Shard 1 has rows 25 to 88: 25 of the first shard (1 s each), 39 of the second (4 s each).
    assert runs["early"].teacher_seconds == {1: 25.0}
    assert runs["late"].teacher_seconds == {1: 156.0, 2: 44.0}
    assert runs["early"].truncated_examples == 3  # 27, 37, 47
    assert runs["late"].truncated_examples == 5
    assert runs["late"].corpora[0].name == "b.csv"
    assert cost(tmp_path / "to") == 226.0


def test_runs_that_two_sources_share_are_counted_once(tmp_path: Path) -> None:
    """Copies of one cache, to which both owners added."""
    texts = numbered_texts(0, 150)
    for name, own in (("a", texts[50:100]), ("b", texts[100:150])):
        write_cache(tmp_path / name, MANIFEST, [texts[:50], own])
        record_run(tmp_path / name, "shared", run({0: 10.0}))
        record_run(tmp_path / name, f"of-{name}", run({1: 3.0}))
    merge(tmp_path / "to", tmp_path / "a", tmp_path / "b")
    assert cost(tmp_path / "to") == pytest.approx(16.0)
    merge(tmp_path / "a", tmp_path / "b")
    assert cost(tmp_path / "a") == pytest.approx(16.0)
    assert open_cache(tmp_path / "a").runs_by_id()["shared"].teacher_seconds == {0: 10.0}


def test_a_run_that_went_on_after_its_cache_was_copied_keeps_its_earlier_shards(
    tmp_path: Path,
) -> None:
    texts = numbered_texts(0, 150)
    write_cache(tmp_path / "to", MANIFEST, [texts[:50]])
    record_run(tmp_path / "to", "one", run({0: 5.0}))
    write_cache(tmp_path / "a", MANIFEST, [texts[:50], texts[50:100]])
    record_run(tmp_path / "a", "one", run({0: 5.0, 1: 7.0}))
    merge(tmp_path / "to", tmp_path / "a")
    assert open_cache(tmp_path / "to").runs_by_id()["one"].teacher_seconds == {0: 5.0, 1: 7.0}


def test_nothing_is_merged_from_a_cache_without_answers(tmp_path: Path) -> None:
    write_cache(tmp_path / "a", MANIFEST, [])
    merged = merge(tmp_path / "to", tmp_path / "a")
    assert (merged.rows, merged.copied, merged.shards) == (0, 0, 0)
    assert len(open_cache(tmp_path / "to")) == 0


def test_a_part_that_was_pulled_is_no_source(tmp_path: Path) -> None:
    folder = write_cache(tmp_path / "a", MANIFEST, [numbered_texts(0, 10)])
    part = PartRecord(missing_features=("score",), next_shard=1)
    (folder / TEACHER_PART).write_bytes(part.to_json())
    with pytest.raises(CacheError, match="without score, so its rows cannot be copied; pull the"):
        merge(tmp_path / "to", tmp_path / "a")
    assert not (tmp_path / "to").exists()
