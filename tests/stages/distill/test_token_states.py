"""States of single tokens: losses by hand and by NumPy in float64, and cached ones in batches."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armada.cache_schemas.features import FeatureSpec
from armada.stages.distill.losses.token_states import token_relations_loss, token_states_loss
from armada.stages.distill.settings import TrainingSettings
from armada.stages.distill.student_models import load_tokenizer
from armada.stages.distill.token_features import TokenGather, other_tokens
from armada.stages.distill.tokens import encode
from armada.stages.distill.training import speed_up
from armada.stages.ragged import Ragged
from armada.stages.store.reading.reader import open_cache
from armada.stages.store.writing.writer import CacheWriter
from cuts import go, spoil_generators
from small_caches import keys_of, make_manifest
from tiny_runs import MAX_LENGTH, TEXTS, TOKEN_STATES, Bench, make_token_cache, train_logged
from torch import Tensor

MASK_BT = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 1, 0]])


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def test_states_by_hand() -> None:
    """Three tokens: (1, 2) against (1, 0), 3 against 3, and one of padding that is far off."""
    student = torch.tensor([[[1.0, 2.0], [3.0, 3.0]], [[2.0, 2.0], [1e6, 1e6]]])
    teacher = torch.tensor([[[1.0, 0.0], [3.0, 3.0]], [[2.0, 0.0], [0.0, 0.0]]])
    mask = torch.tensor([[1, 1], [1, 0]])
    assert token_states_loss(student, teacher, mask).item() == pytest.approx(4 / 3)
    cosines = (1 - 5**-0.5 + 0 + 1 - 0.5**0.5) / 3
    found = token_states_loss(student, teacher, mask, "cosine").item()
    assert found == pytest.approx(cosines, abs=1e-6)


def test_relations_by_hand() -> None:
    """Cosines 0, √½, √½ of the student against 1, 1, 1: two equal pairs of each; a text of one
    token has none."""
    student = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], [[1.0, 0.0]] * 3])
    teacher = torch.tensor([[[1.0], [2.0], [3.0]], [[1.0], [-1.0], [2.0]]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    expected = (1 + 2 * (1 - 0.5**0.5) ** 2) / 3
    assert token_relations_loss(student, teacher, mask).item() == pytest.approx(expected)


@pytest.mark.parametrize("how", ["mse", "mae", "cosine", "normalize"])
def test_a_second_computation_of_states(how: str) -> None:
    student, teacher, losses = draw(0, 3, 4, 5), draw(1, 3, 4, 5), []
    for text, token in np.argwhere(MASK_BT.numpy() == 1):
        s, t = student[text, token].numpy(), teacher[text, token].numpy()
        if how == "normalize":
            s, t = s / np.linalg.norm(s), t / np.linalg.norm(t)
        cosine = s @ t / np.linalg.norm(s) / np.linalg.norm(t)
        losses.append(
            {"mae": np.abs(s - t).mean(), "cosine": 1 - cosine}.get(how, ((s - t) ** 2).mean())
        )
    scaled: Any = {"normalize": True} if how == "normalize" else {"distance": how}
    found = token_states_loss(student, teacher, MASK_BT, **scaled)
    assert found.item() == pytest.approx(np.mean(losses), rel=1e-12)


def test_a_second_computation_of_relations() -> None:
    student, teacher, texts = draw(0, 3, 4, 5), draw(1, 3, 4, 2), []
    for text in (0, 2):
        at = np.flatnonzero(MASK_BT[text].numpy())
        unit = []
        for states in (student, teacher):
            rows = states[text].numpy()[at]
            unit.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
        pairs = [(i, j) for i in range(len(at)) for j in range(len(at)) if i != j]
        texts.append(
            np.mean([(unit[0][i] @ unit[0][j] - unit[1][i] @ unit[1][j]) ** 2 for i, j in pairs])
        )
    found = token_relations_loss(student, teacher, MASK_BT)
    assert found.item() == pytest.approx(np.mean(texts), rel=1e-12)


@pytest.mark.parametrize("loss", [token_states_loss, token_relations_loss])
def test_optimum_gradient_and_no_token(loss: Any) -> None:
    teacher = draw(1, 3, 4, 5)
    at_best = teacher.clone().requires_grad_()
    best = loss(at_best, teacher, MASK_BT)
    best.backward()
    assert best.item() == pytest.approx(0, abs=1e-20)
    assert at_best.grad is not None
    torch.testing.assert_close(at_best.grad, torch.zeros_like(teacher))
    student = draw(0, 3, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, MASK_BT), student)
    nothing = loss(student, teacher, torch.zeros_like(MASK_BT))
    nothing.backward()
    assert nothing == 0
    far = torch.where(MASK_BT.unsqueeze(-1) == 1, student.detach(), 1e6)
    torch.testing.assert_close(loss(far, teacher, MASK_BT), loss(student, teacher, MASK_BT))


def test_relations_keep_scale_and_rotation() -> None:
    student, teacher = draw(0, 3, 4, 5), draw(1, 3, 4, 2)
    turned = 3 * student @ torch.linalg.qr(draw(2, 5, 5))[0]
    before = token_relations_loss(student, teacher, MASK_BT)
    torch.testing.assert_close(token_relations_loss(turned, 7 * teacher, MASK_BT), before)


@pytest.mark.parametrize("loss", [token_states_loss, token_relations_loss])
def test_the_error_of_bf16(loss: Any) -> None:
    """States that were rounded to bf16: 0.5 % at most of the loss of distant ones."""
    student, teacher = draw(0, 16, 32, 64), draw(1, 16, 32, 64)
    mask = torch.ones(16, 32)
    exact = loss(student, teacher, mask).item()
    found = loss(student.bfloat16().float(), teacher.float(), mask).item()
    assert found == pytest.approx(exact, rel=5e-3)


@pytest.mark.parametrize("left", [False, True])
def test_batches_of_cached_states(tmp_path: Path, bench: Bench, left: bool) -> None:
    """As wide as the longest text, 0 at padding and for a text that is not in the cache."""
    cache = make_token_cache(tmp_path / "tokens", bench.student)
    ragged, rows = cache.ragged(TOKEN_STATES), cache.lookup(TEXTS)
    rows[4] = -1
    gather = TokenGather(ragged, rows, left)
    chosen = np.array([7, 4, 0])
    found = gather(chosen)
    parts = [ragged[int(rows[7])], np.zeros((0, 6), np.float16), ragged[int(rows[0])]]
    assert found.shape == (3, max(map(len, parts)), 6)
    for row, part in zip(found, parts, strict=True):
        own = row[len(row) - len(part) :] if left else row[: len(part)]
        np.testing.assert_array_equal(own, part)
        assert np.count_nonzero(row) == np.count_nonzero(part)
    assert gather.has(chosen).tolist() == [True, False, True]
    assert gather.bytes == sum(len(ragged[int(row)]) for row in rows if row >= 0) * 12
    assert len(np.unique(gather.file_order()[rows >= 0])) == len(rows) - 1
    gather.will_need(chosen)


def test_other_tokens_are_found(tmp_path: Path, bench: Bench) -> None:
    tokens = encode(load_tokenizer(bench.student), [(text,) for text in TEXTS], MAX_LENGTH)
    ids, lengths = tokens.values["input_ids"], np.diff(tokens.offsets)
    along: dict[str, Any] = {"axis": "tokens", "max_length": MAX_LENGTH}
    spec = FeatureSpec(name="token_ids", shape=(), dtype="uint32", **along)
    with CacheWriter(tmp_path / "ids", make_manifest([spec])) as writer:
        kept = Ragged(ids.astype(np.uint32), lengths)
        writer.commit(keys_of(TEXTS), {"token_ids": kept}, np.zeros(len(TEXTS), dtype=bool))
    cache = open_cache(tmp_path / "ids")
    cached, rows = cache.ragged("token_ids"), cache.lookup(TEXTS)
    assert not len(other_tokens(cached, rows, ids, tokens.offsets))
    changed = ids.copy()
    changed[tokens.offsets[3] + 1] += 1
    longer = np.insert(changed, tokens.offsets[9], 1)
    offsets = tokens.offsets + (np.arange(len(tokens.offsets)) >= 9)
    assert other_tokens(cached, rows, longer, offsets).tolist() == [3, 8]
    rows[3] = -1
    assert other_tokens(cached, rows, longer, offsets).tolist() == [8]


@pytest.fixture
def tokens_bench(tmp_path: Path, bench: Bench) -> Bench:
    return replace(bench, tokens=make_token_cache(tmp_path / "tokens", bench.student))


def test_a_run_that_was_cut_goes_on(tokens_bench: Bench, tmp_path: Path) -> None:
    how: dict[str, Any] = {"objective": "token_states", "save_steps": 5}
    expected = go(tokens_bench.run(tmp_path / "whole", **how))
    go(tokens_bench.run(tmp_path / "cut", **how), cut_at=12)
    spoil_generators()
    rest = go(tokens_bench.run(tmp_path / "cut", **how))
    assert rest == {step: loss for step, loss in expected.items() if step > 10}


def test_checkpointing_keeps_the_losses(tokens_bench: Bench, tmp_path: Path) -> None:
    found = []
    for checkpointed in (False, True):
        run = tokens_bench.run(
            tmp_path / str(checkpointed),
            objective="token_states",
            **{"dropout": 0.0, "epochs": 1, "validate": False, "lora_rank": 2},
        )
        for module in run.model.student.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        settings = TrainingSettings(gradient_checkpointing=checkpointed)
        speed_up(run.model.student, settings, run.device)
        found.append(train_logged(run)[1])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
