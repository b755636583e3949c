"""The benchmark of objectives runs, and each objective has its line."""

import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from armada.stages.distill.objectives import OBJECTIVES
from hangs import HANG_S
from tiny_checkpoints import make_bert
from tiny_runs import TEXTS, VALIDATION_TEXTS

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "objectives.py"


def rows(printed: str) -> list[list[str]]:
    """The cells of all tables."""
    lines = [line.strip("|").split("|") for line in printed.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines]


def run(commands: Path, folder: Path, *more: str) -> list[list[str]]:
    """The benchmark with a tiny encoder and tiny tables."""
    draw = np.random.default_rng(0)
    for task in ("classes", "numbers"):
        (folder / task).mkdir()
        for split, texts in (("train", TEXTS), ("validation", VALIDATION_TEXTS)):
            columns = {"text": texts, "label": draw.integers(3, size=len(texts))}
            if task == "numbers":
                columns = {"text_a": texts, "text_b": texts[::-1], "label": draw.random(len(texts))}
            pq.write_table(pa.table(columns), folder / task / f"{split}.parquet")
    encoder = make_bert(folder / "encoder", TEXTS, layers=6, heads=12, hidden=48)
    given = ("--encoder", encoder, "--classification", folder / "classes")
    small = ("--rows", "40", "--labels", "20", "--epochs", "1", "--seeds", "0", "1")
    command = [commands / "python", BENCHMARK, *given, "--regression", folder / "numbers", *small]
    words = [*map(str, command), "--rounds", "4", *more]
    done = subprocess.run(words, capture_output=True, text=True, timeout=4 * HANG_S)
    assert done.returncode == 0, done.stderr
    return rows(done.stdout)


def test_a_quick_run(commands: Path, tmp_path: Path) -> None:
    found = run(commands, tmp_path, "--only", "rkd", "--tasks", "classification")
    names = [row[0] for row in found]
    assert sorted(names[2:6]) == ["feature", "kd", "rkd", "undistilled"]
    assert names.count("rkd") == 2  # what it brings, and what it costs
    plain = next(row for row in found if row[0] == "undistilled")
    assert 0 <= float(plain[1]) <= 1


@pytest.mark.slow
def test_every_objective_of_texts(commands: Path, tmp_path: Path) -> None:
    found = run(commands, tmp_path, "--tables", "quality")
    of_classes = {row[0] for row in found[: [row[0] for row in found].index("regression")]}
    others = {"tokens", "dpo", "plad", "contrastive", "guided_contrastive", "cosent"}
    others |= {"margin_mse", "listwise_kl"}
    assert of_classes == {*set(OBJECTIVES.built_in) - others, "classification", "---"}
