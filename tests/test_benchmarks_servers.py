"""The benchmark of teachers behind a server: it runs, and nothing is lost, wrong or paid twice."""

import subprocess
from pathlib import Path

import pytest
from hangs import HANG_S

pytestmark = pytest.mark.long

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def rows(commands: Path, *options: str) -> list[list[str]]:
    """The cells of what is printed."""
    command = [str(commands / "python"), str(BENCHMARKS / "servers.py"), "--markdown", *options]
    run = subprocess.run(command, capture_output=True, text=True, timeout=2 * HANG_S)
    assert run.returncode == 0, run.stderr
    lines = [line.strip("|").split("|") for line in run.stdout.splitlines() if "|" in line]
    return [[cell.strip() for cell in line] for line in lines]


def test_a_quick_run(commands: Path) -> None:
    quick = ("--count", "40", "--in-flight", "4", "--rounds", "1", "--pause", "0.001")
    found = rows(commands, "--tables", "pace", "memory", *quick, "--thousands", "32")
    ways = {row[1]: row for row in found if row[0] == "4"}
    assert ways["plain loop"][3] == "1.00x"
    assert float(ways["armada"][2]) > 0
    assert [row[1] for row in found if row[0] in ("1", "32")] == ["1", "64"]
