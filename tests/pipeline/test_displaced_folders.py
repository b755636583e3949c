"""What takes the place of a cache's folder is damage: it is named, and nothing is lost by it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import CommandLine

FOLDERS = (
    *("teachers", "{t}", "{t}/commits", "{t}/runs", "{t}/reservations", "{t}/tables"),
    *("{t}/tables/rows", "{t}/embedding", "{t}/embedding/c"),
)
"""All folders of a cache down to those of shards; {t} is a teacher's."""


def a_file(path: Path) -> None:
    path.write_text("in the way")


def a_dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


def asked(corpus: Path, cache: Path) -> tuple[object, ...]:
    words = ("precompute", "--corpus", corpus, "--text-column", "text", "--quiet")
    return (*words, "--teacher", "hash:4", "--cache", cache)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "texts.csv").write_text("text\n" + "".join(f"text {n}\n" for n in range(20)))
    return tmp_path / "texts.csv"


@pytest.fixture
def cache(tmp_path: Path, corpus: Path, armada: CommandLine) -> Path:
    armada.done(*asked(corpus, tmp_path / "cache"))
    return tmp_path / "cache"


def names(folder: Path) -> list[tuple[str, int]]:
    found = sorted(folder.rglob("*"))
    return [(path.relative_to(folder).as_posix(), path.lstat().st_mode) for path in found]


@pytest.mark.parametrize("place", [a_file, os.mkfifo, a_dangling_link])
@pytest.mark.parametrize("name", FOLDERS)
def test_nothing_is_lost_by_what_takes_a_folders_place(
    cache: Path,
    corpus: Path,
    tmp_path: Path,
    armada: CommandLine,
    name: str,
    place: Callable[[Path], None],
) -> None:
    teacher = next(file.parent for file in cache.glob("teachers/*/teacher.json"))
    folder = cache / name.format(t=teacher.relative_to(cache))
    folder.mkdir(exist_ok=True)
    whole = armada.done("cache", "verify", cache, "--quiet").splitlines()[-2:]
    aside = shutil.move(folder, tmp_path / "aside")
    place(folder)
    before = names(cache)
    problem = "is a symbolic link" if place is a_dangling_link else "is not a folder; move it away"
    for words in (("verify",), ("repair",), ("repair", "--dry-run")):
        found = armada("cache", *words, cache, *([] if "--dry-run" in words else ["--quiet"]))
        assert found.code == 1, (words, found)
        line = found.out.splitlines()[0]
        assert folder.name in line, line
        assert problem in line, line
    for words in (("cache", "gc", cache), asked(corpus, cache)):
        refused = armada(*words)
        assert refused.code in (1, 2), (words, refused)
        assert refused.err.count("\n") == 1
        assert f"{folder}: {problem}" in refused.err
    assert [each for each in names(cache) if not each[0].endswith(".lock")] == [
        each for each in before if not each[0].endswith(".lock")
    ]
    folder.unlink()
    shutil.move(aside, folder)
    assert armada.done("cache", "verify", cache, "--quiet").splitlines()[-2:] == whole
    assert whole[-1] == "whole"


def test_other_teachers_of_a_cache_are_still_looked_at(
    cache: Path, corpus: Path, armada: CommandLine
) -> None:
    armada.done(*asked(corpus, cache), "--teacher", "hash:5", "--set", "add_teacher=true")
    first, second = sorted(file.parent for file in cache.glob("teachers/*/teacher.json"))
    shutil.rmtree(first / "commits")
    a_file(first / "commits")
    shown = armada("cache", "verify", cache, "--quiet")
    assert shown.code == 1
    assert "1 teacher, 1 shard, 20 rows" in shown.out
    assert armada("cache", "verify", cache, "--teacher", second.name, "--quiet").code == 0
    assert armada("cache", "verify", cache, "--teacher", first.name, "--quiet").code == 1


@pytest.mark.parametrize("name", ["embedding/c/0", "tables/rows/000000.parquet"])
def test_what_takes_the_place_of_a_shard_is_dropped_with_it(
    cache: Path, corpus: Path, armada: CommandLine, name: str
) -> None:
    whole = armada.done("cache", "verify", cache, "--quiet").splitlines()[-2:]
    path = next(cache.glob("teachers/*/teacher.json")).parent / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    os.mkfifo(path)
    assert armada("cache", "verify", cache, "--quiet").code == 1
    assert armada("cache", "repair", cache, "--quiet").code == 0
    armada.done(*asked(corpus, cache))
    assert armada.done("cache", "verify", cache, "--quiet").splitlines()[-2:] == whole
