"""The benchmark of codecs: it runs, and says what codings say of their bytes."""

import subprocess
import sys
from pathlib import Path

import pytest
from armada.cache_schemas.codings import SamplesCoding, TopKCoding
from hangs import HANG_S

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "logits.py"
MADE_UP, MODEL = 70_000, 512
"""Ids of the two tables of a quick run."""


def expected_bytes(vocabulary: int) -> dict[str, int]:
    """Bytes per token of the rows whose bytes are known beforehand."""
    rows = {}
    width = (vocabulary - 1).bit_length()
    for k in (16, 50, 128):
        for bits in (5, 6, 8, 16):
            coding = TopKCoding(k=k, vocab_size=vocabulary, bits=bits)
            rows[f"armada top-{k}, {bits} bits"] = coding.row_bytes
        rows[f"raw fp16 + int32, k = {k}"] = 6 * k
        rows[f"Megatron-style fp16 + 17-bit ids, k = {k}"] = 4 * k + -(-k // 8)
    for k, numbers in ((50, 2 + 12), (128, 32 + 24)):
        rows[f"DistillKit-like polynomial, k = {k}"] = numbers + -(-k * width // 8)
    for samples in (12, 50):
        for bits, suffix in ((0, ""), (16, " + log-probs")):
            coding = SamplesCoding(samples=samples, vocab_size=vocabulary, log_prob_bits=bits)
            rows[f"armada {samples} samples{suffix}"] = coding.row_bytes
    return rows


@pytest.fixture(scope="module")
def tables() -> list[dict[str, list[str]]]:
    """The cells of a quick run, by the names of rows."""
    command = [sys.executable, str(BENCHMARK), "--quick", "--markdown"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert run.returncode == 0, run.stderr
    tables: list[dict[str, list[str]]] = []
    for line in run.stdout.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if cells[0] == "codec":
            tables.append({})
        elif line.startswith("| ") and not cells[0].startswith("-"):
            tables[-1][cells[0]] = cells[1:]
    return tables


@pytest.mark.parametrize(("place", "vocabulary"), [(0, MADE_UP), (1, MODEL)])
def test_every_codec_has_a_row_with_the_bytes_that_it_takes(
    tables: list[dict[str, list[str]]], place: int, vocabulary: int
) -> None:
    rows, expected = tables[place], expected_bytes(vocabulary)
    lists = {f"DistillKit-like polynomial, k = {k}, Parquet lists" for k in (50, 128)}
    assert set(rows) == set(expected) | lists
    assert {name: rows[name][0] for name in expected} == {
        name: f"{count:.1f}" for name, count in expected.items()
    }
    for name in lists:
        assert float(rows[name][0]) > expected[name.removesuffix(", Parquet lists")]


def test_divergences_are_told_of_all_but_draws(tables: list[dict[str, list[str]]]) -> None:
    for rows in tables:
        for name, cells in rows.items():
            known = [cell != "-" for cell in cells[1:4]]
            assert known == [not name.endswith(("samples", "log-probs"))] * 3, name
        for k in (16, 50, 128):
            kl = [float(rows[f"armada top-{k}, {bits} bits"][1]) for bits in (5, 6, 8, 16)]
            assert kl == sorted(kl, reverse=True)
            assert kl[2] < 1e-4
