"""Where shards cannot be mapped side by side they are read one by one, or refused by name."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from armada.cache_schemas.errors import DamagedCacheError
from armada.cache_schemas.features import FeatureSpec
from armada.stages.store.reading.feature_array import FeatureArray
from armada.stages.store.reading.memory import AddressRange
from thin_caches import cut_into_shards, numbered_rows, thin_feature, write_shards

READ_ALL = """
import ctypes, mmap, resource, sys
import numpy as np
from pathlib import Path
from armada.cache_schemas.features import FeatureSpec
from armada.stages.store.reading.memory import AddressRange
from armada.stages.store.reading.feature_array import FeatureArray

spec = FeatureSpec(name="apart", shape=(int(sys.argv[2]),), dtype="float32")
np.unique(np.arange(2))  # what NumPy imports late is imported now
{before}
feature = FeatureArray(Path(sys.argv[1]), spec, 64, [(shard, 64) for shard in range(4)])
{after}
total = sum(float(feature[start : start + 8].sum()) for start in range(0, len(feature), 8))
assert feature.mapped is None
print(total)
"""

NO_ROOM = """
used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 2**24, used + 3 * 2**24))
"""

# As many mappings as a process may have: one page of two can be read. Before, room is made among
# small objects and large ones, for Python asks for memory by mappings, too.
NO_MORE_MAPPINGS = """
room = [bytes(size) for size in (*range(1, 512, 8), *range(600, 60_000, 2000)) for _ in range(200)]
del room[::2]
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
pages = mmap.mmap(-1, 2 * mmap.PAGESIZE * int(Path("/proc/sys/vm/max_map_count").read_text()))
at = ctypes.addressof(ctypes.c_char.from_buffer(pages))
while libc.mprotect(at, mmap.PAGESIZE, mmap.PROT_READ) == 0:
    at += 2 * mmap.PAGESIZE
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits mappings as Linux does")
@pytest.mark.parametrize(
    ("width", "code"),
    [
        (2**16, READ_ALL.format(before=NO_ROOM, after="")),  # four shards of 16 MiB
        (3, READ_ALL.format(before="", after=NO_MORE_MAPPINGS)),
    ],
    ids=["no room for all", "no more mappings"],
)
def test_shards_are_read_one_by_one(tmp_path: Path, width: int, code: str) -> None:
    spec = FeatureSpec(name="apart", shape=(width,), dtype="float32")
    teacher = tmp_path / "teachers" / "thin"
    values = np.zeros((4, 64, width), np.float32)
    values[:, 63, -1] = [1, 20, 300, 4000]
    write_shards(teacher, spec, values, 64)
    ended = subprocess.run(
        [sys.executable, "-c", code, str(teacher), str(width)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stderr == ""
    assert float(ended.stdout) == 4321


def test_what_no_address_space_holds_is_refused_by_its_file(tmp_path: Path) -> None:
    spec = FeatureSpec(name="vast", shape=(2**28,), dtype="float32")
    (tmp_path / "teachers/thin/vast/c/0").mkdir(parents=True)
    (tmp_path / "teachers/thin/vast/c/0/0").write_bytes(b"\0" * 100)
    feature = FeatureArray(tmp_path / "teachers/thin", spec, 2**20, [(0, 2**20)])
    with pytest.raises(DamagedCacheError, match="vast/c/0/0"):
        feature[0]


@pytest.mark.parametrize("size", [2**60, 2**64, 2**70])
def test_there_is_no_room_for_more_than_addresses(size: int) -> None:
    with pytest.raises(OSError, match="address space"):
        AddressRange(size)


@pytest.mark.parametrize("kind", [os.mkfifo, Path.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: Callable[[Path], None]) -> None:
    spec = FeatureSpec(name="number", shape=(), dtype="float32")
    shards = cut_into_shards(numbered_rows(256, spec), [128, 128])
    feature = thin_feature(tmp_path, spec, shards, 128)
    path = tmp_path / "teachers/thin/number/c/1"
    path.unlink()
    kind(path)
    feature[0]
    with pytest.raises(DamagedCacheError, match="number/c/1"):
        feature[128]
