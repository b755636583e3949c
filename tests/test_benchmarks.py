"""The benchmark of the store: it runs, checks what it reads, and counts rightly."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hangs import HANG_S

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

READERS = (
    "armada, gather",
    "armada, mapped + index_select",
    "zarr-python, our files",
    "zarrs, our files",
    "tensorstore, our files",
    "np.memmap[rows]",
    "np.take(np.memmap)",
    "torch.index_select(np.memmap)",
    "Parquet, pyarrow",
)


def test_quick_run_names_every_reader_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "store.py"), "--quick", "--markdown"]
    options = ["--only", "armada", "raw", "parquet", "--folder", str(tmp_path)]
    run = subprocess.run([*command, *options], capture_output=True, text=True, timeout=HANG_S)
    assert run.returncode == 0, run.stderr
    assert f"checked: {len(READERS)} readers give the same bits" in run.stdout
    cells = [line.strip("| ").split("|") for line in run.stdout.splitlines() if "|" in line]
    figures = {row[0].strip(): row[1:] for row in cells}
    for reader in READERS:
        # Of all but the columns of the format's files, which stand in its first line.
        assert all(cell.strip() not in ("", "-") for cell in figures[reader][4:]), figures[reader]
    assert figures["one prefetch thread"]
    assert figures["opened"]
    assert sum("cold epoch" in target for target in figures) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """1,500 rows of 8 numbers in a raw file."""
    from store_formats import raw_file
    from store_formats.source import Source

    raw_file.FORMAT.write(tmp_path, Source(1500, 8, seed=3).values)
    return tmp_path


def test_a_reader_that_gives_one_other_bit_is_found(written: Path) -> None:
    from store_formats.raw_file import FILE, Taken
    from store_formats.source import Source
    from store_measures.checking import check
    from store_measures.lines import Line

    source, line = Source(1500, 8, seed=3), Line("raw file", Taken, written, 1500, 8)
    check(line, source, seed=0)
    damaged = bytearray((written / FILE).read_bytes())
    damaged[1499 * 16 + 15] ^= 1  # the last row is looked at whatever the seed
    (written / FILE).write_bytes(damaged)
    with pytest.raises(ValueError, match="row 1499 and 0 more differ"):
        check(line, source, seed=0)


def test_a_reader_that_repeats_rows_is_found(written: Path) -> None:
    from store_formats.raw_file import Indexed
    from store_formats.source import Source
    from store_measures.checking import check
    from store_measures.lines import Line

    class Repeating(Indexed):
        def shuffled(self, seed: int):  # type: ignore[no-untyped-def]
            first = next(super().shuffled(seed))
            return iter([first, first])

    with pytest.raises(ValueError, match="twice"):
        check(Line("raw file", Repeating, written, 1500, 8), Source(1500, 8, seed=3), seed=0)


def test_blocks_are_all_rows_once(written: Path) -> None:
    from store_formats.raw_file import Indexed
    from store_formats.reader import window_rows, windows
    from store_formats.source import Source

    rows = [window_rows(blocks, order) for blocks, order in windows(20_000, seed=1)]
    assert sorted(np.concatenate(rows)) == list(range(20_000))
    assert max(len(each) for each in rows) == 8192
    reader, source = Indexed(written, 1500, 8), Source(1500, 8, seed=3)
    assert sorted(np.concatenate([source.find(b) for b in reader.shuffled(2)])) == list(range(1500))


def test_figures_of_repeats() -> None:
    from figures import ratios, shown, shown_ratio, table

    assert shown([5.1e6, 5.4e6, 5.8e6]) == "5.40M (5.10..5.80)"
    assert shown([120.0]) == "120"
    assert ratios([2.0, 6.0], [1.0, 2.0]) == [2.0, 3.0]
    assert ratios([8.0], [4.0, 2.0]) == [2.0]
    assert ratios([8.0], []) == []
    assert (shown_ratio([0.5]), shown_ratio([0.001]), shown_ratio([])) == ("0.50x", "1/1000", "-")
    assert table([["a", "b"], ["long", "1"]], markdown=False) == "a     b\nlong  1"
    assert table([["a", "b"], ["long", "1"]], markdown=True).splitlines()[1] == "| ---- | : |"


def test_the_straightforward_loop_trains_the_same_student(tmp_path: Path) -> None:
    """What is timed against each other computes the same: weights after three steps are equal."""
    import torch
    from distill_loops.loops import ArmadaLoop, StraightforwardLoop
    from distill_loops.material import Material, Size

    material = Material(tmp_path, 24, 6)
    weights = []
    for make in (ArmadaLoop, StraightforwardLoop):
        loop = make(material, Size("bert", 1, 32, 2), 8, torch.device("cpu"))
        before = [p.detach().clone() for p in loop.model.student.parameters()]
        for seed in range(3):
            torch.manual_seed(seed)
            assert loop.step() > 0
        weights.append(list(loop.model.student.parameters()))
        assert not any(map(torch.equal, before, weights[-1]))
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_the_tables_of_the_benchmark_of_stage_2() -> None:
    command = [sys.executable, str(BENCHMARKS / "distill.py"), "--students", "1x32", "--device"]
    small = "cpu --batches 4 --examples 32 --dim 8 --rounds 2 --seconds 0.01 --markdown"
    run = subprocess.run(
        [*command, *small.split()], capture_output=True, text=True, timeout=HANG_S, check=True
    )
    rows = [row.strip("|").split("|") for row in run.stdout.splitlines() if row.startswith("|")]
    for header, _, line in (rows[:3], rows[3:]):
        cells = [cell.strip() for cell in line]
        assert len(cells) == len(header)
        assert cells[:2] == ["bert, 1 layers of 32", "4"]
        assert all(float(cell.split()[0]) > 0 for cell in cells[1:])


def test_the_matrix_that_is_worked_out_gives_the_same_aligner() -> None:
    """The two passes that are timed against each other: the same steps, up to rounding."""
    import torch
    from armada.stages.distill.aligner import TSAligner
    from distill_loops.aligner_pass import matrix_in_every_step

    torch.manual_seed(0)
    aligner = TSAligner(12, 6, 2, dropout=0.0)
    with torch.no_grad():
        aligner.projection.parametrizations.weight.original.add_(0.1 * torch.randn(12, 12))
    feature = torch.randn(5, 12)
    applied = aligner(feature)
    with matrix_in_every_step():
        worked_out = aligner(feature)
    for one, other in zip(applied, worked_out, strict=True):
        torch.testing.assert_close(one, other)
