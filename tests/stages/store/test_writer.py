"""The writer: what it keeps, what it clears away, whom it lets in."""

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from armada.cache_schemas.errors import CacheError, OutputError, TeacherMismatchError
from armada.cache_schemas.manifest import RunRecord, TeacherManifest
from armada.stages.store.format.manifests import list_teachers
from armada.stages.store.reading.reader import open_cache
from armada.stages.store.writing.teacher_folder import check_teacher
from armada.stages.store.writing.writer import CacheWriter
from small_caches import (
    answer,
    commit,
    keys_of,
    make_manifest,
    numbered_texts,
    stored_bytes,
    write_cache,
)

MANIFEST = make_manifest()


def test_a_second_writer_goes_on_where_the_first_stopped(tmp_path: Path) -> None:
    texts = numbered_texts(0, 200)
    write_cache(tmp_path / "twice", MANIFEST, [texts[:128]])
    write_cache(tmp_path / "twice", MANIFEST, [texts[128:]])
    write_cache(tmp_path / "once", MANIFEST, [texts[:128], texts[128:]])
    assert stored_bytes(tmp_path / "twice") == stored_bytes(tmp_path / "once")


def test_pending_are_the_first_appearances_of_what_is_not_committed(tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "cache", MANIFEST) as writer:
        commit(writer, ["a", "b"])
        assert writer.pending(keys_of("cabcdad")).tolist() == [0, 4]
        commit(writer, ["c"])
        assert writer.pending(keys_of("cabcdad")).tolist() == [4]
        assert writer.pending(keys_of("")).tolist() == []


LEFTOVERS = (
    "pooled/c/1/0",
    "pooled/c/2/0.partial",
    "score/c/1",
    "score/c/1.partial",
    "tables/rows/000001.parquet",
    "tables/rows/000002.parquet.partial",
    "commits/000001.json.partial",
    "pooled/zarr.json.partial",
    "teacher.json.partial",
    "../../armada.json.partial",
    "reservations/new-0123456789abcdef/keys",
    "reservations/dead-0123456789abcdef/file-0",
)


def test_what_a_dead_writer_left_is_cleared_away(tmp_path: Path) -> None:
    folder = write_cache(tmp_path / "cache", MANIFEST, [numbered_texts(0, 100)])
    whole = stored_bytes(tmp_path / "cache")
    for name in LEFTOVERS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"left over")
    assert len(open_cache(tmp_path / "cache")) == 100
    with CacheWriter(tmp_path / "cache", MANIFEST):
        pass
    assert stored_bytes(tmp_path / "cache") == whole


def test_stale_zarr_shapes_are_brought_up_to_date(tmp_path: Path) -> None:
    folder = write_cache(tmp_path / "cache", MANIFEST, [numbered_texts(0, 100)])
    whole = stored_bytes(tmp_path / "cache")
    metadata = json.loads((folder / "pooled/zarr.json").read_text()) | {"shape": [0, 5]}
    (folder / "pooled/zarr.json").write_text(json.dumps(metadata))
    (folder / "score/zarr.json").unlink()
    write_cache(tmp_path / "cache", MANIFEST, [])
    assert stored_bytes(tmp_path / "cache") == whole


def test_readers_need_no_lock(tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "cache", MANIFEST) as writer:
        commit(writer, ["a"])
        prefix = MANIFEST.fingerprint
        assert len(open_cache(tmp_path / "cache", prefix)) == 1


def test_a_folder_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache", MANIFEST, [])
    (tmp_path / "cache" / "writer.lock").unlink()
    (tmp_path / "cache" / "writer.lock").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        CacheWriter(tmp_path / "cache", MANIFEST)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [("file", OutputError, "is a file"), ("full", CacheError, "neither empty nor an armada cache")],
)
def test_other_peoples_files_are_left_alone(
    tmp_path: Path, name: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("text")
    before = stored_bytes(tmp_path)
    with pytest.raises(error, match=message):
        CacheWriter(tmp_path / name, MANIFEST)
    with pytest.raises(CacheError):
        check_teacher(tmp_path / name, MANIFEST.spec, None, add_teacher=False)
    assert stored_bytes(tmp_path) == before


def test_paths_that_look_like_partitions_are_only_paths(tmp_path: Path) -> None:
    write_cache(tmp_path / "key=1" / "cache", MANIFEST, [["a", "b"]])
    assert open_cache(tmp_path / "key=1" / "cache").lookup(["b"]).tolist() == [1]


def test_tables_are_kept_beside_the_rows(tmp_path: Path) -> None:
    texts = ["a", "b"]
    features = {spec.name: answer(spec, texts) for spec in MANIFEST.spec.features}
    images = pa.table({"png": pa.array([b"one", b"two"], pa.binary())})
    with CacheWriter(tmp_path / "cache", MANIFEST) as writer:
        writer.commit(keys_of(texts), features, np.zeros(2, bool), {"images": images})
    cache = open_cache(tmp_path / "cache")
    assert cache.table("images", {"png": pa.binary()}) == images


def test_run_records_are_read_back(tmp_path: Path) -> None:
    run = RunRecord(started="2026-01-01T00:00:00+00:00", versions={}, hardware={}, corpora=())
    with CacheWriter(tmp_path / "cache", MANIFEST) as writer:
        commit(writer, ["a"])
        writer.record_run("1", run)
        later = run.model_copy(update={"teacher_seconds": {0: 0.5}})
        writer.record_run("1", later)
        writer.record_run("2", run)
    assert open_cache(tmp_path / "cache").runs() == [later, run]


@pytest.fixture(scope="module")
def two_teachers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TeacherManifest]]:
    """A cache of two teachers of the same kind and name."""
    path = tmp_path_factory.mktemp("store") / "cache"
    for seed in (0, 1):
        write_cache(path, make_manifest(seed=seed), [["a", "b", "c"][: seed + 1]])
    return path, list_teachers(path)


def test_teachers_are_chosen_by_a_prefix_of_their_own(
    two_teachers: tuple[Path, list[TeacherManifest]],
) -> None:
    path, teachers = two_teachers
    assert [t.fingerprint for t in teachers] == sorted(t.fingerprint for t in teachers)
    for manifest in teachers:
        for length in (4, 12, 32):
            assert open_cache(path, manifest.fingerprint[:length]).teacher == manifest


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (None, "holds several teachers; choose one: "),
        ("", "is the prefix of several teachers"),
        ("zz", "teacher 'zz': is not in the cache"),
    ],
    ids=["none", "of both", "of neither"],
)
def test_choices_that_leave_a_doubt_are_refused(
    two_teachers: tuple[Path, list[TeacherManifest]], prefix: str | None, message: str
) -> None:
    path, teachers = two_teachers
    with pytest.raises(CacheError, match=message) as caught:
        open_cache(path, prefix)
    for teacher in teachers:
        told = f"{teacher.fingerprint[:12]} (made_up:made up, seed {teacher.spec.settings['seed']})"
        assert told in str(caught.value)


def test_a_cache_without_a_teacher_says_so(tmp_path: Path) -> None:
    (tmp_path / "armada.json").write_text('{"format": "armada-cache", "format_version": 1}')
    with pytest.raises(CacheError, match="no teacher has committed a shard yet"):
        open_cache(tmp_path)


def test_the_same_model_under_other_settings_is_refused(tmp_path: Path) -> None:
    known, asked = make_manifest(seed=0, steps=4), make_manifest(seed=1, steps=4)
    write_cache(tmp_path / "cache", known, [["a"]])
    check = pickle.loads(pickle.dumps(asked.spec))  # equality of specs is by value
    with pytest.raises(TeacherMismatchError, match="seed: cached 0, requested 1;") as caught:
        check_teacher(tmp_path / "cache", check, None, add_teacher=False)
    assert "steps" not in str(caught.value)
    assert check_teacher(tmp_path / "cache", asked.spec, None, add_teacher=True) is None
    assert check_teacher(tmp_path / "cache", known.spec, None, add_teacher=False) == known


def test_rows_per_shard_is_fixed(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache", MANIFEST, [["a"]])
    with pytest.raises(CacheError, match="rows_per_shard: cached 128, requested 64"):
        check_teacher(tmp_path / "cache", MANIFEST.spec, 64, add_teacher=False)
