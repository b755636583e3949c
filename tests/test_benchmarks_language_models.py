"""The benchmark of language models as students: it runs, and its rows are what they say."""

import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from armada.cache_schemas.codings import SamplesCoding, TopKCoding
from hangs import HANG_S
from tiny_runs import TEXTS, VALIDATION_TEXTS

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "language_models.py"
WORDS = 300
"""Of a vocabulary of 259 bytes and special tokens and a few pairs."""
STUDENTS = (
    *("teacher", "undistilled", "top_k, alpha = 0", "top_k", "top_k, renormalised"),
    *("samples", "dense, float32"),
)


@pytest.fixture(scope="module")
def rows(commands: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The cells of a quick run, by the names of rows."""
    folder = tmp_path_factory.mktemp("texts")
    files = [folder / "train.parquet", folder / "validation.parquet"]
    for file, texts in zip(files, (TEXTS, VALIDATION_TEXTS), strict=True):
        pq.write_table(pa.table({"line": texts}), file)
    options = ("--text-column=line", "--rows=40", f"--vocabulary={WORDS}", "--quick", "--markdown")
    command = [str(commands / "python"), str(BENCHMARK), *map(str, files), *options]
    run = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert run.returncode == 0, run.stderr
    lines = [[cell.strip() for cell in row.strip("| ").split("|")] for row in _table(run.stdout)]
    return {name: cells for name, *cells in lines}


def _table(output: str) -> list[str]:
    """The lines of a Markdown table below its header and its rule."""
    return [line for line in output.splitlines() if line.startswith("| ")][2:]


def test_every_student_has_a_row(rows: dict[str, list[str]]) -> None:
    assert tuple(rows) == STUDENTS
    assert len({cells[0] for cells in rows.values()}) == 1  # parameters: one size, for a test
    for parameters, perplexity, bits, *_ in rows.values():
        assert int(parameters.replace(",", "")) > 2 * 16 * WORDS
        assert 1 < float(perplexity) < 1.5 * WORDS
        assert 0 < float(bits) < 8


def test_a_teacher_of_no_weight_leaves_the_student_as_it_is(rows: dict[str, list[str]]) -> None:
    worth = {name: tuple(cells[1:3]) for name, cells in rows.items()}
    assert worth["top_k, alpha = 0"] == worth["undistilled"]
    assert len({worth[name] for name in STUDENTS[2:]}) > 2


def test_a_cache_has_the_bytes_of_its_answers_and_little_more(rows: dict[str, list[str]]) -> None:
    """Beside them, 4 bytes of the token itself; so few texts take shards that are half empty, and
    the cache's own files count."""
    expected = {
        "top_k": TopKCoding(k=50, vocab_size=WORDS, bits=8).row_bytes,
        "samples": SamplesCoding(samples=50, vocab_size=WORDS).row_bytes,
        "dense, float32": 4 * WORDS,
    }
    found = {name: float(rows[name][3].replace(",", "")) for name in expected}
    for name, size in expected.items():
        assert size + 4 <= found[name] < 2 * size + 40, found
    assert rows["teacher"][3] == rows["undistilled"][3] == "-"
