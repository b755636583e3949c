"""vLLM's predictions of given texts in a cache: as `causal_lm` computes them from the weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from armada.cache_schemas.keys import example_key, keys_to_array
from armada.stages.store.codec.top_k import decode_top_k
from armada.stages.store.format.manifests import list_teachers
from armada.stages.store.reading.reader import open_cache
from command_line import CommandLine
from openai_server import Model
from tiny_language_models import TEXTS, make_causal_lm
from transformers import AutoTokenizer

K = 5
PAIRS = [(text, other) for text in TEXTS[:5] for other in TEXTS[:5]]
Document = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_causal_lm(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def replies(folder: Path) -> list[Document]:
    """Replies to texts of text_format=plain, in another order than that of the corpus."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), Model(folder)
    found = []
    for prompt, response in reversed(PAIRS):
        ids = tokenizer(f"{prompt}\n")["input_ids"]
        ids += [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        sent = {"model": "tiny", "prompt": ids, "max_tokens": 1, "prompt_logprobs": K}
        found.append(model.completion_reply(sent))
        found[-1]["choices"][0]["prompt_token_ids"] = ids
    return found


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rows = [{"prompt": prompt, "response": response} for prompt, response in PAIRS]
    return write(tmp_path / "pairs.jsonl", rows)


def write(path: Path, documents: list[Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in documents))
    return path


COLUMNS = ("--text-column", "prompt", "--text-column", "response")


def words(corpus: Path, source: Path, folder: Path, **keys: Any) -> list[object]:
    options = {"tokenizer": folder, "top_k": K, "text_format": "plain", **keys}
    given = [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
    named = ["--name", "elsewhere", "--declare", "model=tiny", "--corpus", corpus, *COLUMNS]
    return ["cache", "import", corpus.parent / "cache", source, *named, *given, "--quiet"]


def batch_output(reply: Document) -> Document:
    """As `vllm run-batch` writes a reply."""
    answer = {"status_code": 200, "request_id": "r", "body": reply}
    return {"id": "vllm-1", "custom_id": "n", "response": answer, "error": None}


def chat_output(reply: Document) -> Document:
    """The same of a chat: the prompt's predictions are beside the choices."""
    (choice,) = reply["choices"]
    of_prompt = {name: choice[name] for name in ("prompt_logprobs", "prompt_token_ids")}
    message = {"role": "assistant", "content": choice["text"]}
    return batch_output({**of_prompt, "choices": [{"index": 0, "message": message}]})


def of_engine(reply: Document) -> Document:
    """The output of an engine, of which the first token is not told."""
    return {"prompt_logprobs": reply["choices"][0]["prompt_logprobs"]}


@pytest.mark.parametrize("form", [dict, batch_output, chat_output, of_engine])
def test_predictions_are_those_of_causal_lm(
    armada: CommandLine,
    corpus: Path,
    folder: Path,
    replies: list[Document],
    form: Callable[[Document], Document],
) -> None:
    source = write(corpus.parent / "said.jsonl", [form(reply) for reply in replies])
    keys = {"own_log_probs": "true"}
    said = armada.done(*words(corpus, source, folder, **keys))
    assert f"{len(PAIRS)} rows; 0 already cached, {len(PAIRS)} imported as top_k" in said
    said = armada.done(*words(corpus, source, folder, **keys))
    assert f"{len(PAIRS)} already cached, 0 imported" in said
    options = {"text_format": "plain", "top_k": K, "own_log_probs": "true"}
    given = [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
    named = ("--teacher", f"causal_lm:{folder}", "--cache", corpus.parent / "local")
    armada.done("precompute", "--corpus", corpus, *COLUMNS, *named, *given)
    ours, theirs = open_cache(corpus.parent / "cache"), open_cache(corpus.parent / "local")
    spec = ours.teacher.spec
    assert (spec.kind, spec.weights, spec.settings["model"]) == ("imported", {}, "tiny")
    assert spec.vocab_digest == theirs.teacher.spec.vocab_digest
    rows = keys_to_array([example_key(pair) for pair in PAIRS])
    mine, its = ours.find(rows), theirs.find(rows)
    np.testing.assert_array_equal(
        ours["prompt_tokens"].gather(mine), theirs["prompt_tokens"].gather(its)
    )
    for name in ("token_ids", "own_log_probs"):
        found, wanted = (
            cache.ragged(name).gather(which).values
            for cache, which in ((ours, mine), (theirs, its))
        )
        np.testing.assert_allclose(found, wanted, atol=0.01)
    coding = ours.feature_spec("top_k").coding
    assert coding is not None
    found = decode_top_k(coding, ours.ragged("top_k").gather(mine).values)
    wanted = decode_top_k(coding, theirs.ragged("top_k").gather(its).values)
    np.testing.assert_array_equal(found.ids_Nk, wanted.ids_Nk)
    np.testing.assert_allclose(found.log_probs_Nk, wanted.log_probs_Nk, atol=0.02)


def test_what_comes_behind_a_text_changes_nothing(
    armada: CommandLine, corpus: Path, folder: Path, replies: list[Document]
) -> None:
    source = write(corpus.parent / "said.jsonl", replies)
    armada.done(*words(corpus, source, folder, end_token="false"))
    longer = json.loads(json.dumps(replies))
    for reply in longer:
        reply["choices"][0]["prompt_token_ids"].append(3)
        reply["choices"][0]["prompt_logprobs"].append(
            {str(each): {"logprob": -3} for each in range(9)}
        )
    source = write(corpus.parent / "longer.jsonl", longer)
    whole = words(corpus, source, folder)
    armada.done(*whole, "--name", "longer")
    rows = keys_to_array([example_key(pair) for pair in PAIRS])
    caches = [
        open_cache(corpus.parent / "cache", each.fingerprint)
        for each in list_teachers(corpus.parent / "cache")
    ]
    without, with_end = sorted(
        (cache.ragged("top_k").gather(cache.find(rows)) for cache in caches),
        key=lambda each: len(each.values),
    )
    np.testing.assert_array_equal(with_end.lengths, without.lengths + 1)
    for mine, its in zip(without.parts(), with_end.parts(), strict=True):
        np.testing.assert_array_equal(mine, its[:-1])


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


def test_a_student_learns_from_them(
    armada: CommandLine, corpus: Path, folder: Path, replies: list[Document]
) -> None:
    source = write(corpus.parent / "said.jsonl", replies)
    armada.done(*words(corpus, source, folder))
    output = corpus.parent / "student"
    options = ("task=language", "epochs=1", "objective=tokens", "feature=top_k")
    armada.done(
        *("distill", "--student", folder, "--train", corpus, *COLUMNS, "--output", output),
        *("--cache", corpus.parent / "cache"),
        *(word for option in options for word in ("--set", option)),
    )
    losses = json.loads((output / "metrics.json").read_text())["train_losses"]
    assert 0 < losses["loss"] < 20


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ([1], "the line is [1], not an object"),
        ({"choices": [{"text": "x"}]}, "has no prompt_logprobs"),
        ({"choices": [5]}, "choices is 5, not an object"),
        ({"custom_id": "n", "response": None, "error": "late"}, 'has no response: "late"'),
        (batch_output({}) | {"response": {"status_code": 429, "body": "x"}}, "has no response"),
        ({"prompt_logprobs": [None, {"a": {"logprob": -1}}]}, "not a token id"),
    ],
)
def test_lines_without_predictions(
    armada: CommandLine,
    corpus: Path,
    folder: Path,
    replies: list[Document],
    line: Any,
    told: str,
) -> None:
    source = write(corpus.parent / "said.jsonl", [*replies, line])
    refused = armada(*words(corpus, source, folder))
    assert refused.code == 2
    assert f"1 of {len(PAIRS) + 1} lines have no predictions" in refused.error
    assert told in refused.error
    assert not (corpus.parent / "cache").exists()
    result = armada(*words(corpus, source, folder, skip_bad_rows="true"))
    assert (result.code, told in result.err) == (0, True)


def test_rows_and_lines_that_lack_each_other(
    armada: CommandLine, corpus: Path, folder: Path, replies: list[Document]
) -> None:
    other = json.loads(json.dumps(replies[0]))
    other["choices"][0]["prompt_token_ids"][3] = 3
    other["choices"][0]["prompt_logprobs"][3] = {"3": {"logprob": -1.0}}
    source = write(corpus.parent / "said.jsonl", [*replies[:-1], other, replies[0]])
    refused = armada(*words(corpus, source, folder))
    assert f"1 of {len(PAIRS)} rows have no predictions of their tokens" in refused.error
    assert "pairs.jsonl row 1" in refused.error
    result = armada(*words(corpus, source, folder, skip_bad_rows="true"))
    assert result.code == 0
    assert "1 of the features match no row of the corpus" in result.err
    assert "pairs.jsonl row 1: no predictions of its tokens" in result.err
    assert f"line {len(PAIRS) + 1}: has the tokens of an earlier line" in result.err
    # The rest of another file is of the same teacher.
    rest = write(corpus.parent / "rest.jsonl", replies)
    assert f"{len(PAIRS) - 1} already cached, 1 imported" in armada.done(
        *words(corpus, rest, folder)
    )


def test_what_was_declared_otherwise_is_refused(
    armada: CommandLine, corpus: Path, folder: Path, replies: list[Document]
) -> None:
    source = write(corpus.parent / "said.jsonl", replies)
    for keys, told in (
        ({"top_k": K + 2}, f"prompt_logprobs has {K} tokens at one place, and top_k is {K + 2}"),
        ({"prompt_template": "Ask {text}"}, "none of its lines begins with the tokens of a row"),
        ({"text_format": "text"}, "none of its lines begins with the tokens of a row"),
        ({"max_new_tokens": 3}, "'max_new_tokens' is unknown"),
        ({"prompt_template": "x"}, "has no {text}"),
    ):
        refused = armada(*words(corpus, source, folder, **keys))
        assert (refused.code, told in refused.error) == (2, True), refused.error
    assert not (corpus.parent / "cache").exists()
    refused = armada(*words(corpus, write(corpus.parent / "empty.jsonl", []), folder))
    assert "empty.jsonl: has no lines" in refused.error
    strange = json.loads(json.dumps(replies))
    for reply in strange:
        for place in reply["choices"][0]["prompt_logprobs"][1:]:
            place["999999"] = {"logprob": -30.0}
    foreign = write(corpus.parent / "foreign.jsonl", strange)
    refused = armada(*words(corpus, foreign, folder))
    assert "has no such token" in refused.error
