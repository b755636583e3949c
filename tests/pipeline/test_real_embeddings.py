"""MiniLM as teacher of a student with two of its layers, which sentence-transformers then opens.

ARMADA_REAL_MODELS names a folder that holds `minilm`, the published all-MiniLM-L6-v2."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from armada import open_cache
from command_line import CommandLine
from tiny_embeddings import encode
from tiny_runs import sentences

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("ARMADA_REAL_MODELS" not in os.environ, reason="needs real weights"),
]


def test_a_student_of_minilm_opens_with_the_cosine_that_armada_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    armada, model = CommandLine(capsys), Path(os.environ["ARMADA_REAL_MODELS"]) / "minilm"
    texts = sentences(0, 600)
    files = {"train": texts[:500], "test": texts[500:]}
    for name, rows in files.items():
        lines = (json.dumps({"text": text}) + "\n" for text in rows)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    train, test, cache = tmp_path / "train.jsonl", tmp_path / "test.jsonl", tmp_path / "cache"
    words = ("precompute", "--corpus", train, "--corpus", test, "--text-column", "text")
    armada.done(*words, "--teacher", f"encoder:{model}", "--cache", cache, "--quiet")
    words = ("distill", "--train", train, "--text-column", "text", "--cache", cache, "--quiet")
    words += ("--student", model, "--output", tmp_path / "run")
    settings = ("objective=feature", "distance=cosine", "student_layers=2", "epochs=2")
    settings += ("learning_rate=1e-4",)
    armada.done(*words, *(word for each in settings for word in ("--set", each)))
    words = ("evaluate", tmp_path / "run", "--corpus", test, "--cache", cache, "--json")
    said = json.loads(armada.done(*words))["metrics"]["cosine"]

    opened = open_cache(cache)
    wanted = opened["pooled"][opened.lookup(files["test"])]
    found = encode(tmp_path / "run" / "student", files["test"])
    cosine = float((found * wanted).sum(axis=1).mean())  # both have length 1
    print(f"cosine to the teacher: {cosine:.4f}")
    assert cosine == pytest.approx(said, abs=1e-5)
    assert cosine > 0.6
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
