"""`armada evaluate`: the figures of validation again, other columns, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from armada import open_cache
from armada.stages.distill.export import load_saved_student
from tiny_embeddings import encode
from tiny_runs import TEXTS, VALIDATION_TEXTS, class_labels


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def test_evaluate_gives_the_figures_of_validation(armada, distill_bench, tmp_path):
    armada.done(*distill_bench.words(tmp_path / "run"))
    expected = read(tmp_path / "run" / "metrics.json")["validation"]
    out = armada.done("evaluate", tmp_path / "run", "--corpus", distill_bench.validation, "--json")
    evaluated = json.loads(out)
    assert evaluated["examples"] == len(VALIDATION_TEXTS)
    assert evaluated["metrics"] == pytest.approx({k: expected[k] for k in evaluated["metrics"]})
    # By another route: the student itself, one text at a time.
    student, tokenizer, _ = load_saved_student(tmp_path / "run")
    with torch.no_grad():
        predicted = [
            student(**tokenizer(text, return_tensors="pt"))[1].argmax().item()
            for text in VALIDATION_TEXTS
        ]
    hits = np.mean(np.array(predicted) == class_labels(len(VALIDATION_TEXTS)))
    assert evaluated["metrics"]["accuracy"] == pytest.approx(hits)


@pytest.mark.parametrize("orthogonal", ["true", "false"])
def test_the_cosine_of_validation_is_that_of_evaluate_and_of_sentence_transformers(
    armada, distill_bench, tmp_path, write_parquet, orthogonal
):
    # A batch of evaluation holds 64 texts: the last one is short, and differs from the others.
    texts = [*(TEXTS * (64 // len(TEXTS) + 1))[:64], TEXTS[0]]
    file = write_parquet("validation", {"text": texts})
    told = ("--set", "distance=cosine", "--set", f"orthogonal_projection={orthogonal}")
    changes = {"objective": "feature", "label_column": None, "validation": file}
    armada.done(*distill_bench.words(tmp_path / "run", *told, **changes))
    cosine = 1 - read(tmp_path / "run" / "metrics.json")["validation"]["loss"]
    words = ("evaluate", tmp_path / "run", "--corpus", file, "--json")
    named = ("--cache", distill_bench.cache, "--teacher", distill_bench.hash[:8])
    said = json.loads(armada.done(*words, *named))["metrics"]["cosine"]
    cache = open_cache(distill_bench.cache, distill_bench.hash[:8])
    wanted = cache["embedding"][cache.lookup(texts)].astype(np.float64)
    found = encode(tmp_path / "run" / "student", texts).astype(np.float64)
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    assert cosine == pytest.approx(((found * wanted).sum(axis=1) / lengths).mean(), abs=1e-5)
    assert cosine == pytest.approx(said, abs=1e-5)


def test_evaluate_reads_other_columns_and_leaves_unlabelled_rows_out(
    armada, distill_bench, tmp_path, write_parquet
):
    armada.done(*distill_bench.words(tmp_path / "run"))
    columns = pq.read_table(distill_bench.validation).to_pydict()
    labels = [None if n % 3 else label for n, label in enumerate(columns["label"])]
    file = write_parquet("other", {"sentence": columns["text"], "class": labels})
    words = ("evaluate", tmp_path / "run" / "student", "--corpus", file)
    out = armada.done(*words, "--text-column", "sentence", "--label-column", "class")
    assert out.startswith("8 examples, 15 without a label\naccuracy ")


# --- what is refused


@pytest.fixture(scope="module")
def trained(distill_bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run."""
    from armada.pipeline.distill import run_distill
    from armada.pipeline.distill_job import DistillJob

    output = tmp_path_factory.mktemp("trained") / "run"
    keys = {
        "train": str(distill_bench.train),
        "text_column": "text",
        "label_column": "label",
        "control": "undistilled",
        "student": str(distill_bench.student),
        "epochs": 1,
        "output": str(output),
    }
    run_distill(DistillJob.model_validate(keys), quiet=True)
    assert json.loads((output / "metrics.json").read_text())["validation"] is None
    return output


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        pytest.param({"text": ["a"], "label": [3]}, "label 3 is not a whole number", id="label"),
        pytest.param({"text": ["a"], "label": [None]}, "no row has a label", id="no-label"),
        pytest.param({"text": ["a"], "label": ["x"]}, "labels are names", id="names"),
        pytest.param({"text": ["a"]}, "label", id="no-column"),
        pytest.param({"words": ["a"], "label": [1]}, "text", id="no-text"),
    ],
)
def test_evaluate(trained, refused, write_parquet, columns, words):
    file = write_parquet("corpus", columns)
    assert words in refused("evaluate", trained, "--corpus", file)


def test_evaluate_with_another_number_of_segments(trained, refused, distill_bench):
    words = ("evaluate", trained, "--corpus", distill_bench.validation)
    line = refused(*words, "--text-column", "a", "--text-column", "b")
    assert "the student was trained on 1 segments (text)" in line


def test_evaluate_what_is_no_student(refused, distill_bench, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere", distill_bench.student):
        line = refused("evaluate", folder, "--corpus", distill_bench.validation)
        assert "name a folder that `distill` wrote" in line


def test_evaluate_a_student_without_a_task(armada, distill_bench, tmp_path, refused):
    words = distill_bench.words(
        tmp_path / "run", objective="feature", label_column=None, validation=None
    )
    armada.done(*words)
    line = refused("evaluate", tmp_path / "run", "--corpus", distill_bench.validation)
    assert "was trained without labels; name a --cache to compare its embeddings with" in line
    # Its embeddings are compared with the teacher's; here by sentence-transformers as well.
    words = ("evaluate", tmp_path / "run", "--corpus", distill_bench.train, "--json")
    told = ("--cache", distill_bench.cache, "--teacher", distill_bench.hash[:8])
    said = json.loads(armada.done(*words, *told))
    cache = open_cache(distill_bench.cache, distill_bench.hash[:8])
    wanted = cache["embedding"][cache.lookup(TEXTS)].astype(np.float64)
    found = encode(tmp_path / "run" / "student", TEXTS).astype(np.float64)
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    expected = {
        "cosine": ((found * wanted).sum(axis=1) / lengths).mean(),
        "mse": ((found - wanted) ** 2).mean(),
    }
    metrics = said["metrics"]
    assert metrics.keys() == {*expected, "cka", "neighbour_overlap@10"}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert said["examples"] == len(TEXTS)


@pytest.mark.parametrize("label", ["label", "score"])
def test_a_student_that_predicts_and_learned_a_feature_is_measured_as_both(
    armada, distill_bench, tmp_path, refused, label
):
    changes = {"objective": "feature", "label_column": label, "validation": None}
    if label == "score":
        changes["task"] = "regression"
    task = changes.pop("task", None)
    told = ("--set", f"task={task}") if task else ()
    armada.done(*distill_bench.words(tmp_path / "run", *told, **changes))
    words = ("evaluate", tmp_path / "run", "--corpus", distill_bench.train, "--json")
    alone = json.loads(armada.done(*words))["metrics"]
    named = ("--cache", distill_bench.cache, "--teacher", distill_bench.hash[:8])
    both = json.loads(armada.done(*words, *named))["metrics"]
    assert both.pop("embedding_cka") > 0
    assert 0 <= both.pop("embedding_neighbour_overlap@10") <= 1
    cache = open_cache(distill_bench.cache, distill_bench.hash[:8])
    wanted = cache["embedding"][cache.lookup(TEXTS)].astype(np.float64)
    found = encode(tmp_path / "run" / "student", TEXTS).astype(np.float64)
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    beside = {
        "embedding_cosine": ((found * wanted).sum(axis=1) / lengths).mean(),
        "embedding_mse": ((found - wanted) ** 2).mean(),
    }
    assert both == pytest.approx(alone | beside, abs=1e-5)
    line = refused(*words, "--teacher", distill_bench.hash[:8])
    assert "teacher, feature: need a cache" in line


def test_a_cache_for_a_student_without_embeddings_is_refused(trained, refused, distill_bench):
    words = ("evaluate", trained, "--corpus", distill_bench.validation)
    named = ("--cache", distill_bench.cache, "--teacher", distill_bench.hash[:8])
    assert "has no embeddings to compare" in refused(*words, *named)
    assert "need a cache" in refused(*words, "--set", "feature=embedding")
