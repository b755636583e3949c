"""The disk below a folder: what it reads by itself, and how files are made cold."""

import ctypes
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_DROP_CACHES = Path("/proc/sys/vm/drop_caches")
_READ_BYTES = 8 * 2**20

_IN_MEMORY = {"tmpfs", "ramfs"}

MACHINE, FILES, NOT = "drop_caches", "posix_fadvise", "impossible"


def cold_method(folder: Path, spare_the_machine: bool) -> str:
    """How files can be made cold here: by emptying the page cache of the machine, by asking the
    kernel to forget these files, or not at all."""
    if file_system(folder) in _IN_MEMORY:
        return NOT
    if not spare_the_machine and os.access(_DROP_CACHES, os.W_OK):
        return MACHINE
    return FILES if hasattr(os, "posix_fadvise") else NOT


def make_cold(folder: Path, method: str) -> None:
    """Take the files of `folder`, which are on disk, out of memory. Nobody may have them mapped."""
    if method == MACHINE:
        _DROP_CACHES.write_text("3\n")
    for file in _files(folder):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident_share(folder: Path) -> float:
    """Share of the bytes of `folder` that is in memory, 0 to 1."""
    counts = [_pages(file) for file in _files(folder) if file.stat().st_size]
    return sum(resident for resident, _ in counts) / max(sum(pages for _, pages in counts), 1)


def _pages(file: Path) -> tuple[int, int]:
    """Pages in memory, and pages, of a file that is not empty."""
    size = file.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    flags = (ctypes.c_ubyte * pages)()
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), size, mmap.MAP_PRIVATE)
        address = (ctypes.c_char * size).from_buffer(mapped)
        failed = libc.mincore(
            ctypes.c_void_p(ctypes.addressof(address)), ctypes.c_size_t(size), flags
        )
        del address
        mapped.close()
    if failed:
        raise OSError(ctypes.get_errno(), "mincore", str(file))
    return int((np.frombuffer(flags, np.uint8) & 1).sum()), pages


def read_rate(folder: Path) -> float:
    """Bytes a second of read() on the files of `folder`, one after another."""
    buffer = bytearray(_READ_BYTES)
    started, done = time.perf_counter(), 0
    for file in _files(folder):
        with file.open("rb", buffering=0) as opened:
            while count := opened.readinto(buffer):
                done += count
    return done / (time.perf_counter() - started)


def size_of(folder: Path) -> tuple[int, int]:
    """Number of files, and their bytes."""
    sizes = [file.stat().st_size for file in _files(folder)]
    return len(sizes), sum(sizes)


def file_system(folder: Path) -> str:
    """Kind of the file system of a folder, as the kernel names it."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    mounts = [line.split()[1:3] for line in lines]
    above = [(len(point), kind) for point, kind in mounts if folder.is_relative_to(point)]
    return max(above, default=(0, "unknown"))[1]


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
