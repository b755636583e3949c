"""What runs write down of their machine."""

import subprocess
import sys

import numpy as np
from armada.pipeline.environment import peak_rss_bytes

MiB = 2**20


def test_peak_memory_is_that_of_this_process_alone() -> None:
    """Not that of a large one which started it."""
    before = peak_rss_bytes()
    large = np.ones(400 * MiB, dtype=np.uint8)
    assert peak_rss_bytes() >= max(before, large.nbytes)
    code = "from armada.pipeline.environment import peak_rss_bytes; print(peak_rss_bytes())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 5 * MiB < int(run.stdout) < 250 * MiB
