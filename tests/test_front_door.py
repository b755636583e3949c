"""`import armada`: light, and all that it promises; the commands as functions of Python."""

import asyncio
import json
import signal
import subprocess
import sys
from dataclasses import FrozenInstanceError
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
    assert cached.computed == len(TEXTS)
    armada.distill(
        **{"train": rows(TEXTS), "text_column": "text", "label_column": "label"},
        **{"cache": tmp_path / "cache", "student": checkpoint("bert"), "epochs": 1},
        **{"output": tmp_path / "run", "aligner_hidden_size": 8, "device": "cpu"},
    )
    asked = {"student": tmp_path / "run", "corpus": rows(TEXTS), "device": "cpu"}
    measured = armada.evaluate(**asked)
    assert measured["examples"] == measured.examples == len(TEXTS)
    written = armada.predict(**asked, output=tmp_path / "said.jsonl")
    assert (written.rows, written.kind) == (len(TEXTS), "classification")
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    at_once = armada.load_student(tmp_path / "run").predict(TEXTS)
    for one, other in zip(said, at_once, strict=True):
        assert one["class"] == other["class"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)
    right = [row["class"] == label["label"] for row, label in zip(said, rows(TEXTS), strict=True)]
    assert sum(right) / len(right) == pytest.approx(measured.metrics["accuracy"])


@pytest.fixture(scope="module")
def cached(checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The keys of `distill` for a cache of all texts."""
    cache = tmp_path_factory.mktemp("front") / "cache"
    armada.precompute(corpus=rows(TEXTS), text_column="text", teacher="hash:6", cache=cache)
    return {
        **{"train": rows(TEXTS), "validation": rows(TEXTS), "text_column": "text"},
        **{"label_column": "label", "cache": cache, "student": checkpoint("bert"), "epochs": 1},
        **{"aligner_hidden_size": 8, "device": "cpu"},
    }


def test_results_have_names_and_are_documents(cached: dict[str, Any], tmp_path: Path) -> None:
    one = armada.distill(**cached, output=tmp_path / "one", seed=3)
    written = json.loads((tmp_path / "one" / "metrics.json").read_bytes())
    assert one == written
    assert dict(one) == written
    assert isinstance(one, armada.DistillReport)
    assert (one.output, one.seeds, one.objective) == (tmp_path / "one", (3,), "armada")
    assert one.validation == written["validation"]
    assert one.validation[one.metric or ""] == written["validation"]["accuracy"]
    assert (one.best_epoch, one.truncated, one.skipped) == (1, 0, ())
    assert len(repr(one)) < 1000
    assert "train_seconds" not in repr(one)
    with pytest.raises(FrozenInstanceError):
        one.metric = "f1"  # type: ignore[misc]
    several = armada.distill(**cached, output=tmp_path / "several", seed=[3, 4])
    accuracy = several.validation["accuracy"]
    assert isinstance(accuracy, armada.Spread)
    assert accuracy.runs == tuple(several["validation"]["accuracy"]["runs"])
    assert accuracy.runs[0] == one.validation["accuracy"]
    assert (several.seeds, several.best_epoch) == ((3, 4), None)
    asked = {"student": tmp_path / "several", "corpus": rows(TEXTS), "device": "cpu"}
    measured = armada.evaluate(**asked)
    assert isinstance(measured, armada.EvaluateReport)
    assert measured.metrics["accuracy"] == accuracy
    assert (measured.examples, measured.unlabelled, measured.truncated) == (len(TEXTS), 0, 0)


def test_calls_from_threads_and_event_loops(cached: dict[str, Any], tmp_path: Path) -> None:
    """As from the main thread; and no signal has another handler."""
    heard = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def call(name: str) -> tuple[Any, Any]:
        more = {"corpus": rows(TEXTS), "text_column": "text", "teacher": "hash:6"}
        asked = armada.precompute(**more, cache=tmp_path / f"{name} cache")
        output = tmp_path / name
        learned = armada.distill(**{**cached, "cache": tmp_path / f"{name} cache"}, output=output)
        at = {"student": output, "corpus": rows(TEXTS), "device": "cpu"}
        told = armada.predict(**at, output=tmp_path / f"{name}.jsonl")
        return asked.computed, (learned.validation, armada.evaluate(**at).metrics, told.rows)

    async def called() -> list[tuple[Any, Any]]:
        return [call("in a loop"), await asyncio.to_thread(call, "in a thread")]

    assert asyncio.run(called()) == [call("here")] * 2
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == heard


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([{"text": "a"}, "b"], "corpus list of rows, row 2: is not a dictionary, but str"),
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
