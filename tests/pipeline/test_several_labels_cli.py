"""Students of many classes, of probabilities, and of several numbers, from job to folder."""

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from armada import load_student, open_cache
from armada.cache_schemas.features import FeatureSpec
from armada.stages.corpus.labels import LabelSpace
from armada.stages.distill.export import load_saved_student
from command_line import CommandLine
from cuts import cut_at
from hangs import HANG_S
from small_caches import make_manifest, write_cache
from tiny_runs import TEXTS, VALIDATION_TEXTS, freeze_dropout
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

NAMES = ("kind", "odd", "rude")
FEATURES = (
    FeatureSpec(name="logits", shape=(3,), dtype="float32"),
    FeatureSpec(name="numbers", shape=(2,), dtype="float32"),
    FeatureSpec(name="aspects", shape=(3,), dtype="float32", labels=NAMES),
)


def table(texts: list[str]) -> dict[str, Any]:
    draw = np.random.default_rng(len(texts))
    holds = draw.random((len(texts), 3)) < 0.5
    sets = [[NAMES[k] for k in np.flatnonzero(row)] for row in holds]
    p = np.round(draw.dirichlet([1, 1, 1], len(texts)), 4)
    valence, arousal = draw.normal(size=(2, len(texts)))
    return {
        "text": texts,
        "sets": [None, *sets[1:]],
        **{name: pa.array(column) for name, column in zip(NAMES, holds.T, strict=True)},
        "p": pa.array(list(p)),
        "valence": pa.array([None, *valence[1:]]),
        "arousal": pa.array(arousal),
    }


@dataclass(frozen=True)
class Bench:
    folder: Path
    student: Path

    def words(self, run: Path, labels: tuple[str, ...], *settings: str) -> list[Any]:
        """`armada distill` by such columns of labels."""
        named = f"label_column=[{', '.join(labels)}]"
        given = (
            named,
            "epochs=2",
            "batch_size=16",
            "learning_rate=1e-3",
            "max_length=16",
            *settings,
        )
        return [
            *("distill", "--train", self.folder / "train.parquet", "--text-column", "text"),
            *("--validation", self.folder / "validation.parquet", "--student", self.student),
            *("--cache", self.folder / "cache", "--output", run, "--quiet"),
            *sum([("--set", each) for each in given], ()),
        ]


@pytest.fixture(scope="module")
def bench(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("several")
    for name, texts in (("train", TEXTS), ("validation", VALIDATION_TEXTS)):
        pq.write_table(pa.table(table(texts)), folder / f"{name}.parquet")
    write_cache(folder / "cache", make_manifest(FEATURES), [TEXTS])
    return Bench(folder, checkpoint("bert"))


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


def read(file: Path) -> Any:
    return json.loads(file.read_bytes())


KINDS: dict[str, tuple[tuple[str, ...], list[str], LabelSpace, str]] = {
    "sets by armada": (
        ("sets",),
        ["objective=armada", "feature=logits", "aligner_hidden_size=8"],
        LabelSpace(task="multilabel", num_labels=3, names=NAMES),
        "multi_label_classification",
    ),
    "columns by kd": (
        NAMES,
        ["objective=kd", "temperature=learned", "metric=map"],
        LabelSpace(task="multilabel", num_labels=3, names=NAMES),
        "multi_label_classification",
    ),
    "probabilities by kd": (
        ("p",),
        ["objective=kd", "task=classification", "metric=cross_entropy"],
        LabelSpace(task="classification", num_labels=3),
        "single_label_classification",
    ),
    "numbers by kd": (
        ("valence", "arousal"),
        ["objective=kd", "feature=numbers", "task=regression", "metric=rmse"],
        LabelSpace(task="regression", num_labels=2, names=("valence", "arousal")),
        "regression",
    ),
    "numbers by armada": (
        ("valence", "arousal"),
        ["objective=armada", "feature=logits", "task=regression", "aligner_hidden_size=8"],
        LabelSpace(task="regression", num_labels=2, names=("valence", "arousal")),
        "regression",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_of_several_labels(
    armada: CommandLine, bench: Bench, tmp_path: Path, kind: str
) -> None:
    labels, settings, space, problem = KINDS[kind]
    run = tmp_path / "run"
    armada.done(*bench.words(run, labels, *settings))
    metrics = read(run / "metrics.json")
    assert np.isfinite(list(metrics["validation"].values())).all()
    assert metrics["unlabelled_examples"] == (1 if kind == "sets by armada" else 0)
    student, _, card = load_saved_student(run)
    assert card.space == space

    # transformers gives the same numbers.
    config = read(run / "student" / "config.json")
    assert config["problem_type"] == problem
    names = space.names or tuple(f"LABEL_{number}" for number in range(3))
    assert tuple(config["id2label"].values()) == names
    tokenizer = AutoTokenizer.from_pretrained(run / "student")
    model = AutoModelForSequenceClassification.from_pretrained(run / "student").eval()
    with torch.inference_mode():
        inputs = tokenizer(VALIDATION_TEXTS[:5], padding=True, return_tensors="pt")
        theirs = model(**inputs).logits
        ours = student(inputs["input_ids"], inputs["attention_mask"])[1]
    assert torch.equal(theirs, ours)

    # So do load_student, predict and a pipeline.
    told = load_student(run).predict(VALIDATION_TEXTS[:5])
    corpus = bench.folder / "validation.parquet"
    armada.done("predict", run, "--corpus", corpus, "--output", tmp_path / "out.parquet")
    written = pq.read_table(tmp_path / "out.parquet").to_pylist()[:5]
    piped = pipeline("text-classification", str(run / "student"), top_k=None)(VALIDATION_TEXTS[:5])
    for row, (one, line) in enumerate(zip(told, written, strict=True)):
        if space.regression:
            assert one["scores"] == pytest.approx(theirs[row].tolist(), abs=1e-5)
            numbers = one["scores"]
        else:
            soft = theirs[row].sigmoid() if space.multilabel else theirs[row].softmax(0)
            numbers = soft.tolist()
            assert one["probabilities"] == pytest.approx(numbers, abs=1e-5)
        if space.multilabel:
            assert one["classes"] == line["classes"]
            held = [name for name, p in zip(NAMES, numbers, strict=True) if p > 0.5]
            assert one["classes"] == held
        key = "scores" if space.regression else "probabilities"
        assert line[key] == pytest.approx(numbers, abs=1e-5)
        by_name = {each["label"]: each["score"] for each in piped[row]}
        assert [by_name[name] for name in names] == pytest.approx(numbers, abs=1e-5)

    # And evaluate what training measured.
    found = json.loads(armada.done("evaluate", run, "--corpus", corpus, "--json"))
    for name, value in found["metrics"].items():
        assert metrics["validation"][name] == pytest.approx(value, abs=1e-5)
    detail = {"multilabel": "per_class", "regression": "per_output"}.get(space.task)
    assert detail is None or tuple(found[detail]) == names
    readme = (run / "student" / "README.md").read_text()
    assert ("top_k=None" in readme) == (detail is not None)
    assert f"-> {', '.join(f'`{name}`' for name in labels)}" in readme


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


EVERY_STEP = ("logging_steps=1", "save_steps=2", "dropout=0", "device=cpu")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["columns by kd", "numbers by armada"])
def test_two_processes_are_one(
    armada: CommandLine, bench: Bench, torchrun: Sequence[str], tmp_path: Path, kind: str
) -> None:
    labels, settings, *_ = KINDS[kind]
    student = freeze_dropout(Path(shutil.copytree(bench.student, tmp_path / "bert")))
    bench = replace(bench, student=student)
    armada.done(*bench.words(tmp_path / "one", labels, *settings, *EVERY_STEP))
    words = map(str, bench.words(tmp_path / "two", labels, *settings, *EVERY_STEP))
    command = [*torchrun, "-m", "armada.cli", *words]
    subprocess.run(command, check=True, timeout=HANG_S, capture_output=True)
    assert read(tmp_path / "two" / "metrics.json")["processes"] == 2
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    one, two = (read(tmp_path / run / "metrics.json")["validation"] for run in ("one", "two"))
    assert two == pytest.approx(one, abs=1e-3)


def test_a_cut_run_goes_on_with_the_same_losses(
    armada: CommandLine, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, settings, *_ = KINDS["sets by armada"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    armada.done(*bench.words(whole, labels, *settings, *EVERY_STEP))
    monkeypatch.setattr("armada.pipeline.seed_run.append_log", cut_at(5))
    assert armada(*bench.words(cut, labels, *settings, *EVERY_STEP)).code != 0
    monkeypatch.undo()
    armada.done(*bench.words(cut, labels, *settings, *EVERY_STEP), "--resume")
    assert losses(cut) == losses(whole)


# --- teachers


def test_a_run_teaches_the_next(armada: CommandLine, bench: Bench, tmp_path: Path) -> None:
    """Its numbers are a teacher's: by name, and refused where their count differs."""
    labels, settings, *_ = KINDS["numbers by armada"]
    armada.done(*bench.words(tmp_path / "one", labels, *settings, "epochs=1"))
    armada.done(
        *("precompute", "--corpus", bench.folder / "train.parquet", "--text-column", "text"),
        *("--teacher", f"student:{tmp_path / 'one'}", "--cache", tmp_path / "cache", "--quiet"),
    )
    spec = open_cache(tmp_path / "cache").feature_spec("score")
    assert (spec.shape, spec.labels) == ((2,), labels)
    words = bench.words(tmp_path / "two", labels, "objective=kd", "task=regression", "epochs=1")
    words[words.index("--cache") + 1] = tmp_path / "cache"
    armada.done(*words, "--set", "feature=score")
    assert read(tmp_path / "two" / "metrics.json")["train_losses"]["distillation"] > 0
    words[words.index("--output") + 1] = tmp_path / "three"
    line = armada(*words, "--set", "feature=score", "--set", "label_column=valence").error
    assert "the teacher's feature has 2 numbers, the task 1 outputs" in line


REFUSED: dict[str, tuple[tuple[str, ...], list[str], str]] = {
    "a temperature of numbers": (
        ("valence", "arousal"),
        ["objective=kd", "feature=numbers", "task=regression", "temperature=2"],
        "objective kd: temperature 2.0: the task is a regression, whose numbers have none; leave",
    ),
    "a control of one class": (
        NAMES,
        ["objective=kd", "control=permuted-classes"],
        "control permuted-classes: is for logits of which one class holds, but the task is multi",
    ),
    "names in another order": (
        ("rude", "odd", "kind"),
        ["objective=kd", "feature=aspects"],
        "feature 'aspects': the teacher's classes are kind, odd, rude, the student's rude, odd",
    ),
    "a metric of one class": (NAMES, ["objective=kd", "metric=accuracy"], "is not one of micro_f1"),
    "a metric of probabilities": (
        ("valence",),
        ["objective=feature", "feature=numbers", "metric=cross_entropy"],
        "'cross_entropy' is not one of pearson",
    ),
    "a column twice": (("kind", "kind"), ["objective=kd"], "name at least one column, and none tw"),
    "no task": (("p",), ["objective=kd"], "labels are lists of numbers; set task=regression"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_refused(armada: CommandLine, bench: Bench, tmp_path: Path, why: str) -> None:
    labels, settings, message = REFUSED[why]
    result = armada(*bench.words(tmp_path / "run", labels, *settings))
    assert result.code == 2
    assert message in result.error
    assert not (tmp_path / "run").exists()
