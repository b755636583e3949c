"""`armada corpus`: responses of a cache as an ordinary corpus, filtered by declared rules."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from armada.cache_schemas.chats import chat_segment
from armada.cache_schemas.errors import CorpusError
from armada.cache_schemas.keys import example_key
from armada.pipeline.corpora.corpus import BLOCK_PROMPTS, _Run
from armada.pipeline.corpora.job import CorpusJob
from armada.stages.corpus.corpus import read_corpus
from command_line import CommandLine
from response_caches import response, write_responses, write_scores

SUMS = {
    "two and two": ["it is 4", "I say: 5", "it is  4.0"],
    "three and three": ["6", "it is 6", "it is 7"],
    "one and one": ["3", "2", "1"],
}
LABELS = ["4", "6", "2"]
LOG_PROBS = (-0.5, -0.2, -0.9)


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    rows = [
        {"id": f"n{at}", "prompt": prompt, "label": label}
        for at, (prompt, label) in enumerate(zip(SUMS, LABELS, strict=True))
    ]
    lines = (json.dumps(row) + "\n" for row in rows)
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    write_responses(
        tmp_path / "cache",
        {
            (prompt,): [response(text, each) for text, each in zip(texts, LOG_PROBS, strict=True)]
            for prompt, texts in reversed(SUMS.items())
        },
    )
    return tmp_path


def words(place: Path, *more: object, rules: list[dict[str, Any]] | None = None) -> list[object]:
    corpus = ["--corpus", place / "prompts.jsonl", "--text-column", "prompt"]
    given = ["--set", f"rules={json.dumps(rules)}"] if rules else []
    return ["corpus", place / "cache", *corpus, "--label-column", "label", *given, *more, "--quiet"]


def kept(armada: CommandLine, place: Path, *rules: dict[str, Any]) -> list[tuple[str, int]]:
    """Prompt and sample number of the responses that rules keep."""
    output = place / f"out{len(list(place.iterdir()))}.parquet"
    armada.done(*words(place, "--output", output, rules=list(rules)))
    rows = pq.read_table(output).to_pylist()
    return [(row["prompt"].partition(" ")[0], row["sample"]) for row in rows]


def test_responses_become_rows(armada: CommandLine, place: Path) -> None:
    output = place / "out.parquet"
    said = armada.done(*words(place, "--output", output))
    assert "3 prompts, 9 responses\nkept 9 responses to 3 prompts\n" in said
    assert said.endswith("9 rows\n")
    table = pq.read_table(output)
    assert table.column_names == [
        *("prompt", "label", "prompt_id", "response", "sample", "generator"),
        *("log_prob", "tokens", "finish", "origin"),
    ]
    rows = table.to_pylist()
    assert [row["response"] for row in rows] == [text for each in SUMS.values() for text in each]
    first = rows[0]
    assert first["log_prob"] == pytest.approx(3 * -0.5)
    assert (first["tokens"], first["finish"], first["generator"]) == (3, "stop", "cache")
    assert (first["label"], first["prompt_id"]) == ("4", "n0")
    assert first["origin"] == example_key("two and two").hex()
    corpus = read_corpus([str(output)], ["prompt", "response"])
    assert len(corpus) == 9


def test_the_same_job_writes_the_same_bytes(armada: CommandLine, place: Path) -> None:
    rules = [{"rule": "duplicates"}, {"rule": "length", "most_characters": 7}]
    files = [place / "one.parquet", place / "two.parquet"]
    for file in files:
        armada.done(*words(place, "--output", file, rules=rules))
    assert files[0].read_bytes() == files[1].read_bytes()
    document = json.loads(pq.read_schema(files[0]).metadata[b"armada"])
    assert document["corpora"] == ["prompts.jsonl"]
    assert document["generators"][0]["cache"] == "cache"
    assert [(rule["rule"], rule["rejected"], rule["left"]) for rule in document["rules"]] == [
        ("duplicates", 0, 9),
        ("length", 2, 7),
    ]
    assert str(place) not in json.dumps(document)


ANSWER = {"answer": r"(\d+(\.\d+)?)", "as_number": True}


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ({"rule": "finish"}, "012 012 012"),
        ({"rule": "length", "most_characters": 6}, " 0 012"),
        ({"rule": "length", "least_tokens": 3}, "012 12 "),
        ({"rule": "log_prob", "least": -0.6}, "01 01 01"),
        ({"rule": "log_prob", "least": -0.7, "each": "response"}, "1 01 01"),
        ({"rule": "pattern", "pattern": "^it is"}, "02 12 "),
        ({"rule": "pattern", "pattern": "^it is", "reject": True}, "1 0 012"),
        ({"rule": "label", **ANSWER}, "02 01 1"),
        ({"rule": "label", "answer": r"\d+$"}, "0 01 1"),
        ({"rule": "label"}, " 0 1"),
        ({"rule": "majority", **ANSWER}, "02 01 "),
        ({"rule": "majority", **ANSWER, "least_share": 0.7}, "  "),
        ({"rule": "best"}, "1 1 1"),
        ({"rule": "best", "count": 2}, "01 01 01"),
        ({"rule": "best", "by": "log_prob"}, "1 0 1"),
    ],
)
def test_each_rule(armada: CommandLine, place: Path, rule: dict[str, Any], wanted: str) -> None:
    expected = [
        (prompt.partition(" ")[0], int(number))
        for prompt, numbers in zip(SUMS, wanted.split(" "), strict=True)
        for number in numbers
    ]
    if expected:
        assert kept(armada, place, rule) == expected
    else:
        refused = armada(*words(place, "--output", place / "none.parquet", rules=[rule]))
        assert refused.code == 2
        assert "none of 9 responses is kept (rejected 9 by majority)" in refused.error
        assert not (place / "none.parquet").exists()


def test_rules_apply_to_what_the_ones_before_keep(armada: CommandLine, place: Path) -> None:
    label, best = {"rule": "label", **ANSWER}, {"rule": "best"}
    assert kept(armada, place, label, best) == [("two", 0), ("three", 1), ("one", 1)]
    assert kept(armada, place, best, label) == [("three", 1), ("one", 1)]
    rejected = place / "rejected.jsonl"
    out = ["--output", place / "kept.parquet", "--rejected", rejected]
    said = armada.done(*words(place, *out, rules=[label, best | {"name": "most sure"}]))
    assert "label                            4 rejected,         5 left" in said
    assert "most sure                        2 rejected,         3 left" in said
    rows = [json.loads(line) for line in rejected.read_text().splitlines()]
    assert [row["rule"] for row in rows].count("most sure") == 2
    assert len(rows) == 6
    assert {row["response"] for row in rows if row["prompt"] == "one and one"} == {"1", "3"}


def test_duplicates_are_of_a_prompt_or_of_all(armada: CommandLine, tmp_path: Path) -> None:
    said = {("a",): ["Yes", "yes ", "yes"], ("b",): ["yes", "no", "no"]}
    write_responses(tmp_path / "cache", {k: list(map(response, v)) for k, v in said.items()})
    rows = [{"prompt": prompt, "label": ""} for prompt in "ab"]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for options, wanted in (
        ({}, "a0 a1 b0 b1"),
        ({"among": "corpus"}, "a0 a1 b1"),
        ({"among": "corpus", "ignore_case": True}, "a0 b1"),
    ):
        found = kept(armada, tmp_path, {"rule": "duplicates", **options})
        assert " ".join(f"{prompt}{sample}" for prompt, sample in found) == wanted


def test_a_critics_score(armada: CommandLine, place: Path) -> None:
    scores = {
        (prompt, text): [0.0, float(len(text))] for prompt, texts in SUMS.items() for text in texts
    }
    write_scores(place / "critic", scores, ("bad", "good"))
    critic = {"cache": str(place / "critic"), "column": "good"}
    assert kept(armada, place, {"rule": "score", "critic": critic, "least": 8}) == [
        ("two", 1),
        ("two", 2),
    ]
    best = {"rule": "best", "by": "score", "critic": critic}
    assert kept(armada, place, best) == [("two", 2), ("three", 1), ("one", 0)]
    probable = {"rule": "score", "critic": critic | {"probability": True}, "most": 0.75}
    assert kept(armada, place, probable) == [("three", 0), *(("one", n) for n in range(3))]
    write_scores(place / "alone", {(text,): [1.0] for each in SUMS.values() for text in each[:2]})
    alone = {"cache": str(place / "alone"), "reads": "response"}
    few = {"rule": "score", "critic": alone, "least": 0}
    refused = armada(*words(place, "--output", place / "x.parquet", rules=[few]))
    assert (refused.code, "3 responses, the first of which" in refused.error) == (2, True)


def test_two_teachers_agree(armada: CommandLine, place: Path) -> None:
    theirs = {"two and two": "4", "three and three": "the answer is 7", "one and one": "?"}
    said = {(prompt,): [response(text)] for prompt, text in theirs.items()}
    write_responses(place / "other", said, text_format="chat")
    rule = {"rule": "agreement", **ANSWER, "other": {"cache": str(place / "other")}}
    assert kept(armada, place, rule) == [("two", 0), ("two", 2), ("three", 2)]


def test_several_generators_have_their_shares(armada: CommandLine, tmp_path: Path) -> None:
    prompts = [f"prompt {number}" for number in range(200)]
    for name, count in (("small", 3), ("large", 1)):
        said = [response(f"{name} {number}") for number in range(count)]
        write_responses(tmp_path / name, {(p,): said for p in prompts}, seed=count)
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": each}) + "\n" for each in prompts)
    )
    job: dict[str, Any] = {
        "corpus": str(tmp_path / "prompts.jsonl"),
        "text_column": "prompt",
        "generators": {
            name: {"cache": str(tmp_path / name), "share": share}
            for name, share in (("small", 60), ("large", 40))
        },
    }
    (tmp_path / "mix.yaml").write_text(yaml.safe_dump(job))
    out = tmp_path / "mix.parquet"
    said = armada.done("corpus", tmp_path / "mix.yaml", "--output", out, "--quiet")
    assert "share                          300 rejected,       500 left" in said
    names = pq.read_table(out)["generator"].to_pylist()
    assert (names.count("small"), names.count("large")) == (300, 200)
    other = tmp_path / "other.parquet"
    armada.done("corpus", tmp_path / "mix.yaml", "--output", other, "--quiet", "--set", "seed=1")
    texts = [sorted(pq.read_table(file)["response"].to_pylist()) for file in (out, other)]
    assert texts[0] != texts[1]


def test_chats_have_the_response_as_their_last_turn(armada: CommandLine, tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hello, you"},
        {"role": "user", "content": "who are you"},
    ]
    said = {(chat_segment(turns),): [response("nobody"), response("me")]}
    write_responses(tmp_path / "cache", said, text_format="chat")
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    out = tmp_path / "out.parquet"
    corpus = ["--corpus", tmp_path / "chats.jsonl", "--text-column", "messages"]
    armada.done("corpus", tmp_path / "cache", *corpus, "--output", out, "--quiet")
    rows = pq.read_table(out).to_pylist()
    for row, text in zip(rows, ("nobody", "me"), strict=True):
        assert row["messages"] == [*turns, {"role": "assistant", "content": text}]
        assert row["response"] == text
    assert len(read_corpus([str(out)], ["messages"])) == 2


def test_a_given_response_is_no_prompt(armada: CommandLine, tmp_path: Path) -> None:
    said = {("why", "because"): [response("so")]}
    write_responses(tmp_path / "cache", said, response_column=True)
    (tmp_path / "c.jsonl").write_text(json.dumps({"ask": "why", "say": "because"}) + "\n")
    out = tmp_path / "out.parquet"
    command = ["corpus", tmp_path / "cache", "--corpus", tmp_path / "c.jsonl", "--quiet"]
    refused = armada(*command, "--text-column", "ask", "--output", out)
    assert "name its column as the last one" in refused.error
    both = ["--text-column", "ask", "--text-column", "say"]
    armada.done(*command, *both, "--output", out)
    (row,) = pq.read_table(out).to_pylist()
    assert (row["ask"], row["response"], "say" in row) == ("why", "so", False)


def test_rows_without_responses(armada: CommandLine, place: Path) -> None:
    with (place / "prompts.jsonl").open("a") as file:
        file.write(json.dumps({"id": "n9", "prompt": "nine", "label": "9"}) + "\n")
    out = place / "out.parquet"
    refused = armada(*words(place, "--output", out))
    assert (refused.code, "not there: 1 in cache" in refused.error) == (2, True)
    assert "prompts.jsonl row 4 (id 'n9')" in refused.error
    result = armada(*words(place, "--output", out, "--skip-bad-rows"))
    assert (result.code, "row 4" in result.err) == (0, True)
    assert len(pq.read_table(out)) == 9


def test_a_dry_run_only_counts(armada: CommandLine, place: Path) -> None:
    said = armada.done(*words(place, "--dry-run", "--json", rules=[{"rule": "label", **ANSWER}]))
    report = json.loads(said)
    assert report["rules"] == [{"name": "label", "rejected": 4, "left": 5}]
    assert (report["kept"], report["kept_prompts"], report["output"]) == (5, 3, None)
    assert {path.name for path in place.iterdir()} == {"cache", "prompts.jsonl"}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "job key 'output' is missing"),
        (["--output", "x.jsonl"], "no .parquet file"),
        (
            ["--set", "rules=[{rule: lable}]"],
            "rules.0: rule 'lable' is unknown; did you mean 'label'",
        ),
        (
            ["--set", "rules=best"],
            "job key 'rules': 'best' is not a list of rules, each {rule: NAME",
        ),
        (
            ["--set", "rules=[{rule: pattern, pattern: '('}]"],
            "rules.0 (pattern) key 'pattern': '(': is no regular expression",
        ),
        (
            ["--set", "rules=[{rule: finish}, {rule: best, best_of: 3}]"],
            "rules.1 (best) key 'best_of' is unknown; keys are ",
        ),
        (
            ["--set", "generators={llm: {cache: cache, shares: 0.5}}"],
            "generator llm key 'shares' is unknown; did you mean 'share'? Keys are cache, share,",
        ),
        (["--set", "rules=[{rule: best}, {rule: best}]"], "two are called 'best'"),
        (["--set", "response_name=prompt"], "column 'prompt'"),
        (["--predictions", "x.parquet"], "name one of them"),
    ],
)
def test_mistakes_are_refused_in_a_line(
    armada: CommandLine, place: Path, more: list[str], told: str
) -> None:
    output = [] if not more or more[0] == "--output" else ["--output", place / "o.parquet"]
    refused = armada(*words(place, *output, *more))
    assert refused.code == 2
    assert told in refused.error
    assert not (place / "o.parquet").exists()


def test_what_is_not_known_is_not_compared(armada: CommandLine, tmp_path: Path) -> None:
    write_responses(tmp_path / "cache", {("a",): [response("b")]}, with_tokens=False)
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "a", "label": "b"}) + "\n")
    for rule in ({"rule": "best"}, {"rule": "length", "most_tokens": 3}):
        refused = armada(*words(tmp_path, "--dry-run", rules=[rule]))
        assert refused.code == 2
        assert refused.error.startswith(f"rule {rule['rule']}: ")
    assert kept(armada, tmp_path, {"rule": "finish"}) == [("a", 0)]


@pytest.mark.parametrize("more", [-1, 1])
def test_a_corpus_that_changes_in_between(tmp_path: Path, more: int) -> None:
    corpus = tmp_path / "prompts.jsonl"

    def write(count: int) -> None:
        corpus.write_text('{"prompt": "why?"}\n' * count)

    write_responses(tmp_path / "cache", {("why?",): [response("so")]})
    keys = {"cache": tmp_path / "cache", "corpus": (str(corpus),), "text_column": ("prompt",)}
    write(BLOCK_PROMPTS)
    run = _Run.of(CorpusJob(**keys, output=tmp_path / "out.parquet"))
    decided = run.decide(quiet=True)
    write(BLOCK_PROMPTS + more)
    with pytest.raises(CorpusError, match="have changed in between"):
        run.write(decided, run.report(decided), quiet=True)
    assert not (tmp_path / "out.parquet").exists()
