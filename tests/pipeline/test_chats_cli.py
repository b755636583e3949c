"""Chats from a corpus to a student: clocks and options of templates, many turns, refusals."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from armada.stages.store.reading.reader import open_cache
from command_line import CommandLine
from tiny_chat_templates import TEMPLATES
from tiny_language_models import TEXTS, make_causal_lm, make_chat_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer


def chat(row: int) -> list[dict[str, str]]:
    words = (TEXTS[(row + at) % len(TEXTS)] for at in range(4))
    roles = ("user", "assistant") * 2
    return [{"role": role, "content": text} for role, text in zip(roles, words, strict=True)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chats")
    chats = [chat(row) for row in range(6)]
    pq.write_table(pa.table({"messages": chats}), root / "chats.parquet")
    pairs = {"ask": list(TEXTS), "say": list(TEXTS[::-1])}
    pq.write_table(pa.table(pairs), root / "pairs.parquet")
    for name, template in TEMPLATES.items():
        tokenizer = make_chat_tokenizer(chat_template=template)
        make_causal_lm(root / name, tokenizer=tokenizer, seed=len(name))
    return root


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


def refused(armada: CommandLine, *words: object) -> str:
    result = armada(*words)
    assert result.code == 2, result
    return result.error


def settings(**keys: object) -> list[str]:
    return [part for name, value in keys.items() for part in ("--set", f"{name}={value}")]


def asked(bench: Path, cache: Path, model: str, *columns: str, **keys: object) -> list[object]:
    corpus = bench / ("pairs.parquet" if len(columns) > 1 else "chats.parquet")
    texts = [part for name in columns for part in ("--text-column", name)]
    how = settings(text_format="chat", **keys)
    teacher = f"causal_lm:{bench / model}"
    return ["precompute", "--corpus", corpus, *texts, "--teacher", teacher, "--cache", cache, *how]


def learned(
    bench: Path, cache: Path, model: str, run: Path, *columns: str, **keys: object
) -> list[object]:
    corpus = bench / ("pairs.parquet" if len(columns) > 1 else "chats.parquet")
    texts = [part for name in columns for part in ("--text-column", name)]
    given = {"task": "language", "objective": "tokens", "epochs": 1, "batch_size": 4} | keys
    files = ["--train", corpus, "--validation", corpus, *texts, "--cache", cache]
    how = settings(**{"feature": "top_k"} | given)
    return ["distill", *files, "--student", bench / model, "--output", run, *how, "--quiet"]


def settings_of(cache: Path) -> dict[str, Any]:
    return dict(open_cache(cache).teacher.spec.settings)


@pytest.mark.parametrize("model", ["dated", "dated_macro", "channels"])
def test_a_cache_of_yesterday(
    armada: CommandLine, bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    from transformers.utils import chat_template_utils

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Tomorrow":
            return cls(2031, 12, 24)

    cache, columns = tmp_path / "cache", ("ask", "say")
    armada.done(*asked(bench, cache, model, *columns, template_date="2025-07-26"))
    assert settings_of(cache)["template_date"] == "2025-07-26"
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    told = armada.done(*asked(bench, cache, model, *columns, template_date="2025-07-26"))
    assert "0 computed" in told
    armada.done(*learned(bench, cache, model, tmp_path / "run", *columns))
    card = json.loads((tmp_path / "run/student/armada_language.json").read_text())
    assert card["recipe"]["template_date"] == "2025-07-26"
    reason = refused(armada, *asked(bench, cache, model, *columns))
    assert "template_date: cached 2025-07-26, requested 2025-01-01" in reason
    other = learned(bench, cache, model, tmp_path / "x", *columns, template_date="2025-01-01")
    assert "'template_date': '2025-01-01', but the teacher" in refused(armada, *other)


def test_caches_of_templates_without_a_clock_are_what_they_were(
    armada: CommandLine, bench: Path, tmp_path: Path
) -> None:
    armada.done(*asked(bench, tmp_path / "cache", "thinking", "ask", "say"))
    found = settings_of(tmp_path / "cache")
    assert not found.keys() & {"template_date", "template_options", "chat_prompt"}
    words = asked(bench, tmp_path / "x", "thinking", "ask", "say", template_date="2025-01-01")
    assert "uses no date" in refused(armada, *words)


def test_options_of_a_template(armada: CommandLine, bench: Path, tmp_path: Path) -> None:
    cache, columns, off = tmp_path / "cache", ("ask", "say"), "{enable_thinking: false}"
    armada.done(*asked(bench, cache, "thinking", *columns, template_options=off))
    assert settings_of(cache)["template_options"] == '{"enable_thinking":false}'
    assert "template_options: cached" in refused(armada, *asked(bench, cache, "thinking", *columns))
    run = tmp_path / "run"
    armada.done(*learned(bench, cache, "thinking", run, *columns))
    again = learned(bench, cache, "thinking", tmp_path / "said", *columns, template_options=off)
    armada.done(*again)
    on = "{enable_thinking: true}"
    other = learned(bench, cache, "thinking", tmp_path / "x", *columns, template_options=on)
    assert "'template_options'" in refused(armada, *other)
    card = json.loads((run / "student/armada_language.json").read_text())
    assert json.loads(card["recipe"]["template_options"]) == {"enable_thinking": False}
    wrong = asked(bench, tmp_path / "y", "thinking", *columns, template_options="{thinking: 1}")
    assert "the chat template has no variable 'thinking'" in refused(armada, *wrong)


def test_prompts_that_are_no_beginning(armada: CommandLine, bench: Path, tmp_path: Path) -> None:
    cache, columns = tmp_path / "cache", ("ask", "say")
    assert "chat_prompt=answered" in refused(armada, *asked(bench, cache, "prefilled", *columns))
    armada.done(*asked(bench, cache, "prefilled", *columns, chat_prompt="answered"))
    armada.done(*learned(bench, cache, "prefilled", tmp_path / "run", *columns))


@pytest.mark.parametrize("column", ["messages", "messages*"])
def test_chats_of_many_turns(armada: CommandLine, bench: Path, tmp_path: Path, column: str) -> None:
    """Each answer that is learned is a row of the cache, whose tokens are those of the library."""
    cache, run = tmp_path / "cache", tmp_path / "run"
    armada.done(*asked(bench, cache, "thinking", column, max_new_tokens=3, max_length=128))
    opened = open_cache(cache)
    rows = np.arange(len(opened))
    tokenizer = AutoTokenizer.from_pretrained(bench / "thinking")
    texts = opened.ragged("token_ids").gather(rows).parts()
    counts = opened["prompt_tokens"].gather(rows).tolist()
    found = {tokenizer.decode(ids.astype(int)): n for ids, n in zip(texts, counts, strict=True)}
    expected = {}
    for row in range(6):
        for end in (2, 4) if column.endswith("*") else (4,):
            turns = chat(row)[:end]
            whole = tokenizer.apply_chat_template(turns, tokenize=False).rstrip("\n")
            given = tokenizer.apply_chat_template(
                turns[:-1], tokenize=False, add_generation_prompt=True
            )
            expected[whole] = len(tokenizer(given, add_special_tokens=False)["input_ids"])
    assert found == expected
    for name, keys in {"run": {}, "said": {"responses": "generated"}}.items():
        armada.done(*learned(bench, cache, "thinking", tmp_path / name, column, **keys))
    words = ["evaluate", run, "--corpus", bench / "chats.parquet", *settings(max_new_tokens=4)]
    metrics = json.loads(armada.done(*words, "--json"))["metrics"]
    validation = json.loads((run / "metrics.json").read_text())["validation"]
    assert metrics["loss"] == pytest.approx(validation["loss"], rel=1e-4)
    assert 0 <= metrics["rouge_l"] <= 1
    _responds(armada, run, tmp_path)


def _responds(armada: CommandLine, run: Path, folder: Path) -> None:
    """`predict` answers what a chat asks for last, by the library's own prompt."""
    asked, corpus = chat(1)[:3], folder / "ask.parquet"
    pq.write_table(pa.table({"messages": [asked, chat(1)]}), corpus)
    words = ["--corpus", corpus, "--output", folder / "said.jsonl", *settings(max_new_tokens=4)]
    armada.done("predict", run, *words)
    said = [json.loads(line) for line in (folder / "said.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(run / "student")
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(run / "student")
    whole = model.generate(**ids, max_new_tokens=4, do_sample=False)[0, ids["input_ids"].shape[1] :]
    expected = tokenizer.decode(whole, skip_special_tokens=True).strip()
    assert [row["generated_text"] for row in said] == [expected] * 2
    texts = folder / "texts.jsonl"
    texts.write_text('{"messages": "a text"}\n')
    words = ["--corpus", texts, "--output", folder / "none.jsonl"]
    assert "was trained on chats" in refused(armada, "predict", run, *words)


def test_chats_that_nobody_reads_as_such(armada: CommandLine, bench: Path, tmp_path: Path) -> None:
    corpus = ["--corpus", bench / "chats.parquet", "--text-column", "messages"]
    cache = ["--cache", tmp_path / "cache"]
    told = refused(armada, "precompute", *corpus, *cache, "--teacher", "hash:4")
    assert "its text column holds chats" in told
    assert "text_format=chat" in told
    words = [*corpus, *cache, "--teacher", f"causal_lm:{bench / 'thinking'}"]
    assert "its text column holds chats" in refused(armada, "precompute", *words)
    assert not list((tmp_path).glob("cache/teachers/*"))
