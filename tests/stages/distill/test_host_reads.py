"""No training step makes the host wait for its device: real runs on a CPU, watched operation by
operation, as a GPU would run them."""

import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armada.stages.corpus.labels import MISSING, NO_LABELS
from armada.stages.distill.finite import FiniteLosses
from armada.stages.distill.language.batches import AheadDataset, pack
from armada.stages.distill.language.source import load_language_student
from armada.stages.distill.language.trainer import LanguageModel, LanguageTrainer
from armada.stages.distill.objectives.base import ObjectiveOptions, Sizes
from armada.stages.distill.objectives.options import SOURCE
from armada.stages.distill.objectives.undistilled import UndistilledObjective
from armada.stages.distill.settings import LoraSettings, StudentSettings
from armada.stages.distill.training import Run, train
from armada.stages.language.recipe import Recipe
from armada.stages.language.tokens import encode_texts
from host_reads import HostReads
from tiny_language_models import make_causal_lm
from tiny_runs import TEXTS, Bench, make_settings
from transformers import TrainerCallback
from transformers.models.opt.modeling_opt import OPTDecoder

pytestmark = pytest.mark.long

Found = Counter[tuple[str, str]]
EPOCHS, STEPS = 3, 21


class _Watching(TrainerCallback):  # type: ignore[misc]
    """Sets reads of steps apart from those of what comes before an epoch's first."""

    def __init__(self, reads: HostReads) -> None:
        self.reads = reads
        self.before: Found = Counter()
        self.steps: list[Found] = []

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.reads.found, self.reads.watching = Counter(), True

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.global_step % (STEPS // EPOCHS):
            self.before += self.reads.found
        self.reads.found, self.reads.watching = Counter(), True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps.append(self.reads.found)
        self.reads.found, self.reads.watching = Counter(), False


def watched(run: Run) -> _Watching:
    """Train, with losses looked at when they are logged, as on a GPU."""
    reads = HostReads()
    watching = _Watching(reads)

    class Trainer(run.trainer):  # type: ignore[name-defined, misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._finite = FiniteLosses(self.train_dataset, deferred=True)
            self.add_callback(watching)

    with reads:
        train(replace(run, trainer=Trainer))
    assert len(watching.steps) >= EPOCHS
    return watching


HOW = {"epochs": EPOCHS, "batch_size": 8, "logging_steps": 1000, "validate": False}


@pytest.mark.parametrize(
    "family",
    [
        *("bert", "deberta", "llama"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("roberta", "distilbert", "opt")),
    ],
)
def test_no_step_reads_a_number_back(
    family: str, bench: Bench, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    if family == "opt" and "self.layerdrop >" not in inspect.getsource(OPTDecoder.forward):
        pytest.skip("this version of transformers reads a number to leave out layers of OPT")
    run = replace(bench, student=checkpoint(family)).run(tmp_path, **HOW)
    assert sum(watched(run).steps, Counter()) == {}


@pytest.mark.parametrize(
    ("placement", "objective"),
    [("mapped", "kd"), ("resident", "feature"), ("resident", "undistilled")],
)
def test_no_objective_reads_a_number_back(
    placement: str, objective: str, bench: Bench, tmp_path: Path
) -> None:
    run = bench.run(tmp_path, objective=objective, placement=placement, **HOW)
    assert sum(watched(run).steps, Counter()) == {}


def test_an_optimizer_of_two_momenta_reads_nothing_back(bench: Bench, tmp_path: Path) -> None:
    run = bench.run(tmp_path, objective="kd", optimizer="dot", max_grad_norm=0.1, **HOW)
    assert sum(watched(run).steps, Counter()) == {}


@pytest.mark.parametrize("placement", ["mapped", "resident"])
def test_negatives_are_drawn_without_reading_back(
    placement: str, bench: Bench, tmp_path: Path
) -> None:
    weights = {"negatives": 9, "mask_same_label": True}
    how = {"objective": "infonce", "weights": weights, "placement": placement}
    run = bench.run(tmp_path, **how, **HOW)
    assert sum(watched(run).steps, Counter()) == {}


@pytest.mark.parametrize("objective", ["armada", "feature", "kd"])
def test_rows_without_a_feature_are_known_to_the_host(
    objective: str, bench: Bench, tmp_path: Path
) -> None:
    run = bench.run(tmp_path, objective=objective, **HOW)
    gather = run.train.features[SOURCE]
    rows = np.where(np.arange(len(gather.rows)) % 3, gather.rows, -1)
    run.train.features = {SOURCE: replace(gather, rows=rows)}
    assert sum(watched(run).steps, Counter()) == {}


@pytest.mark.parametrize("schedule", ["alternate", "joint"])
def test_an_aligner_of_cayley_maps_trains_without_reading_back(
    schedule: str, bench: Bench, tmp_path: Path
) -> None:
    run = bench.run(tmp_path, schedule=schedule, weights={"orthogonal_map": "cayley"}, **HOW)
    found = watched(run)
    assert sum(found.steps, Counter()) == {}
    inside = {line: count for line, count in found.before.items() if "rotations.py" in line[1]}
    assert inside == {}


@pytest.mark.parametrize(("schedule", "in_steps"), [("alternate", 0), ("joint", 5 * STEPS)])
def test_maps_by_exponentials_read_no_more_than_they_did(
    schedule: str, in_steps: int, bench: Bench, tmp_path: Path
) -> None:
    """How many terms a product takes depends on numbers: one read for those, and one forward and
    one backward for whether they were enough."""
    found = watched(bench.run(tmp_path, schedule=schedule, **HOW))
    steps = sum(found.steps, Counter())
    assert sum(steps.values()) == in_steps
    inside = [count for line, count in found.before.items() if "rotations.py" in line[1]]
    assert sum(inside) == (3 * STEPS if schedule == "alternate" else 0)


@pytest.mark.parametrize("packing", ["none", "concat", "document_mask"])
def test_no_step_of_a_language_model_reads_a_number_back(packing: Any, tmp_path: Path) -> None:
    settings = StudentSettings(student=str(make_causal_lm(tmp_path / "llama", texts=TEXTS)))
    student, tokenizer = load_language_student(settings, LoraSettings(), NO_LABELS, [], 0.0)
    texts = encode_texts(tokenizer, Recipe(), [(text,) for text in TEXTS], 64)
    rows = pack(texts, packing, 64, 0)
    sizes = Sizes(student.dim, 1, False, None)
    run = Run(
        model=LanguageModel(student, UndistilledObjective(ObjectiveOptions(), sizes)),
        train=AheadDataset(rows, np.full(len(rows), MISSING), {}),
        validation=None,
        settings=make_settings(**{name: HOW[name] for name in HOW if name != "validate"}),
        metric="loss",
        seed=0,
        device=torch.device("cpu"),
        folder=tmp_path / "run",
        trainer=LanguageTrainer,
    )
    assert sum(watched(run).steps, Counter()) == {}
