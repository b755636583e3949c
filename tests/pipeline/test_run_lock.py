"""One process at a time in the folder of a run; and what a finished run no longer needs."""

from pathlib import Path
from typing import Any

import pytest
from armada.pipeline.run_folder import LOCK, METRICS, WORKING, alone_in
from armada.stages.distill.checkpoints import BEST, CHECKPOINTS
from command_line import CommandLine

ONE_EPOCH = ("--set", "epochs=1")


@pytest.mark.parametrize("more", [(), ("--resume",)], ids=["new", "resumed"])
def test_a_second_process_is_refused_at_once(
    armada: CommandLine, distill_bench: Any, tmp_path: Path, more: tuple[str, ...]
) -> None:
    output = tmp_path / "run"
    with alone_in(output):
        result = armada(*distill_bench.words(output, *more, *ONE_EPOCH))
        assert [file.name for file in output.iterdir()] == [LOCK]
    assert result.code == 2
    assert result.error.startswith(f"output {output}: another process is running in it")
    assert not output.exists()


def test_a_lock_that_a_killed_process_left_is_nobodys(
    armada: CommandLine, distill_bench: Any, tmp_path: Path
) -> None:
    (tmp_path / LOCK).touch()
    armada.done(*distill_bench.words(tmp_path, *ONE_EPOCH))
    assert not (tmp_path / LOCK).exists()
    assert (tmp_path / METRICS).exists()


def test_what_a_killed_run_had_no_time_to_remove_goes(
    armada: CommandLine, distill_bench: Any, tmp_path: Path
) -> None:
    assert set(WORKING) == {BEST, CHECKPOINTS}
    words = distill_bench.words(tmp_path / "run", "--set", "seed=[0,1]", *ONE_EPOCH)
    armada.done(*words)
    left = [tmp_path / "run" / f"seed-{n}" / name / "file" for n in (0, 1) for name in WORKING]
    report = ("report", tmp_path / "run", "--out", tmp_path / "report.html", "--quiet")
    for again in ([*words, "--resume"], report):
        for file in left:
            file.parent.mkdir()
            file.touch()
        armada.done(*again)
        assert not any(file.parent.exists() for file in left)


def test_what_an_unfinished_run_needs_stays(tmp_path: Path) -> None:
    (tmp_path / BEST).mkdir()
    with alone_in(tmp_path):
        pass
    assert [file.name for file in tmp_path.iterdir()] == [BEST]
