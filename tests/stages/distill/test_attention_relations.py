"""Relations between tokens in attention layers: by hand, by NumPy in float64, of real layers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import JobError, StudentSourceError
from armada.stages.distill.losses.attention import attention_relations_loss
from armada.stages.distill.model import DistillModel, attention_dims
from armada.stages.distill.objectives.attention import AttentionRelationsObjective
from armada.stages.distill.objectives.base import Sizes
from armada.stages.distill.objectives.options import AttentionRelationsOptions
from armada.stages.distill.settings import LoraSettings, StudentSettings, TrainingSettings
from armada.stages.distill.student_source import load_student
from armada.stages.distill.tokens import encode
from armada.stages.distill.training import speed_up
from tiny_runs import TEXTS, THREE_CLASSES
from torch import Tensor

MASK_BT = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 1, 0]])


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def test_by_hand() -> None:
    """Two tokens of one number. Teacher: 0 and 1, scores (0, 0) and (0, 1); student: 0 and 0, so
    that both of its relations are even. Only the second token differs, in queries alone."""
    teacher = torch.zeros(1, 2, 3, 1, dtype=torch.float64)
    student = teacher.clone()
    teacher[0, 1, 0, 0] = 1
    p = np.exp(1) / (1 + np.exp(1))
    divergence = p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))
    found = attention_relations_loss(student, teacher, torch.ones(1, 2), heads=1)
    assert found.item() == pytest.approx(divergence / 2)


def test_a_second_computation() -> None:
    heads, student, teacher = 2, draw(0, 3, 4, 3, 6), draw(1, 3, 4, 3, 4)

    def relations(states: np.ndarray) -> np.ndarray:
        scores = np.exp(states @ states.T / np.sqrt(states.shape[1]))
        return scores / scores.sum(axis=1, keepdims=True)

    total = 0.0
    for kind in range(3):
        texts = []
        for text in range(3):
            at = np.flatnonzero(MASK_BT[text].numpy())
            of_heads = []
            for head in range(heads):
                s = student[text, at, kind, 3 * head : 3 * head + 3].numpy()
                t = teacher[text, at, kind, 2 * head : 2 * head + 2].numpy()
                p, q = relations(t), relations(s)
                of_heads.append((p * np.log(p / q)).sum(axis=1).mean())
            texts.append(np.mean(of_heads))
        total += np.mean(texts)
    found = attention_relations_loss(student, teacher, MASK_BT, heads)
    assert found.item() == pytest.approx(total, rel=1e-12)


def test_optimum_gradient_rotation_and_no_token() -> None:
    teacher = draw(1, 3, 4, 3, 4)
    turned = teacher @ torch.linalg.qr(draw(2, 4, 4))[0]
    at_best = turned.clone().requires_grad_()
    best = attention_relations_loss(at_best, teacher, MASK_BT, 1)
    best.backward()
    assert best.item() == pytest.approx(0, abs=1e-14)
    assert at_best.grad is not None
    torch.testing.assert_close(at_best.grad, torch.zeros_like(teacher))
    student = draw(0, 3, 4, 3, 6).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: attention_relations_loss(x, teacher, MASK_BT, 2), student
    )
    nothing = attention_relations_loss(student, teacher, torch.zeros_like(MASK_BT), 2)
    nothing.backward()
    assert nothing == 0
    far = torch.where(MASK_BT[:, :, None, None] == 1, student.detach(), 1e6)
    torch.testing.assert_close(
        attention_relations_loss(far, teacher, MASK_BT, 2),
        attention_relations_loss(student, teacher, MASK_BT, 2),
    )


def test_the_error_of_bf16() -> None:
    """Projections that were rounded to bf16: 1 % at most of the loss of distant ones."""
    student, teacher, mask = draw(0, 8, 32, 3, 64), draw(1, 8, 32, 3, 64), torch.ones(8, 32)
    exact = attention_relations_loss(student, teacher, mask, 4).item()
    found = attention_relations_loss(student.bfloat16().float(), teacher.float(), mask, 4).item()
    assert found == pytest.approx(exact, rel=1e-2)


def made(folder: Path, **how: Any) -> tuple[DistillModel, dict[str, Any]]:
    torch.manual_seed(0)
    student, tokenizer = load_student(
        StudentSettings(student=str(folder)), THREE_CLASSES, [], 0.0, LoraSettings(**how)
    )
    sizes = Sizes(student.dim, 3, False, (3, 8), attention_dims=attention_dims(student))
    options = AttentionRelationsOptions(relation_heads=2)
    model = DistillModel(student, AttentionRelationsObjective(options, sizes))
    tokens = encode(tokenizer, [(text,) for text in TEXTS[:3]], 32)
    batch = {**tokens.pad(np.arange(3)), "labels": torch.tensor([0, 1, 2]), "rows": 3}
    batch["features"] = {"teacher": torch.randn(*batch["input_ids"].shape, 3, 8)}
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]
    return model.train(), batch


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_relations_are_those_of_the_layers_maps(
    checkpoint: Callable[[str], Path], family: str
) -> None:
    """Queries, keys and values of the last layer, worked out from its input."""
    model, batch = made(checkpoint(family))
    told = []
    inner = model.objective.loss  # type: ignore[operator]

    def noted(side: Any, features: Any) -> Any:
        told.append(side.attention[-1])
        return inner(side, features)

    model.objective.loss = noted  # type: ignore[method-assign, assignment]
    loss = model(**batch)
    loss["loss"].backward()
    names = [n for n, _ in model.named_parameters() if "query" in n or "q_lin" in n]
    grads = dict(model.named_parameters())
    assert all(grads[name].grad is not None for name in names)
    inputs = {n: batch[n] for n in ("input_ids", "attention_mask", "token_type_ids") if n in batch}
    states = model.student.backbone(**inputs, output_hidden_states=True).hidden_states[-2]
    last = [m for n, m in model.student.backbone.named_modules() if n.endswith(("query", "q_lin"))][
        -1
    ]
    real = batch["attention_mask"] == 1
    torch.testing.assert_close(told[0][real][:, 0], last(states)[real], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lora_rank", [None, 2])
def test_checkpointing_and_parts_keep_the_gradients(
    checkpoint: Callable[[str], Path], lora_rank: int | None
) -> None:
    model, batch = made(checkpoint("bert"), lora_rank=lora_rank)
    with torch.no_grad():  # adapters begin as zero, and what is before them then has no gradient
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(**batch)["loss"].backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.parts.most_tokens = batch["input_ids"].shape[1]  # row by row
    in_parts = gradients()
    model.parts.most_tokens = None
    settings = TrainingSettings(gradient_checkpointing=True)
    speed_up(model.student, settings, torch.device("cpu"))
    for found in (in_parts, gradients()):
        assert found.keys() == plain.keys()
        for name, gradient in plain.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["opt", "llama", "deberta"])
def test_families_without_are_refused(checkpoint: Callable[[str], Path], family: str) -> None:
    with pytest.raises(StudentSourceError, match="has no separate queries, keys and values"):
        made(checkpoint(family))


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"relation_heads": 5}, (3, 8), "relation_heads: 5 does not divide the 6 numbers of a"),
        ({"relation_heads": 3}, (3, 8), "does not divide the 8 numbers of a query of the teacher"),
        ({"relation_heads": 2}, (8,), "the feature has shape [8], not that of queries"),
        ({"student_layer": 3}, (3, 8), "attention layer 3 is beyond the student's; choose from 1"),
        ({"student_layer": 0}, (3, 8), "attention layer 0 is beyond the student's; choose from 1"),
    ],
)
def test_what_does_not_fit_is_refused(options: Any, shape: Any, message: str) -> None:
    sizes = Sizes(6, 3, False, shape, attention_dims=(0, 6, 6))
    with pytest.raises(JobError) as caught:
        AttentionRelationsObjective(AttentionRelationsOptions(**options), sizes)
    assert message in str(caught.value)
