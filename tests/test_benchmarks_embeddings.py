"""The benchmark of students that embed runs, and compares what it says."""

import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hangs import HANG_S
from tiny_checkpoints import make_bert
from tiny_embeddings import make_embedding_model, modules
from tiny_runs import TEXTS, VALIDATION_TEXTS

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "embeddings.py"


@pytest.mark.slow
def test_both_libraries_and_two_objectives(commands: Path, tmp_path: Path) -> None:
    checkpoint = make_bert(tmp_path / "bert", TEXTS, layers=4)
    make_embedding_model(tmp_path / "encoder", checkpoint, layers=[modules().Normalize()])
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "texts.parquet")
    (tmp_path / "pairs").mkdir()
    pairs = {"text_a": VALIDATION_TEXTS, "text_b": VALIDATION_TEXTS[::-1]}
    scores = np.random.default_rng(0).random(len(VALIDATION_TEXTS))
    pq.write_table(pa.table({**pairs, "label": scores}), tmp_path / "pairs" / "test.parquet")
    given = [str(tmp_path / name) for name in ("encoder", "pairs", "texts.parquet")]
    tables = ["--tables", "libraries", "objectives", "--only", "feature", "infonce"]
    done = subprocess.run(
        [str(commands / "python"), str(BENCHMARK), *given, *tables, "--seeds", "0", "1"],
        capture_output=True,
        text=True,
        timeout=6 * HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split("|")[1].strip() for line in done.stdout.splitlines() if "|" in line]
    assert lines == [
        *("library", "---", "armada", "sentence-transformers"),
        *("objective", "---", "feature", "infonce"),
    ]
