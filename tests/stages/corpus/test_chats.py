"""Columns of chats: examples, keys, and what is wrong with a row."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from armada.cache_schemas.chats import chat_turns
from armada.cache_schemas.errors import CorpusError
from armada.cache_schemas.keys import example_key
from armada.stages.corpus.corpus import read_corpus


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


ONE = [turn("user", "hello"), turn("assistant", "hi")]
TWO = [*ONE, turn("user", "bye"), turn("assistant", "good bye"), turn("user", "thanks")]


@pytest.fixture(params=["parquet", "jsonl"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    def written(chats: list[Any], **columns: list[Any]) -> str:
        path = tmp_path / f"chats.{request.param}"
        if request.param == "parquet":
            pq.write_table(pa.table({"messages": chats, **columns}), path)
        else:
            rows = [
                {"messages": chat} | {name: each[row] for name, each in columns.items()}
                for row, chat in enumerate(chats)
            ]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return written


def test_the_last_answer_or_each_of_them(write: Any) -> None:
    path = write([ONE, TWO], id=["a", "b"])
    last = read_corpus([path], ["messages"])
    assert last.chats
    assert [chat_turns(segments[0]) for batch in last.batches() for segments in batch] == [
        ONE,
        TWO[:4],
    ]
    each = read_corpus([path], ["messages*"])
    assert [chat_turns(segments[0]) for batch in each.batches() for segments in batch] == [
        ONE,
        ONE,
        TWO[:4],
    ]
    assert each.number_of_row.tolist() == [0, 1, 1]
    assert each.where(2).endswith("row 2 (id 'b')")
    assert {*map(bytes, each.keys())} == {*map(bytes, last.keys())}
    assert list(last.texts()) == ["hello", "hi", "hello", "hi", "bye", "good bye"]


def test_keys_are_of_what_is_said(tmp_path: Path) -> None:
    """Other fields, their order, and nulls of other rows make no difference."""
    bare, full = tmp_path / "bare.jsonl", tmp_path / "full.parquet"
    bare.write_text(json.dumps({"messages": ONE}) + "\n")
    named = [{"content": t["content"], "name": None, "role": t["role"]} for t in ONE]
    kind = pa.list_(pa.struct([(name, pa.string()) for name in ("content", "name", "role")]))
    pq.write_table(pa.table({"messages": pa.array([named], kind)}), full)
    corpora = [read_corpus([str(path)], ["messages"]) for path in (bare, full)]
    assert corpora[0].keys().tobytes() == corpora[1].keys().tobytes()
    segment = '[{"content":"hello","role":"user"},{"content":"hi","role":"assistant"}]'
    assert corpora[0].keys()[0].tobytes() == example_key(segment)


@pytest.mark.parametrize(
    ("chat", "words"),
    [
        ([], "has no turns"),
        (None, "has no turns"),
        ([turn("user", "hello")], "has no turn of the assistant"),
        (
            [turn("user", "a"), turn("bot", "b")],
            "turn 2 has role 'bot', which is not one of system",
        ),
        ([turn("user", " "), turn("assistant", "b")], "turn 1 \\(user\\) is empty"),
        ([turn("user", None), turn("assistant", "b")], "turn 1 lacks a role or a content"),
        ([turn("assistant", "b")], "begins with a turn of the assistant"),
    ],
)
def test_a_bad_chat_is_named(write: Any, chat: Any, words: str) -> None:
    path = write([ONE, chat, TWO])
    with pytest.raises(CorpusError, match=f"row 2: the chat of column 'messages' {words}") as told:
        read_corpus([path], ["messages"])
    assert "skip_bad_rows=true" in str(told.value)
    rest = read_corpus([path], ["messages"], skip_bad_rows=True)
    assert len(rest) == 2
    assert len(rest.skipped) == 1


def test_contents_that_are_no_texts(tmp_path: Path) -> None:
    path = tmp_path / "parts.jsonl"
    parts = [turn("user", [{"type": "text", "text": "a"}]), turn("assistant", [])]
    path.write_text(json.dumps({"messages": parts}) + "\n")
    with pytest.raises(CorpusError, match="turn 1 \\(user\\) has content that is not text"):
        read_corpus([str(path)], ["messages"])


def test_chats_are_a_column_by_themselves(write: Any, tmp_path: Path) -> None:
    path = write([ONE], text=["a"])
    with pytest.raises(CorpusError, match="chats must be the only text column"):
        read_corpus([path], ["messages", "text"])
    other = tmp_path / "texts.jsonl"
    other.write_text('{"messages": "a text"}\n')
    with pytest.raises(CorpusError, match="mixes chats and texts"):
        read_corpus([path, str(other)], ["messages"])
