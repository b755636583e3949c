"""The causal language model as a teacher, at the limits of models and of what is cached."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import JobError
from armada.cache_schemas.keys import example_key
from armada.stages.precompute.teachers.base import Example
from armada.stages.precompute.teachers.causal_lm import CausalLMTeacher
from armada.stages.precompute.teachers.causal_options import CausalLMOptions
from tiny_language_models import TEXTS, make_causal_lm
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head that reads 16 numbers of a model of 32, as OPT-350m has it."""
    folder = tmp_path_factory.mktemp("narrow")
    return make_causal_lm(folder, "opt", word_embed_proj_dim=16)


def teacher_of(folder: Path, **options: Any) -> CausalLMTeacher:
    return CausalLMTeacher(str(folder), CausalLMOptions(**options), torch.device("cpu"))


@pytest.mark.parametrize(("layers", "width"), [((2,), 16), ((1,), 32), ((0, 1), 32)])
def test_a_head_narrower_than_the_model(narrow: Path, layers: tuple[int, ...], width: int) -> None:
    teacher = teacher_of(narrow, hidden_layers=layers, dense=True)
    assert teacher.spec.feature("hidden").shape == (len(layers), width)
    teacher.load()
    with torch.inference_mode():
        found = teacher.encode([Example(example_key((text,)), (text,)) for text in TEXTS]).features
    model = AutoModelForCausalLM.from_pretrained(narrow)
    for place in range(len(TEXTS)):
        ids = torch.from_numpy(found["token_ids"][place].astype(np.int64))[None]
        with torch.no_grad():
            said = model(ids, output_hidden_states=True)
        expected = torch.stack([said.hidden_states[layer][0, :-1] for layer in layers], dim=1)
        np.testing.assert_allclose(found["hidden"][place], expected, atol=1e-5)
        log_probs = said.logits[0, :-1].log_softmax(-1)
        np.testing.assert_allclose(found["dense"][place], log_probs, atol=2e-5)


def test_layers_of_different_widths(narrow: Path) -> None:
    told = (
        "^hidden_layers: layer 2, which the head reads, has 16 numbers per token and the others 32"
    )
    with pytest.raises(JobError, match=told):
        teacher_of(narrow, hidden_layers=(1, 2))


LONGEST = 2**20
LIMITS = {
    "samples": ({"samples": 70000}, "^samples: samples: .* 65536; use less$"),
    "top_k": ({"top_k": 65537}, "^top_k, temperatures: k: .* 65536; use less$"),
    "temperatures": (
        {"temperatures": tuple(1.0 + n for n in range(20))},
        "^top_k, temperatures: temperatures: .*; use less$",
    ),
    "max_length": ({}, "^token_ids, max_length: max_length: .* 1048576; use less$"),
    "dense": ({"dense": True, "top_k": None}, "^dense, max_length: shape: .*; use less$"),
    "max_new_tokens": (
        {"max_new_tokens": LONGEST + 1, "text_format": "plain"},
        "^max_new_tokens, responses_per_prompt: max_length: .* 1048576; use less$",
    ),
}


@pytest.mark.parametrize("case", LIMITS)
def test_what_no_cache_can_hold_is_refused_in_a_line(case: str) -> None:
    options, told = LIMITS[case]
    length = {"max_length": LONGEST + 1, "dense": LONGEST}.get(case, 128)
    with pytest.raises(JobError, match=told) as refused:
        CausalLMOptions(**options).features(100_000, 32, length, "float16")
    assert "\n" not in str(refused.value)
