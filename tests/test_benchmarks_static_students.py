"""The benchmark of static students: it runs, and its table has each student and each rate."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_runs import TEXTS, VALIDATION_TEXTS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_a_quick_run(
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("model2vec")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import static_students

    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "train.parquet")
    scores = np.random.default_rng(0).random(len(VALIDATION_TEXTS))
    sides = {"text_a": VALIDATION_TEXTS, "text_b": VALIDATION_TEXTS[::-1], "label": scores}
    pq.write_table(pa.table(sides), tmp_path / "pairs.parquet")
    files = [str(tmp_path / f"{name}.parquet") for name in ("train", "pairs")]
    where = ["--source", str(checkpoint("bert")), "--cache", str(tmp_path / "cache")]
    small = ["--dims", "4", "--seeds", "0", "--epochs", "1", "--texts", "30", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["static_students.py", *files, *where, *small])
    static_students.main()
    printed = capsys.readouterr().out
    for name in static_students.OBJECTIVES:
        assert f"\n{name}, 4 numbers " in printed
    for name in ("teacher ", "start, 4 numbers ", "armada ", "model2vec "):
        assert f"\n{name}" in printed
    apart = float(printed.partition("differ by at most ")[2].split()[0])
    assert apart < 1e-6
