"""`import armada`: light, and all that it promises; the commands as functions of Python."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import armada
import pytest
from tiny_runs import TEXTS, class_labels

HEAVY = {"torch", "transformers", "zarr", "dask", "diffusers", "open_clip", "datasets", "pyarrow"}


def test_to_import_it_is_to_import_nothing_heavy() -> None:
    code = "import armada, sys, json; print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & {name.partition(".")[0] for name in json.loads(done.stdout)}


def test_all_names_are_there() -> None:
    assert dir(armada) == sorted(armada.__all__)
    for name in armada.__all__:
        assert getattr(armada, name) is not None
    assert issubclass(armada.InputError, armada.ArmadaError)
    with pytest.raises(AttributeError, match="has no attribute 'distil'"):
        _ = armada.distil


def rows(texts: list[str]) -> list[dict[str, Any]]:
    labels = class_labels(len(texts)).tolist()
    return [{"text": t, "label": n} for t, n in zip(texts, labels, strict=True)]


def test_from_rows_to_predictions(checkpoint: Any, tmp_path: Path) -> None:
    """Lists of dictionaries all the way; what is predicted is what the student says at once."""
    cached = armada.precompute(
        corpus=rows(TEXTS), text_column="text", teacher="hash:6", cache=tmp_path / "cache"
    )
    assert cached.asked == len(TEXTS)
    armada.distill(
        **{"train": rows(TEXTS), "text_column": "text", "label_column": "label"},
        **{"cache": tmp_path / "cache", "student": checkpoint("bert"), "epochs": 1},
        **{"output": tmp_path / "run", "aligner_hidden_size": 8, "device": "cpu"},
    )
    asked = {"student": tmp_path / "run", "corpus": rows(TEXTS), "device": "cpu"}
    measured = armada.evaluate(**asked)
    assert measured["examples"] == len(TEXTS)
    written = armada.predict(**asked, output=tmp_path / "said.jsonl")
    assert (written.rows, written.kind) == (len(TEXTS), "classification")
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    at_once = armada.load_student(tmp_path / "run").predict(TEXTS)
    for one, other in zip(said, at_once, strict=True):
        assert one["class"] == other["class"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)
    right = [row["class"] == label["label"] for row, label in zip(said, rows(TEXTS), strict=True)]
    assert sum(right) / len(right) == pytest.approx(measured["metrics"]["accuracy"])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([{"text": "a"}, "b"], "corpus list of rows, row 2: is no dictionary, but str"),
        ([{"text": "a"}, {"text": 3}], "corpus list of 2 rows: cannot be read as a table: "),
        ([{"words": "a"}], "text"),
    ],
    ids=["a text", "two types", "another column"],
)
def test_rows_that_are_none(tmp_path: Path, table: list[Any], message: str) -> None:
    with pytest.raises(armada.InputError, match=message):
        armada.precompute(
            corpus=table, text_column="text", teacher="hash:6", cache=tmp_path / "cache"
        )
    assert not (tmp_path / "cache").exists()
