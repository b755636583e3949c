"""The benchmark of search and mining: a quick run prints a line of each way, with equal results."""

import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "retrieval.py"


def test_a_quick_run_prints_a_line_of_each_way() -> None:
    command = [sys.executable, str(BENCHMARK), "--quick", "--markdown"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    lines = [line.strip("| ").split("|") for line in done.stdout.splitlines() if "|" in line]
    rows = {(cells[0].strip(), cells[1].strip()): cells[-1].strip() for cells in lines[2:]}
    assert set(rows) == {
        (k, way) for k in ("8", "100") for way in ("bare", "search", "cached", "mine")
    }
    assert all(same == "-" or float(same) > 0.999 for same in rows.values())
