"""How a feature is read from disk: as if it were in memory, or as one that does not fit.

warm  The system reads megabytes around each touched page, which soon has all of a feature in
      memory that fits there (a first epoch in random order: 0.9 million rows/s of 2 KiB).
cold  Only the pages of the rows that are asked for, all of a batch at once. Where memory is short,
      reading around is fatal: the first random rows come at 8 thousand rows/s with 98 times the
      bytes wanted, this way at 72 thousand with twice the bytes (8 threads of pread: 50 thousand).
      On pages in memory it takes 3 times as long as `warm`, hence the choice by size.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Access = Literal["auto", "warm", "cold"]
"""`auto` is `cold` for a feature that is larger than COLD_SHARE of the memory at hand."""

COLD_SHARE = 0.5
"""The other half is for the model, its optimizer and whatever else runs."""

_OWN_GROUPS = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


def choose_access(access: Access, feature_bytes: int) -> Literal["warm", "cold"]:
    """What `access` means for a feature of this size."""
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
    place = Path(group.lstrip("/"))
    for folder in (place, *place.parents):
        try:
            text = (root / folder / name).read_text()
        except OSError:
            continue
        if text.strip().isdecimal():  # or "max"
            yield int(text)
