"""`armada distill` with every control, objective and task, and with other students."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from armada.stages.distill.export import load_saved_student
from safetensors.torch import load_file

pytestmark = pytest.mark.long


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def weights(output: Path) -> bytes:
    return (output / "student" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("control", ["random-aligner", "shuffled", "noise=0.3"])
def test_controls(armada, distill_bench, tmp_path, control):
    armada.done(*distill_bench.words(tmp_path / "run", control=control))
    assert read(tmp_path / "run" / "metrics.json")["control"] == control
    assert (tmp_path / "run" / "aligner" / "aligner.safetensors").is_file()


@pytest.mark.parametrize("control", ["permuted-classes", "class-means", "smoothed"])
def test_controls_of_logits(armada, distill_bench, tmp_path, control):
    words = distill_bench.words(
        tmp_path / "run", objective="kd", control=control, teacher=distill_bench.made_up[:8]
    )
    armada.done(*words, "--set", "epochs=1")
    run = read(tmp_path / "run" / "metrics.json")
    assert run["control"] == control
    assert run["train_losses"]["distillation"] > 0


def test_undistilled_needs_no_cache(armada, distill_bench, tmp_path):
    output = tmp_path / "run"
    armada.done(*distill_bench.words(output, control="undistilled", cache=None, teacher=None))
    assert not (output / "aligner").exists()
    heads = load_file(output / "student" / "heads.safetensors")
    assert not heads
    run = read(output / "run.json")
    assert (run["teacher_fingerprint"], run["teacher"], run["feature"]) == (None, None, None)
    # A cache that is named is not looked at.
    other = distill_bench.words(tmp_path / "b", control="undistilled", cache=tmp_path / "no")
    armada.done(*other)
    assert weights(output) == weights(tmp_path / "b")


@pytest.mark.parametrize(
    ("objective", "terms"),
    [
        ("armada", {"task", "output", "manifold", "aligner"}),
        ("kd", {"task", "distillation"}),
        ("feature", {"task", "feature"}),
        ("undistilled", {"task"}),
    ],
)
def test_objectives(armada, distill_bench, tmp_path, objective, terms):
    words = distill_bench.words(
        tmp_path / "run", objective=objective, teacher=distill_bench.made_up[:8]
    )
    feature = () if objective == "kd" else ("--set", "feature=embedding")
    armada.done(*words, *feature, "--set", "logging_steps=1")
    first = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert terms <= first.keys()
    names = {"task", "output", "manifold", "distillation", "feature", "aligner"}
    assert first.keys() & names == terms


def test_a_joint_run_says_what_its_aligner_loses(armada, distill_bench, tmp_path):
    words = distill_bench.words(tmp_path / "run")
    armada.done(*words, "--set", "schedule=joint", "--set", "logging_steps=1")
    first = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert first["aligner"] > 0


@pytest.mark.parametrize("column", ["name", "score"])
@pytest.mark.parametrize("pooling", ["auto", "mean"])
def test_adapters(armada, distill_bench, tmp_path, column, pooling):
    """What is evaluated and predicted from the folder is what the run measured."""
    output = tmp_path / "run"
    settings = (f"pooling={pooling}", "lora_rank=2", "keep=last")
    more = [word for setting in settings for word in ("--set", setting)]
    armada.done(*distill_bench.words(output, *more, label_column=column))
    measured = read(output / "metrics.json")["validation"]
    out = armada.done("evaluate", output, "--corpus", distill_bench.validation, "--json")
    for name, value in json.loads(out)["metrics"].items():
        assert value == pytest.approx(measured[name], abs=1e-6), name
    said = tmp_path / "said.parquet"
    armada.done("predict", output, "--corpus", distill_bench.validation, "--output", said)
    rows, asked = pq.read_table(said), pq.read_table(distill_bench.validation)
    if column == "name":
        right = np.mean(np.array(rows["class"]) == np.array(asked["name"]))
        assert right == pytest.approx(measured["accuracy"])
    else:
        assert rows["score"].to_numpy().min() >= 0
    base = (distill_bench.student / "model.safetensors").stat().st_size
    files = [file for file in (output / "student").rglob("*.safetensors") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < base / 2


def test_features_alone_teach_too(armada, distill_bench, tmp_path):
    """Without labels: the loss of the feature chooses the epoch, so validation texts need one."""
    words = distill_bench.words(
        tmp_path / "run",
        objective="feature",
        label_column=None,
        validation=distill_bench.train,
    )
    out = armada.done(*words)
    assert out.startswith("loss ")
    assert read(tmp_path / "run" / "metrics.json")["metric"] == "loss"


@pytest.mark.filterwarnings("error")
def test_a_regression(armada, distill_bench, tmp_path):
    armada.done(*distill_bench.words(tmp_path / "run", label_column="score"))
    metrics = read(tmp_path / "run" / "metrics.json")
    assert metrics["metric"] == "pearson"
    assert metrics["validation"].keys() == {"loss", "pearson", "spearman", "mse"}
    evaluated = json.loads(
        armada.done("evaluate", tmp_path / "run", "--corpus", distill_bench.validation, "--json")
    )
    assert evaluated["metrics"]["spearman"] == pytest.approx(metrics["validation"]["spearman"])


def test_the_epoch_is_chosen_by_the_metric_asked_for(armada, distill_bench, tmp_path):
    words = distill_bench.words(tmp_path / "run", label_column="score")
    armada.done(*words, "--set", "metric=mse", "--set", "epochs=4")
    metrics = read(tmp_path / "run" / "metrics.json")
    errors = {row["epoch"]: row["mse"] for row in metrics["epochs"]}
    assert metrics["best_epoch"] == min(errors, key=errors.get)


def test_several_segments(armada, distill_bench, tmp_path):
    words = distill_bench.words(tmp_path / "run", text_column="a")
    armada.done(*words, "--text-column", "b", "--text-column", "c")
    _, _, card = load_saved_student(tmp_path / "run")
    assert card.text_columns == ("a", "b", "c")


@pytest.mark.parametrize("kind", ["bert", "opt"])
def test_students_from_nothing(armada, distill_bench, tmp_path, kind):
    words = distill_bench.words(tmp_path / "run", student=f"scratch:{kind}")
    sizes = ("student_layers=1", "student_hidden_size=16", "student_vocab_size=120")
    armada.done(*words, *(word for size in sizes for word in ("--set", size)))
    config = read(tmp_path / "run" / "student" / "config.json")
    assert (config["model_type"], config["hidden_size"]) == (kind, 16)


def test_long_texts_are_cut_and_counted(armada, distill_bench, tmp_path):
    result = armada(*distill_bench.words(tmp_path / "run"), "--set", "max_length=7")
    count = read(tmp_path / "run" / "metrics.json")["truncated_examples"]
    assert count > 10
    assert f"warning: {count} training texts were truncated at max_length" in result.err


def test_bf16_autocast_is_near_float32(armada, distill_bench, tmp_path):
    """Half precision rounds the student; weights, and what is saved of them, stay float32."""
    losses = {}
    for precision in ("float32", "bf16"):
        output = tmp_path / precision
        words = distill_bench.words(output)
        armada.done(*words, "--set", f"precision={precision}", "--set", "logging_steps=1")
        losses[precision] = json.loads((output / "log.jsonl").read_text().splitlines()[0])["loss"]
    assert losses["bf16"] != losses["float32"]
    # bfloat16 keeps 8 bits: 0.4 % a rounding, a few of them in a row.
    assert losses["bf16"] == pytest.approx(losses["float32"], rel=0.02)
    saved = load_file(tmp_path / "bf16" / "student" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in saved.values()} == {"torch.float32"}
