"""Corpora of which a tokenizer knows next to nothing: a run on them says so."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from armada.stages.tokenizing.unknown import mostly_unknown
from command_line import CommandLine
from tiny_checkpoints import make_bert, make_tokenizer
from tiny_language_models import make_chat_tokenizer
from transformers import AutoTokenizer

ENGLISH = ["the red bird sings", "two dogs run along", "a cat", "rain falls at night"] * 3
RUSSIAN = ["красная птица поёт", "две собаки бегут", "кот", "ночью идёт дождь"] * 3
TOLD = "the {}'s tokenizer does not cover the corpus: "


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    make_bert(tmp_path / "bert", ENGLISH)
    for name, texts in (("english", ENGLISH), ("russian", RUSSIAN)):
        texts = [f"{text} {place}" for place, text in enumerate(texts)]
        labels = [place % 2 for place in range(len(texts))]
        pq.write_table(pa.table({"text": texts, "label": labels}), tmp_path / f"{name}.parquet")
    return tmp_path


def words(bench: Path, corpus: str, command: str, **keys: object) -> list[Any]:
    files = "--train" if command == "distill" else "--corpus"
    settings = [part for name, value in keys.items() for part in ("--set", f"{name}={value}")]
    texts = [files, bench / f"{corpus}.parquet", "--text-column", "text"]
    return [command, *texts, "--cache", bench / corpus, *settings]


@pytest.mark.parametrize("corpus", ["english", "russian"])
def test_a_corpus_of_another_language(
    bench: Path, capsys: pytest.CaptureFixture[str], corpus: str
) -> None:
    armada = CommandLine(capsys)
    teacher = {"teacher": f"encoder:{bench / 'bert'}"}
    student = {"student": bench / "bert", "label_column": "label", "objective": "undistilled"}
    run = student | {"epochs": 1, "output": bench / "run", "seed": "[0, 1]"}
    for who, command in (
        ("teacher", [*words(bench, corpus, "precompute", **teacher), "--dry-run"]),
        ("teacher", words(bench, corpus, "precompute", **teacher)),
        ("student", words(bench, corpus, "distill", **run)),
    ):
        result = armada(*command)
        assert result.code == 0, result.err
        assert result.err.count(TOLD.format(who)) == (corpus == "russian")
    if corpus == "russian":
        assert "of its tokens are [UNK] ('красная', 'птица' and others)" in result.err


def test_shares_of_tokens() -> None:
    bert = make_tokenizer(ENGLISH)
    found = mostly_unknown(bert, RUSSIAN)
    assert found is not None
    ids = [bert(text, add_special_tokens=False)["input_ids"] for text in RUSSIAN]
    unknown = sum(row.count(bert.unk_token_id) for row in ids) / sum(map(len, ids))
    assert found.share == unknown
    assert mostly_unknown(bert, [*RUSSIAN, *ENGLISH, *ENGLISH]) is None
    assert mostly_unknown(make_chat_tokenizer(), RUSSIAN) is None, "it reads bytes"


def test_a_tokenizer_of_bytes_whose_unknown_token_ends_texts(tmp_path: Path) -> None:
    tokenizer = make_chat_tokenizer()
    tokenizer.unk_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path)
    assert mostly_unknown(AutoTokenizer.from_pretrained(tmp_path), RUSSIAN) is None
