"""`kill -9` of a real run at any moment, then the same command: the store is byte-identical."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from armada.stages.store.reading.reader import open_cache
from command_line import SLOW_TEACHER, CommandLine, wait_until_asked
from hangs import HANG_S
from small_caches import stored_bytes

TEXTS = 300
ROWS_PER_SHARD = 64
KILLS = 3

DIE_BEFORE_COMMIT = """
import os, signal
from pathlib import Path
from armada.cli import main
rename = Path.replace
def rename_or_die(self, target):
    if Path(target).name == "000002.json":
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.replace = rename_or_die
main()
"""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(f'{{"text": "text {number}"}}\n' for number in range(TEXTS)))
    return path


def words(corpus: Path, cache: Path, batch_size: int) -> list[object]:
    return [
        *("precompute", "--corpus", corpus, "--text-column", "text", "--teacher", "slow:8"),
        *("--cache", cache, "--set", f"rows_per_shard={ROWS_PER_SHARD}"),
        *("--set", f"batch_size={batch_size}", "--quiet"),
    ]


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """The command line in this process, which knows the slow teacher too."""
    monkeypatch.syspath_prepend(SLOW_TEACHER)
    return CommandLine(capsys)


@pytest.fixture
def undisturbed(corpus: Path, tmp_path: Path, armada: CommandLine) -> dict[str, bytes]:
    """The bytes of a cache that was made in one go."""
    armada.done(*words(corpus, tmp_path / "undisturbed", batch_size=16))
    return stored_bytes(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("seed", "batch_sizes"), [(1, [16, 16, 16, 16]), (2, [16, 7, 64, 25])], ids=["same", "other"]
)
def test_killed_runs_go_on(
    corpus: Path,
    tmp_path: Path,
    armada: CommandLine,
    start: Any,
    undisturbed: dict[str, bytes],
    seed: int,
    batch_sizes: list[int],
) -> None:
    moments = random.Random(seed)
    cache = tmp_path / "cache"
    committed = 0
    for number, batch_size in enumerate(batch_sizes[:KILLS]):
        journal = tmp_path / f"journal {number}"
        # Early enough that something is left for the next run to be killed at.
        texts = moments.randrange((TEXTS - committed) // 2)
        delay = moments.random() * 0.05
        print(f"seed {seed}: kill {number} after {texts} texts and {delay:.3f} s")
        process = start(*words(corpus, cache, batch_size), journal=journal)
        wait_until_asked(texts, journal, process)
        time.sleep(delay)
        process.kill()
        process.communicate(timeout=HANG_S)
        # On a busy machine the signal may come when all is done.
        assert process.returncode in (-signal.SIGKILL, 0)
        if list(cache.glob("teachers/*/teacher.json")):
            # Whole shards only, and at most the one being made and the one being written lost.
            now = len(open_cache(cache))
            assert now % ROWS_PER_SHARD == 0
            assert now >= committed + journal.stat().st_size - 2 * ROWS_PER_SHARD - batch_size
            committed = now
    armada.done(*words(corpus, cache, batch_sizes[-1]))
    assert stored_bytes(cache) == undisturbed


def test_a_kill_before_the_commit_record(
    corpus: Path, tmp_path: Path, armada: CommandLine, start: Any, undisturbed: dict[str, bytes]
) -> None:
    cache = tmp_path / "cache"
    process = start(*words(corpus, cache, 16), code=DIE_BEFORE_COMMIT)
    process.communicate(timeout=HANG_S)
    assert process.returncode == -signal.SIGKILL
    opened = open_cache(cache)
    assert len(opened) == 2 * ROWS_PER_SHARD
    # The third shard is all there, but for the record that would have made it visible.
    folder = cache / "teachers" / opened.teacher.fingerprint
    third = Path("embedding", "c", "2", "0")
    whole = undisturbed[os.fspath(Path("teachers", folder.name) / third)]
    assert (folder / third).read_bytes() == whole
    assert (folder / "reservations" / "000002").is_dir()
    armada.done(*words(corpus, cache, 16))
    assert stored_bytes(cache) == undisturbed
