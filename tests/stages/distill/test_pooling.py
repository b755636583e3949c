"""Pooling against sums by hand, the models' own classifiers, and padding that must not matter."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import StudentSourceError
from armada.stages.corpus.labels import NO_LABELS
from armada.stages.distill.settings import StudentSettings
from armada.stages.distill.student import Pooler, choose_pooling
from armada.stages.distill.student_models import load_backbone
from armada.stages.distill.student_source import load_student
from armada.stages.distill.tokens import encode
from tiny_runs import TEXTS, THREE_CLASSES, TWO_CLASSES

RIGHT = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
LEFT = RIGHT.flip(1)
STATES_BTD = torch.arange(24.0).reshape(3, 4, 2)
CONFIG = SimpleNamespace(hidden_act="gelu")


def pool(pooling: str, mask_BT: torch.Tensor) -> list[list[float]]:
    outputs = SimpleNamespace(last_hidden_state=STATES_BTD, pooler_output=-STATES_BTD[:, 3])
    return Pooler(pooling, CONFIG, 2, 0.0)(outputs, mask_BT).tolist()


def load(folder: Any, **settings: Any) -> tuple[Any, Any]:
    """A student in eval mode and its tokenizer."""
    torch.manual_seed(0)
    chosen = StudentSettings(student=str(folder), **settings)
    student, tokenizer = load_student(chosen, THREE_CLASSES, [], 0.1)
    return student.eval(), tokenizer


@pytest.mark.parametrize(
    ("pooling", "mask_BT", "expected"),
    [
        pytest.param("last", RIGHT, [[2, 3], [14, 15], [16, 17]], id="last-right"),
        pytest.param("last", LEFT, [[6, 7], [14, 15], [22, 23]], id="last-left"),
        pytest.param("mean", RIGHT, [[1, 2], [11, 12], [16, 17]], id="mean-right"),
        pytest.param("mean", LEFT, [[5, 6], [11, 12], [22, 23]], id="mean-left"),
        pytest.param("cls", RIGHT, [[0, 1], [8, 9], [16, 17]], id="cls"),
        pytest.param("pooler", RIGHT, [[-6, -7], [-14, -15], [-22, -23]], id="pooler"),
    ],
)
def test_by_hand(pooling, mask_BT, expected):
    assert pool(pooling, mask_BT) == expected


@pytest.mark.parametrize("pooling", ["mean", "last", "cls", "max", "weightedmean"])
@pytest.mark.parametrize("mask_BT", [RIGHT, LEFT], ids=["right", "left"])
def test_what_stands_in_padding_does_not_matter(pooling: str, mask_BT: torch.Tensor) -> None:
    """In half precision a model may leave infinities there."""
    states = STATES_BTD.masked_fill(mask_BT.unsqueeze(-1) == 0, torch.inf)
    found = Pooler(pooling, CONFIG, 2, 0.0)(SimpleNamespace(last_hidden_state=states), mask_BT)
    assert found.tolist() == pool(pooling, mask_BT)
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("config", "activation"),
    [
        pytest.param(CONFIG, torch.nn.functional.gelu, id="hidden_act"),
        pytest.param(
            SimpleNamespace(hidden_act="gelu", pooler_hidden_act="tanh"),
            torch.tanh,
            id="pooler_hidden_act",
        ),
        pytest.param(SimpleNamespace(), torch.nn.functional.gelu, id="none"),
    ],
)
def test_context_is_a_dense_layer_over_the_first_token(config, activation):
    pooler = Pooler("context", config, 2, 0.5).eval()
    pooled = pooler(SimpleNamespace(last_hidden_state=STATES_BTD), RIGHT)
    weight, bias = pooler.dense.weight.detach(), pooler.dense.bias.detach()
    torch.testing.assert_close(pooled, activation(STATES_BTD[:, 0] @ weight.T + bias))
    pooler.train()
    assert not torch.equal(pooler(SimpleNamespace(last_hidden_state=STATES_BTD), RIGHT), pooled)


def test_only_context_has_weights():
    sizes = {
        name: sum(p.numel() for p in Pooler(name, CONFIG, 2, 0.0).parameters())
        for name in ("pooler", "context", "cls", "mean", "last")
    }
    assert sizes == {"pooler": 0, "context": 6, "cls": 0, "mean": 0, "last": 0}


# --- which one a student has


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [
        ("bert", "pooler"),
        ("roberta", "pooler"),
        ("distilbert", "context"),
        ("deberta", "context"),
        ("opt", "last"),
        ("llama", "last"),
    ],
)
def test_auto(checkpoint, kind, pooling):
    backbone = load_backbone(checkpoint(kind))
    assert choose_pooling("auto", backbone) == pooling
    assert choose_pooling("mean", backbone) == "mean"


def test_the_pooler_is_the_model_s_own(checkpoint):
    student, tokenizer = load(checkpoint("bert"))
    batch = encode(tokenizer, [(t,) for t in TEXTS[:4]], 32).pad(np.arange(4))
    with torch.no_grad():
        pooled, _ = student(**batch)
        states = student.backbone(**batch).last_hidden_state
    dense = student.backbone.pooler.dense
    torch.testing.assert_close(pooled, torch.tanh(states[:, 0] @ dense.weight.T + dense.bias))


@pytest.mark.parametrize(
    ("kind", "pooling", "chosen"),
    [
        ("bert", "pooler", "own"),
        ("roberta", "pooler", "pooler"),  # its classifier has a dense layer in its place
        ("deberta", "context", "own"),
        ("distilbert", "context", "context"),  # its classifier has another activation
        ("llama", "last", "own"),
        ("opt", "last", "own"),
        ("opt", "mean", "mean"),
        ("bert", "cls", "cls"),
    ],
)
def test_a_pooling_that_the_family_s_classifier_has_is_left_to_it(
    checkpoint, kind, pooling, chosen
):
    student, _ = load(checkpoint(kind), pooling=pooling)
    assert student.pooling == chosen


@pytest.mark.parametrize("pooling", ["auto", "last", "mean", "cls", "context"])
def test_a_student_is_as_wide_as_what_comes_out(checkpoint, pooling):
    """Of OPT's 350 M model, that is not its hidden_size."""
    student, tokenizer = load(checkpoint("opt_350m"), pooling=pooling)
    batch = encode(tokenizer, [(t,) for t in TEXTS[:4]], 32).pad(np.arange(4))
    pooled, output = student(**batch)
    assert (pooled.shape, output.shape) == ((4, 16), (4, 3))
    assert student.dim == 16


def test_without_labels_there_is_no_classifier(checkpoint):
    settings = StudentSettings(student=str(checkpoint("bert")))
    assert load_student(settings, NO_LABELS, [], 0.1)[0].pooling == "pooler"
    with pytest.raises(StudentSourceError, match="pooling 'own': "):
        load_student(settings.model_copy(update={"pooling": "own"}), NO_LABELS, [], 0.1)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "deberta", "opt", "llama"])
@pytest.mark.parametrize("pooling", ["auto", "cls", "mean", "last"])
def test_padding_does_not_matter(checkpoint, kind, pooling):
    student, tokenizer = load(checkpoint(kind), pooling=pooling)
    tokens = encode(tokenizer, [(t,) for t in TEXTS], 64)
    shortest = int(np.diff(tokens.offsets).argmin())
    longest = int(np.diff(tokens.offsets).argmax())
    with torch.no_grad():
        alone, _ = student(**tokens.pad(np.array([shortest])))
        beside, _ = student(**tokens.pad(np.array([longest, shortest])))
    torch.testing.assert_close(beside[1:], alone, rtol=1e-4, atol=1e-5)
    assert (beside[0] - beside[1]).abs().max() > 1e-3 or (kind, pooling) in CAUSAL_FIRST


CAUSAL_FIRST = {("opt", "cls"), ("llama", "cls")}
"""The first token of a decoder has seen nothing: all texts are the same there."""


@pytest.mark.parametrize("kind", ["distilbert", "deberta", "opt"])
def test_a_pooler_that_is_not_there_is_refused(checkpoint, kind):
    with pytest.raises(StudentSourceError, match="has no pooler; use context, cls, mean or last"):
        load(checkpoint(kind), pooling="pooler")


def test_a_head_reads_the_pooled_text(checkpoint):
    torch.manual_seed(0)
    settings = StudentSettings(student=str(checkpoint("bert")), pooling="mean")
    student, tokenizer = load_student(settings, TWO_CLASSES, [], 0.1)
    batch = encode(tokenizer, [(t,) for t in TEXTS[:4]], 32).pad(np.arange(4))
    with torch.no_grad():
        pooled, output = student.eval()(**batch)
    linear = student.head.linear
    torch.testing.assert_close(output, pooled @ linear.weight.T + linear.bias)
    assert output.shape == (4, 2)
