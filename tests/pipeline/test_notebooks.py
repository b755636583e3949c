"""Calls in the kernel of a notebook: a bar where there are widgets to show it, else nothing."""

import re
from pathlib import Path
from typing import Any

import pytest

for package in ("ipykernel", "ipywidgets"):
    pytest.importorskip(package, reason="notebooks need the extra docs")
nbclient = pytest.importorskip("nbclient", reason="notebooks need the extra docs")
nbformat = pytest.importorskip("nbformat", reason="notebooks need the extra docs")

# What kernels stand on warns on the way.
pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("default")]

KEYS = (
    "import armada, sys\n"
    "rows = [{'text': f'text {number}'} for number in range(200)]\n"
    "keys = {'corpus': rows, 'text_column': 'text', 'teacher': 'hash:4', 'device': 'cpu'}\n"
)
WIDGETS = "application/vnd.jupyter.widget-state+json"
BAR = r"precompute ━+ 100% 200/200 [\d.]+ rows/s"


LOST_S = 120
"""A cell takes seconds; a kernel that answers nothing for so long has lost the request."""


def executed(folder: Path, code: str) -> Any:
    """A notebook of one cell, run in a folder. On a busy machine a kernel may wait for a request
    that its client has sent: then another kernel gets it, once."""
    for attempt in range(2):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(KEYS + code)])
        work = folder / str(attempt)
        work.mkdir()
        resources = {"metadata": {"path": str(work)}}
        try:
            nbclient.NotebookClient(notebook, timeout=LOST_S, resources=resources).execute()
        except nbclient.exceptions.CellTimeoutError:
            if attempt:
                raise
        else:
            return notebook
    raise AssertionError


def outputs_of(folder: Path, code: str) -> tuple[list[Any], list[str]]:
    """The outputs of a cell that a kernel runs in a folder, and the texts that its widgets hold."""
    notebook = executed(folder, code)
    widgets = notebook.metadata.get("widgets", {}).get(WIDGETS, {"state": {}})["state"]
    shown = [output for widget in widgets.values() for output in widget["state"].get("outputs", ())]
    texts = [re.sub(r"\x1b\[[\d;]*m", "", output["data"]["text/plain"]) for output in shown]
    return notebook.cells[0].outputs, texts


def test_a_bar_counts_in_a_widget(tmp_path: Path) -> None:
    outputs, bars = outputs_of(tmp_path, "report = armada.precompute(cache='cache', **keys)")
    assert len(bars) == 1
    assert re.match(BAR, bars[0])
    # Nothing in the cell itself: a notebook that is saved holds no rates of one machine.
    assert [output for output in outputs if output["output_type"] != "display_data"] == []


def test_nothing_is_shown_where_it_is_to_be_quiet(tmp_path: Path) -> None:
    shown = outputs_of(tmp_path, "report = armada.precompute(cache='cache', quiet=True, **keys)")
    assert shown == ([], [])
    assert list(tmp_path.glob("*/cache"))


def test_nothing_is_shown_without_widgets(tmp_path: Path) -> None:
    hidden = "sys.modules['ipywidgets'] = None  # as where it is not installed\n"
    outputs, bars = outputs_of(tmp_path, f"{hidden}r = armada.precompute(cache='cache', **keys)")
    assert bars == []
    assert "precompute" not in str(outputs)  # other libraries may say what they miss
    assert list(tmp_path.glob("*/cache"))
