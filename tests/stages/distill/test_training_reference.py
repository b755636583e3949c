"""The trainer against a loop written out by hand from the method's description, in float64.

The loop shares no code with the trainer: it pads with the tokenizer, asks the made-up teacher
itself, draws its own orders, and has the formulas in it. What is equal after three epochs has had
the same batches, losses, gradients, clipping, rates and weight decay in every step.
"""

import copy
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from armada.stages.distill.model import DistillModel
from small_caches import answer
from tiny_runs import (
    FEATURES,
    TEXTS,
    Bench,
    class_labels,
    freeze_dropout,
    make_cache,
    train_logged,
)
from torch import Tensor
from transformers import AutoTokenizer

SEED, EPOCHS, ROWS = 4, 3, 8
RATE, ALIGNER_RATE, DECAY, CLIP = 1e-3, 2e-3, 0.02, 1.0
ALPHA, BETA, GAMMA, T = 0.4, 0.7, 0.6, 3.0
LABELS = np.where(np.arange(len(TEXTS)) % 7 == 3, -100, class_labels(len(TEXTS)))
"""Every seventh text has no label."""


@pytest.fixture(scope="module")
def bench(checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A BERT without dropout."""
    folder = tmp_path_factory.mktemp("bench")
    shutil.copytree(checkpoint("bert"), folder / "student")
    return Bench(freeze_dropout(folder / "student"), make_cache(folder / "cache"))


class Loop:
    """A model in training, by hand; `losses` are those of the student's steps."""

    def __init__(self, model: DistillModel, folder: Path) -> None:
        self.model, self.tokenizer = model, AutoTokenizer.from_pretrained(folder)
        self.aligner = model.objective.aligner
        self.losses: list[float] = []

    def batch(self, places: np.ndarray) -> tuple[Any, Tensor, Tensor]:
        texts = [TEXTS[place] for place in places]
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt")
        feature = torch.from_numpy(answer(FEATURES[0], texts)).double()
        return tokens, feature, torch.from_numpy(LABELS[places])

    def batches(self, epoch: int, stream: int) -> list[np.ndarray]:
        order = np.random.default_rng([SEED, epoch, stream]).permutation(len(TEXTS))
        return [order[start : start + ROWS] for start in range(0, len(order), ROWS)]

    def read_aligner(self, feature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = self.aligner
        hidden = F.relu(feature @ a.hidden1.weight.T + a.hidden1.bias)
        hidden = F.relu(hidden @ a.hidden2.weight.T + a.hidden2.bias)
        t1 = hidden @ a.head.linear.weight.T + a.head.linear.bias
        tp = feature @ a.projection.weight.T
        return t1, tp @ a.aux_head.linear.weight.T + a.aux_head.linear.bias, tp

    def aligner_loss(self, feature: Tensor, labels: Tensor) -> Tensor:
        t1, t2, _ = self.read_aligner(feature)
        return entropy(t1, labels) + GAMMA * entropy(t2, labels)

    def student_loss(self, tokens: Any, feature: Tensor | None, labels: Tensor) -> Tensor:
        student, objective = self.model.student, self.model.objective
        pooled = student.backbone(**tokens).pooler_output
        s1 = pooled @ student.last_layer.weight.T + student.last_layer.bias
        if self.aligner is None:
            return entropy(s1, labels)
        t1, t2, tp = (tensor.detach() for tensor in self.read_aligner(feature))
        sp = pooled @ objective.projection.weight.T
        s2 = sp @ objective.aux_head.linear.weight.T + objective.aux_head.linear.bias
        task = entropy(s1, labels) + GAMMA * entropy(s2, labels)
        output = T**2 * (soft_distance(t1, s1) + GAMMA * soft_distance(t2, s2))
        mean_t, mean_s = tp.mean(0), sp.mean(0)
        cosine = (mean_t @ mean_s) / (mean_t.norm() * mean_s.norm())
        return ALPHA * output + (1 - ALPHA) * task + BETA * (1 - cosine)


def entropy(logits: Tensor, labels: Tensor) -> Tensor:
    given = labels != -100
    chosen = logits.log_softmax(1)[torch.arange(len(labels)), labels.clamp(min=0)]
    return -chosen[given].sum() / given.sum()


def soft_distance(teacher: Tensor, student: Tensor) -> Tensor:
    return ((teacher / T).softmax(1) - (student / T).softmax(1)).square().mean()


def step(optimizer: torch.optim.Optimizer) -> None:
    """Clip all gradients of an optimizer together to a norm of 1, then AdamW."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, CLIP)
    optimizer.step()
    optimizer.zero_grad()


def groups(parameters: list[Tensor], rate: float) -> list[dict[str, Any]]:
    """Weight decay on matrices only."""
    matrices = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    return [
        {"params": matrices, "lr": rate, "weight_decay": DECAY},
        {"params": others, "lr": rate, "weight_decay": 0.0},
    ]


def train_by_hand(loop: Loop, joint: bool, accumulation: int) -> None:
    of_aligner = [] if loop.aligner is None else list(loop.aligner.parameters())
    own = [p for p in loop.model.parameters() if not any(p is q for q in of_aligner)]
    aligner_groups = groups(of_aligner, ALIGNER_RATE) if of_aligner else []
    if joint:
        optimizer = torch.optim.AdamW([*groups(own, RATE), *aligner_groups])
    else:
        optimizer = torch.optim.AdamW(groups(own, RATE))
        aligner_optimizer = torch.optim.AdamW(aligner_groups) if of_aligner else None
    for epoch in range(EPOCHS):
        if of_aligner and not joint:
            for places in loop.batches(epoch, stream=1):
                _, feature, labels = loop.batch(places)
                loop.aligner_loss(feature, labels).backward()
                step(aligner_optimizer)
        batches = loop.batches(epoch, stream=0)
        for start in range(0, len(batches), accumulation):
            group = batches[start : start + accumulation]
            loop.losses.append(0.0)
            for places in group:
                tokens, feature, labels = loop.batch(places)
                loss = loop.student_loss(tokens, feature, labels) / len(group)
                if joint:
                    loss = loss + loop.aligner_loss(feature, labels) / len(group)
                loss.backward()
                loop.losses[-1] += loss.item()
            step(optimizer)


@pytest.mark.parametrize("accumulation", [1, 2], ids=["one-batch", "two-batches"])
@pytest.mark.parametrize(
    ("control", "schedule"),
    [("none", "alternate"), ("none", "joint"), ("undistilled", "alternate")],
    ids=["alternate", "joint", "undistilled"],
)
def test_training_is_the_method_by_hand(bench, tmp_path, control, schedule, accumulation):
    run = bench.run(
        tmp_path,
        control=control,
        seed=SEED,
        labels=LABELS,
        dropout=0.0,
        validate=False,  # so that the last weights are kept, not the best
        weights={"alpha": ALPHA, "beta": BETA, "gamma": GAMMA, "temperature": T}
        if control == "none"
        else {},
        schedule=schedule,
        epochs=EPOCHS,
        batch_size=ROWS,
        gradient_accumulation=accumulation,
        learning_rate=RATE,
        aligner_learning_rate=ALIGNER_RATE,
        weight_decay=DECAY,
    )
    run.model.double()
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    loop = Loop(copy.deepcopy(run.model), bench.student)
    training, losses = train_logged(run)
    train_by_hand(loop, joint=schedule == "joint", accumulation=accumulation)
    assert training.steps == len(losses) == EPOCHS * math.ceil(7 / accumulation)
    # The trainer adds losses up in float32; its weights are float64 throughout.
    np.testing.assert_allclose(losses, loop.losses, rtol=1e-6)
    expected = loop.model.state_dict()
    for name, tensor in run.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-7, atol=1e-9)
    moved = {name for name in before if not torch.equal(before[name], expected[name])}
    assert len(moved) > 35
