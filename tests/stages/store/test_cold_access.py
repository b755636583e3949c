"""Features larger than memory: only the pages that are asked for are read, and those at once."""

import ctypes
import mmap
import os
import pickle
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from armada.cache_schemas.features import FeatureSpec
from armada.stages.store.reading import feature_array, memory
from armada.stages.store.reading.feature_array import FeatureArray
from armada.stages.store.reading.memory import available_memory, choose_access, pieces_of
from armada.stages.store.reading.reader import open_cache
from hangs import HANG_S
from hypothesis import given
from hypothesis import strategies as st
from thin_caches import cut_into_shards, numbered_rows, thin_feature, write_thin_cache

PAGE = mmap.PAGESIZE
MIB = 2**20
SPEC = FeatureSpec(name="embedding", shape=(PAGE // 4,), dtype="float16")
"""Two rows are one page."""
ROWS = 4096


# --- the choice


def test_a_feature_is_cold_if_it_leaves_no_memory_to_others() -> None:
    memory = available_memory()
    assert choose_access("auto", memory // 3) == "warm"
    assert choose_access("auto", memory) == "cold"
    assert choose_access("warm", 2**60) == "warm"
    assert choose_access("cold", 1) == "cold"


def test_memory_is_what_the_system_has_left() -> None:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 16 * MIB < available_memory() <= whole


@pytest.mark.parametrize(
    ("groups", "limits"),
    [
        ("0::/job/step\n", {"job/memory.max": 7 * MIB, "job/step/memory.max": "max"}),
        ("0::/\n", {"memory.max": 7 * MIB}),
        (
            "4:cpu,memory:/job\n0::/\n",
            {"memory/job/memory.limit_in_bytes": 7 * MIB, "memory/memory.limit_in_bytes": 2**62},
        ),
    ],
    ids=["of a group above", "of a container", "version 1"],
)
def test_a_control_group_may_leave_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, limits: dict[str, object]
) -> None:
    for name, limit in limits.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(f"{limit}\n")
    (tmp_path / "cgroup").write_text(groups)
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "cgroup")
    assert available_memory() == 7 * MIB


def test_a_cache_is_told_how_its_features_are_read(tmp_path: Path) -> None:
    write_thin_cache(tmp_path / "cache", SPEC, [numbered_rows(3, SPEC)], 64)
    assert open_cache(tmp_path / "cache")["embedding"].access == "warm"
    assert open_cache(tmp_path / "cache", access="cold")["embedding"].access == "cold"


# --- the pages


@given(
    st.lists(st.integers(0, 5000), max_size=60).map(lambda rows: np.array(rows, np.int64)),
    st.integers(1, 3 * PAGE),
)
def test_pieces_are_the_pages_of_the_rows(rows: np.ndarray, row_bytes: int) -> None:
    pieces = pieces_of(rows, row_bytes).astype(np.int64)
    pages = [page for at, size in pieces.tolist() for page in range(at, at + size, PAGE)]
    expected = {
        page
        for row in rows.tolist()
        for page in range(row * row_bytes // PAGE * PAGE, (row + 1) * row_bytes, PAGE)
    }
    assert pages == sorted(expected)  # each one once, in order
    assert all(size % PAGE == 0 and 0 < size <= 128 * 1024 for size in pieces[:, 1])


def test_neighbours_are_one_piece() -> None:
    rows = np.array([7, 100, 6, 101, 5])
    assert pieces_of(rows, PAGE).tolist() == [[5 * PAGE, 3 * PAGE], [100 * PAGE, 2 * PAGE]]
    many = pieces_of(np.arange(1000), PAGE)
    assert len(many) == -(-1000 * PAGE // (128 * 1024))


# --- what is read


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A teacher's cache with 4096 rows in two shards, and the rows."""
    values = numbered_rows(ROWS, SPEC)
    thin_feature(tmp_path, SPEC, cut_into_shards(values, [ROWS // 2] * 2), ROWS // 2)
    return tmp_path, values


def opened(cache: Path, access: str) -> FeatureArray:
    shards = [(0, ROWS // 2), (1, ROWS // 2)]
    return FeatureArray(cache / "teachers/thin", SPEC, ROWS // 2, shards, access=access)


def shard_files(cache: Path) -> list[Path]:
    return [cache / f"teachers/thin/embedding/c/{shard}/0" for shard in (0, 1)]


def forget(cache: Path) -> None:
    """Have the system drop what it keeps of the shards in memory."""
    for file in shard_files(cache):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(cache).any():
        pytest.skip("this file system keeps files in memory")


def resident(cache: Path) -> np.ndarray:
    """Whether each page of rows is in memory."""
    parts = [_resident(file) for file in shard_files(cache)]
    return np.concatenate(parts)


def _resident(file: Path) -> np.ndarray:
    size = ROWS // 2 * SPEC.row_bytes
    flags = np.zeros(size // PAGE, np.uint8)
    libc = ctypes.CDLL(None)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), size, mmap.MAP_PRIVATE) as mapped:
        pointer = ctypes.c_char.from_buffer(mapped)
        address = ctypes.c_void_p(ctypes.addressof(pointer))
        pages = ctypes.c_void_p(flags.ctypes.data)
        assert libc.mincore(address, ctypes.c_size_t(size), pages) == 0
        del pointer
    return flags & 1 == 1


NEEDS_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="asks what is in memory")


@NEEDS_LINUX
def test_a_cold_gather_reads_the_pages_of_its_rows(made: tuple[Path, np.ndarray]) -> None:
    cache, values = made
    rows = np.random.default_rng(0).permutation(ROWS)[:100]
    forget(cache)
    np.testing.assert_array_equal(opened(cache, "cold").gather(rows), values[rows], strict=True)
    assert set(np.flatnonzero(resident(cache))) == set(rows // 2)
    forget(cache)
    np.testing.assert_array_equal(opened(cache, "warm").gather(rows), values[rows], strict=True)
    assert resident(cache).sum() > 5 * len(rows)  # it reads around them


@NEEDS_LINUX
@pytest.mark.parametrize("sent", [False, True], ids=["here", "in another process"])
def test_nothing_is_read_around_a_cold_row(made: tuple[Path, np.ndarray], sent: bool) -> None:
    cache, values = made
    forget(cache)
    feature = opened(cache, "cold")
    mapped = (pickle.loads(pickle.dumps(feature)) if sent else feature).mapped
    for row in (3000, 77):
        np.testing.assert_array_equal(mapped[row], values[row])
    assert np.flatnonzero(resident(cache)).tolist() == [77 // 2, 3000 // 2]


@NEEDS_LINUX
@pytest.mark.parametrize("lost", ["nothing", "pidfd_open", "process_madvise"])
def test_what_will_be_needed_is_read(
    made: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Older kernels, and containers that forbid it, do not take many pieces in one call."""
    if lost == "pidfd_open":
        monkeypatch.setattr(os, "pidfd_open", _refuse)
    elif lost == "process_madvise":
        monkeypatch.setattr(memory, "_SYS_PROCESS_MADVISE", 100_000)
    cache, values = made
    rows = np.concatenate([np.arange(1000, 1700), [5, 4000, 2047, 2048]])
    forget(cache)
    feature = opened(cache, "cold")
    feature.will_need(rows)
    deadline = time.monotonic() + HANG_S
    while not resident(cache)[rows // 2].all():
        assert time.monotonic() < deadline, "it is not read"
        time.sleep(0.01)
    assert set(np.flatnonzero(resident(cache))) == set(rows // 2)
    np.testing.assert_array_equal(feature.gather(rows), values[rows])


@pytest.mark.parametrize("access", ["warm", "cold"])
def test_a_cold_batch_is_announced_before_it_is_copied(
    made: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch, access: str
) -> None:
    announced = []
    advise = memory._advise_all

    def noted(pieces: np.ndarray) -> None:
        announced.append(int(pieces[:, 1].sum()))
        advise(pieces)

    monkeypatch.setattr(memory, "_advise_all", noted)
    feature = opened(made[0], access)
    feature.gather(np.array([7, 6, 4000, 6]))
    assert announced == ([2 * PAGE] if access == "cold" else [])
    feature.will_need(np.array([9]))
    assert announced[-1] == PAGE


def test_a_long_cold_gather_is_read_in_parts(
    made: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, values = made
    monkeypatch.setattr(feature_array, "_PART_BYTES", 10 * SPEC.row_bytes)
    feature = opened(cache, "cold")
    for count in (0, 1, 9, 10, 11, 20, 95):
        rows = np.random.default_rng(count).permutation(ROWS)[:count]
        np.testing.assert_array_equal(feature.gather(rows), values[rows], strict=True)


def _refuse(process: int) -> int:
    raise OSError(1, "not permitted")
