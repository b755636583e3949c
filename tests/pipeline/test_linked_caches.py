"""Symbolic links anywhere in a cache, and every command that changes one: nothing outside changes.

A cache may come from strangers. Each of its files and folders, and each name that a command could
come to make, is put in place of a link: to where what was there has been moved, to a folder of
somebody's, to another place in the same cache, and to nothing. A command may go on where the link
does not matter, or take the link itself away; else it ends with one line.
"""

import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from armada.cache_schemas.errors import LinkedPathError
from armada.pipeline.precompute import run_precompute
from armada.pipeline.precompute_job import make_precompute_job
from armada.stages.store.transfer.mirror import Mirror
from command_line import CommandLine, Result
from file_server import serving
from small_caches import keys_of
from transfers import serve_ready

Commands = dict[str, tuple[object, ...]]

NEW = (
    *("index.json", "mirror.json", "in_use.lock", "pull.lock", "arriving", "README.md"),
    *("armada.json.partial", "zarr.json.partial", "teachers/zarr.json.partial", "teachers/{new}"),
    *("{t}/reservations", "{t}/reservations/000000", "{t}/reservations/dead-1", "{t}/part.json"),
    *("{t}/teacher.json.damaged", "{t}/teacher.json.partial", "{t}/embedding/zarr.json.partial"),
    *("{t}/commits/000001.json", "{t}/commits/000001.json.partial", "{t}/embedding/c/1"),
    *("{t}/tables/rows/000001.parquet", "{t}/tables/images", "{t}/runs/x.json", "{png}"),
)
"""What is not there yet; {t} is the first teacher's folder, {new} one that a command would add."""


class Bench:
    """A cache of two teachers, of 70 texts, and what commands are given with it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        texts = [f"text {number}" for number in range(140)]
        self.few, self.all = root / "few.csv", root / "all.csv"
        self.few.write_text("\n".join(["text", *texts[:70]]) + "\n")
        self.all.write_text("\n".join(["text", *texts]) + "\n")
        self.cache, self.more = root / "cache", root / "more"
        for teacher in ("hash:4", "hash:5"):
            self._ask(self.cache, self.few, teacher)
        shutil.copytree(self.cache, self.more)
        self._ask(self.more, self.all, "hash:4")
        self._ask(self.more, self.few, "hash:6")
        np.save(root / "rows.npy", np.ones((140, 3), np.float32))
        self.teachers = sorted(path.name for path in self.cache.glob("teachers/*/"))
        found = sorted(path.name for path in self.more.glob("teachers/*/"))
        self.new = next(name for name in found if name not in self.teachers)

    def _ask(self, path: Path, corpus: Path, teacher: str) -> None:
        keys = {"corpus": str(corpus), "text_column": "text", "cache": str(path)}
        more = {"teacher": teacher, "rows_per_shard": 64, "add_teacher": True}
        run_precompute(make_precompute_job(keys | more), quiet=True)

    def spots(self) -> Iterator[str]:
        """Everything in the cache but the second teacher's files, and what may come to be."""
        for path in sorted(self.cache.rglob("*")):
            name = path.relative_to(self.cache).as_posix()
            if not name.startswith(f"teachers/{self.teachers[1]}/"):
                yield name
        names = {"t": f"teachers/{self.teachers[0]}", "new": self.new}
        for name in NEW:
            yield name.format(png=f"features-{self.teachers[0][:12]}.png", **names)

    def commands(self, cache: Path, aside: Path) -> Commands:
        """Words of `armada` that are to change the cache, or read it while they make another."""
        ask = ("precompute", "--corpus", self.all, "--text-column", "text", "--quiet")
        known: Commands = {
            "precompute": (*ask, "--teacher", "hash:4", "--cache", cache),
            "another teacher": (
                *(*ask, "--teacher", "hash:6", "--cache", cache, "--set", "add_teacher=true"),
                *("--set", "rows_per_shard=64"),
            ),
            "merge": ("cache", "merge", cache, self.more, "--quiet"),
            "merge from": ("cache", "merge", aside, cache, "--quiet"),
            "pull": ("cache", "pull", self.more, cache, "--quiet"),
            "pull from": ("cache", "pull", cache, aside, "--quiet"),
            "push": ("cache", "push", self.more, cache, "--quiet"),
            "push from": ("cache", "push", cache, aside, "--quiet"),
            "repair": ("cache", "repair", cache, "--quiet"),
            "gc": ("cache", "gc", cache),
            "rm": ("cache", "rm", cache, "--teacher", self.teachers[0], "--yes"),
            "verify": ("cache", "verify", cache, "--quiet"),
            "card": ("cache", "card", cache, "--force"),
        }
        known["import"] = (
            *("cache", "import", cache, self.root / "rows.npy", "--name", "ones", "--quiet"),
            *("--corpus", self.all, "--text-column", "text", "--set", "id_column=false"),
        )
        return known


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("links"))


def moved(path: Path, outside: Path) -> None:
    """What was there, or a folder, lies outside now."""
    target = outside / "moved"
    if path.exists():
        path.rename(target)
    else:
        target.mkdir()
    path.symlink_to(target)


def elsewhere(path: Path, outside: Path) -> None:
    """Somebody's file, or folder, is there instead."""
    is_file = path.is_file() or (not path.exists() and path.suffix != "")
    _clear(path)
    path.symlink_to(outside / ("precious.txt" if is_file else "precious"))


def dangling(path: Path, outside: Path) -> None:
    """The link leads to what could be made."""
    _clear(path)
    path.symlink_to(outside / "nothing")


def inside(path: Path, outside: Path) -> None:
    """The link leads to another place in the same cache."""
    top = next(folder for folder in path.parents if folder.name == "cache")
    _clear(path)
    path.symlink_to(top / "zarr.json" if path.suffix else top / "keep")
    (top / "keep").mkdir()


def _clear(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


Link = Callable[[Path, Path], None]


def state(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every name below a folder with mode, time and content."""
    return {
        path.relative_to(folder).as_posix(): (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted([folder, *folder.rglob("*")])
    }


def prepared(whole: Path, tmp: Path, spot: str, link: Link) -> Path:
    """A copy of a cache with one link in it; `tmp / "outside"` is not to change."""
    shutil.rmtree(tmp, ignore_errors=True)
    cache, outside = Path(shutil.copytree(whole, tmp / "cache")), tmp / "outside"
    (outside / "precious" / "dead-1").mkdir(parents=True)
    (outside / "precious" / "zarr.json").write_text("precious")
    (outside / "precious.txt").write_text("precious")
    (cache / spot).parent.mkdir(parents=True, exist_ok=True)
    link(cache / spot, outside)
    return cache


COMMANDS = (
    *("precompute", "another teacher", "merge", "merge from", "pull", "pull from", "push"),
    *("push from", "repair", "gc", "rm", "verify", "card", "import"),
)


ENDS = {name: {0, 1} if name in ("verify", "repair") else {0, 2} for name in COMMANDS}
"""Exit codes. A link is damage, which `verify` finds; `repair` may leave it to people."""

TOLD = re.compile("is a symbolic link|is a mirror")


FOLDERS = (
    "teachers",
    *(f"{{t}}/{name}".rstrip("/") for name in ("", "commits", "embedding", "runs")),
)
"""Of the places, those through which most is written."""


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_changed_through_linked_folders(
    bench: Bench, armada: CommandLine, tmp_path: Path, command: str
) -> None:
    spots = [name.format(t=f"teachers/{bench.teachers[0]}") for name in FOLDERS]
    assert wrong(bench, armada, tmp_path / "one", command, elsewhere, spots) == []


@pytest.mark.slow
@pytest.mark.parametrize("link", [moved, elsewhere, dangling, inside])
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_outside_of_a_cache_changes(
    bench: Bench, armada: CommandLine, tmp_path: Path, command: str, link: Link
) -> None:
    assert wrong(bench, armada, tmp_path / "one", command, link, bench.spots()) == []


def wrong(
    bench: Bench, armada: CommandLine, tmp: Path, command: str, link: Link, spots: Iterable[str]
) -> list[tuple[str, bool, Result]]:
    """The places of links after which something outside has changed, or a command ended badly."""
    found = []
    for spot in spots:
        cache = prepared(bench.cache, tmp, spot, link)
        before, kept = state(tmp / "outside"), state(bench.more)
        result = armada(*bench.commands(cache, tmp / "aside")[command])
        told = result.code == 0 or TOLD.search(result.out + result.err) is not None
        if command == "rm" and link is dangling:  # what leads nowhere is no teacher
            told = told or "is not in the cache" in result.err
        told = told and result.code in ENDS[command] and result.err.count("\n") <= 1
        same = state(tmp / "outside") == before and state(bench.more) == kept
        if not (same and told):
            found.append((spot, same, result))
    return found


MIRRORED = ("mirror.json", "in_use.lock", "arriving", "writer.lock", "zarr.json", "teachers")
OF_A_TEACHER = (
    "",
    "/reservations",
    "/embedding",
    "/embedding/c",
    "/tables",
    "/part.json",
    "/commits",
)


@pytest.mark.parametrize("link", [moved, elsewhere, dangling])
def test_a_mirror_fills_nothing_but_itself(bench: Bench, tmp_path: Path, link: Link) -> None:
    teacher = bench.teachers[0]
    spots = [*MIRRORED, *(f"teachers/{teacher}{name}" for name in OF_A_TEACHER)]
    keys, tmp = keys_of(["text 0"]), tmp_path / "one"
    with serving(serve_ready(bench.cache, tmp_path / "served")) as server:
        whole = tmp_path / "mirror"
        Mirror(server.url, whole).open(teacher)
        for spot in spots:
            folder = prepared(whole, tmp, spot, link)
            before = state(tmp / "outside")
            with suppress(LinkedPathError):
                mirror = Mirror(server.url, folder, limit_bytes=10**6)
                cache = mirror.open(teacher)
                mirror.fetch_ahead(cache, "embedding", keys)
                cache["embedding"][cache.find(keys)]
            assert state(tmp / "outside") == before, spot


def test_the_folder_of_a_cache_may_be_a_link(
    bench: Bench, armada: CommandLine, tmp_path: Path
) -> None:
    shutil.copytree(bench.cache, tmp_path / "cache")
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    for name in ("precompute", "another teacher", "verify", "repair", "gc", "card", "import"):
        result = armada(*bench.commands(tmp_path / "link", tmp_path / "aside")[name])
        assert result.code == 0, (name, result)
    (tmp_path / "nowhere").symlink_to(tmp_path / "nothing")
    line = armada(*bench.commands(tmp_path / "nowhere", tmp_path / "aside")["precompute"]).error
    assert "is a file, or a link to nothing" in line
    assert not (tmp_path / "nothing").exists()
