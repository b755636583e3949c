"""A student that reads batches in parts, where memory runs out: the losses and weights of one that
reads them whole, whatever the objective compares."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from armada.cache_schemas.errors import TrainingError
from armada.stages.distill.model import DistillModel
from armada.stages.distill.objectives.base import Objective, named_terms
from armada.stages.distill.objectives.options import ObjectiveOptions
from armada.stages.distill.parts import Parts
from armada.stages.distill.training import Run, train
from scarce_memory import room_for, room_within
from tiny_runs import Bench, freeze_dropout, make_cache, train_logged, weights
from torch.autograd.graph import saved_tensors_hooks

pytestmark = pytest.mark.long

ROOM = 3
"""Of the batches' 8 rows, 4 do not fit either."""


@pytest.fixture(scope="module")
def still(checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A BERT without dropout."""
    folder = tmp_path_factory.mktemp("parts")
    shutil.copytree(checkpoint("bert"), folder / "student")
    return Bench(freeze_dropout(folder / "student"), make_cache(folder / "cache"))


class Contrast(Objective):
    """Each text finds its own feature among those of the batch."""

    def __init__(self, options: ObjectiveOptions, sizes: Any) -> None:
        super().__init__(options, sizes)
        self.map = torch.nn.Linear(sizes.pooled_dim, sizes.feature_dim)

    def forward(self, pooled_BD: Any, output_BK: Any, feature_BH: Any, labels_B: Any) -> Any:
        likeness_BB = self.map(pooled_BD) @ self._feature(feature_BH).double().T
        total = F.cross_entropy(likeness_BB, torch.arange(len(likeness_BB)))
        return named_terms(total, contrast=total)


def made(bench: Bench, folder: Path, **settings: Any) -> Run:
    """A run in float64; of `contrast`, with that objective."""
    name = settings.pop("objective", "armada")
    usual = "feature" if name == "contrast" else name
    run = bench.run(folder, objective=usual, dropout=0.0, epochs=2, **settings)
    if name == "contrast":
        torch.manual_seed(5)
        objective = Contrast(ObjectiveOptions(), run.model.objective.sizes)
        run = replace(run, model=DistillModel(run.model.student, objective))
    run.model.double()
    return run


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"schedule": "joint"},
        {"objective": "feature", "gradient_accumulation": 3},
        {"objective": "contrast"},
        {"gradient_accumulation": 3, "gradient_checkpointing": True},
        {"objective": "taid", "weights": {"taid_step": 0.5}, "gradient_accumulation": 3},
        {"objective": "wcord", "weights": {"embedding_size": 4}, "gradient_accumulation": 3},
    ],
    ids=[
        *("alternate", "joint", "accumulated", "contrast", "checkpointed"),
        *("that observes", "with a critic"),
    ],
)
def test_losses_and_weights_are_those_of_whole_batches(
    still: Bench, tmp_path: Path, settings: dict[str, Any], backward: bool
) -> None:
    whole = made(still, tmp_path / "whole", **settings)
    _, expected = train_logged(whole)
    run = made(still, tmp_path / "parts", auto_batch_size=True, **settings)
    encoder = run.model.student.backbone.encoder
    with room_within(encoder, ROOM, 30, backward) as refused:
        _, losses = train_logged(run)
    assert refused, "everything fitted: the test shows nothing"
    assert run.model.parts.most_tokens is not None
    assert losses == pytest.approx(expected, rel=1e-9)
    found = weights(run)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-11)


@pytest.fixture
def saved_bytes() -> Iterator[list[int]]:
    """Sizes of what is kept for backward passes."""
    sizes: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.nbytes if tensor.grad_fn is not None else 0)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield sizes


def test_only_one_part_is_in_memory(still: Bench, tmp_path: Path, saved_bytes: list[int]) -> None:
    run = made(still, tmp_path, objective="kd")
    batch = run.train.__getitems__(list(range(8)))
    inputs = (batch["input_ids"], batch["attention_mask"])
    kept = []
    for most in (None, 2 * inputs[0].shape[1]):
        saved_bytes.clear()
        Parts(most_tokens=most).read(run.model.student, *inputs)
        kept.append(sum(saved_bytes))
    assert kept[1] < kept[0] / 4


def test_long_texts_come_in_smaller_parts_than_short_ones() -> None:
    parts = Parts(most_tokens=4 * 16)
    assert parts.rows(torch.ones(8, 16)) == 4
    assert parts.rows(torch.ones(8, 64)) == 1
    assert parts.rows(torch.ones(8, 128)) == 1
    assert parts.rows(torch.ones(8, 8)) == 8


def test_an_evaluation_reads_parts_too(still: Bench, tmp_path: Path) -> None:
    whole = train(made(still, tmp_path / "whole", objective="kd"))
    run = made(still, tmp_path / "parts", objective="kd", auto_batch_size=True)
    with room_within(run.model.student.backbone, ROOM) as refused:
        training = train(run)
    assert refused
    for one, other in zip(training.epochs, whole.epochs, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_a_single_example_that_does_not_fit_ends_it(still: Bench, tmp_path: Path) -> None:
    run = made(still, tmp_path, objective="kd", auto_batch_size=True)
    with room_for(0) as refused, pytest.raises(TrainingError, match="a single example does not"):
        train(run)
    assert refused == [8, 4, 2, 1]


def test_nothing_is_halved_unless_a_job_says_so(still: Bench, tmp_path: Path) -> None:
    with room_for(ROOM), pytest.raises(torch.OutOfMemoryError):
        train(made(still, tmp_path, objective="kd"))
