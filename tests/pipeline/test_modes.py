"""Who may use what armada leaves: as the umask says, and as a shared folder's group needs.

Every file and folder that a run and a cache leave behind is looked at, whichever library wrote it.
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from armada.cache_schemas.features import FeatureSpec
from armada.pipeline import seed_run
from armada.stages.store.files.atomic import follow_umask
from armada.stages.store.writing.reservations import Staging
from command_line import CommandLine
from cuts import cut_at
from small_caches import make_manifest, numbered_texts, stored_bytes, write_cache
from transfers import bring, serve_ready
from unprivileged import skip_where_packages_are_private, unprivileged, user

pytestmark = pytest.mark.long

FEATURE = FeatureSpec(name="embedding", shape=(4,), dtype="float32")

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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_two_users_of_a_group_fill_one_cache(armada: CommandLine) -> None:
    manifest, group = make_manifest(), 54321
    with tempfile.TemporaryDirectory() as folder, umask(0o022):
        Path(folder).chmod(0o755)
        # Imported now: another user may not be let to where the packages are installed.
        warm = Path(folder) / "warm"
        write_cache(warm, manifest, [["what is imported late"]])
        for words in (("repair",), ("gc",), ("rm", "--teacher", manifest.fingerprint, "--yes")):
            armada.done("cache", words[0], warm, *words[1:])
        shared, cache = Path(folder) / "shared", Path(folder) / "shared" / "cache"
        teacher = cache / "teachers" / manifest.fingerprint
        shared.mkdir()
        os.chown(shared, 12345, group)
        shared.chmod(0o2775)
        with user(12345, group):
            write_cache(cache, manifest, [numbered_texts(0, 10), numbered_texts(10, 20)])
            left = Staging(
                cache / "teachers" / manifest.fingerprint / "reservations" / "000009", {}
            )
            left._heartbeat.close()  # as if it had died
        with user(12346, group):
            write_cache(cache, manifest, [numbered_texts(20, 30)])
            assert not left.folder.exists()
            (teacher / "pooled" / "c" / "0" / "0").unlink()
            armada.done("cache", "repair", cache, "--quiet")
        with user(12345, group):
            write_cache(cache, manifest, [numbered_texts(0, 10)])
            armada.done("cache", "gc", cache)
            armada.done("cache", "rm", cache, "--teacher", manifest.fingerprint, "--yes")
        with user(12347, 12347):
            result = armada("cache", "gc", cache)
        assert (result.code, "permission denied; its owner can" in result.error) == (2, True)


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_in_a_shared_folder_the_group_has_runs_and_what_is_made_of_them(
    armada: CommandLine, distill_bench: Any, tmp_path: Path, mask: int
) -> None:
    shared = tmp_path / "shared"
    run, ask = shared / "run", ("--corpus", distill_bench.validation, "--text-column", "text")
    with umask(mask):
        shared.mkdir()
        shared.chmod(0o2770)
        armada.done(*distill_bench.words(run))
        armada.done("predict", run, *ask, "--output", shared / "said" / "by.parquet", "--quiet")
        armada.done("predict", run, *ask, "--output", shared / "said" / "by.jsonl", "--quiet")
        armada.done("report", run, "--out", shared / "page" / "report.html", "--quiet")
        ask = ("--corpus", distill_bench.train, "--text-column", "text", "--quiet")
        words = (
            "--teacher",
            distill_bench.hash,
            "--format",
            "npy",
            "--output",
            shared / "exported",
        )
        armada.done("cache", "export", distill_bench.cache, *ask, *words)
    assert (run / "tensorboard").is_dir()
    assert list((shared / "page").rglob("*.png"))
    not_shared = {
        str(path.relative_to(shared)): oct(path.stat().st_mode)
        for path in shared.rglob("*")
        for wanted in [
            stat.S_ISGID | stat.S_IRWXG if path.is_dir() else stat.S_IRGRP | stat.S_IWGRP
        ]
        if path.stat().st_mode & wanted != wanted or path.stat().st_mode & stat.S_IWOTH
    }
    assert not_shared == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_one_of_a_group_goes_on_with_the_run_of_another(
    armada: CommandLine, distill_bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_where_packages_are_private()
    group = 54321
    with tempfile.TemporaryDirectory() as folder, umask(0o022):
        top = Path(folder)
        top.chmod(0o755)
        follow_umask(distill_bench.student)  # the fixture's own may be for its owner alone
        bench = replace(
            distill_bench,
            train=shutil.copy(distill_bench.train, top),
            validation=shutil.copy(distill_bench.validation, top),
            cache=shutil.copytree(distill_bench.cache, top / "cache"),
            student=shutil.copytree(distill_bench.student, top / "model"),
        )
        more = ("--set", "save_steps=2", "--set", "logging_steps=1", "--set", "device=cpu")
        shared, run, own = top / "shared", top / "shared" / "run", top / "own"
        shared.mkdir()
        os.chown(shared, 12345, group)
        shared.chmod(0o2775)
        # Root's comes first: another user may not be let to where what is imported late lies.
        for output, first, second in ((own, 0, 0), (run, 12345, 12346)):
            with user(first, group), monkeypatch.context() as cut:
                cut.setattr(seed_run, "append_log", cut_at(3))
                assert armada(*bench.words(output, *more)).code == 130
            assert list((output / "checkpoints").iterdir())
            with user(second, group):
                armada.done(*bench.words(output, *more, "--resume"))
            assert not (output / "checkpoints").exists()
        weights = [path / "student" / "model.safetensors" for path in (run, own)]
        assert weights[0].read_bytes() == weights[1].read_bytes()


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


UNREADABLE = (
    *("armada.json", "teachers", "{t}", "{t}/teacher.json", "{t}/commits"),
    *("{t}/commits/000000.json", "{t}/embedding/c/0/0", "{t}/tables/rows/000000.parquet"),
)
READERS: dict[str, tuple[str, ...]] = {
    "ls": ("ls", "{c}"),
    "verify": ("verify", "{c}", "--quiet"),
    "repair": ("repair", "{c}", "--quiet"),
    "gc": ("gc", "{c}"),
    "merge": ("merge", "{out}", "{c}", "--quiet"),
    "pull": ("pull", "{c}", "{out}", "--quiet"),
    "rm": ("rm", "{c}", "--teacher", "{teacher}", "--yes"),
}

NOT_READ = {
    *(("ls", spot) for spot in UNREADABLE[-2:]),
    *(("gc", spot) for spot in ("{t}/teacher.json", *UNREADABLE[-3:])),
    *(("rm", spot) for spot in UNREADABLE[-2:]),
}


@pytest.mark.parametrize("command", READERS)
def test_what_may_not_be_read_is_neither_damaged_nor_missing(
    armada: CommandLine, tmp_path: Path, command: str
) -> None:
    teacher = make_manifest().fingerprint
    for number, spot in enumerate(UNREADABLE):
        cache, out = tmp_path / f"cache-{number}", tmp_path / f"out-{number}"
        write_cache(cache, make_manifest((FEATURE,)), [numbered_texts(0, 10)])
        teacher = next(cache.glob("teachers/*/")).name
        before = stored_bytes(cache)
        closed = cache / spot.format(t=f"teachers/{teacher}")
        mode = closed.stat().st_mode
        closed.chmod(0)
        words = [word.format(c=cache, out=out, teacher=teacher) for word in READERS[command]]
        with unprivileged():
            result = armada("cache", *words)
        if closed.exists():
            closed.chmod(mode)
        told = result.code == 2 and "permission denied" in result.error
        assert told or (result.code == 0 and (command, spot) in NOT_READ), (spot, result)
        assert command == "rm" or stored_bytes(cache) == before, (spot, result)


READ_ONLY = {
    "writer.lock": ("gc", "{c}"),
    "{t}": ("rm", "{c}", "--teacher", "{teacher}", "--yes"),
    "": ("card", "{c}"),
    "{t}/commits": ("merge", "{c}", "{more}", "--quiet"),
    "{t}/embedding/c": ("pull", "{more}", "{c}", "--quiet"),
}


@pytest.mark.parametrize("spot", READ_ONLY)
def test_what_may_not_be_written_is_named(armada: CommandLine, tmp_path: Path, spot: str) -> None:
    cache, more, manifest = tmp_path / "cache", tmp_path / "more", make_manifest((FEATURE,))
    for path in (cache, more):
        write_cache(path, manifest, [numbered_texts(0, 10)])
    write_cache(more, manifest, [numbered_texts(10, 20)])
    closed = cache / spot.format(t=f"teachers/{manifest.fingerprint}")
    closed.chmod(0o444 if closed.is_file() else 0o555)
    names = {"c": cache, "more": more, "teacher": manifest.fingerprint}
    with unprivileged():
        result = armada("cache", *(word.format(**names) for word in READ_ONLY[spot]))
    assert result.code == 2, result
    assert result.error.startswith(str(closed)), result
    assert "permission denied; its owner can share the folder with a group" in result.error
