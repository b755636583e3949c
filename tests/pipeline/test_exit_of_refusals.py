"""A refusal ends a process with its exit code, however many threads were reading."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from command_line import RUN
from hangs import HANG_S


def test_a_refused_file_never_aborts_the_process(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.parquet", tmp_path / "bad.parquet"
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(5000)]}), good)
    pq.write_table(pa.table({"words": [f"text {i}" for i in range(5000)]}), bad)
    words = ["precompute", "--corpus", good, "--corpus", bad, "--text-column", "text"]
    words += ["--teacher", "hash:4", "--cache", tmp_path / "cache"]
    command = [sys.executable, "-c", RUN, *map(str, words)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]
    codes = {process.wait(timeout=HANG_S) for process in running if process.communicate()}
    assert codes == {2}
