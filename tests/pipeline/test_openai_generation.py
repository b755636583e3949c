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


PAIRS = [(prompt, f"{prompt} or {number}") for number, prompt in enumerate(PROMPTS)]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in PAIRS))
    return path


@pytest.mark.parametrize("text_format", ["plain", "chat", "text"])
def test_given_responses_are_predicted_as_by_causal_lm(
    armada: CommandLine, pairs: Path, folder: Path, text_format: str
) -> None:
    own = {"text_format": text_format, "top_k": K, "max_length": 24, "own_log_probs": "true"}
    with serving(OpenAIServer(model=Model(folder))) as server:
        sent = {"base_url": server.url, "api": "given", "tokenizer": folder}
        sent |= {"probes": 2, "patience": 1}
        remote = compute(armada, pairs, "openai:tiny", "remote", **own, **sent)
        made = server.requests
        compute(armada, pairs, "openai:tiny", "remote", **own, **sent)
        assert server.requests == made == len(PAIRS) + 2
    local = compute(armada, pairs, f"causal_lm:{folder}", "local", **own)
    keys = keys_to_array([example_key(pair) for pair in PAIRS])
    ours, theirs = remote.find(keys), local.find(keys)
    for name in ("token_ids", "top_k", "own_log_probs"):
        assert remote.feature_spec(name) == local.feature_spec(name)
    np.testing.assert_array_equal(
        remote["prompt_tokens"].gather(ours), local["prompt_tokens"].gather(theirs)
    )
    coding, predicted = remote.feature_spec("top_k").coding, 0
    assert coding is not None
    for name in ("token_ids", "top_k", "own_log_probs"):
        found = remote.ragged(name).gather(ours).parts()
        wanted = local.ragged(name).gather(theirs).parts()
        for one, other in zip(found, wanted, strict=True):
            if name == "token_ids":
                np.testing.assert_array_equal(one, other)
                continue
            if name == "own_log_probs":
                np.testing.assert_allclose(one, other, atol=0.01)
                continue
            predicted += len(one)
            mine, its = decode_top_k(coding, one), decode_top_k(coding, other)
            np.testing.assert_array_equal(mine.ids_Nk, its.ids_Nk)
            np.testing.assert_allclose(mine.log_probs_Nk, its.log_probs_Nk, atol=0.02)
            assert mine.log_tail_N is not None
            assert its.log_tail_N is not None
            np.testing.assert_allclose(np.exp(mine.log_tail_N), np.exp(its.log_tail_N), atol=0.02)
    assert predicted > len(PAIRS)


def test_a_student_learns_from_given_and_from_generated_responses(
    armada: CommandLine, pairs: Path, folder: Path
) -> None:
    with serving(OpenAIServer(model=Model(folder))) as server:
        of_both = {"base_url": server.url, "tokenizer": folder, "probes": 1, "patience": 1}
        compute(armada, pairs, "openai:tiny", "given", api="given", top_k=K, **of_both)
        alone = {**of_both, **CHAT, "response_column": "false"}
        path = pairs.parent / "prompts.jsonl"
        path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in dict.fromkeys(PROMPTS)))
        words = [word for name, value in alone.items() for word in ("--set", f"{name}={value}")]
        armada.done(
            *("precompute", "--corpus", path, "--text-column", "prompt"),
            *("--teacher", "openai:tiny", "--cache", pairs.parent / "answered", *words),
        )
    student = ("distill", "--student", folder, "--set", "task=language", "--set", "epochs=1")
    for corpus, cache, columns, more in (
        (pairs, "given", ("prompt", "response"), ("feature=top_k",)),
        (path, "answered", ("prompt",), ("responses=generated",)),
    ):
        output = pairs.parent / f"student-{cache}"
        armada.done(
            *(*student, "--train", corpus, "--cache", pairs.parent / cache, "--output", output),
            *(word for column in columns for word in ("--text-column", column)),
            *("--set", "objective=tokens"),
            *(word for one in more for word in ("--set", one)),
        )
        losses = json.loads((output / "metrics.json").read_text())["train_losses"]
        assert 0 < losses["loss"] < 20


def test_a_server_without_predictions_of_given_texts(
    armada: CommandLine, pairs: Path, folder: Path
) -> None:
    class WithoutPrompts(Model):
        def _prompt(self, given: list[int], most: int) -> list[Any]:
            return []

        def completion_reply(self, body: dict[str, Any]) -> dict[str, Any]:
            return super().completion_reply({**body, "prompt_logprobs": None})

    with serving(OpenAIServer(model=WithoutPrompts(folder))) as server:
        given = ("--corpus", pairs, "--text-column", "prompt", "--text-column", "response")
        options = {"base_url": server.url, "api": "given", "tokenizer": folder, "top_k": K}
        words = [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
        cache = pairs.parent / "cache"
        ended = armada(
            *("precompute", *given, "--teacher", "openai:x", "--cache", cache, *words),
            *("--set", "patience=0.1"),
        )
    assert ended.code == 1
    assert "has no prompt_logprobs: the server has none of given texts" in ended.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"api": "given", "top_k": 4}, "api=given needs both"),
        ({"api": "given", "max_new_tokens": 4}, "max_new_tokens: is for api=chat, completions"),
        ({**CHAT, "text_format": "text"}, "text_format: text is for api=given"),
    ],
)
def test_options_of_given_responses(
    armada: CommandLine, pairs: Path, options: dict[str, Any], message: str
) -> None:
    words = [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
    refused = armada(
        *("precompute", "--corpus", pairs, "--text-column", "prompt", "--teacher", "openai:x"),
        *("--cache", pairs.parent / "cache", *words),
    )
    assert refused.code == 2
    assert message in refused.err
