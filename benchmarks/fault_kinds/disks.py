"""Faults of disks: full, read-only, a bit that flipped, a file that was cut or lost."""

import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from armada.cache_schemas.errors import OutputError, StorageError
from armada.cache_schemas.manifest import TeacherManifest
from armada.pipeline.caches.upkeep import run_repair, run_verify
from armada.stages.store.upkeep.repair import SET_ASIDE

from .bench import Bench
from .processes import Outcome

KINDS = {
    "shard": "teachers/*/embedding/c/*/0",
    "rows table": "teachers/*/tables/rows/*.parquet",
    "commit record": "teachers/*/commits/*.json",
    "teacher.json": "teachers/*/teacher.json",
    "zarr.json of a feature": "teachers/*/embedding/zarr.json",
}


class NotPermittedError(Exception):
    """This machine does not let us make the fault."""


def _mount(*words: object) -> None:
    command = [str(word) for word in words]
    if shutil.which(command[0]) is None or subprocess.run(command, capture_output=True).returncode:
        raise NotPermittedError(" ".join(command[:3]))


def full(bench: Bench, chance: random.Random) -> Outcome:
    """The disk fills up in mid-run; then there is room again."""
    bench.cache.mkdir()
    size = sum(map(len, bench.files.values()))
    _mount("mount", "-t", "tmpfs", "-o", f"size={int(size * chance.uniform(0.2, 0.9))}", "tmpfs",
           bench.cache)  # fmt: skip
    try:
        try:
            bench.run()
            failed = False
        except StorageError:
            failed = True
        right = bench.answers_are_right()
        _mount("mount", "-o", f"remount,size={3 * size}", bench.cache)
        bench.run()
        return failed and right, bench.store_is_equal()
    finally:
        subprocess.run(["umount", "-l", str(bench.cache)], check=True)


def read_only(bench: Bench, chance: random.Random) -> Outcome:
    """The cache is on a read-only file system: it can be read, a run is refused."""
    shutil.copytree(bench.whole, bench.cache)
    _mount("mount", "--bind", bench.cache, bench.cache)
    try:
        _mount("mount", "-o", "remount,ro,bind", bench.cache)
        right = bench.answers_are_right()
        try:
            bench.run()
            refused = False
        except OutputError:
            refused = True
        return right and refused, bench.store_is_equal()
    finally:
        subprocess.run(["umount", "-l", str(bench.cache)], check=True)


def flip(file: Path, chance: random.Random) -> None:
    """One bit is another."""
    data = bytearray(file.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)


def cut(file: Path, chance: random.Random) -> None:
    """The end is gone."""
    data = file.read_bytes()
    file.write_bytes(data[: chance.randrange(len(data))])


def lose(file: Path, chance: random.Random) -> None:
    """The file is gone."""
    file.unlink()


def damaged(
    kind: str, damage: Callable[[Path, random.Random], None]
) -> Callable[[Bench, random.Random], Outcome]:
    """One file of a kind is damaged: `verify` names it, `repair` and a rerun bring it back.

    Two damages cannot be told from no damage: a commit record that is not there (its shard is not
    committed then, and is computed again), and other prose in teacher.json (name and descriptions
    are for people, no checksum holds them); so these need not be named."""

    def trial(bench: Bench, chance: random.Random) -> Outcome:
        shutil.copytree(bench.whole, bench.cache)
        file = chance.choice(sorted(bench.cache.glob(KINDS[kind])))
        before = file.read_bytes()
        damage(file, chance)
        found = run_verify(bench.cache, quiet=True).found.damages
        named = any(one.file == file or _name(file, bench.cache) in str(one) for one in found)
        if not named and _is_other_prose(file, before):
            file.write_bytes(before)
            named = True
        run_repair(bench.cache, quiet=True)
        right = bench.answers_are_right()
        bench.run()
        file.with_name(file.name + SET_ASIDE).unlink(missing_ok=True)
        gone = kind == "commit record" and damage is lose
        return (named or gone) and right, bench.store_is_equal()

    return trial


def _name(file: Path, cache: Path) -> str:
    """As `verify` prints it: below the teacher's folder."""
    return Path(*file.relative_to(cache).parts[2:]).as_posix()


def _is_other_prose(file: Path, before: bytes) -> bool:
    if file.name != "teacher.json" or not file.exists():
        return False
    one, other = (TeacherManifest.model_validate_json(data) for data in (before, file.read_bytes()))
    return (one.fingerprint, one.rows_per_shard) == (other.fingerprint, other.rows_per_shard)
