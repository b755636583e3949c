"""`armada distill` and `armada evaluate`, as people type them."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from armada.pipeline import labelled_corpus
from armada.stages.distill import tokens
from armada.stages.distill.evaluation import metric_names
from armada.stages.distill.export import load_saved_student
from armada.stages.sources import PICKLE_SUFFIXES
from safetensors.torch import load_file
from tiny_runs import THREE_CLASSES
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def student_bytes(output: Path) -> dict[str, bytes]:
    files = [*(output / "student").iterdir(), *(output / "aligner").glob("*")]
    return {file.name: file.read_bytes() for file in files}


# --- the contract


def test_the_contract(armada, distill_bench, tmp_path):
    output = tmp_path / "run"
    out = armada.done(*distill_bench.words(output)).splitlines()
    assert out[-1] == f"written to {output}"
    metrics = read(output / "metrics.json")
    assert {line.split()[0] for line in out[:-1]} == {"loss", *metric_names(THREE_CLASSES)}
    assert sorted(path.name for path in output.iterdir()) == [
        *("aligner", "job.yaml", "log.jsonl", "metrics.json", "run.json", "student"),
        "tensorboard",
    ]
    model = AutoModelForSequenceClassification.from_pretrained(output / "student")
    tokenizer = AutoTokenizer.from_pretrained(output / "student")
    outputs = model(**tokenizer("the cook praised it", return_tensors="pt"))
    assert outputs.logits.shape == (1, 3)
    heads = load_file(output / "student" / "heads.safetensors")
    assert heads["objective.projection.weight"].shape == (6, 32)
    assert (output / "aligner" / "aligner.safetensors").is_file()
    best = next(row for row in metrics["epochs"] if row["epoch"] == metrics["best_epoch"])
    assert metrics["validation"] == {k: v for k, v in best.items() if k not in ("step", "epoch")}


def test_figures(armada, distill_bench, tmp_path):
    output = tmp_path / "run"
    printed = json.loads(armada.done(*distill_bench.words(output), "--json"))
    metrics = read(output / "metrics.json")
    assert printed == metrics
    assert (metrics["seed"], metrics["objective"], metrics["control"]) == (0, "armada", "none")
    assert (metrics["train_examples"], metrics["unlabelled_examples"]) == (53, 0)
    assert (metrics["truncated_examples"], metrics["skipped_rows"]) == (0, [])
    assert metrics["steps"] == 2 * 4
    assert 0 < metrics["step_seconds"]["median"] <= metrics["step_seconds"]["p90"]
    assert 0 < metrics["data_seconds"] < metrics["train_seconds"]
    assert 0 < metrics["aligner_seconds"] < metrics["train_seconds"]
    assert 50e6 < metrics["peak_rss_bytes"] < 50e9
    run = read(output / "run.json")
    assert run["versions"]["torch"] == version("torch")
    assert {"python", "armada-kd", "transformers", "numpy"} <= run["versions"].keys()
    assert run["teacher_fingerprint"] == distill_bench.hash
    assert run["teacher"]["kind"] == "hash"
    assert run["feature"] == "embedding"
    assert run["started"].startswith("20")


def test_the_log_is_there_for_people_and_for_tensorboard(armada, distill_bench, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = tmp_path / "run"
    armada.done(*distill_bench.words(output), "--set", "logging_steps=2")
    rows = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    losses = {row["step"]: row for row in rows if "loss" in row}
    assert list(losses) == [2, 4, 6, 8]
    assert {"task", "output", "manifold", "learning_rate", "grad_norm"} <= losses[2].keys()
    for row in losses.values():
        total = 0.5 * row["output"] + 0.5 * row["task"] + row["manifold"]
        assert row["loss"] == pytest.approx(total, rel=1e-4)
    events = EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    drawn = {event.step: event.value for event in events.Scalars("train/loss")}
    assert drawn == pytest.approx({step: row["loss"] for step, row in losses.items()})
    assert len(events.Scalars("eval/accuracy")) == 2


def test_the_job_is_kept_and_makes_the_same_student_again(armada, distill_bench, tmp_path):
    armada.done(*distill_bench.words(tmp_path / "first"), "--set", "seed=3")
    job = yaml.safe_load((tmp_path / "first" / "job.yaml").read_text())
    assert (job["seed"], job["epochs"], job["beta"]) == (3, 2, 1.0)
    armada.done(
        "distill", tmp_path / "first" / "job.yaml", "--output", tmp_path / "second", "--quiet"
    )
    # The title of the card is the name of the output folder.
    first, second = (student_bytes(tmp_path / name) for name in ("first", "second"))
    assert first.pop("README.md") != second.pop("README.md")
    assert first == second


def test_nothing_that_is_left_can_run_code(armada, distill_bench, tmp_path):
    output = tmp_path / "run"
    armada.done(*distill_bench.words(output), "--set", "save_steps=1")
    files = [file for file in output.rglob("*") if file.is_file()]
    assert not {file.suffix for file in files} & (PICKLE_SUFFIXES | {".npy", ".npz"})
    for file in files:
        # Pickles, and the zip archives that hold those of torch.
        assert not file.read_bytes().startswith((b"PK", b"\x80")), file


def test_the_card_says_what_the_student_is(armada, distill_bench, tmp_path):
    armada.done(*distill_bench.words(tmp_path / "run"))
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "transformers"
    accuracy = read(tmp_path / "run" / "metrics.json")["validation"]["accuracy"]
    assert f"| accuracy | {accuracy:.4f} |" in card
    assert distill_bench.hash in card


# --- job files, seeds


def test_a_job_file_gives_way_to_options_and_settings(armada, distill_bench, tmp_path):
    bench = distill_bench
    job = tmp_path / "job.yaml"
    job.write_text(
        f"train: {bench.train}\nvalidation: [{bench.validation}]\ntext_column: [text]\n"
        f"label_column: label\ncache: {bench.cache}\nteacher: {bench.hash}\n"
        f"student: {bench.student}\noutput: {tmp_path}/run\nepochs: 1\nseed: 1\nbeta: 0.5\n"
    )
    armada.done("distill", job, "--label-column", "name", "--set", "seed=2", "--quiet")
    resolved = yaml.safe_load((tmp_path / "run" / "job.yaml").read_text())
    chosen = {key: resolved[key] for key in ("label_column", "seed", "beta", "epochs")}
    assert chosen == {"label_column": "name", "seed": 2, "beta": 0.5, "epochs": 1}
    _, _, card = load_saved_student(tmp_path / "run")
    assert card.space.names == ("high", "low", "middle")


def test_several_seeds_have_a_mean_and_a_spread(armada, distill_bench, tmp_path, monkeypatch):
    output, encoded = tmp_path / "runs", []

    def encode(tokenizer, examples, max_length):
        encoded.append(len(examples))
        return tokens.encode(tokenizer, examples, max_length)

    monkeypatch.setattr(labelled_corpus, "encode", encode)
    out = armada.done(*distill_bench.words(output), "--set", "seed=[3, 1, 8]")
    assert len(encoded) == 2  # training and validation texts, once for all seeds
    summary = read(output / "metrics.json")
    runs = [read(output / f"seed-{seed}" / "metrics.json") for seed in (3, 1, 8)]
    assert summary["seeds"] == [run["seed"] for run in runs] == [3, 1, 8]
    for name, figures in summary["validation"].items():
        values = [run["validation"][name] for run in runs]
        assert figures["runs"] == values
        assert figures["mean"] == pytest.approx(np.mean(values))
        assert figures["std"] == pytest.approx(np.std(values, ddof=1))
    accuracy = summary["validation"]["accuracy"]
    assert f"{accuracy['mean']:.4f} ± {accuracy['std']:.4f}" in out
    # One of several seeds is the run that this seed makes alone.
    armada.done(*distill_bench.words(tmp_path / "alone"), "--set", "seed=1")
    alone, one = student_bytes(tmp_path / "alone"), student_bytes(output / "seed-1")
    assert alone["model.safetensors"] == one["model.safetensors"]
