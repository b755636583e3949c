"""Whatever moment a removal dies at, readers see whole shards and whole teachers, and the same
command finishes it; nothing outside of a cache is touched."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from armada.cache_schemas.errors import DamagedCacheError, StorageError
from armada.stages.store.files.own_files import remove_tree
from armada.stages.store.format.manifests import list_teachers
from armada.stages.store.reading.reader import Cache, open_cache
from armada.stages.store.upkeep.survey import survey_cache
from armada.stages.store.writing.teacher_folder import drop_shard, drop_teacher, uncommitted
from small_caches import (
    THREE_SHARDS,
    answer,
    make_manifest,
    stored_bytes,
)

MANIFEST = make_manifest()
OTHER = make_manifest(other=True)
FINGERPRINT = MANIFEST.fingerprint
SHARDS = THREE_SHARDS


class Killed(BaseException):
    """Goes through every handler, and leaves the disk as SIGKILL would."""


def die_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the process dies before that removal (counted from 0) of a file or a folder."""
    steps = iter(range(step))

    def counted(real: Callable[..., None]) -> Callable[..., None]:
        def remove(*given: object, **named: object) -> None:
            if next(steps, None) is None:
                raise Killed
            real(*given, **named)

        return remove

    for name in ("unlink", "rmdir"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))


def removed_in_steps(
    cache: Path, monkeypatch: pytest.MonkeyPatch, remove: Callable[[Path], None]
) -> int:
    """Removes in copies of the cache, dying at each step; checks what readers see, and that the
    same call finishes it. Returns the number of steps."""
    remove(whole := Path(shutil.copytree(cache, cache.with_name("whole"))))
    for step in range(100):
        path = Path(shutil.copytree(cache, cache.with_name(f"dying at {step}")))
        with monkeypatch.context() as patch:
            die_at(step, patch)
            try:
                remove(path)
                return step
            except Killed:
                pass
        check_readable(path)
        remove(path)
        assert stored_bytes(path) == stored_bytes(whole)
    raise AssertionError("it never ends")


def check_readable(path: Path) -> None:
    for teacher in list_teachers(path):
        opened = Cache(path, teacher)
        texts = [text for commit in opened.commits for text in SHARDS[commit.shard]]
        rows = opened.lookup(texts)
        for name in opened.features:
            expected = answer(opened.feature_spec(name), texts)
            np.testing.assert_array_equal(opened[name][rows], expected, strict=True)


def test_a_shard_goes_commit_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = removed_in_steps(cache, monkeypatch, lambda path: drop_shard(path, FINGERPRINT, 1))
    assert steps == 5  # the record, the table, a file in a folder, and a file
    drop_shard(cache, FINGERPRINT, 1)
    assert len(open_cache(cache, FINGERPRINT)) == 128 + 2
    folder = cache / "teachers" / FINGERPRINT
    assert not [path for path in folder.rglob("*") if path.stem in ("1", "000001")]
    assert uncommitted(folder, {0, 2}, ()) == []


def test_a_teacher_goes_manifest_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = removed_in_steps(cache, monkeypatch, lambda path: drop_teacher(path, FINGERPRINT))
    assert steps > 20
    drop_teacher(cache, FINGERPRINT)
    assert [teacher.fingerprint for teacher in list_teachers(cache)] == [OTHER.fingerprint]
    assert not (cache / "teachers" / FINGERPRINT).exists()


def test_a_teacher_that_is_half_gone_is_left_over_and_no_damage(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once its records are gone; before, it looks like a teacher that lost its manifest."""
    for step in (6, 10, 15):
        path = Path(shutil.copytree(cache, cache.with_name(f"dying at {step}")))
        with monkeypatch.context() as patch:
            die_at(step, patch)
            with pytest.raises(Killed):
                drop_teacher(path, FINGERPRINT)
        (half, _) = sorted(
            survey_cache(path).teachers, key=lambda teacher: teacher.folder.name != FINGERPRINT
        )
        assert (half.manifest, half.damages) == (None, ())
        assert half.leftovers > 0


def test_removing_what_is_not_there_is_done(cache: Path) -> None:
    before = stored_bytes(cache)
    drop_shard(cache, FINGERPRINT, 7)
    drop_teacher(cache, "0" * 32)
    assert remove_tree(cache / "absent", cache) == 0
    assert stored_bytes(cache) == before


def test_sizes_of_what_is_removed_are_told(cache: Path) -> None:
    folder = cache / "teachers" / FINGERPRINT
    files = [path for path in (folder / "pooled").rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in files)
    assert remove_tree(folder / "pooled", cache) == total > 0


LINKS = {
    "the shard's folder": "pooled/c/1",
    "the table": "tables/rows/000001.parquet",
    "the record": "commits/000001.json",
}


@pytest.mark.parametrize("name", LINKS.values(), ids=LINKS)
def test_a_link_is_removed_and_not_what_it_leads_to(cache: Path, tmp_path: Path, name: str) -> None:
    path = cache / "teachers" / FINGERPRINT / name
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    before = sorted(tmp_path.joinpath("outside").rglob("*"))
    drop_shard(cache, FINGERPRINT, 1)
    assert not path.is_symlink()
    assert (tmp_path / "outside").exists()
    assert sorted(tmp_path.joinpath("outside").rglob("*")) == before


@pytest.mark.parametrize("name", ["pooled", "pooled/c", "tables", "tables/rows", ".", ".."])
def test_nothing_is_removed_through_a_link(cache: Path, tmp_path: Path, name: str) -> None:
    path = (cache / "teachers" / FINGERPRINT / name).resolve()
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    before = sorted(tmp_path.joinpath("outside").rglob("*"))
    with pytest.raises(DamagedCacheError, match="is a symbolic link"):
        drop_shard(cache, FINGERPRINT, 1)
    assert sorted(tmp_path.joinpath("outside").rglob("*")) == before


def test_a_teacher_that_is_a_link(cache: Path, tmp_path: Path) -> None:
    folder = cache / "teachers" / FINGERPRINT
    folder.rename(tmp_path / "outside")
    folder.symlink_to(tmp_path / "outside")
    before = stored_bytes(tmp_path / "outside")
    with pytest.raises(DamagedCacheError, match="is a symbolic link"):
        drop_teacher(cache, FINGERPRINT)
    assert stored_bytes(tmp_path / "outside") == before


def test_a_disk_that_refuses(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(StorageError, match=r"commits/000001\.json: cannot be written: Input"):
        drop_shard(cache, FINGERPRINT, 1)
    with pytest.raises(StorageError, match="Input/output error"):
        remove_tree(cache / "teachers" / FINGERPRINT / "pooled", cache)
