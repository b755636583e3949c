"""Responses of a model behind an endpoint: as `causal_lm` generates them from its weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from armada.cache_schemas.keys import example_key, keys_to_array
from armada.stages.store.codec.top_k import decode_top_k
from armada.stages.store.reading.reader import Cache, open_cache
from command_line import CommandLine
from openai_server import Model, OpenAIServer, serving
from tiny_language_models import TEXTS, make_causal_lm

MOST, K = 7, 5
CHAT = {"api": "chat", "max_new_tokens": 3}
PROMPTS = [*TEXTS, "a b", "why"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_causal_lm(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    rows = [{"prompt": prompt, "response": "yes"} for prompt in PROMPTS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def compute(armada: CommandLine, corpus: Path, teacher: str, cache: str, **options: Any) -> Cache:
    path = corpus.parent / cache
    given = [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
    columns = ["prompt", *(["response"] if options.get("response_column", True) else [])]
    armada.done(
        *("precompute", "--corpus", corpus, "--teacher", teacher, "--cache", path),
        *(word for column in columns for word in ("--text-column", column)),
        *given,
    )
    return open_cache(path)


def of_rows(cache: Cache, feature: str, with_response: bool = True) -> list[Any]:
    texts = [(prompt, "yes") if with_response else (prompt,) for prompt in PROMPTS]
    rows = cache.find(keys_to_array([example_key(each) for each in texts]))
    return list(cache.ragged(feature).gather(rows).parts())


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_it_is_what_causal_lm_generates(
    armada: CommandLine, corpus: Path, folder: Path, api: str
) -> None:
    with serving(OpenAIServer(model=Model(folder))) as server:
        cache = compute(
            *(armada, corpus, "openai:tiny", "remote"),
            **{"base_url": server.url, "api": api, "max_new_tokens": MOST, "tokenizer": folder},
            **{"top_k": K, "response_column": True},
        )
        assert {server.paid[p if api == "chat" else f"{p}\n"] for p in PROMPTS} == {1}
    local = compute(
        *(armada, corpus, f"causal_lm:{folder}", "local"),
        **{"text_format": {"chat": "chat", "completions": "plain"}[api]},
        **{"max_new_tokens": MOST, "top_k": K},
    )
    ours, theirs = (of_rows(each, "generated_ids") for each in (cache, local))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, other)
    ours, theirs = (of_rows(each, "generated_log_probs") for each in (cache, local))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)
    spec = cache.teacher.spec.feature("generated_top_k")
    assert spec is not None
    for rows, log_probs in zip(of_rows(cache, "generated_top_k"), ours, strict=True):
        found = decode_top_k(spec.coding, rows)
        best = np.asarray(found.log_probs_Nk)[:, 0]
        np.testing.assert_allclose(best, log_probs, atol=0.05)  # greedy: the best is its own


def test_prompts_alone_are_answered(armada: CommandLine, corpus: Path, folder: Path) -> None:
    with serving(OpenAIServer(model=Model(folder))) as server:
        cache = compute(
            *(armada, corpus, "openai:tiny", "remote"),
            **{"base_url": server.url, "api": "chat", "max_new_tokens": MOST},
            response_column=False,
        )
        texts = [bytes(part).decode() for part in of_rows(cache, "generated_text", False)]
        for prompt, text in zip(PROMPTS, texts, strict=True):
            messages = [{"role": "user", "content": prompt}]
            body = {"model": "", "messages": messages, "max_tokens": MOST}
            assert server.model is not None
            reply = server.model.chat_reply(body)["choices"][0]
            assert text == reply["message"]["content"]
    rows = cache.find(keys_to_array([example_key(prompt) for prompt in PROMPTS]))
    assert set(cache["finish"].gather(rows).ravel().tolist()) <= {1, 2}


def test_a_text_that_looks_like_json_is_a_text(
    armada: CommandLine, tmp_path: Path, folder: Path
) -> None:
    corpus, prompt = tmp_path / "c.jsonl", '[{"a": 1}]'
    corpus.write_text(json.dumps({"prompt": prompt}) + "\n")
    with serving(OpenAIServer(model=Model(folder))) as server:
        options = {"base_url": server.url, "api": "chat", "max_new_tokens": MOST}
        compute(armada, corpus, "openai:tiny", "c", response_column=False, **options)
        assert server.paid[prompt] == 1


def test_an_export_has_the_text_once(armada: CommandLine, corpus: Path, folder: Path) -> None:
    with serving(OpenAIServer(model=Model(folder))) as server:
        options = {"base_url": server.url, "api": "chat", "max_new_tokens": MOST}
        cache = compute(
            *(armada, corpus, "openai:tiny", "remote"),
            **options,
            tokenizer=folder,
            response_column=False,
        )
    output = corpus.parent / "exported"
    words = ["--corpus", corpus, "--text-column", "prompt", "--format", "parquet"]
    armada.done("cache", "export", cache.path, *words, "--output", output)
    (file,) = output.rglob("*.parquet")
    table = pq.read_table(file)
    assert table.column_names.count("generated_text") == 1
    kept = of_rows(cache, "generated_text", with_response=False)
    texts = {bytes(part).decode() for part in kept}
    assert set(table["generated_text"].to_pylist()) == texts


def test_another_tokenizer_is_noticed(
    armada: CommandLine, corpus: Path, folder: Path, tmp_path: Path
) -> None:
    other = make_causal_lm(tmp_path / "other", texts=["quite other words", "and others still"])
    with serving(OpenAIServer(model=Model(folder))) as server:
        refused = armada(
            *("precompute", "--corpus", corpus, "--text-column", "prompt", "--cache"),
            *(tmp_path / "c", "--teacher", "openai:tiny", "--set", f"base_url={server.url}"),
            *("--set", "api=chat", "--set", f"max_new_tokens={MOST}", "--set"),
            f"tokenizer={other}",
        )
    assert refused.code == 1
    assert "token" in refused.err
    assert "Traceback" not in refused.err


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"api": "chat"}, "max_new_tokens: is not set; api=chat needs it"),
        ({"max_new_tokens": 3}, "max_new_tokens: is for api=chat, completions"),
        (
            {**CHAT, "dimensions": 3},
            "dimensions: is for api=embeddings",
        ),
        ({**CHAT, "top_k": 3}, "need tokenizer"),
        (
            {**CHAT, "responses_per_prompt": 3},
            "set temperature above 0",
        ),
        ({"api": "completions", "max_new_tokens": 3, "prompt_template": "x"}, "has no {text}"),
        ({"base_url": "ftp://somewhere"}, "is no URL of a server"),
        ({"base_url": "http://me:secret@somewhere/v1"}, "has more than scheme, host and path"),
        ({"concurrency": 0}, "is not from 1 to 65,536"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    armada: CommandLine, corpus: Path, options: dict[str, Any], problem: str
) -> None:
    given = [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
    refused = armada(
        *("precompute", "--corpus", corpus, "--text-column", "prompt", "--teacher", "openai:tiny"),
        *("--cache", corpus.parent / "cache", *given),
    )
    assert refused.code == 2
    assert problem in refused.error
    assert "secret" not in refused.error
