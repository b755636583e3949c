"""A corpus of which the cache lacks some texts: refused, or trained without them when asked."""

import json
from pathlib import Path

import pytest
from command_line import CommandLine

TEXTS = [f"{count} otters by the {place}" for count in ("two", "six") for place in "abcdefghij"]


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


def write(file: Path, texts: list[str]) -> Path:
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(texts)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def job(tmp_path: Path, armada: CommandLine) -> list[object]:
    """A job on 20 texts, of which 14 are cached."""
    cached, corpus = write(tmp_path / "some.jsonl", TEXTS[6:]), write(tmp_path / "a.jsonl", TEXTS)
    cache = ["--text-column", "text", "--cache", tmp_path / "cache"]
    armada.done("precompute", "--corpus", cached, "--teacher", "hash:8", *cache)
    student = ["--student", "scratch:bert", "--set", "student_hidden_size=16", "--set", "epochs=1"]
    words = ["distill", "--train", corpus, "--label-column", "label", *cache, *student]
    return [*words, "--output", tmp_path / "run"]


def test_missing_keys_are_counted_and_the_first_five_named(
    job: list[object], armada: CommandLine
) -> None:
    result = armada(*job)
    assert result.code == 2
    assert "6 of 20 rows are not in the cache" in result.error
    assert [f"a.jsonl row {row}" in result.error for row in range(1, 8)] == [True] * 5 + [False] * 2


def test_missing_rows_are_left_out_and_listed_when_asked(
    job: list[object], armada: CommandLine, tmp_path: Path
) -> None:
    result = armada(*job, "--set", "skip_bad_rows=true")
    assert result.code == 0, result.err
    assert "6 rows were skipped" in result.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["train_examples"] == 14
    assert len(metrics["skipped_rows"]) == 6


def test_missing_rows_are_trained_without_the_teacher_when_asked(
    job: list[object], armada: CommandLine, tmp_path: Path
) -> None:
    result = armada(*job, "--set", "missing=without_teacher")
    assert result.code == 0, result.err
    assert "14 of 20 training rows have its answers" in result.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["train_examples"] == 20
    assert metrics["answered_examples"] == {"teacher": 14}
    assert metrics["skipped_rows"] == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        # Without labels nothing is left to learn from such a row.
        (["--objective", "feature", "--label-column", ""], "6 of 20 rows are not in the cache"),
        (["--train", "none.jsonl"], "20 of 20 rows are not in the cache"),
        (["--set", "missing=zeros"], "missing"),
    ],
)
def test_rows_with_nothing_to_learn(
    job: list[object],
    armada: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[object],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "none.jsonl", [f"not {text}" for text in TEXTS])
    given = [*job, "--set", "missing=without_teacher", *words]
    if "--label-column" in words:
        for _ in range(2):
            at = given.index("--label-column")
            del given[at : at + 2]
    if "none.jsonl" in words:
        del given[given.index("--train") : given.index("--train") + 2]
    result = armada(*given)
    assert result.code == 2
    assert reason in result.error


def test_a_control_of_the_aligner_needs_one(job: list[object], armada: CommandLine) -> None:
    result = armada(*job, "--objective", "feature", "--control", "random-aligner")
    assert result.code == 2
    assert "'feature' has no aligner" in result.error


def test_a_finished_run_that_is_resumed_gives_its_figures(
    job: list[object], armada: CommandLine
) -> None:
    job += ["--set", "skip_bad_rows=true", "--json"]
    first = json.loads(armada.done(*job))
    assert json.loads(armada.done(*job, "--resume")) == first
    assert armada(*job).code == 2
