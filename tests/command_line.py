"""The command line, run in this process or in one of its own."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from armada.cli import main
from hangs import HANG_S

SLOW_TEACHER = Path(__file__).parent / "slow_teacher"
RUN = "from armada.cli import main; main()"


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended."""

    code: int | str | None
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an error; fails if there is more, or a traceback."""
        assert self.out == ""
        assert self.err.startswith("error: "), self.err
        assert self.err.count("\n") == 1, self.err
        return self.err.removeprefix("error: ").rstrip("\n")


class CommandLine:
    """Calls `armada` with words, in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: object) -> Result:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        return Result(caught.value.code, *self._capsys.readouterr())

    def done(self, *words: object) -> str:
        """What a command printed that must succeed."""
        result = self(*words)
        assert result.code == 0, result.err
        return result.out


def start(
    *words: object,
    journal: Path | None = None,
    code: str = RUN,
    python: str | Path = sys.executable,
) -> subprocess.Popen[str]:
    """Start `armada` as a process of its own, which knows the teacher `slow`."""
    path = os.pathsep.join([str(SLOW_TEACHER), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path.strip(os.pathsep)}
    if journal is not None:
        environment["SLOW_TEACHER_JOURNAL"] = str(journal)
    return subprocess.Popen(
        [python, "-c", code, *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_asked(texts: int, journal: Path, process: subprocess.Popen[str]) -> None:
    """Wait until the slow teacher of a process has been asked about that many texts."""
    deadline = time.monotonic() + HANG_S
    while not journal.exists() or journal.stat().st_size < texts:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the process asks nothing"
        time.sleep(0.001)
