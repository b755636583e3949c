"""Scored choices of a model behind a server, against the teacher `choices` on the same weights."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from armada import open_cache
from command_line import CommandLine
from openai_runs import words, write_corpus
from openai_server import Model, OpenAIServer, serving
from tiny_language_models import TEXTS, make_causal_lm

ANSWERS = 'answers=[" sea", " the river", " rain and the stars"]'
TEMPLATE = 'prompt_template="Review: {text}\\nIt is about"'
QUESTIONS = ('questions=["Of rain?", "Of the sea?"]', 'prompt_template="{text} {question}"')

KINDS = {
    "plain": ((ANSWERS, TEMPLATE), ("logits",)),
    "calibrated": (
        (ANSWERS, TEMPLATE, "per=token", "content_free=[N/A, '']", "score=[1, 2, 4]"),
        ("logits", "score"),
    ),
    "aspects": (('answers=[" no", " yes"]', *QUESTIONS, 'premise="{question}"'), ("aspects",)),
    "chat": (
        (ANSWERS, "text_format=chat", 'user_template="Of what is {1}?"', "end_token=true"),
        ("logits",),
    ),
    "cut": ((ANSWERS, TEMPLATE, "max_length=30"), ("logits",)),
}
"""Settings of either teacher, and their features."""


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_causal_lm(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def answering(model: Path) -> Model:
    return Model(model)


@pytest.fixture
def server(answering: Model) -> Iterator[OpenAIServer]:
    with serving(OpenAIServer(model=answering)) as state:
        yield state


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path, TEXTS)


def command(
    server: OpenAIServer, corpus: Path, model: Path, *settings: str, **options: Any
) -> list[str]:
    own = {"api": "choices", "tokenizer": model, "probes": 1, "patience": 1, **options}
    return [
        *words(server, corpus, **own),
        *(word for setting in settings for word in ("--set", setting)),
    ]


def both(
    armada: CommandLine, server: OpenAIServer, corpus: Path, model: Path, *settings: str, **own: Any
) -> tuple[Any, Any]:
    """The cache that the server's answers are in, and that of the model itself."""
    armada.done(*command(server, corpus, model, *settings, **own))
    armada.done(
        *("precompute", "--corpus", corpus, "--text-column", "text", "--quiet"),
        *("--teacher", f"choices:{model}", "--cache", corpus.parent / "local"),
        *(word for setting in settings for word in ("--set", setting)),
    )
    return open_cache(corpus.parent / "cache"), open_cache(corpus.parent / "local")


@pytest.mark.parametrize("echo", [False, True], ids=["prompt_logprobs", "echo"])
@pytest.mark.parametrize(("settings", "features"), [*KINDS.values()], ids=[*KINDS])
def test_numbers_are_those_of_the_model(
    armada: CommandLine,
    server: OpenAIServer,
    corpus: Path,
    model: Path,
    settings: tuple[str, ...],
    features: tuple[str, ...],
    echo: bool,
) -> None:
    theirs, local = both(armada, server, corpus, model, *settings, echo=str(echo).lower())
    for name in features:
        found, expected = (cache[name][cache.lookup(TEXTS)] for cache in (theirs, local))
        np.testing.assert_allclose(found, expected, atol=3e-5)
        assert np.ptp(expected, axis=0).max() > 0.05
        assert theirs.feature_spec(name).labels == local.feature_spec(name).labels


def test_an_answered_text_is_paid_once(
    armada: CommandLine, server: OpenAIServer, corpus: Path, model: Path
) -> None:
    line = command(server, corpus, model, ANSWERS, TEMPLATE, "content_free=[N/A, '']")
    armada.done(*line)
    # A probe, two texts without content, and each text by one request.
    assert server.requests == 3 + len(TEXTS)
    armada.done(*line)
    assert server.requests == 3 + len(TEXTS)


def test_a_server_without_such_log_probabilities_is_refused_by_its_probe(
    armada: CommandLine, server: OpenAIServer, corpus: Path, model: Path
) -> None:
    def without(body: Any, reply: Any) -> Any:
        for choice in reply["choices"]:
            choice.pop("prompt_logprobs", None)
            choice.pop("logprobs", None)
        return 200, {}, json.dumps(reply).encode()

    server.fault = lambda number, body: without
    said = armada(*command(server, corpus, model, ANSWERS, TEMPLATE))
    assert said.code == 1
    assert "by prompt_logprobs, which vLLM has; set echo=true" in said.error
    said = armada(*command(server, corpus, model, ANSWERS, TEMPLATE, echo="true"))
    assert "no log-probabilities of given texts by echo and logprobs; use a server" in said.error
    assert server.requests == 2
    assert not server.paid


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ((), "tokenizer, answers: are not set; api=choices needs both"),
        ((ANSWERS, "top_k=3"), "top_k: is for api=chat, completions, given"),
        (('answers=[" a"]',), "'answers': [' a']: Tuple should have at least 2"),
        (('answers=[" a", " a"]',), "answers: [' a', ' a'] repeats one"),
        ((ANSWERS, "score=[1, 2]"), "score: has 2 numbers for 3 answers"),
        ((ANSWERS, "prompt_template=nothing"), "has no {text}, so all prompts would be the same"),
        ((ANSWERS, "text_format=text"), "text_format: "),
        ((ANSWERS, "max_length=3"), "leaves no room for a prompt"),
        ((ANSWERS, "batch=true"), "batch: api=choices has no batch service"),
        ((ANSWERS, "tokenizer=/nowhere"), "/nowhere"),
        ((ANSWERS, "api=given", "top_k=3"), "answers: is for api=choices"),
        (("api=chat", "max_new_tokens=3", "echo=true"), "echo: is for api=choices"),
        ((ANSWERS, 'prompt_template="{1} {2}"'), "has {2}, and a prompt has 1 text columns"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_request(
    armada: CommandLine,
    server: OpenAIServer,
    corpus: Path,
    model: Path,
    settings: tuple[str, ...],
    told: str,
) -> None:
    line = armada(*command(server, corpus, model, *settings)).error
    assert told in line
    assert server.requests == 0


def test_another_tokenizer_is_seen(
    armada: CommandLine, server: OpenAIServer, corpus: Path, tmp_path: Path
) -> None:
    """Its ids are of other tokens to the server, which echoes what they are."""
    other = make_causal_lm(tmp_path / "other", texts=["zebras quarrel", *TEXTS[::-1]])
    line = armada(*command(server, corpus, other, ANSWERS, TEMPLATE, echo="true")).error
    assert "tokens of a text are not those that were sent; name its own tokenizer" in line


def test_warnings_come_before_anything_is_sent(
    armada: CommandLine, server: OpenAIServer, corpus: Path, model: Path
) -> None:
    said = armada(*command(server, corpus, model, 'answers=[" a", " a cat"]'), "--dry-run")
    assert "' a cat' begins with ' a'" in said.err
