"""Several runs of `precompute` on one cache at once, and parts of one corpus for job arrays."""

import json
import signal
from pathlib import Path
from typing import Any

import command_line
import pytest
from armada.stages.store.reading.reader import open_cache
from command_line import SLOW_TEACHER, CommandLine, wait_until_asked
from hangs import HANG_S
from small_caches import stored_bytes

TEXTS = 300


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(f'{{"text": "text {number}"}}\n' for number in range(TEXTS)))
    return path


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """The command line in this process, which knows the slow teacher too."""
    monkeypatch.syspath_prepend(SLOW_TEACHER)
    return CommandLine(capsys)


def words(corpus: Path, cache: Path, *more: object) -> list[object]:
    return [
        *("precompute", "--corpus", corpus, "--text-column", "text", "--teacher", "slow:8"),
        *("--cache", cache, "--set", "rows_per_shard=64", "--set", "batch_size=8", "--json"),
        *more,
    ]


def test_two_runs_share_the_work(
    corpus: Path, tmp_path: Path, armada: CommandLine, start: Any
) -> None:
    armada.done(*words(corpus, tmp_path / "one"))
    journals = [tmp_path / "journal 0", tmp_path / "journal 1"]
    runs = [start(*words(corpus, tmp_path / "cache"), journal=journal) for journal in journals]
    reports = [json.loads(run.communicate(timeout=HANG_S)[0]) for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    asked = [journal.stat().st_size if journal.exists() else 0 for journal in journals]
    assert sum(asked) == TEXTS
    assert [report["asked"] for report in reports] == asked
    for report in reports:
        shared = report["already_cached"] + report["asked"] + report["done_elsewhere"]
        assert shared == report["unique"] == TEXTS
    assert stored_bytes(tmp_path / "cache") == stored_bytes(tmp_path / "one")


def test_a_run_takes_over_from_a_killed_one(
    corpus: Path, tmp_path: Path, armada: CommandLine, start: Any
) -> None:
    armada.done(*words(corpus, tmp_path / "one"))
    journals = [tmp_path / "journal 0", tmp_path / "journal 1"]
    # Of a forked process, only the command that waits for it would stop.
    killed = command_line.start(*words(corpus, tmp_path / "cache"), journal=journals[0])
    wait_until_asked(20, journals[0], killed)
    killed.send_signal(signal.SIGSTOP)  # in its first shard, until the other has begun
    living = start(*words(corpus, tmp_path / "cache"), journal=journals[1])
    wait_until_asked(1, journals[1], living)
    killed.kill()
    killed.communicate()
    _, errors = living.communicate(timeout=HANG_S)
    assert living.returncode == 0, errors
    assert journals[1].stat().st_size == TEXTS
    assert stored_bytes(tmp_path / "cache") == stored_bytes(tmp_path / "one")


def test_parts_share_no_text_and_leave_none_out(
    corpus: Path, tmp_path: Path, armada: CommandLine
) -> None:
    reports = [
        json.loads(armada.done(*words(corpus, tmp_path / "cache", "--part", f"{part}/7")))
        for part in (3, 1, 2, 7, 5, 6, 4)
    ]
    assert sum(report["asked"] for report in reports) == TEXTS
    assert {report["rows"] for report in reports} == {42, 43}
    assert all(report["already_cached"] == 0 for report in reports)
    cache = open_cache(tmp_path / "cache")
    assert len(cache) == TEXTS
    cache.lookup([f"text {number}" for number in range(TEXTS)])


@pytest.mark.parametrize("part", ["0/4", "5/4", "1", "a/b", "1/0", "-1/4"])
def test_a_part_that_is_none_is_refused(
    corpus: Path, tmp_path: Path, armada: CommandLine, part: str
) -> None:
    result = armada(*words(corpus, tmp_path / "cache", "--part", part))
    assert result.code == 2
    assert f"job key 'part': {part!r}: is not I/N with I from 1 to N" in result.error
    assert not (tmp_path / "cache").exists()
