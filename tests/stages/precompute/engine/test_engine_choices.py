"""Scored choices of an engine up to its process: options, requests, and what answers become.

Answers are made by transformers from a tiny model, in the worker's form; vLLM itself is in
`test_vllm.py`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import JobError
from armada.cache_schemas.keys import example_key
from armada.stages.precompute.engine.choices import ChoicesTask
from armada.stages.precompute.engine.options import VLLMOptions
from armada.stages.precompute.engine.source import EngineSource, Found, Request
from armada.stages.precompute.teachers.base import Example
from armada.stages.precompute.teachers.choices import ChoicesTeacher
from armada.stages.precompute.teachers.choices_options import ChoicesOptions
from pydantic import ValidationError
from tiny_language_models import POSITIONS, TEXTS, make_causal_lm
from transformers import AutoModelForCausalLM

OWN: dict[str, Any] = {
    "answers": (" sea", " the river", " rain and the stars"),
    "prompt_template": "Review: {text}\nIt is about",
}
EXAMPLES = [Example(example_key((text,)), (text,)) for text in TEXTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_causal_lm(tmp_path_factory.mktemp("model"), padding=7)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def task(folder: Path, **options: Any) -> ChoicesTask:
    return ChoicesTask(EngineSource(str(folder), None), VLLMOptions(**{**OWN, **options}))


def answered(model: Any, requests: Sequence[Request]) -> Found:
    """What the engine says of one example."""
    arrays = {}
    for each in requests:
        first, ids = each.arguments["first"], torch.from_numpy(each.ids.astype(np.int64))
        with torch.inference_mode():
            log_probs = model(ids[None]).logits[0, first - 1 : -1].log_softmax(-1)
        own = ids[first:, None]
        arrays[each.name] = {"log_probs": log_probs.gather(1, own).numpy()}
    return Found(arrays)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"per": "token", "content_free": ("N/A", ""), "score": (1, 2, 4)},
        {
            "answers": (" no", " yes"),
            "questions": ("Of rain?", "Of the sea?"),
            "prompt_template": "{text} {question}",
            "premise": "{question}",
        },
        {"text_format": "chat", "user_template": "Of what is {1}?", "end_token": True},
    ],
    ids=["plain", "calibrated", "aspects", "chat"],
)
def test_features_are_those_of_the_teacher_choices(
    folder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    whole = make_causal_lm(tmp_path / "whole")  # all of whose logits are of tokens
    model = AutoModelForCausalLM.from_pretrained(whole).eval()
    one = task(whole, **options)
    if requests := one.beforehand():
        one.learn(answered(model, requests))
    texts = one.read(EXAMPLES)
    found = one.answers(texts, [answered(model, each) for each in one.requests(texts, EXAMPLES)])
    local = ChoicesTeacher(str(whole), ChoicesOptions(**{**OWN, **options}), torch.device("cpu"))
    local.load()
    with torch.inference_mode():
        expected = local.encode(EXAMPLES)
    assert found.features.keys() == expected.features.keys()
    for name, rows in found.features.items():
        np.testing.assert_allclose(rows, expected.features[name], atol=3e-5)
    assert [each.model_dump() for each in one.features()] == [
        each.model_dump() for each in local.spec.features
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answers": (" a",)}, "at least 2"),
        ({"top_k": 4}, "top_k: is not of scored choices; leave it out, or answers"),
        ({"max_new_tokens": 4, "text_format": "chat"}, "max_new_tokens: is not of scored choices"),
        ({"runner": "pooling"}, "answers: is for runner=generate"),
        ({"score": (1, 2)}, "score: has 2 numbers for 3 answers"),
        ({"text_format": "text"}, "text_format: Input should be 'plain' or 'chat'"),
        ({"questions": ("Of rain?",)}, "questions: {question} of prompt_template"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VLLMOptions(**{**OWN, **options})


def test_options_of_answers_need_answers() -> None:
    with pytest.raises(ValidationError, match="names: is of scored choices; leave it out, or set"):
        VLLMOptions(names=("a", "b"))


def test_limits_and_segments_are_seen_before_the_engine_starts(folder: Path) -> None:
    with pytest.raises(JobError, match=f"at most {POSITIONS - 1} tokens"):
        task(folder, max_length=POSITIONS)
    with pytest.raises(JobError, match="leaves no room for a prompt beside an answer"):
        task(folder, max_length=2)
    with pytest.raises(JobError, match=r"has \{2\}, and a prompt has 1 text columns"):
        task(folder, prompt_template="{1} {2}").check(EXAMPLES[0])
    assert task(folder).engine()["max_model_len"] == POSITIONS
    assert "begins with ' a'" in task(folder, answers=(" a", " a cat")).notes[0]


def test_a_refused_row_has_no_answer(folder: Path, model: Any) -> None:
    one = task(folder)
    texts = one.read(EXAMPLES[:2])
    first, _ = one.requests(texts, EXAMPLES[:2])
    found = one.answers(texts, [answered(model, first), Found(refused="the engine refuses it")])
    assert found.refused == {1: "the engine refuses it"}
    with pytest.raises(JobError, match="content_free, premise: it is too long"):
        one.learn(Found(refused="it is too long"))


def test_settings_are_those_of_what_is_scored(folder: Path) -> None:
    options = VLLMOptions(**OWN)
    assert {"answers", "prompt_format", "per", "end_token", "dtype"} <= options.settings().keys()
    assert not {"top_k", "text_format", "max_new_tokens", "picture"} & options.settings().keys()
    assert options.settings()["end_token"] is False
    assert task(folder).settings()["max_length"] == POSITIONS - 1
