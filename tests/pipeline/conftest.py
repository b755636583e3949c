"""What the tests of `armada distill` share: two files of examples, a cache with two teachers."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from armada.pipeline.precompute import run_precompute
from armada.pipeline.precompute_job import make_precompute_job
from command_line import CommandLine
from tiny_runs import TEXTS, VALIDATION_TEXTS, class_labels, make_cache

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@dataclass(frozen=True)
class Bench:
    """Files and folders of a distill job; `hash` and `made_up` are teachers of the cache, `made_up`
    with the features `embedding` and `logits`."""

    train: Path
    validation: Path
    cache: Path
    hash: str
    made_up: str
    student: Path

    def words(self, output: Path, *more: object, **changes: object) -> list[object]:
        """`armada distill` and its options; `changes` replace options, None takes one away."""
        options: dict[str, object] = {
            "train": self.train,
            "validation": self.validation,
            "text_column": "text",
            "label_column": "label",
            "cache": self.cache,
            "teacher": self.hash[:8],
            "student": self.student,
            "output": output,
        }
        given = [
            (f"--{name.replace('_', '-')}", value)
            for name, value in (options | changes).items()
            if value is not None
        ]
        small = ["epochs=2", "batch_size=16", "learning_rate=1e-3"]
        if changes.get("objective", "armada") == "armada":
            small.append("aligner_hidden_size=8")
        settings = [("--set", setting) for setting in small]
        return ["distill", *sum([*given, *settings], ()), "--quiet", *more]


def table(texts: list[str], classes: int = 3) -> dict[str, Any]:
    """Columns text, label, name, score, and a, b, c for examples of several segments."""
    labels = class_labels(len(texts), classes)
    return {
        "text": texts,
        "label": labels,
        "name": [("low", "middle", "high")[label] for label in labels],
        "score": np.random.default_rng(1).random(len(texts)) * 5,
        "a": texts,
        "b": texts[::-1],
        "c": [f"{text} indeed" for text in texts],
    }


def write(path: Path, columns: Mapping[str, Any]) -> Path:
    pq.write_table(pa.table(dict(columns)), path)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, without a window."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line, in this process."""
    return CommandLine(capsys)


@pytest.fixture
def refused(armada: CommandLine, tmp_path: Path) -> Callable[..., str]:
    """Runs a command that must be refused, writing nothing; returns its one line."""

    def run(*words: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        result = armada(*words)
        assert result.code == 2, result
        assert sorted(tmp_path.rglob("*")) == before
        return result.error

    return run


@pytest.fixture(scope="session")
def distill_bench(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Bench:
    folder = tmp_path_factory.mktemp("distill")
    train = write(folder / "train.parquet", table(TEXTS))
    cache = folder / "cache"
    made_up = make_cache(cache).teacher.fingerprint
    keys = {"corpus": str(train), "teacher": "hash:6", "cache": str(cache)}
    for columns in (["text"], ["a", "b", "c"]):
        job = make_precompute_job(keys | {"text_column": columns})
        fingerprint = run_precompute(job, quiet=True).fingerprint
    return Bench(
        train=train,
        validation=write(folder / "validation.parquet", table(VALIDATION_TEXTS)),
        cache=cache,
        hash=fingerprint,
        made_up=made_up,
        student=checkpoint("bert"),
    )
