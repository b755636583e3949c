"""MiniLM's layers, token states and attention into three of its layers.

ARMADA_REAL_MODELS names a folder that holds `minilm`, the published all-MiniLM-L6-v2."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import CommandLine
from tiny_runs import class_labels, sentences

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("ARMADA_REAL_MODELS" not in os.environ, reason="needs real weights"),
]

OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "hidden_layers": ("layers", {"features": ["layer_2", "layer_4", "layer_6"]}),
    "token_states": ("tokens", {"features": ["token_states_4", "token_states_6"]}),
    "token_relations": ("relations", {"features": ["token_states_6"]}),
    "attention_relations": ("relations", {"feature": "attention_6"}),
}


def test_each_objective_brings_a_student_nearer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    armada, model = CommandLine(capsys), Path(os.environ["ARMADA_REAL_MODELS"]) / "minilm"
    rows = zip(sentences(0, 300), class_labels(300).tolist(), strict=True)
    lines = (json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
    (tmp_path / "train.jsonl").write_text("".join(lines))
    words = ("precompute", "--corpus", tmp_path / "train.jsonl", "--text-column", "text")
    words += ("--teacher", f"encoder:{model}", "--cache", tmp_path / "cache", "--quiet")
    layers = ("layers=[2, 4, 6]", "token_layers=[4, 6]", "attention_layers=[6]")
    armada.done(*words, *(word for each in layers for word in ("--set", each)))
    for name, (term, keys) in OBJECTIVES.items():
        job = {
            **{"train": str(tmp_path / "train.jsonl"), "text_column": "text"},
            **{"label_column": "label", "student": str(model), "student_layers": 3},
            **{"epochs": 3, "batch_size": 16, "learning_rate": 1e-3, "logging_steps": 1},
            **{"max_length": 256, "output": str(tmp_path / name)},
            "teachers": {"minilm": {"cache": str(tmp_path / "cache")}},
            "objectives": [{"name": "undistilled", "weight": 0.1}, {"name": name} | keys],
        }
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
        armada.done("distill", tmp_path / "job.yaml", "--quiet")
        log = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        found = [row[f"{name}.{term}"] for row in log if f"{name}.{term}" in row]
        print(f"{name}: {found[0]:.4f} at first, {found[-1]:.4f} at last")
        assert found[-1] < 0.8 * found[0]
