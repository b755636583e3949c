"""A cache may come from strangers: whatever it says, nothing outside of it is read or written, no
code of it runs, and nothing is allocated for what it only claims."""

import json
import os
import pickle
import resource
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from armada.cache_schemas.errors import (
    ArmadaError,
    CacheError,
    DamagedCacheError,
    LinkedPathError,
)
from armada.cache_schemas.features import FeatureSpec
from armada.cache_schemas.manifest import CommitRecord, TeacherManifest
from armada.cache_schemas.teachers import TeacherSpec
from armada.stages.store.files.atomic import write_atomic
from armada.stages.store.files.lock import locked
from armada.stages.store.reading.reader import open_cache
from armada.stages.store.upkeep.survey import survey_cache
from armada.stages.store.upkeep.verify import verify
from armada.stages.store.writing.writer import CacheWriter
from pydantic import ValidationError
from small_caches import keys_of, make_manifest, numbered_texts, stored_bytes, write_cache

MANIFEST = make_manifest()
TEXTS = numbered_texts(0, 128)
TABLE = "tables/rows/000000.parquet"
MEMORY = 2**30


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "cache"
    write_cache(path, MANIFEST, [TEXTS])
    return path


def read_all(cache: Path) -> None:
    opened = open_cache(cache)
    opened.lookup(TEXTS)
    opened.runs()
    for name in opened.features:
        opened[name][:]


@contextmanager
def little_memory() -> Iterator[None]:
    """No more than a GiB of memory beyond what is there now, so that a claim that is believed
    fails here and harms nobody."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refused(cache: Path) -> str:
    """The message of the error of whoever reads this cache; verifying it finds damage, too."""
    with little_memory():
        assert verify(survey_cache(cache)).damages
        with pytest.raises(DamagedCacheError) as caught:
            read_all(cache)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    return str(caught.value)


def change(file: Path, *path: str | int, to: object) -> None:
    """Set one field of a JSON document."""
    document = json.loads(file.read_text())
    *above, last = path
    inner: Any = document
    for step in above:
        inner = inner[step]
    inner[last] = to
    file.write_text(json.dumps(document))


# Paths.

LINKED = [
    *("armada.json", "teachers", "teachers/{}", "teachers/{}/teacher.json"),
    *("teachers/{}/commits", "teachers/{}/commits/000000.json", "teachers/{}/tables"),
    *("teachers/{}/tables/rows", "teachers/{}/" + TABLE, "teachers/{}/pooled"),
    *("teachers/{}/pooled/c", "teachers/{}/pooled/c/0", "teachers/{}/pooled/c/0/0"),
    *("teachers/{}/score/c/0",),
]


@pytest.mark.parametrize("name", LINKED)
def test_a_link_is_refused(cache: Path, tmp_path: Path, name: str) -> None:
    path = cache / name.format(MANIFEST.fingerprint)
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    assert f"{path}: is a symbolic link" in refused(cache)


def test_the_folder_of_a_cache_may_be_a_link(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(cache)
    read_all(tmp_path / "link")
    assert verify(survey_cache(tmp_path / "link")).damages == ()


@pytest.mark.parametrize("name", ["commits/000000.json", TABLE, "score/c/0", "teacher.json"])
def test_a_pipe_keeps_nobody_waiting(cache: Path, folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert "is not a file" in refused(cache)


@pytest.mark.parametrize("name", ["../outside", "/etc", "a/b", "", "A", "x" * 65, "rows\n"])
@pytest.mark.parametrize("kind", ["features", "tables"])
def test_names_that_are_paths_are_refused(cache: Path, folder: Path, kind: str, name: str) -> None:
    file = folder / "commits" / "000000.json"
    record = json.loads(file.read_text())
    record[kind][name] = next(iter(record[kind].values()))
    file.write_text(json.dumps(record))
    assert "000000.json" in refused(cache)
    with pytest.raises(ValidationError):
        CommitRecord.model_validate(record)


@pytest.mark.parametrize("name", ["../x", "tables", "commits", "runs", "reservations"])
def test_features_that_are_paths_or_reserved_are_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        FeatureSpec(name=name, shape=(), dtype="float32")


@pytest.mark.parametrize("name", ["embedding", "pooled/c", "tables/rows", "commits", "runs", "."])
def test_nothing_is_written_through_a_linked_folder(
    cache: Path, folder: Path, tmp_path: Path, name: str
) -> None:
    outside = tmp_path / "outside"
    path = (folder / name).resolve()
    if path.exists():
        path.rename(outside)
    outside.mkdir(exist_ok=True)
    path.symlink_to(outside)
    before = stored_bytes(outside)
    with pytest.raises(DamagedCacheError, match="is a symbolic link"):
        CacheWriter(cache, MANIFEST)
    assert stored_bytes(outside) == before


def test_nothing_is_written_through_a_linked_file(
    cache: Path, folder: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (cache / "writer.lock").unlink(missing_ok=True)
    (cache / "writer.lock").symlink_to(precious)
    with pytest.raises(LinkedPathError, match="is a symbolic link"), locked(cache):
        pass
    (cache / "writer.lock").unlink()
    (folder / "pooled" / "zarr.json.partial").symlink_to(precious)
    (folder / "pooled" / "zarr.json").unlink()
    write_cache(cache, MANIFEST, [["new"]])
    (folder / "zarr.json.partial").symlink_to(precious)
    (folder / "zarr.json").unlink()
    with pytest.raises(DamagedCacheError, match="is a symbolic link"):
        CacheWriter(cache, MANIFEST)
    write_atomic(folder / "zarr.json", [b"{}"])
    os.link(precious, folder / "zarr.json.partial")
    write_atomic(folder / "zarr.json", [b"{}"])
    assert precious.read_text() == "precious"
    assert len(open_cache(cache)) == 129


# Claims.


@pytest.mark.parametrize("rows", [10**15, 2**63, 10**400, -1, 0, 1.5, "x", None, 129])
def test_a_record_that_claims_other_rows(cache: Path, folder: Path, rows: object) -> None:
    change(folder / "commits" / "000000.json", "rows", to=rows)
    assert "000000.json" in refused(cache)


def test_a_record_of_a_huge_file(cache: Path, folder: Path) -> None:
    change(folder / "commits" / "000000.json", "features", "pooled", "bytes", to=2**70)
    assert "features.pooled.bytes" in refused(cache)


@pytest.mark.parametrize("shard", [10**15, -1, 1, 0.5])
def test_a_record_of_another_shard(cache: Path, folder: Path, shard: object) -> None:
    change(folder / "commits" / "000000.json", "shard", to=shard)
    assert "000000.json" in refused(cache)


def test_a_record_without_keys(cache: Path, folder: Path) -> None:
    change(folder / "commits" / "000000.json", "tables", to={})
    assert "'rows' is not among them" in refused(cache)


SHAPES: list[list[int]] = [
    *([10**15], [2**62, 4], [2**32, 2**32], [2**16, 2**16], [1] * 9, [1] * 5000),
    *([0], [-1, -1], [2**29 + 1]),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: str(shape)[:20])
def test_shapes_that_no_answer_has(cache: Path, folder: Path, shape: list[int]) -> None:
    change(folder / "teacher.json", "spec", "features", 0, "shape", to=shape)
    assert "spec.features.0" in refused(cache)


def test_sizes_of_features_are_exact() -> None:
    spec = FeatureSpec(name="large", shape=(2**7, 2**7, 2**7, 2**7), dtype="float32")
    assert spec.row_bytes == 2**30


def test_shards_that_no_memory_holds() -> None:
    spec = TeacherSpec(
        kind="made_up",
        name="x",
        weights={},
        settings={},
        features=(FeatureSpec(name="large", shape=(2**28,), dtype="float32"),),
    )
    TeacherManifest(fingerprint=spec.fingerprint, rows_per_shard=64, spec=spec)
    with pytest.raises(ValidationError, match="a shard has at most"):
        TeacherManifest(fingerprint=spec.fingerprint, rows_per_shard=128, spec=spec)


@pytest.mark.parametrize("name", ["armada.json", "teacher.json", "commits/000000.json"])
def test_documents_larger_than_they_may_be_are_not_read(
    cache: Path, folder: Path, name: str
) -> None:
    file = cache / name if name == "armada.json" else folder / name
    os.truncate(file, 2**40)  # takes no room on the disk
    assert f"{file}: has {2**40} bytes; at most" in refused(cache)


@pytest.mark.parametrize("name", ["pooled", "nothing"])
def test_only_coded_features_have_a_fidelity(cache: Path, folder: Path, name: str) -> None:
    file = folder / "commits" / "000000.json"
    record = json.loads(file.read_text())
    record["fidelity"] = {name: {"tokens": 1, "entries": 1, "bytes_per_token": 9.0}}
    file.write_text(json.dumps(record))
    assert "matches neither its name nor the teacher" in refused(cache)


NESTED = ["[" * 10**5, '{"a":' * 10**5, '{"format":' + "[" * 10**5]


@pytest.mark.parametrize("text", NESTED, ids=["lists", "objects", "a field"])
@pytest.mark.parametrize(
    "name",
    ["armada.json", "teacher.json", "commits/000000.json", "runs/a.json", "pooled/zarr.json"],
)
def test_deeply_nested_documents(cache: Path, folder: Path, name: str, text: str) -> None:
    file = cache / name if name == "armada.json" else folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    assert str(file) in refused(cache)


def test_numbers_without_end(cache: Path, folder: Path) -> None:
    for file in (cache / "armada.json", folder / "pooled" / "zarr.json"):
        before = file.read_text()
        file.write_text(f'{{"format": "armada-cache", "format_version": {"9" * 10**5}}}')
        refused(cache)
        file.write_text(before)


def test_names_with_control_characters_stay_on_their_line(cache: Path, folder: Path) -> None:
    file = folder / "commits" / "000000.json"
    record = json.loads(file.read_text()) | {"\x1b[2J\nfine: \x07" * 100: 1}
    file.write_text(json.dumps(record))
    assert "000000.json" in refused(cache)


# Tables.

KEYS = pa.FixedSizeBinaryArray.from_buffers(
    pa.binary(16), 128, [None, pa.py_buffer(keys_of(TEXTS).tobytes())]
)
FALSE = pa.array([False] * 128)


def write_table(folder: Path, table: pa.Table, **how: object) -> None:
    pq.write_table(table, folder / TABLE, **({"compression": "none"} | how))


def test_a_table_may_be_written_by_others(cache: Path, folder: Path) -> None:
    write_table(folder, pa.table({"key": KEYS, "truncated": FALSE}), row_group_size=50)
    read_all(cache)


def many_rows() -> pa.Table:
    """A small file of ten million equal keys."""
    dictionary = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(10**7, np.int8)), pa.array([b"k" * 16], pa.binary(16))
    )
    return pa.table({"key": dictionary})


TABLES: dict[str, tuple[Callable[[], pa.Table], dict[str, Any], str]] = {
    "millions of rows": (many_rows, {}, "holds 10000000 rows"),
    "compressed": (
        lambda: pa.table({"key": KEYS, "truncated": FALSE}),
        {"compression": "zstd"},
        "is compressed",
    ),
    "no keys in some rows": (
        lambda: pa.table({"key": pa.array([None] * 128, pa.binary(16))}),
        {},
        "128 rows have no key",
    ),
    "a column twice": (
        lambda: pa.table([KEYS, KEYS], names=["key", "key"]),
        {},
        "found ['key', 'key']",
    ),
    "another column": (lambda: pa.table({"keys": KEYS}), {}, "found []"),
    "keys of keys": (lambda: pa.table({"key": pa.array([{"key": b""}] * 128)}), {}, "other types"),
}


@pytest.mark.parametrize(("make", "how", "problem"), TABLES.values(), ids=TABLES)
def test_tables_that_are_not_what_they_should_be(
    cache: Path,
    folder: Path,
    make: Callable[[], pa.Table],
    how: dict[str, Any],
    problem: str,
) -> None:
    write_table(folder, make(), **how)
    assert problem in refused(cache)


def test_a_footer_that_claims_more_than_there_is(cache: Path, folder: Path) -> None:
    data = (folder / TABLE).read_bytes()
    # Wherever the footer says 128 (a zigzag varint), it says 8191 instead: of rows, of values, ...
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    places = [p for p in range(footer, len(data) - 8) if data[p : p + 2] == b"\x80\x02"]
    problems = []
    for place in places:
        (folder / TABLE).write_bytes(data[:place] + b"\xfe\x7f" + data[place + 2 :])
        try:
            with little_memory():
                read_all(cache)
        except DamagedCacheError as error:
            problems.append(str(error).partition(".parquet: ")[2])
    assert problems.count("holds 8191 rows; the commit record says 128; recompute the shard") == 2


# Zarr.


def not_plain(folder: Path) -> None:
    """Let the shard of `pooled` have its two inner chunks in another order: Zarr has to read it."""
    file = folder / "pooled" / "c" / "0" / "0"
    chunk = 64 * 5 * 2
    first, second = file.read_bytes()[:chunk], file.read_bytes()[chunk : 2 * chunk]
    index = struct.pack("<QQQQ", chunk, chunk, 0, chunk)
    crc = struct.pack("<I", google_crc32c.value(index))
    file.write_bytes(second + first + index + crc)


def test_what_is_not_plain_is_read_through_zarr(cache: Path, folder: Path) -> None:
    expected = open_cache(cache)["pooled"][:]
    not_plain(folder)
    np.testing.assert_array_equal(open_cache(cache)["pooled"][:], expected)


ZARRS: dict[str, tuple[tuple[str | int, ...], object]] = {
    "zeros for absent rows": (("fill_value",), 0.0),
    "another type": (("data_type",), "float32"),
    "a type that holds objects": (("data_type",), "variable_length_utf8"),
    "another shape": (("shape",), [128, 6]),
    "no shape": (("shape",), 5),
    "a group": (("node_type",), "group"),
    "Zarr v2": (("zarr_format",), 2),
    "huge chunks": (("chunk_grid", "configuration", "chunk_shape"), [2**40, 5]),
    "chunks of nothing": (("chunk_grid", "configuration", "chunk_shape"), [0, 5]),
    "half chunks": (("chunk_grid", "configuration", "chunk_shape"), [0.5, 5]),
    "huge inner chunks": (("codecs", 0, "configuration", "chunk_shape"), [2**40, 5]),
    "tiny inner chunks": (("chunk_grid", "configuration", "chunk_shape"), [2**36, 5]),
    "a codec that runs code": (("codecs", 0, "configuration", "codecs", 0, "name"), "pickle"),
    "a codec of somebody's": (("codecs", 0, "name"), "numcodecs.pickle"),
    "a codec that crashes": (("codecs", 0, "configuration", "codecs", 0, "name"), "blosc"),
    "no codecs": (("codecs",), None),
    "codecs without end": (("codecs",), [{"name": "sharding_indexed"}] * 3),
}


@pytest.mark.parametrize(("path", "value"), ZARRS.values(), ids=ZARRS)
def test_zarr_documents_that_are_not_given_to_a_library(
    cache: Path, folder: Path, path: tuple[str | int, ...], value: object
) -> None:
    not_plain(folder)
    change(folder / "pooled" / "zarr.json", *path, to=value)
    assert str(folder / "pooled" / "zarr.json") in refused(cache)


def test_an_array_with_fewer_rows_than_are_committed(tmp_path: Path) -> None:
    folder = write_cache(tmp_path / "cache", MANIFEST, [TEXTS, numbered_texts(128, 198)])
    values = zarr.open_array(folder / "pooled", mode="r")[...]
    for rows in (129, 197):
        array = zarr.create_array(
            folder / "pooled",
            shape=(rows, 5),
            dtype="float16",
            fill_value=float("nan"),
            chunks=(64, 5),
            overwrite=True,
        )
        array[...] = values[:rows]
        feature = open_cache(tmp_path / "cache")["pooled"]
        np.testing.assert_array_equal(feature[:128], values[:128])
        with pytest.raises(DamagedCacheError, match="absent or not finite"):
            feature[128]


def test_other_numbers_of_the_same_bytes(cache: Path, folder: Path) -> None:
    """No checksum covers a Zarr document; a byte order that it makes up would be believed."""
    file = folder / "pooled" / "zarr.json"
    file.write_text(file.read_text().replace('"endian": "little"', '"endian": "big"', 1))
    assert [damage.kind for damage in verify(survey_cache(cache)).damages] == ["zarr"]
    with pytest.raises(DamagedCacheError, match=r"zarr\.json: has another row layout"):
        open_cache(cache, verify=True)["pooled"][0]


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["PWNED"],)


def test_zarr_v2_is_not_read(
    cache: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codecs of Zarr v2 include one that unpickles."""
    monkeypatch.setenv("PWNED", str(tmp_path / "pwned"))
    not_plain(folder)
    (folder / "pooled" / "zarr.json").unlink()
    document = {"zarr_format": 2, "shape": [128, 5], "chunks": [128, 5], "dtype": "<f2"}
    document |= {"fill_value": 0, "order": "C", "compressor": {"id": "pickle"}, "filters": None}
    (folder / "pooled" / ".zarray").write_text(json.dumps(document))
    (folder / "pooled" / "0.0").write_bytes(pickle.dumps(Code()))
    assert "zarr.json: is missing" in refused(cache)
    assert not (tmp_path / "pwned").exists()


def test_a_link_among_chunks(cache: Path, folder: Path, tmp_path: Path) -> None:
    not_plain(folder)
    (tmp_path / "outside").write_bytes((folder / "pooled/c/0/0").read_bytes())
    (folder / "pooled" / "c" / "9").symlink_to(tmp_path / "outside")
    assert "c/9: is neither a file nor a folder" in refused(cache)


def test_rows_that_are_only_claimed_take_no_memory(tmp_path: Path) -> None:
    """64 GiB of rows, of which not one is there."""
    spec = FeatureSpec(name="large", shape=(2**24,), dtype="float32")
    manifest = make_manifest([spec], rows_per_shard=1024)
    folder = write_cache(tmp_path / "cache", manifest, [])
    record = {"bytes": 1, "xxh3_128": "0" * 32}
    commit = CommitRecord.model_validate(
        {"shard": 0, "rows": 1024, "features": {"large": record}, "tables": {"rows": record}}
    )
    (folder / "commits").mkdir(exist_ok=True)
    (folder / "commits" / "000000.json").write_bytes(commit.to_json())
    change(folder / "large" / "zarr.json", "shape", 0, to=1024)
    change(
        folder / "large" / "zarr.json",
        "codecs",
        to=[{"name": "bytes", "configuration": {"endian": "little"}}],
    )
    change(
        folder / "large" / "zarr.json",
        *("chunk_grid", "configuration", "chunk_shape"),
        to=[1, 2**24],
    )
    with pytest.raises(DamagedCacheError, match="cannot be read as Zarr"):
        open_cache(tmp_path / "cache")["large"][0]


def test_many_huge_shards_cannot_be_opened_at_once(tmp_path: Path) -> None:
    """More address space than a process has."""
    spec = FeatureSpec(name="large", shape=(2**24,), dtype="float32")
    folder = write_cache(tmp_path / "cache", make_manifest([spec], rows_per_shard=1024), [])
    record = {"bytes": 1, "xxh3_128": "0" * 32}
    (folder / "commits").mkdir(exist_ok=True)
    for shard in range(3000):
        document = {"shard": shard, "rows": 1024, "features": {"large": record}}
        document |= {"tables": {"rows": record}}
        (folder / "commits" / f"{shard:06d}.json").write_text(json.dumps(document))
    opened = open_cache(tmp_path / "cache")
    assert len(opened) == 3000 * 1024
    with pytest.raises(ArmadaError):
        opened["large"][0]


def test_a_folder_of_something_else_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "armada.json").write_text('{"format": "something"}')
    with pytest.raises(CacheError, match="this is not an armada cache"):
        open_cache(tmp_path)
