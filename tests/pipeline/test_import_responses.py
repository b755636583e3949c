"""Responses that were generated elsewhere, in a cache: as JSON lines, or as a batch service's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from armada.stages.store.reading.reader import open_cache
from command_line import CommandLine

LINES = [
    {"prompt": "b", "response": "bee", "log_probs": [-0.5, -0.25], "finish_reason": "stop"},
    {"prompt": "a", "response": "ä", "log_probs": [-1.0], "finish_reason": "length"},
    {"prompt": "b", "response": "", "log_probs": [-2.0], "finish_reason": "stop"},
]


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


def write(path: Path, documents: list[Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in documents))
    return path


def words(place: Path, source: Path, *more: object) -> list[object]:
    named = ["--text-column", "prompt", "--name", "elsewhere", "--declare", "model=gpt-x"]
    return ["cache", "import", place / "cache", source, *named, *more, "--quiet"]


def corpus_of(armada: CommandLine, place: Path, prompts: Path) -> list[dict[str, Any]]:
    out = place / "out.parquet"
    out.unlink(missing_ok=True)
    command = ["corpus", place / "cache", "--corpus", prompts, "--text-column", "prompt"]
    armada.done(*command, "--output", out, "--quiet")
    return list(pq.read_table(out).to_pylist())


def test_prompts_with_responses(armada: CommandLine, tmp_path: Path) -> None:
    source = write(tmp_path / "said.jsonl", LINES)
    said = armada.done(*words(tmp_path, source))
    assert "2 rows; 0 already cached, 2 imported as generated_text" in said
    assert "2 rows; 2 already cached, 0 imported" in armada.done(*words(tmp_path, source))
    spec = open_cache(tmp_path / "cache").teacher.spec
    assert (spec.kind, spec.name, spec.weights) == ("imported", "elsewhere", {})
    assert spec.settings["model"] == "gpt-x"
    assert len(str(spec.settings["file"])) == 32
    rows = corpus_of(armada, tmp_path, write(tmp_path / "p.jsonl", LINES[:2]))
    keys = ("prompt", "response", "sample", "tokens", "finish")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        ("b", "bee", 0, 2, "stop"),
        ("b", "", 1, 1, "stop"),
        ("a", "ä", 0, 1, "length"),
    ]
    assert [row["log_prob"] for row in rows] == [-0.75, -2.0, -1.0]


def test_another_file_is_another_teacher(armada: CommandLine, tmp_path: Path) -> None:
    armada.done(*words(tmp_path, write(tmp_path / "one.jsonl", LINES)))
    refused = armada(*words(tmp_path, write(tmp_path / "two.jsonl", LINES[:2])))
    assert (refused.code, "give this import another name" in refused.error) == (2, True)


def test_responses_without_log_probabilities(armada: CommandLine, tmp_path: Path) -> None:
    lines = [{"prompt": "a", "text": ["one", "two"]}, {"prompt": "b", "text": "three"}]
    source = write(tmp_path / "said.jsonl", lines)
    armada.done(*words(tmp_path, source, "--set", "response_field=text"))
    assert "generated_log_probs" not in open_cache(tmp_path / "cache").features
    prompts = write(tmp_path / "p.jsonl", [{"prompt": prompt} for prompt in "ab"])
    rows = corpus_of(armada, tmp_path, prompts)
    assert [row["response"] for row in rows] == ["one", "two", "three"]
    assert {row["finish"] for row in rows} == {"other"}
    assert {row["log_prob"] for row in rows} == {None}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"prompt": "a"}, "field 'response' is no text"),
        ({"prompt": " ", "response": "x"}, "field 'prompt' is no text"),
        ({"prompt": "a", "response": "x", "log_probs": [0.5]}, "field 'log_probs' is no list of"),
        ({"prompt": "a", "response": ["x", "y"], "log_probs": [[-1]]}, "has more, or fewer"),
        ({"prompt": "a", "response": "x", "log_probs": []}, "has text of no log-probabilities"),
        ({"prompt": "a", "response": ["x"], "log_probs": 5}, "log_probs is 5, not a list"),
        (
            {"prompt": "a", "response": "x", "log_probs": [-1e300]},
            "field 'log_probs' is no list of",
        ),
        ({"prompt": "a", "response": "x", "log_probs": [-(10**400)]}, "field 'log_probs' is no"),
        ({"prompt": "\ud800", "response": "x"}, "'utf-8' codec can't encode"),
        ({"prompt": "a", "response": "\ud800"}, "'utf-8' codec can't encode"),
        (["a", "x"], "is no object"),
    ],
)
def test_lines_that_are_no_responses(
    armada: CommandLine, tmp_path: Path, line: Any, told: str
) -> None:
    source = write(tmp_path / "said.jsonl", [LINES[0], line])
    refused = armada(*words(tmp_path, source))
    assert refused.code == 2
    assert "1 of 2 lines are no responses" in refused.error
    assert f"said.jsonl line 2: {told}" in refused.error
    assert not (tmp_path / "cache").exists()
    result = armada(*words(tmp_path, source, "--skip-bad-rows"))
    assert (result.code, "line 2" in result.err) == (0, True)
    assert len(open_cache(tmp_path / "cache")) == 1


def batch_line(name: str, *texts: str, status: int = 200) -> dict[str, Any]:
    choices = [
        {
            "index": at,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": {
                "content": [
                    {"token": text, "logprob": -0.5, "bytes": [*text.encode()], "top_logprobs": []}
                ]
            },
            "finish_reason": "stop",
        }
        for at, text in enumerate(texts)
    ]
    body = {"id": "x", "object": "chat.completion", "model": "gpt-x", "choices": choices}
    answer = {"status_code": status, "request_id": "r", "body": body if status == 200 else {}}
    return {"id": f"batch_{name}", "custom_id": name, "response": answer, "error": None}


def test_batch_output_is_joined_by_its_ids(armada: CommandLine, tmp_path: Path) -> None:
    prompts = [{"id": f"n{at}", "prompt": prompt} for at, prompt in enumerate("abc")]
    corpus = write(tmp_path / "prompts.jsonl", prompts)
    lines = [batch_line("n2", "sea", "see"), batch_line("n0", "eh", "ay")]
    source = write(tmp_path / "batch.jsonl", [*lines, batch_line("n1", status=429)])
    assert "job key 'corpus' is missing" in armada(*words(tmp_path, source)).error
    given = words(tmp_path, source, "--corpus", corpus)
    refused = armada(*given)
    assert "batch.jsonl line 3: custom_id 'n1' has no response" in refused.error
    result = armada(*given, "--skip-bad-rows")
    assert result.code == 0
    rows = corpus_of(armada, tmp_path, write(tmp_path / "some.jsonl", [prompts[0], prompts[2]]))
    assert [(row["prompt"], row["response"]) for row in rows] == [
        *(("a", "eh"), ("a", "ay")),
        *(("c", "sea"), ("c", "see")),
    ]
    np.testing.assert_allclose([row["log_prob"] for row in rows], -0.5)
    assert "1 of 4 responses have none" not in result.err
    hidden = batch_line("n1", "bee")
    (choice,) = hidden["response"]["body"]["choices"]
    choice["logprobs"]["content"][0]["logprob"] = -9999.0
    partly = write(tmp_path / "partly.jsonl", [*lines, hidden])
    other = words(tmp_path, partly, "--corpus", corpus, "--set", f"cache={tmp_path / 'other'}")
    result = armada(*other)
    assert (result.code, "1 of 5 responses have none, so none are kept" in result.err) == (0, True)
    assert "generated_log_probs" not in open_cache(tmp_path / "other").features
    strange = write(tmp_path / "strange.jsonl", [batch_line("n9", "x")])
    refused = armada(*words(tmp_path, strange, "--corpus", corpus))
    assert "custom_id 'n9' is no id of the corpus" in refused.error


def test_another_field_of_a_file_is_another_teacher(armada: CommandLine, tmp_path: Path) -> None:
    source = write(tmp_path / "said.jsonl", [{"prompt": "a", "response": "x", "worse": "y"}])
    armada.done(*words(tmp_path, source))
    refused = armada(*words(tmp_path, source, "--set", "response_field=worse"))
    assert refused.code == 2
    assert "response_field" in refused.error


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"custom_id": "n0", "response": {"body": {"choices": [5]}}}, "choices[0] is 5, not an"),
        ({"custom_id": "n0", "response": {"body": [1]}}, "response.body is [1], not an object"),
        ({"custom_id": "n0", "response": "text"}, "response is 'text', not an object"),
        ({"custom_id": ["n0"], "response": {}}, "custom_id is ['n0'], not a string"),
        ({"custom_id": None, "response": {}}, "custom_id is None, not a string"),
    ],
)
def test_batch_lines_that_are_no_responses(
    armada: CommandLine, tmp_path: Path, line: Any, told: str
) -> None:
    prompts = [{"id": "n0", "prompt": "a"}, {"id": None, "prompt": "b"}]
    corpus = write(tmp_path / "prompts.jsonl", prompts)
    source = write(tmp_path / "batch.jsonl", [batch_line("n0", "eh"), line])
    refused = armada(*words(tmp_path, source, "--corpus", corpus))
    assert f"batch.jsonl line 2: {told}" in refused.error


def test_a_first_line_that_is_cut_off_is_skipped(armada: CommandLine, tmp_path: Path) -> None:
    corpus = write(tmp_path / "prompts.jsonl", [{"id": "n0", "prompt": "a"}])
    source = write(tmp_path / "batch.jsonl", [batch_line("n0", "eh")])
    for cut in ('{"custom', "[" * 100_000):
        source.write_text(f"{cut}\n{json.dumps(batch_line('n0', 'eh'))}\n")
        place = tmp_path / str(len(cut))
        result = armada(*words(place, source, "--corpus", corpus, "--skip-bad-rows"))
        assert (result.code, "batch.jsonl line 1" in result.err) == (0, True), result.err


@pytest.mark.parametrize(
    ("encoding", "words_of_it"), [("utf-8-sig", ()), ("latin-1", ("latin-1",))]
)
def test_files_in_other_encodings(
    armada: CommandLine, tmp_path: Path, encoding: str, words_of_it: tuple[str, ...]
) -> None:
    source = tmp_path / "said.jsonl"
    source.write_text('{"prompt": "a", "response": "ä"}\n', encoding=encoding)
    given = [word for each in words_of_it for word in ("--set", f"encoding={each}")]
    armada.done(*words(tmp_path, source, *given))
    prompts = write(tmp_path / "p.jsonl", [{"prompt": "a"}])
    assert [row["response"] for row in corpus_of(armada, tmp_path, prompts)] == ["ä"]


def test_texts_may_have_a_custom_id(armada: CommandLine, tmp_path: Path) -> None:
    source = write(tmp_path / "said.jsonl", [{"custom_id": "1", "prompt": "a", "response": "x"}])
    assert "1 rows; 0 already cached, 1 imported" in armada.done(*words(tmp_path, source))
