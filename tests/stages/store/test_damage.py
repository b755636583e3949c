"""A damaged cache is refused, and the file is named; it never answers with other numbers."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from armada.cache_schemas.errors import CacheError, CacheVersionError, DamagedCacheError
from armada.stages.store.reading.reader import open_cache
from small_caches import make_manifest, numbered_texts, write_cache

SHARD = "pooled/c/1/0"
TABLE = "tables/rows/000001.parquet"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A teacher's folder with shards of 128 and 70 rows."""
    shards = [numbered_texts(0, 128), numbered_texts(128, 198)]
    return write_cache(tmp_path / "cache", make_manifest(), shards)


def cut(keep: float | int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])

    return damage


def flip(position: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[position] ^= 1
        path.write_bytes(data)

    return damage


def lose_rows(path: Path) -> None:
    """A whole index behind too few rows."""
    path.write_bytes(path.read_bytes()[10:])


def with_columns(**columns: pa.Array) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table(columns), path)


KEYS = pa.array([b"k" * 16] * 70, pa.binary(16))
DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "shard is missing": (SHARD, Path.unlink),
    "shard is empty": (SHARD, cut(0)),
    "shard is cut to a few bytes": (SHARD, cut(3)),
    "shard is cut in half": (SHARD, cut(0.5)),
    "shard lacks its last byte": (SHARD, cut(-1)),
    "a bit of the index": (SHARD, flip(-10)),
    "a bit of the checksum": (SHARD, flip(-1)),
    "rows before a whole index": (SHARD, lose_rows),
    "scalar shard is missing": ("score/c/0", Path.unlink),
    "table is missing": (TABLE, Path.unlink),
    "table is cut": (TABLE, cut(0.5)),
    "table is empty": (TABLE, cut(0)),
    "table of other length": (TABLE, with_columns(key=KEYS[:69])),
    "table of other type": (TABLE, with_columns(key=KEYS.cast(pa.binary()))),
    "table of other columns": (TABLE, with_columns(keys=KEYS)),
    "commit record is cut": ("commits/000001.json", cut(0.5)),
    "teacher is cut": ("teacher.json", cut(0.5)),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_found_and_named(folder: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(folder / name)
    with pytest.raises(DamagedCacheError) as caught:
        read_all(folder)
    assert str(folder / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def read_all(folder: Path) -> None:
    cache = open_cache(folder.parent.parent)
    cache.lookup(numbered_texts(0, 198))
    for name in cache.features:
        assert np.isfinite(cache[name][:]).all()


def test_undamaged_shards_of_a_damaged_cache_can_be_read(folder: Path) -> None:
    (folder / SHARD).unlink()
    feature = open_cache(folder.parent.parent)["pooled"]
    assert np.isfinite(feature[:128]).all()
    with pytest.raises(DamagedCacheError):
        feature[127:129]


def test_nothing_there_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    for name in ("absent", "file", "."):
        with pytest.raises(CacheError, match=r"holds no armada\.json"):
            open_cache(tmp_path / name)


def test_a_later_format_is_refused_before_anything_else(folder: Path) -> None:
    manifest = folder.parent.parent / "armada.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 2', '"format_version": 3'))
    (folder / "teacher.json").write_text("something new")
    with pytest.raises(CacheVersionError, match="version 3; this armada reads versions 1, 2"):
        open_cache(folder.parent.parent)


@pytest.mark.parametrize(
    ("field", "value"),
    [("shard", 7), ("rows", 129), ("features", {})],
    ids=["another shard", "more rows than a shard has", "no features"],
)
def test_a_commit_record_that_does_not_fit_is_named(
    folder: Path, tmp_path: Path, field: str, value: object
) -> None:
    file = folder / "commits" / "000001.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(DamagedCacheError, match=r"commits/000001\.json"):
        open_cache(tmp_path / "cache")


def test_a_teacher_in_the_folder_of_another_is_named(folder: Path, tmp_path: Path) -> None:
    folder.rename(folder.with_name("0" * 32))
    with pytest.raises(DamagedCacheError, match="its folder has another name"):
        open_cache(tmp_path / "cache")
