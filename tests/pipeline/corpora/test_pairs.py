"""`armada corpus` with `write=pairs`: one generator's responses preferred to another's."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from armada.cache_schemas.chats import chat_segment
from armada.stages.corpus.corpus import read_corpus
from command_line import CommandLine
from response_caches import response, write_responses

ASKED = ["two and two", "three and three", "one and one", "nothing"]
TEACHER = [["4", "four"], ["too long", "6"], ["2", "two"], ["0", "none"]]
STUDENT = [["5", "4"], ["6", "33"], ["11", "too long"], ["0", "none"]]


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


def words(place: Path, *more: str, write: str = "pairs") -> list[object]:
    generators = {name: {"cache": str(place / name)} for name in ("teacher", "student")}
    settings = [f"generators={json.dumps(generators)}", f"write={write}", *more]
    given = [part for each in settings for part in ("--set", each)]
    corpus = ["--corpus", place / "prompts.parquet", "--text-column", "prompt"]
    return ["corpus", *corpus, "--output", place / "pairs.parquet", "--quiet", *given]


@pytest.mark.parametrize("chats", [False, True], ids=["texts", "chats"])
def test_the_first_kept_responses_are_pairs(
    armada: CommandLine, tmp_path: Path, chats: bool
) -> None:
    turns = [[{"role": "user", "content": text}] for text in ASKED]
    pq.write_table(pa.table({"prompt": turns if chats else ASKED}), tmp_path / "prompts.parquet")
    for name, said in (("teacher", TEACHER), ("student", STUDENT)):
        keys = [(chat_segment(chat),) for chat in turns] if chats else [(text,) for text in ASKED]
        written = [[response(text) for text in texts] for texts in said]
        write_responses(tmp_path / name, dict(zip(keys, written, strict=True)))
    armada.done(*words(tmp_path, 'rules=[{"rule": "length", "most_characters": 5}]'))
    table = pq.read_table(tmp_path / "pairs.parquet")
    assert table.column_names == ["prompt", "response", "rejected"]
    rows = table.to_pylist()
    rejected = [row["rejected"][-1]["content"] if chats else row["rejected"] for row in rows]
    # "6" and "6", "0" and "0" are no pairs
    assert [(row["response"], other) for row, other in zip(rows, rejected, strict=True)] == [
        ("4", "5"),
        ("2", "11"),
    ]
    assert b"armada" in table.schema.metadata
    if chats:
        assert [row["prompt"][-1]["content"] for row in rows] == ["4", "2"]
        assert all(row["prompt"][:-1] == row["rejected"][:-1] for row in rows)
        columns = ["prompt", "rejected"]
        corpus = read_corpus([str(tmp_path / "pairs.parquet")], columns, several_chats=True)
        assert (corpus.chats, len(corpus.segments)) == (True, 2)


def test_refused(armada: CommandLine, tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ASKED[:1]}), tmp_path / "prompts.parquet")
    for name in ("teacher", "student"):
        write_responses(tmp_path / name, {(ASKED[0],): [response("4")]})
    result = armada(*words(tmp_path))
    assert result.code == 2
    assert "write=pairs: no prompt has two different responses that are kept" in result.error
    assert not (tmp_path / "pairs.parquet").exists()
    one = armada(*words(tmp_path, f"generators={{a: {{cache: {tmp_path / 'teacher'}}}}}"))
    assert "write=pairs: is of two generators, and there are 1" in one.error
    shares = ", ".join(f"{n}: {{cache: {tmp_path / n}, share: 1}}" for n in ("teacher", "student"))
    shared = armada(*words(tmp_path, f"generators={{{shares}}}"))
    assert "leave share out" in shared.error
