"""The notebooks of examples/ run from beginning to end, and hold outputs that anybody may see."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from docs_pages import ROOT

pytestmark = pytest.mark.long

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
MOST_BYTES = 100_000


def cells(file: Path) -> list[dict[str, Any]]:
    """The cells of code."""
    document = json.loads(file.read_text(encoding="utf-8"))
    return [cell for cell in document["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_outputs_are_of_one_run_and_clean(file: Path) -> None:
    code = cells(file)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs
    assert [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"] == []
    texts = json.dumps([{**o, "data": {**o.get("data", {}), "image/png": ""}} for o in outputs])
    # Neither paths of a machine nor times.
    assert (
        re.findall(r"(?<![\w<])/(?:home|root|tmp|usr|work|mnt)\b|\b\d\d:\d\d:\d\d\b", texts) == []
    )
    assert [cell["metadata"] for cell in code] == [{}] * len(code)
    assert file.stat().st_size < MOST_BYTES


def run(file: Path, folder: Path) -> str:
    """Run a notebook in a folder; returns what it printed."""
    nbformat = pytest.importorskip("nbformat", reason="notebooks need the extra docs")
    client = pytest.importorskip("nbclient", reason="notebooks need the extra docs")
    pytest.importorskip("ipykernel", reason="notebooks need the extra docs")
    notebook = nbformat.read(file, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    client.NotebookClient(notebook, timeout=900, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.get("text", "") for output in outputs)


def figures(printed: str) -> dict[str, float]:
    """Lines of a name and a share."""
    return {name: float(value) for name, value in re.findall(r"^(\w+) +(\d\.\d+)$", printed, re.M)}


# ipykernel and what it stands on warn on the way.
@pytest.mark.filterwarnings("default")
def test_the_demo_runs(tmp_path: Path) -> None:
    printed = run(ROOT / "examples" / "demo.ipynb", tmp_path)
    found = figures(printed)
    assert found.keys() == {"undistilled", "nothing", "pictures"}
    assert found["pictures"] > max(found["undistilled"], found["nothing"]) + 0.2


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(
    not {"ENCODER", "REVIEWS"} <= os.environ.keys(), reason="ENCODER and REVIEWS name no folders"
)
def test_the_encoder_runs(tmp_path: Path) -> None:
    printed = run(ROOT / "examples" / "encoder.ipynb", tmp_path)
    assert {"undistilled", "distilled"} == figures(printed).keys()
    assert "cosine with the teacher's embeddings: 0." in printed
