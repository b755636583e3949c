"""The page of model families is in step with what the families do, and nothing ends in a
traceback."""

import json
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
from hangs import HANG_S

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
SAMPLE = ("bros", "gpt2", "t5", "vit")
ROLES = 6

Rows = dict[str, list[str]]


def rows_of(page: str) -> Rows:
    """Family -> a cell for each role; the number of a reason is put back into words."""
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", page, re.MULTILINE))
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return {
        family: [reasons.get(cell, cell) for cell in cells]
        for family, *cells in lines
        if family not in ("family", "---")
    }


def tried(python: Path, folder: Path, *families: str) -> tuple[list[dict[str, str]], Rows, str]:
    results, page = folder / "results.jsonl", folder / "page.md"
    command = [str(python), str(ROOT / "benchmarks" / "models.py"), *families]
    given = ["--results", str(results), "--page", str(page)]
    subprocess.run([*command, *given], check=True, capture_output=True, timeout=20 * HANG_S)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    written = page.read_text(encoding="utf-8")
    return lines, rows_of(written), written


def test_a_sample_is_as_the_page_says(commands: Path, tmp_path: Path) -> None:
    outcomes, rows, written = tried(commands / "python", tmp_path, *SAMPLE)
    assert "TRACEBACK" not in str(outcomes)
    assert rows.keys() == set(SAMPLE) - {"vit"}
    assert "`vit`" in written.partition("## Families that read no text")[2]
    assert rows["gpt2"] == ["yes"] * ROLES
    assert rows["t5"][0] == "yes"
    assert "is an encoder-decoder" in rows["t5"][3]
    if f"transformers {version('transformers')}:" in PAGE:  # another one has other families
        assert rows == {family: rows_of(PAGE)[family] for family in rows}
        assert "`vit`" in PAGE.partition("## Families that read no text")[2]


def test_the_page_tells_of_no_traceback() -> None:
    rows = rows_of(PAGE)
    assert len(rows) > 200
    assert {len(cells) for cells in rows.values()} == {ROLES}
    assert "TRACEBACK" not in PAGE
    words = {cell for cells in rows.values() for cell in cells}
    assert not [cell for cell in words if cell.isdigit()]  # every number has its reason


@pytest.mark.slow
def test_no_family_ends_in_a_traceback(commands: Path, tmp_path: Path) -> None:
    """An hour on one core; all families."""
    outcomes, rows, _ = tried(commands / "python", tmp_path)
    assert [each for each in outcomes if "TRACEBACK" in str(each)] == []
    if f"transformers {version('transformers')}:" in PAGE:
        assert rows == rows_of(PAGE)
