"""Features in memory: how they are read into it, where files are mapped, which pages come ahead.

warm  The system reads megabytes around each touched page, which soon has all of a feature in
      memory that fits there (a first epoch in random order: 0.9 million rows/s of 2 KiB).
cold  Only the pages of requested rows, all of a batch at once. Where memory is short,
      reading around is fatal: the first random rows come at 8 thousand rows/s with 98 times the
      bytes wanted, this way at 72 thousand with twice the bytes (8 threads of pread: 50 thousand).
      On pages in memory it takes 3 times as long as `warm`, hence the choice by size.

Files are mapped side by side, read only, into one piece of this process's address space. Python's
`mmap` keeps a descriptor for each mapping and cannot choose where one goes, so these few calls go
to the C library. What was reserved and not filled cannot be read at all (the process dies on a
stray address rather than take zeros for answers). It is given back when the last array over it is
gone; a forked child has a copy of its own.
"""

import ctypes
import errno
import mmap
import os
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ....cache_schemas.keys import IntArray

Access = Literal["auto", "warm", "cold"]
"""`auto` is `cold` for a feature that is larger than COLD_SHARE of the memory at hand."""

COLD_SHARE = 0.5
"""The other half is for the model, its optimizer and whatever else runs."""

_OWN_GROUPS = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


def choose_access(access: Access, feature_bytes: int) -> Literal["warm", "cold"]:
    """The access mode for a feature of this size."""
    if access != "auto":
        return access
    return "cold" if feature_bytes > COLD_SHARE * available_memory() else "warm"


def available_memory() -> int:
    """Bytes this process could still take without anything being swapped out, cached files given
    up; no more than its control groups allow."""
    return min(_free_memory(), *_group_limits())


def _free_memory() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _group_limits() -> Iterator[int]:
    """Limits of the control groups (versions 1 and 2) of this process and of all above them."""
    try:
        groups = [line.split(":", 2) for line in _OWN_GROUPS.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, group in groups:
        if controllers == "":
            yield from _limits(_CGROUPS, group, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _limits(_CGROUPS / "memory", group, "memory.limit_in_bytes")


def _limits(root: Path, group: str, name: str) -> Iterator[int]:
    inner = Path(group.lstrip("/"))
    for folder in (inner, *inner.parents):
        try:
            text = (root / folder / name).read_text()
        except OSError:
            continue
        if text.strip().isdecimal():  # or "max"
            yield int(text)


HUGE_PAGE_BYTES = 2 * 2**20
"""Size of a huge page. Files that begin on such a boundary and are
read in such pieces are mapped so: random rows of 2 KiB come 1.3 times as fast (3.2 against 2.5
million rows/s) once they are in memory, and a first epoch in random order twice (0.89 against
0.43)."""

Pieces = npt.NDArray[np.uint64]
"""[n, 2]: where pieces of a range begin, counted from its start, and their sizes; in bytes."""

_PROT_NONE = 0
_MAP_FIXED = 0x10
_READ_HUGE_PAGES: int | None = getattr(mmap, "MADV_HUGEPAGE", None)  # not on macOS
_FAILED = ctypes.c_void_p(-1).value
_MOST_BYTES = 2**46
_SYS_PROCESS_MADVISE = 440
_PIECES_A_CALL = 1024

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class AddressRange:
    """`size` bytes of address space that start on a huge page."""

    def __init__(self, size: int) -> None:
        """Raises OSError if there is no such room."""
        if size > _MOST_BYTES:
            raise OSError(errno.ENOMEM, f"{size} bytes of address space")
        whole = size + HUGE_PAGE_BYTES
        found = _map(None, whole, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANON, -1)
        # Not at exit: a thread may still read, and the process's memory goes anyway.
        weakref.finalize(self, _libc.munmap, found, whole).atexit = False
        self._start = -(-found // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        self._size = size

    def map(self, at: int, descriptor: int, size: int) -> None:
        """Map the first `size` bytes of an open file at `at`, a multiple of the page size.

        The file must be that long: what is not there when it is read ends the process. It may be
        closed. Placing it again changes nothing. Raises OSError."""
        assert 0 <= at <= at + size <= self._size, (at, size)
        flags = mmap.MAP_SHARED | _MAP_FIXED
        _map(self._start + at, size, mmap.PROT_READ, flags, descriptor)

    def expect(self, at: int, size: int, *, all_of_it: bool) -> None:
        """Advise how mapped bytes will be accessed: all of them before long, so that huge pages are
        read at once, or here and there, so that only requested bytes are read."""
        advice = _READ_HUGE_PAGES if all_of_it else mmap.MADV_RANDOM
        if advice is not None:
            _libc.madvise(self._start + at, size, advice)

    def will_need(self, pieces: Pieces) -> None:
        """Begin to read whole pages, in this order, without waiting for them."""
        there = pieces + np.array([self._start, 0], dtype=np.uint64)
        for first in range(0, len(there), _PIECES_A_CALL):
            _advise_all(there[first : first + _PIECES_A_CALL])

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """The range from its start as an array that cannot be written to and keeps it reserved."""
        return np.asarray(_Window(self, shape, dtype))


class _Window:
    """Array interface of memory that NumPy does not own; an array's `base`, so it holds the
    range."""

    def __init__(self, held: AddressRange, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._held = held
        self.__array_interface__ = {
            "data": (held._start, True),
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }


def _map(at: int | None, size: int, protection: int, flags: int, descriptor: int) -> int:
    found = _libc.mmap(at, size, protection, flags, descriptor, 0)
    if found is None or found == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(found)


def _advise_all(there: Pieces) -> None:
    # A hint: pages that were not read ahead are read when they are touched.
    if not _advise_in_one_call(there):
        for address, size in there.tolist():
            _libc.madvise(address, size, mmap.MADV_WILLNEED)


def _advise_in_one_call(there: Pieces) -> bool:
    """Linux can take many pieces at once: half the time of a call for each (on cached pages)."""
    if sys.platform != "linux":
        return False
    try:
        # Of this process: after a fork, an older one would stand for the parent.
        process = os.pidfd_open(os.getpid())
    except OSError:
        return False
    try:
        pieces = ctypes.c_void_p(there.ctypes.data)
        count, advice = ctypes.c_size_t(len(there)), ctypes.c_int(mmap.MADV_WILLNEED)
        call = ctypes.c_long(_SYS_PROCESS_MADVISE)
        done = _libc.syscall(call, ctypes.c_int(process), pieces, count, advice, ctypes.c_uint(0))
        return bool(done >= 0)
    finally:
        os.close(process)


# The least that common systems read per hint, however much it names.
_PIECE_BYTES = 128 * 2**10


def pieces_of(rows: IntArray, row_bytes: int) -> Pieces:
    """The pages that hold some rows of an array, as few pieces as may be, in their order on disk;
    the array starts at byte 0."""
    ordered = np.sort(rows)
    first = ordered * row_bytes // mmap.PAGESIZE
    end = -(-(ordered + 1) * row_bytes // mmap.PAGESIZE)
    apart = first[1:] > end[:-1]
    edge = np.ones(min(1, len(rows)), dtype=bool)
    starts, ends = first[np.concatenate([edge, apart])], end[np.concatenate([apart, edge])]
    return _cut(starts * mmap.PAGESIZE, ends * mmap.PAGESIZE)


def _cut(starts: IntArray, ends: IntArray) -> Pieces:
    """Pieces of at most _PIECE_BYTES between `starts` and `ends`."""
    counts = -(-(ends - starts) // _PIECE_BYTES)
    if len(counts) == 0 or counts.max() > 1:
        before = np.repeat(np.cumsum(counts) - counts, counts)
        starts = np.repeat(starts, counts) + (np.arange(len(before)) - before) * _PIECE_BYTES
        ends = np.minimum(starts + _PIECE_BYTES, np.repeat(ends, counts))
    return np.stack([starts, ends - starts], axis=1).astype(np.uint64)
