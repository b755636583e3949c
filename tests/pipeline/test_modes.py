"""Who may use what armada leaves: as the umask says, and as a shared folder's group needs.

Every file and folder that a run and a cache leave behind is looked at, whichever library wrote it.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from armada.stages.store.files.modes import follow_umask
from command_line import CommandLine
from small_caches import make_manifest, numbered_texts, write_cache
from transfers import bring, serve_ready

MODES = {0o002: (0o664, 0o775), 0o022: (0o644, 0o755), 0o077: (0o600, 0o700)}
"""umask -> mode of files, of folders."""


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def others(folder: Path, of_files: int, of_folders: int) -> dict[str, str]:
    """What has another mode, by name."""
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        mode = stat.S_IMODE(path.lstat().st_mode)
        if mode != (of_folders if path.is_dir() else of_files):
            found[str(path.relative_to(folder))] = oct(mode)
    return found


@pytest.mark.parametrize("mask", [0o002, 0o022])
def test_a_run_leaves_what_the_umask_says(
    armada: CommandLine, distill_bench: Any, tmp_path: Path, mask: int
) -> None:
    with umask(mask):
        armada.done(*distill_bench.words(tmp_path / "run"))
    assert (tmp_path / "run" / "student" / "model.safetensors").exists()
    assert (tmp_path / "run" / "aligner" / "aligner.safetensors").exists()
    assert others(tmp_path / "run", *MODES[mask]) == {}


@pytest.mark.parametrize("mask", MODES)
def test_a_cache_is_what_the_umask_says(
    armada: CommandLine, distill_bench: Any, tmp_path: Path, mask: int
) -> None:
    ask = ("--corpus", distill_bench.train, "--text-column", "text", "--quiet")
    cache = tmp_path / "cache"
    with umask(mask):
        armada.done("precompute", *ask, "--teacher", "hash:4", "--cache", cache)
        armada.done("cache", "card", cache)
        armada.done("cache", "push", cache, tmp_path / "pushed", "--quiet")
        armada.done("cache", "pull", tmp_path / "pushed", tmp_path / "pulled", "--quiet")
        armada.done("cache", "merge", tmp_path / "merged", cache, "--quiet")
        armada.done("cache", "repair", cache, "--quiet")
        words = ("--output", tmp_path / "exported", "--format", "datasets")
        armada.done("cache", "export", cache, *ask, *words)
    for name in ("cache", "pushed", "pulled", "merged", "exported"):
        assert others(tmp_path / name, *MODES[mask]) == {}, name


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_in_a_shared_folder_the_group_may_go_on(tmp_path: Path, mask: int) -> None:
    shared, manifest = tmp_path / "shared", make_manifest()
    with umask(mask):
        shared.mkdir()
        shared.chmod(0o2770)
        write_cache(shared / "cache", manifest, [numbered_texts(0, 10)])
        write_cache(shared / "cache", manifest, [numbered_texts(10, 20)])
        bring(serve_ready(shared / "cache", shared / "pushed"), shared / "pulled")
    for path in shared.rglob("*"):
        mode = path.stat().st_mode
        wanted = stat.S_ISGID | stat.S_IRWXG if path.is_dir() else stat.S_IRGRP | stat.S_IWGRP
        assert mode & wanted == wanted, (path, oct(mode))
        assert not mode & (stat.S_IWOTH | (mask & stat.S_IROTH)), (path, oct(mode))


def test_weights_that_were_kept_from_everybody_are_given_to_whom_the_umask_lets(
    tmp_path: Path,
) -> None:
    (tmp_path / "inner").mkdir()
    file, link = tmp_path / "inner" / "weights", tmp_path / "link"
    file.touch(0o600)
    (tmp_path / "script").touch(0o700)
    outside = tmp_path.parent / "outside"
    outside.touch(0o600)
    link.symlink_to(outside)
    with umask(0o027):
        follow_umask(tmp_path)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (file, tmp_path / "script", outside)]
    assert modes == [0o640, 0o740, 0o600]
    assert {path.name for path in tmp_path.iterdir()} == {"inner", "link", "script"}
