"""The benchmark of the token-level loss: it runs, and what it compares is the same loss."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hangs import HANG_S

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_a_quick_run_prints_a_line_of_each_way() -> None:
    """Of ours, and of plain torch, which it is compared with."""
    command = [sys.executable, str(BENCHMARKS / "fused_loss.py"), "--quick", "--markdown"]
    options = ["--rounds", "1", "--device", "cpu", "--only", "armada, sparse"]
    run = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=HANG_S, check=True
    )
    lines = [line.strip("| ").split("|") for line in run.stdout.splitlines() if "|" in line]
    cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in lines}
    assert set(cells) >= {"armada, sparse", "plain, sparse"}
    for name in ("armada, sparse", "plain, sparse"):
        assert float(cells[name][0]) > 0
        assert float(cells[name][2]) >= 0
        assert float(cells[name][4]) < 1e-5
    assert float(cells["armada, sparse"][5].removesuffix("%")) <= 0.2


def test_the_ways_compute_the_same() -> None:
    """Values and gradients, in float64."""
    from fused_losses.material import Material, Size
    from fused_losses.ways import OURS_AND_PLAIN

    found: dict[str, list[torch.Tensor]] = {}
    for way in OURS_AND_PLAIN:
        material = Material(Size(48, 8, 60, 6), torch.float64, torch.device("cpu"), dense=True)
        total = way.loss(material)
        found[way.name] = [total.detach(), *material.gradients(total)]
    for way in OURS_AND_PLAIN:
        torch.testing.assert_close(found[way.name], found[way.reference], rtol=1e-10, atol=1e-12)
