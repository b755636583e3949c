"""A language model's scored choices as the logits that a student learns from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from armada import open_cache
from command_line import CommandLine
from docs_material import TEXTS, write_chats
from tiny_checkpoints import make_bert
from tiny_language_models import make_causal_lm

NAMES = ["bad", "good"]


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


@pytest.fixture
def words(tmp_path: Path) -> list[Any]:
    """The command of stage 1: two classes, of names in the order of the corpus's."""
    labels = [NAMES[place % 2] for place in range(len(TEXTS))]
    pq.write_table(pa.table({"text": TEXTS, "label": labels}), tmp_path / "train.parquet")
    make_causal_lm(tmp_path / "model", texts=TEXTS)
    return [
        *("precompute", "--corpus", tmp_path / "train.parquet", "--text-column", "text"),
        *("--teacher", f"choices:{tmp_path / 'model'}", "--cache", tmp_path / "cache"),
        *("--set", 'prompt_template="{text} is"', "--set", 'answers=[" awful", " lovely"]'),
    ]


def student(tmp_path: Path, name: str = "cache") -> list[Any]:
    make_bert(tmp_path / "bert", TEXTS)
    return [
        *("distill", "--train", tmp_path / "train.parquet", "--text-column", "text"),
        *("--label-column", "label", "--cache", tmp_path / name, "--objective", "kd"),
        *("--student", tmp_path / "bert", "--output", tmp_path / "run", "--set", "epochs=1"),
    ]


def test_a_student_learns_from_them(armada: CommandLine, words: list[Any], tmp_path: Path) -> None:
    words += ["--set", "names=[bad, good]"]
    planned = armada.done(*words, "--dry-run")
    assert f"{len(TEXTS)} to compute" in planned
    armada.done(*words)
    assert open_cache(tmp_path / "cache").feature_spec("logits").labels == tuple(NAMES)
    armada.done(*student(tmp_path))
    card = json.loads((tmp_path / "run" / "student" / "config.json").read_bytes())
    assert card["id2label"] == {"0": "bad", "1": "good"}


def test_classes_in_another_order_are_refused(
    armada: CommandLine, words: list[Any], tmp_path: Path
) -> None:
    armada.done(*words, "--set", "names=[good, bad]")
    line = armada(*student(tmp_path)).error
    assert line.startswith(
        "feature 'logits': the teacher's classes are good, bad, the student's bad"
    )


def test_aspects_are_the_logits_of_many_classes(
    armada: CommandLine, words: list[Any], tmp_path: Path
) -> None:
    """A question is a class; the columns are named as the questions, or not at all."""
    questions = ["Is it warm?", "Is it late?", "Is it red?"]
    template = 'prompt_template="{text} {question}"'
    words[words.index('prompt_template="{text} is"')] = template
    armada.done(*words, "--set", f"questions={json.dumps(questions)}")
    holds = np.random.default_rng(0).random((len(TEXTS), 3)) < 0.5
    columns = dict(zip(questions, map(pa.array, holds.T), strict=True))
    lists = [np.flatnonzero(row) for row in holds]
    pq.write_table(pa.table({"text": TEXTS, "label": lists, **columns}), tmp_path / "train.parquet")
    for run, columns_of in (("run", "label"), ("other", json.dumps(questions))):
        learned = student(tmp_path)
        learned[learned.index("--output") + 1] = tmp_path / run
        learned += ["--set", f"label_column={columns_of}", "--set", "feature=aspects"]
        armada.done(*learned)
        metrics = json.loads((tmp_path / run / "metrics.json").read_bytes())
        assert metrics["train_losses"]["distillation"] > 0
        card = json.loads((tmp_path / run / "student" / "config.json").read_bytes())
        assert card["problem_type"] == "multi_label_classification"


def test_a_score_can_be_added(armada: CommandLine, words: list[Any], tmp_path: Path) -> None:
    armada.done(*words)
    armada.done(*words, "--set", "score=[-1, 1]", "--set", "add_features=true")
    cache = open_cache(tmp_path / "cache")
    rows = cache.lookup(TEXTS)
    odds = np.diff(cache["logits"][rows].astype(np.float64), axis=1)
    np.testing.assert_allclose(cache["score"][rows], np.tanh(odds / 2), atol=1e-6)


def test_chats_are_no_texts(armada: CommandLine, words: list[Any], tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.parquet")
    words[2:5] = [tmp_path / "chats.parquet", "--text-column", "messages"]
    line = armada(*words, "--set", "text_format=chat").error
    assert "its text column holds chats, but teacher choices:" in line


def test_warnings_come_before_anything_is_computed(armada: CommandLine, words: list[Any]) -> None:
    said = armada(*words, "--set", 'answers=[" a", " a cat"]', "--dry-run")
    assert said.code == 0
    assert "' a cat' begins with ' a'" in said.err


def test_a_column_that_is_not_there_is_refused_at_once(
    armada: CommandLine, words: list[Any], tmp_path: Path
) -> None:
    line = armada(*words, "--set", 'prompt_template="{1} {2}"').error
    assert "has {2}, and a prompt has 1 text columns" in line
    assert not (tmp_path / "cache").exists()
