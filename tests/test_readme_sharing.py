"""The two terminals of the README's "Share a cache" do what they are printed to do."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from armada.stages.store.reading.reader import open_cache
from hangs import HANG_S
from small_caches import stored_bytes

README = Path(__file__).parent.parent / "README.md"
SECTION = re.compile(r"^## Share a cache\n(.*?)^## ", re.MULTILINE | re.DOTALL)


def terminals() -> list[str]:
    """The code of the two terminals."""
    section = SECTION.search(README.read_text(encoding="utf-8"))
    assert section is not None
    return re.findall(r"```sh\n(.*?)```", section[1], re.DOTALL)


@pytest.fixture
def port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


SCRIPTS = Path(sys.executable).parent
"""With `armada` as it is installed."""


def shell(code: str, folder: Path, scripts: Path = SCRIPTS) -> subprocess.Popen[str]:
    """A terminal in a folder of its own that stops at the first error."""
    folder.mkdir()
    environment = os.environ | {
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(folder / "home"),
    }
    return subprocess.Popen(
        ["bash", "-euc", code],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def serving(tmp_path: Path, port: int) -> Iterator[Path]:
    """The folder of the first terminal, when its server answers."""
    first = shell(terminals()[0].replace("8000", str(port)), tmp_path / "first")
    deadline = time.monotonic() + HANG_S
    while True:
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline, "no server"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            time.sleep(0.05)
    yield tmp_path / "first"
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()


def test_two_terminals_share_a_cache(
    tmp_path: Path, port: int, serving: Path, commands: Path
) -> None:
    second = shell(terminals()[1].replace("8000", str(port)), tmp_path / "second", commands)
    printed, _ = second.communicate(timeout=HANG_S)
    assert second.returncode == 0, printed
    theirs, ours = open_cache(tmp_path / "second" / "pulled"), open_cache(serving / "cache")
    assert len(theirs) == len(ours) == 200
    teacher = Path("teachers", ours.teacher.fingerprint)
    pulled = stored_bytes(tmp_path / "second" / "pulled" / teacher)
    assert pulled == stored_bytes(serving / "cache" / teacher)
    assert (tmp_path / "second" / "run" / "metrics.json").is_file() or list(
        (tmp_path / "second" / "run").glob("*/metrics.json")
    )
    assert (serving / "cache" / "README.md").is_file()
