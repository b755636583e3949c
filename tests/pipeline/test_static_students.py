"""Jobs of static students: they train, are evaluated, predict, teach, refuse what is not theirs."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from armada.stages.store.reading.reader import open_cache
from tiny_runs import VALIDATION_TEXTS


def test_a_feature_alone(armada, distill_bench, tmp_path):
    words = distill_bench.words(
        tmp_path / "run",
        *(
            "--set",
            "feature=embedding",
            "--set",
            "static_dim=5",
            "--set",
            "learning_rate=0.02",
            "--set",
            "epochs=6",
        ),
        student=f"static:{distill_bench.student}",
        objective="feature",
        label_column=None,
        validation=distill_bench.train,
        teacher=distill_bench.made_up[:8],
    )
    armada.done(*words)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["validation"]["loss"] < metrics["epochs"][0]["loss"]
    student = tmp_path / "run" / "student"
    readme = (student / "README.md").read_text()
    assert "library_name: sentence-transformers" in readme
    assert "static:" not in readme
    compare = ("--cache", distill_bench.cache, "--teacher", distill_bench.made_up[:8], "--json")
    said = armada.done("evaluate", student, "--corpus", distill_bench.train, *compare)
    figures = json.loads(said)["metrics"]
    assert figures["mse"] == pytest.approx(metrics["validation"]["loss"], rel=1e-4)
    output = tmp_path / "predicted.parquet"
    armada.done("predict", student, "--corpus", distill_bench.validation, "--output", output)
    rows = np.stack(pq.read_table(output)["embedding"].to_numpy())
    for kind in ("encoder", "student"):
        cache = tmp_path / kind
        keys = ("--text-column", "text", "--teacher", f"{kind}:{student}", "--cache", cache)
        armada.done("precompute", "--corpus", distill_bench.validation, *keys, "--quiet")
        held = open_cache(cache)
        taught = held["pooled"].gather(held.lookup(VALIDATION_TEXTS))
        np.testing.assert_allclose(taught, rows, atol=1e-6)


@pytest.mark.parametrize("column", ["name", "score"])
def test_labels(armada, distill_bench, tmp_path, column):
    words = distill_bench.words(
        tmp_path / "run",
        *("--set", "static_init=random", "--set", "static_dim=4"),
        student=f"static:{distill_bench.student}",
        label_column=column,
    )
    armada.done(*words)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    evaluated = armada.done(
        "evaluate", tmp_path / "run", "--corpus", distill_bench.validation, "--json"
    )
    for name, value in json.loads(evaluated)["metrics"].items():
        assert value == pytest.approx(metrics["validation"][name], rel=1e-5)
    output = tmp_path / "predicted.parquet"
    told = armada.done(
        "predict", tmp_path / "run", "--corpus", distill_bench.validation, "--output", output
    )
    assert str(output) in told
    problem = armada(
        "precompute", "--corpus", distill_bench.train, "--text-column", "text",
        "--teacher", f"student:{tmp_path / 'run'}", "--cache", tmp_path / "cache",
    )  # fmt: skip
    assert problem.code == 2
    assert "a static student that predicts labels is no teacher" in problem.error


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"task": "language"}, "task 'language': a static student reads whole texts"),
        ({"lora_rank": 2}, "lora_rank: a static student is a table of token embeddings"),
        ({"gradient_checkpointing": "true"}, "gradient_checkpointing: a static student"),
        ({"compile_student": "true"}, "compile_student: a static student"),
        ({"precision": "fp16"}, "precision 'fp16': scaled gradients"),
        ({"pooling": "cls"}, "pooling 'cls': a static student takes the mean"),
        ({"static_dim": 0}, "static_dim"),
        ({"static_dim": 33}, "static_dim 33: the source has 32 numbers a token"),
        ({"student": "static:"}, "names no model; write static:FOLDER"),
        ({"student": "static:/nowhere"}, "source /nowhere: no such folder"),
    ],
)
def test_what_is_not_of_a_table_is_refused(distill_bench, tmp_path, refused, settings, problem):
    given = {"student": f"static:{distill_bench.student}", **settings}
    words = distill_bench.words(tmp_path / "run", student=given.pop("student"), objective="feature")
    more = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    assert problem in refused(*words, *more)


def test_objectives_of_layers_are_refused(distill_bench, tmp_path, refused):
    words = distill_bench.words(
        tmp_path / "run", student=f"static:{distill_bench.student}", objective="hidden_layers"
    )
    told = refused(*words)
    assert "objective hidden_layers: reads the student's layers, and a static student" in told


def test_static_keys_need_a_static_student(distill_bench, tmp_path, refused):
    told = refused(*distill_bench.words(tmp_path / "run", "--set", "static_dim=8"))
    assert "static_dim 8: is for student=static:SOURCE; leave it out" in told


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"layers": "[1]"}, "layers: a static model has no layers"),
        ({"pooling": "cls"}, "pooling 'cls': a static model takes the mean"),
        ({"dim": 9}, "dim: 9 is more than the 4 dimensions"),
        ({"prompt_name": "query"}, "prompt_name: 'query' is not a prompt of the folder"),
        ({"dtype": "bfloat16"}, "dtype bfloat16: static models compute in float32"),
    ],
)
def test_options_of_transformers_are_refused(
    distill_bench, tmp_path_factory, tmp_path, refused, static_folder, options, problem
):
    words = ["precompute", "--corpus", distill_bench.train, "--text-column", "text"]
    more = [word for key, value in options.items() for word in ("--set", f"{key}={value}")]
    told = refused(
        *words, "--teacher", f"encoder:{static_folder}", "--cache", tmp_path / "c", *more
    )
    assert problem in told


@pytest.fixture(scope="module")
def static_folder(distill_bench, tmp_path_factory):
    """A static model of 4 numbers."""
    import torch
    from armada.stages.corpus.labels import NO_LABELS
    from armada.stages.distill.settings import StudentSettings
    from armada.stages.distill.static_student import save_static_model
    from armada.stages.distill.student_source import load_student

    folder = tmp_path_factory.mktemp("static")
    torch.manual_seed(0)
    settings = StudentSettings(
        student=f"static:{distill_bench.student}", static_init="random", static_dim=4
    )
    student, tokenizer = load_student(settings, NO_LABELS, [], 0.0)
    save_static_model(folder, student, tokenizer, [], 16, folds=False)
    return folder
