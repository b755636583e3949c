"""Students compared with their teachers on validation texts: figures by a second route, epochs
chosen by them, cut runs, two processes, and what is refused."""

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import armada
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from armada.cache_schemas.errors import InputError
from armada.cache_schemas.features import FeatureSpec
from armada.pipeline import seed_run
from armada.stages.distill.export import load_saved_student
from armada.stages.distill.measures import linear_cka
from armada.stages.distill.saved_student import load_embedder
from cuts import cut_at
from hangs import HANG_S
from scipy.stats import entropy
from small_caches import make_manifest, write_cache
from tiny_runs import TEXTS, VALIDATION_TEXTS, class_labels, freeze_dropout

ANSWERED = 20
"""Validation texts that the cache holds, of 23."""
FEATURES = (
    FeatureSpec(name="logits", shape=(3,), dtype="float32"),
    FeatureSpec(name="score", shape=(), dtype="float32"),
    FeatureSpec(name="embedding", shape=(6,), dtype="float16"),
    FeatureSpec(name="ids", shape=(2,), dtype="uint16"),
)
Keys = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Files of a job; the cache lacks the last validation texts, `bare` all of them."""

    folder: Path
    student: Path

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def validation(self) -> Path:
        return self.folder / "validation.parquet"

    def keys(self, output: Path, **more: Any) -> Keys:
        keys = {
            "train": str(self.folder / "train.parquet"),
            "validation": str(self.validation),
            "text_column": "text",
            "label_column": "label",
            "cache": str(self.cache),
            "student": str(self.student),
            "output": str(output),
            "epochs": 2,
            "batch_size": 16,
            "learning_rate": 1e-3,
            "device": "cpu",
            "report_to": "none",
        }
        return {key: value for key, value in (keys | more).items() if value is not None}

    def run(self, output: Path, **more: Any) -> dict[str, Any]:
        armada.distill(**self.keys(output, **more), quiet=True)
        found: dict[str, Any] = json.loads((output / "metrics.json").read_text())
        return found

    def answers(self, feature: str) -> Any:
        cache = armada.open_cache(self.cache)
        rows = cache.lookup(VALIDATION_TEXTS[:ANSWERED])
        return cache[feature].gather(rows).astype(np.float64)


@pytest.fixture(scope="module")
def bench(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("measures")
    for name, texts in (("train", TEXTS), ("validation", VALIDATION_TEXTS)):
        columns = {
            "text": texts,
            "label": class_labels(len(texts)),
            "score": np.random.default_rng(1).random(len(texts)) * 5,
            "hint": [f"{text} indeed" for text in texts],
        }
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    shards = [TEXTS, VALIDATION_TEXTS[:ANSWERED]]
    write_cache(folder / "cache", make_manifest(FEATURES), shards)
    write_cache(folder / "bare", make_manifest(FEATURES), [TEXTS])
    return Bench(folder, checkpoint("bert"))


@pytest.fixture(scope="module")
def distilled(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of kd, two epochs."""
    output = tmp_path_factory.mktemp("kd") / "run"
    bench.run(output, objective="kd")
    return output


def read(run: Path, name: str = "metrics.json") -> Any:
    return json.loads((run / name).read_text())


def refused(bench: Bench, output: Path, **more: Any) -> str:
    """The one line of a job that must be refused, before anything is written."""
    with pytest.raises(InputError) as found:
        armada.distill(**bench.keys(output, **more), quiet=True)
    assert not output.exists()
    assert "\n" not in str(found.value)
    return str(found.value)


def outputs(run: Path, texts: Sequence[str]) -> tuple[Any, Any]:
    """Pooled texts and outputs of a finished student, one text at a time."""
    student, tokenizer, _ = load_saved_student(run)
    with torch.no_grad():
        found = [student(**tokenizer(text, return_tensors="pt")) for text in texts]
    return tuple(np.concatenate([each[i].numpy() for each in found]) for i in (0, 1))


def softmax(logits: Any) -> Any:
    exps = np.exp(logits - logits.max(1, keepdims=True))
    return exps / exps.sum(1, keepdims=True)


# --- figures


def test_classes_by_a_second_route(bench: Bench, distilled: Path):
    metrics = read(distilled)
    assert metrics["measured_examples"] == {"teacher": ANSWERED}
    made = read(distilled, "run.json")["measured"]["teacher"]
    assert (made["feature"], made["examples"], made["of"]) == ("logits", ANSWERED, 23)
    assert len(metrics["epochs"]) == 2
    measures = {"agreement", "teacher_kl", "teacher_accuracy", "teacher_ece"}
    assert all(measures <= row.keys() for row in metrics["epochs"])
    _, own = outputs(distilled, VALIDATION_TEXTS[:ANSWERED])
    teacher = bench.answers("logits")
    labels = class_labels(len(VALIDATION_TEXTS))[:ANSWERED]
    confidence, right = softmax(teacher).max(1), teacher.argmax(1) == labels
    bins = np.ceil(confidence * 15) - 1
    ece = sum(
        abs(right[bins == each].mean() - confidence[bins == each].mean()) * (bins == each).mean()
        for each in np.unique(bins)
    )
    kl = entropy(softmax(teacher), softmax(own.astype(np.float64)), axis=1).mean()
    found = {name: metrics["validation"][name] for name in measures}
    assert found == pytest.approx(
        {
            "agreement": (own.argmax(1) == teacher.argmax(1)).mean(),
            "teacher_kl": kl,
            "teacher_accuracy": right.mean(),
            "teacher_ece": ece,
        },
        rel=1e-5,
    )


def test_numbers_by_a_second_route(bench: Bench, tmp_path: Path):
    told = {"objective": "feature", "feature": "score", "label_column": "score"}
    found = bench.run(tmp_path / "run", task="regression", **told)["validation"]
    _, own = outputs(tmp_path / "run", VALIDATION_TEXTS[:ANSWERED])
    teacher = bench.answers("score")
    assert found["teacher_rmse"] == pytest.approx(
        np.sqrt(((own[:, 0] - teacher) ** 2).mean()), rel=1e-5
    )
    constant = np.ptp(own) == 0
    expected = 0 if constant else np.corrcoef(own[:, 0], teacher)[0, 1]
    assert found["teacher_pearson"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("label", [None, "label"], ids=["embedding student", "classifier"])
def test_features_by_a_second_route(bench: Bench, tmp_path: Path, label: str | None):
    # Without labels, features of all validation texts are what the student is validated by.
    texts = VALIDATION_TEXTS[:ANSWERED]
    told: Keys = {"objective": "feature", "feature": "embedding", "label_column": label}
    if label is None:
        file = tmp_path / "validation.parquet"
        pq.write_table(pa.table({"text": texts}), file)
        told["validation"] = str(file)
    found = bench.run(tmp_path / "run", **told)["validation"]
    teacher = bench.answers("embedding")
    embedder = load_embedder(tmp_path / "run")
    assert embedder is not None
    own = np.stack([each["embedding"] for each in embedder.predict([(text,) for text in texts])])
    lengths = np.linalg.norm(own, axis=1) * np.linalg.norm(teacher, axis=1)
    pooled, _ = outputs(tmp_path / "run", texts)
    assert {name: found[name] for name in found if name.startswith("teacher")} == pytest.approx(
        {
            "teacher_cka": linear_cka(pooled, teacher),
            "teacher_cosine": ((own * teacher).sum(1) / lengths).mean(),
            "teacher_mse": ((own - teacher) ** 2).mean(),
        },
        rel=1e-4,
        abs=1e-6,
    )


def test_several_teachers_are_told_by_name(bench: Bench, tmp_path: Path):
    armada.precompute(
        corpus=str(bench.validation),
        text_column=["text", "hint"],
        teacher="hash:5",
        cache=tmp_path / "hints",
    )
    armada.precompute(
        corpus=str(bench.folder / "train.parquet"),
        text_column=["text", "hint"],
        teacher="hash:5",
        cache=tmp_path / "hints",
    )
    told = {
        "cache": None,
        "teachers": {
            "made": {"cache": str(bench.cache)},
            "hint": {"cache": str(tmp_path / "hints"), "text_column": ["text", "hint"]},
        },
        "objectives": [
            {"name": "kd", "teacher": "made"},
            {"name": "armada", "teacher": "hint", "aligner_hidden_size": 8},
        ],
        "metric": "made.teacher_kl",
    }
    metrics = bench.run(tmp_path / "run", **told)
    assert metrics["measured_examples"] == {"made": ANSWERED, "hint": 23}
    found = {name for name in metrics["validation"] if "." in name}
    of_made = ("agreement", "teacher_kl", "teacher_accuracy", "teacher_ece")
    assert found == {*(f"made.{name}" for name in of_made), "hint.teacher_cka"}
    rows = metrics["epochs"]
    least = min(rows, key=lambda row: row["made.teacher_kl"])
    assert metrics["best_epoch"] == least["epoch"]
    # Validation texts without the column that the second teacher reads: not compared with it.
    file = tmp_path / "validation.parquet"
    pq.write_table(pq.read_table(bench.validation).drop_columns(["hint"]), file)
    less = bench.run(tmp_path / "less", **told | {"validation": str(file), "metric": None})
    assert less["measured_examples"] == {"made": ANSWERED}
    assert "hint" in read(tmp_path / "less", "run.json")["not_measured"]["hint"]
    assert {"agreement", "teacher_kl"} <= less["validation"].keys()


def test_an_undistilled_student_is_compared_with_the_teacher_it_does_without(
    bench: Bench, distilled: Path, tmp_path: Path
):
    found = bench.run(tmp_path / "run", objective="kd", control="undistilled")
    assert found["measured_examples"] == {"teacher": ANSWERED}
    assert found["validation"].keys() == read(distilled)["validation"].keys()
    same = ("teacher_accuracy", "teacher_ece")
    assert [found["validation"][name] for name in same] == [
        read(distilled)["validation"][name] for name in same
    ]
    told = {"control": "undistilled", "objective": "kd", "cache": str(tmp_path / "nowhere")}
    alone = bench.run(tmp_path / "alone", **told)
    assert "agreement" not in alone["validation"]
    assert "nowhere" in read(tmp_path / "alone", "run.json")["not_measured"]["teacher"]
    train = [row["loss"] for row in found["epochs"]]
    assert train == [row["loss"] for row in alone["epochs"]]


def test_comparing_changes_nothing_else(bench: Bench, distilled: Path, tmp_path: Path):
    off = bench.run(tmp_path / "off", objective="kd", measure_teacher="off")
    assert "measured_examples" not in off
    measured = read(distilled)
    assert off["train_losses"] == measured["train_losses"]
    for without, beside in zip(off["epochs"], measured["epochs"], strict=True):
        assert without == {name: beside[name] for name in without}
        assert "agreement" not in without
    one, other = ((run / "student" / "model.safetensors") for run in (tmp_path / "off", distilled))
    assert one.read_bytes() == other.read_bytes()
    bare = bench.run(tmp_path / "bare", objective="kd", cache=str(bench.folder / "bare"))
    assert "agreement" not in bare["validation"]
    reason = read(tmp_path / "bare", "run.json")["not_measured"]["teacher"]
    assert reason.startswith("none of 23 validation texts is in the cache")


# --- epochs, cuts, processes


@pytest.mark.parametrize(("metric", "best"), [("agreement", max), ("teacher_kl", min)])
def test_the_best_epoch_by_a_measure(bench: Bench, tmp_path: Path, metric: str, best: Any):
    told = {"objective": "kd", "metric": metric, "epochs": 4, "learning_rate": 3e-3}
    found = bench.run(tmp_path / "run", **told)
    values = [row[metric] for row in found["epochs"]]
    assert found["metric"] == metric
    assert found["best_epoch"] == 1 + values.index(best(values))
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert f"| {metric} | {best(values):.4f} |" in card
    assert f"compared with the teacher on {ANSWERED} of 23 validation texts" in card


def test_a_cut_run_has_the_same_measures(
    bench: Bench, distilled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(seed_run, "append_log", cut_at(8))
    told = {"objective": "kd", "logging_steps": 1, "save_steps": 3}
    with pytest.raises(KeyboardInterrupt):
        bench.run(tmp_path / "run", **told)
    monkeypatch.undo()
    cut = bench.run(tmp_path / "run", **told, resume=True)
    assert cut["epochs"] == read(distilled)["epochs"]


def test_two_processes_have_the_measures_of_one(
    bench: Bench, torchrun: Sequence[str], tmp_path: Path
):
    student = freeze_dropout(shutil.copytree(bench.student, tmp_path / "student"))
    told = {"objective": "feature", "feature": "embedding", "dropout": 0.0, "epochs": 1}
    told |= {"student": str(student)}
    one = bench.run(tmp_path / "one", **told)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(bench.keys(tmp_path / "two", **told)))
    done = subprocess.run(
        [*torchrun, "-m", "armada.cli", "distill", str(tmp_path / "job.yaml"), "--quiet"],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    two = read(tmp_path / "two")
    assert two["measured_examples"] == one["measured_examples"]
    names = ("teacher_cka", "teacher_cosine", "teacher_mse")
    own, others = ([run["validation"][name] for name in names] for run in (one, two))
    assert others == pytest.approx(own, rel=1e-4)


# --- `evaluate`


def test_evaluate_tells_the_measures_of_validation(bench: Bench, distilled: Path):
    told = {
        "student": distilled,
        "corpus": [str(bench.validation)],
        "cache": str(bench.cache),
    }
    found = armada.evaluate(**told)
    expected = read(distilled)["validation"]
    expected.pop("loss")
    assert found.metrics == pytest.approx(expected, rel=1e-5)
    assert "agreement" in found.metrics
    with pytest.raises(InputError, match="23 of 23 rows are not in the cache"):
        armada.evaluate(**told | {"cache": str(bench.folder / "bare")})
    with pytest.raises(InputError, match="name a feature of its classes or numbers"):
        armada.evaluate(**told, feature="embedding")


# --- what is refused


@pytest.mark.parametrize(
    ("told", "words"),
    [
        pytest.param(
            {"objective": "feature", "feature": "embedding", "metric": "agreement"},
            "metric': 'agreement' needs a teacher's logits of the student's classes",
            id="of a feature",
        ),
        pytest.param(
            {"objective": "feature", "feature": "embedding", "metric": "agreement"},
            "this job has teacher_cka, teacher_cosine, teacher_mse",
            id="what there is",
        ),
        pytest.param(
            {"objective": "kd", "metric": "teacher_rmse"},
            "needs a teacher's numbers for a task of regression, for validation texts; this job "
            "has agreement, teacher_kl",
            id="numbers of classes",
        ),
        pytest.param(
            {"objective": "kd", "metric": "agreement", "measure_teacher": "off"},
            "no teacher is compared with (cache, measure_teacher)",
            id="off",
        ),
        pytest.param(
            {"objective": "kd", "metric": "agreement", "cache": "BARE"},
            "none of 23 validation texts is in the cache",
            id="nothing cached",
        ),
        pytest.param(
            {"objective": "kd", "metric": "teacher_accuracy"},
            "'teacher_accuracy' is not one of accuracy, macro_f1, matthews, ece, agreement, teac",
            id="the teacher's own",
        ),
        pytest.param(
            {"objective": "kd", "metric": "made.agreement"},
            "this job has agreement, teacher_kl",
            id="a name that is not needed",
        ),
        pytest.param(
            {"objective": "kd", "metric": "agreement", "validation": None},
            "needs a validation set",
            id="no validation set",
        ),
        pytest.param(
            {"objective": "kd", "measure_teacher": "require"},
            "3 of 23 rows are not in the cache",
            id="required",
        ),
        pytest.param(
            {"objective": "kd", "measure_teacher": "require", "validation": None},
            "measure_teacher=require: is about validation texts",
            id="required of nothing",
        ),
        pytest.param(
            {"objective": "undistilled", "measure_teacher": "require"},
            "measure_teacher=require: no teacher is read",
            id="required of no teacher",
        ),
        pytest.param(
            {"objective": "feature", "feature": "ids", "measure_teacher": "require"},
            "teacher teacher: ids holds whole numbers (uint16)",
            id="whole numbers",
        ),
        pytest.param(
            {"objective": "kd", "measure_teacher": "always"},
            "measure_teacher",
            id="no such value",
        ),
    ],
)
def test_what_has_no_meaning_is_refused(bench: Bench, tmp_path: Path, told: Keys, words: str):
    if told.get("cache") == "BARE":
        told = told | {"cache": str(bench.folder / "bare")}
    assert words in refused(bench, tmp_path / "run", **told)
