"""The rows that a student fails on become the next corpus; the file says what it came from."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from armada.stages.corpus.corpus import read_corpus
from command_line import CommandLine
from response_caches import response, write_responses


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


ROWS = [("n0", "a", "x"), ("n1", "b", "y"), ("n2", "c", "y"), ("n3", "d", "x")]


def words(corpus: Path, output: Path, rule: str, write: str = "failed_prompts") -> list[object]:
    columns = ["--text-column", "prompt", "--label-column", "label", "--output", output, "--quiet"]
    given = ["--set", f"rules=[{rule}]", "--set", f"write={write}"]
    return ["corpus", "--corpus", corpus, *columns, *given]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    rows = [dict(zip(("id", "prompt", "label"), row, strict=True)) for row in ROWS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_that_a_classifier_fails_on(armada: CommandLine, tmp_path: Path, corpus: Path) -> None:
    file, out = tmp_path / "said.parquet", tmp_path / "next.parquet"
    said = {"id": ["n3", "n2", "n1", "n0"], "class": ["x", "x", "y", "x"]}
    said |= {"probabilities": [[0.5, 0.5], [0.9, 0.1], [0.3, 0.7], [0.8, 0.2]]}
    pq.write_table(pa.table(said), file)
    done = armada.done(*words(corpus, out, "{rule: label}"), "--predictions", file)
    assert "kept 3 responses to 3 prompts" in done
    assert pq.read_table(out).to_pylist() == [{"prompt": "c", "label": "y", "id": "n2"}]
    document = json.loads(pq.read_schema(out).metadata[b"armada"])
    assert document["round"] == 1
    assert document["generators"][0]["predictions"] == "said.parquet"
    assert len(document["generators"][0]["digest"]) == 32
    unsure = tmp_path / "unsure.parquet"
    armada.done(*words(corpus, unsure, "{rule: log_prob, least: -0.4}"), "--predictions", file)
    assert pq.read_table(unsure)["prompt"].to_pylist() == ["d"]
    right = tmp_path / "right.parquet"
    armada.done(*words(corpus, right, "{rule: label}", "kept_prompts"), "--predictions", file)
    assert len(read_corpus([str(right)], ["prompt"])) == 3


def test_the_next_round_knows_its_parent(armada: CommandLine, tmp_path: Path, corpus: Path) -> None:
    first, second = tmp_path / "first.parquet", tmp_path / "second.parquet"
    said = tmp_path / "said.jsonl"
    lines = [{"row": at, "generated_text": text} for at, text in enumerate("xyzz", 1)]
    said.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = ["--predictions", said, "--set", "id_column=false"]
    armada.done(*words(corpus, first, "{rule: label}"), *given)
    assert pq.read_table(first)["prompt"].to_pylist() == ["c", "d"]
    asked = {(prompt,): [response(prompt)] for prompt in "cd"}
    cache = write_responses(tmp_path / "cache", asked)
    command = words(first, second, "{rule: pattern, pattern: c}", "responses")
    armada.done(command[0], cache, *command[1:])
    document = json.loads(pq.read_schema(second).metadata[b"armada"])
    (parent,) = document["parents"]
    assert (document["round"], parent["round"], parent["name"]) == (2, 1, "first.parquet")
    assert pq.read_table(second)["response"].to_pylist() == ["c"]
    folder = tmp_path / "folder"
    folder.mkdir()
    first.rename(folder / "first.parquet")
    third = tmp_path / "third.parquet"
    command = words(folder, third, "{rule: pattern, pattern: c}", "responses")
    armada.done(command[0], cache, *command[1:])
    assert json.loads(pq.read_schema(third).metadata[b"armada"])["parents"] == [parent]


def test_predictions_that_do_not_fit_are_refused(
    armada: CommandLine, tmp_path: Path, corpus: Path
) -> None:
    out = tmp_path / "out.parquet"
    for table, told in (
        ({"row": [1], "embedding": [0.5]}, "has neither generated_text nor class"),
        ({"row": [1, 1], "class": ["x", "y"]}, "repeats a row"),
        ({"row": [1, 2], "class": ["x", "y"]}, "not there: 2 in predictions"),
    ):
        file = tmp_path / f"{len(told)}.parquet"
        pq.write_table(pa.table(table), file)
        refused = armada(*words(corpus, out, "{rule: label}"), "--predictions", file)
        assert (refused.code, told in refused.error) == (2, True), refused
        assert not out.exists()
    given = [*words(corpus, out, "{rule: label}"), "--predictions", file]
    refused = armada(*given, "--corpus", corpus)
    assert (refused.code, "counts the rows of each file" in refused.error) == (2, True)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"generated_text": None}, "1 of 1 rows have no generated_text"),
        ({"class": "x", "probabilities": None}, "None in the column probabilities are none"),
        ({"class": "x", "probabilities": []}, "[] in the column probabilities are none"),
    ],
)
def test_rows_without_a_prediction(
    armada: CommandLine, tmp_path: Path, corpus: Path, line: dict[str, object], told: str
) -> None:
    said = tmp_path / "said.jsonl"
    said.write_text(json.dumps({"row": 1} | line) + "\n")
    refused = armada(*words(corpus, tmp_path / "x.parquet", "{rule: label}"), "--predictions", said)
    assert (refused.code, told in refused.error) == (2, True)
