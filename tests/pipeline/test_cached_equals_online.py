"""A student trained from cached answers is the one that a textbook loop trains beside its teacher.

What is equal after two epochs has had the same texts, tokens, batches, answers, losses, gradients,
clipping, rates and weight decay in every step. How close is close enough follows from the numbers:

float64  The cache keeps log-probabilities in float32 and the log keeps losses in it, both right to
         6e-8 of their size. Seen: losses to 8e-8 of their size, weights to 1e-6.
float32  The loop in float32 differs from itself in float64: losses by up to 3e-7 of their size,
         weights by up to 7e-6, for AdamW divides small gradients by their own size. Seen between
         product and loop, both in float32: 1.2e-7 and 5e-6.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from armada.pipeline.distill import run_distill
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.jobs import make
from armada.pipeline.precompute import run_precompute
from armada.pipeline.precompute_job import make_precompute_job
from armada.stages.distill import training
from language_processes import losses, run, run_in_two_processes, weights
from online_loop import How, Online
from tiny_language_models import make_causal_lm
from tiny_runs import TEXTS
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

pytestmark = pytest.mark.long

disable_progress_bar()

NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
FLOAT32_LOSS, FLOAT32_WEIGHT = 1e-6, 5e-5
FLOAT64_LOSS, FLOAT64_WEIGHT = 2e-7, 5e-6
LOGGED = 3 * 2.0**-23
"""Of a loss: what the log, in float32, may add by three roundings."""

Keys = dict[str, Any]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a teacher, its cache, two students of one vocabulary with it. 53 texts: in batches
    of 8 the last has five, in batches of 4 one."""
    folder = tmp_path_factory.mktemp("online")
    pq.write_table(pa.table({"text": TEXTS}), folder / "train.parquet")
    make_causal_lm(folder / "teacher", "llama", texts=TEXTS, seed=1)
    for family in ("llama", "gpt2"):
        make_causal_lm(folder / family, family, texts=TEXTS, seed=2, **NO_DROPOUT)
    asked = {
        "corpus": str(folder / "train.parquet"),
        "text_column": "text",
        "teacher": f"causal_lm:{folder / 'teacher'}",
        "cache": str(folder / "cache"),
        "dense": True,
        "top_k": 16,
    }
    run_precompute(make_precompute_job(asked), quiet=True)
    return folder


def keys(root: Path, output: Path, how: How, family: str = "llama", **more: Any) -> Keys:
    """A job that learns from the cached, dense answers, and logs every step."""
    return {
        "task": "language",
        "objective": "tokens",
        "train": str(root / "train.parquet"),
        "text_column": "text",
        "cache": str(root / "cache"),
        "feature": "dense",
        "student": str(root / family),
        "output": str(output),
        "logging_steps": 1,
        **how.keys(),
    } | more


def assert_same_weights(found: dict[str, Tensor], expected: dict[str, Tensor], most: float) -> None:
    """All but the biases of keys, which shift all scores of a query alike: the softmax does not see
    them, their gradients are rounding alone, and AdamW makes whole steps of these."""
    for name, weight in expected.items():
        pairs = [each.tensor_split(3, dim=-1) for each in (found[name], weight)]
        counts = (0, 2) if name.endswith("c_attn.bias") else (0, 1, 2)
        for part in counts:
            got, wanted = (pair[part].double() for pair in pairs)
            torch.testing.assert_close(got, wanted, rtol=0, atol=most, msg=f"{name}: {most}")


CASES = {
    "llama": ("llama", How()),
    "batches of one": ("llama", How(batch_size=4, epochs=1)),
    "accumulated": ("llama", How(gradient_accumulation=2)),
    "clipped": ("llama", How(gradient_accumulation=3, max_grad_norm=0.1)),
    "gpt2": ("gpt2", How(alpha=0.9, temperature=1.0, max_grad_norm=0.4)),
}


@pytest.mark.parametrize("case", CASES)
def test_cached_equals_online_in_float64(root: Path, tmp_path: Path, case: str) -> None:
    family, how = CASES[case]
    run(keys(root, tmp_path, how, family))
    online = Online(root / family, root / "teacher", TEXTS, how, torch.float64)
    expected = online.train()
    assert max(online.gradient_norms) > how.max_grad_norm
    assert losses(tmp_path) == pytest.approx(online.losses, rel=FLOAT64_LOSS)
    words, answers = (np.array(losses(tmp_path, term)) for term in ("language", "distillation"))
    logged = (1 - how.alpha) * words + how.alpha * answers
    assert logged == pytest.approx(losses(tmp_path), rel=LOGGED)
    assert_same_weights(weights(tmp_path), expected, FLOAT64_WEIGHT)


@pytest.mark.parametrize("case", ["llama", "accumulated", "gpt2"])
def test_cached_equals_online_in_float32(root: Path, tmp_path: Path, case: str) -> None:
    """As a job runs it."""
    family, how = CASES[case]
    run_distill(make(DistillJob, keys(root, tmp_path, how, family)), quiet=True)
    online = Online(root / family, root / "teacher", TEXTS, how)
    expected = online.train()
    assert losses(tmp_path) == pytest.approx(online.losses, rel=FLOAT32_LOSS)
    assert_same_weights(weights(tmp_path), expected, FLOAT32_WEIGHT)


def test_what_armada_adds_is_a_mean_over_the_batches_of_a_step(root: Path, tmp_path: Path) -> None:
    """Two batches per step equal one of twice the size, for a measure that is a mean over texts."""
    feature = {"corpus": str(root / "train.parquet"), "text_column": "text", "teacher": "hash:6"}
    run_precompute(make_precompute_job({**feature, "cache": str(root / "hash")}), quiet=True)
    armada = {"objective": "armada", "manifold": "pointwise", "feature": "embedding"}
    armada |= {"cache": str(root / "hash"), "aligner_hidden_size": 8, "beta": 3.0, "limit": 48}
    for count in (1, 2):
        batches = {"batch_size": 16 // count, "gradient_accumulation": count}
        run(keys(root, tmp_path / str(count), How(), **armada, **batches))
    one, two = tmp_path / "1", tmp_path / "2"
    for term in ("loss", "language", "manifold"):
        assert losses(two, term) == pytest.approx(losses(one, term), rel=1e-6), term
    assert_same_weights(weights(two), weights(one), FLOAT64_WEIGHT)


WHOLE = {"packing": "none", "batch_size": len(TEXTS), "epochs": 4}
"""One step an epoch, so that packed rows make the same steps."""


def test_a_step_of_packed_texts_is_that_of_texts_alone(root: Path, tmp_path: Path) -> None:
    """Apart, not joined; each text has its own answers in either."""
    for packing in ("none", "document_mask", "concat"):
        changed = {**WHOLE, "packing": packing, "max_length": 100}
        run(keys(root, tmp_path / packing, How(), **changed))
    alone, apart, joined = (losses(tmp_path / name) for name in ("none", "document_mask", "concat"))
    assert len(alone) == len(joined) == 4
    assert apart == pytest.approx(alone, rel=LOGGED)
    assert_same_weights(weights(tmp_path / "document_mask"), weights(tmp_path / "none"), 1e-12)
    assert all(abs(a - b) > 1e-3 * b for a, b in zip(joined, alone, strict=True))


SHARED: dict[str, Keys] = {
    "uneven": {},
    "a batch of one": {"batch_size": 4, "gradient_accumulation": 2},
    "top_k by length": {"feature": "top_k", "token_temperature": 1.0, "group_by_length": True},
    "packed": {"packing": "document_mask", "max_length": 100, "batch_size": 3},
    "adapters": {"lora_rank": 4},
    "adapters, sharded": {"lora_rank": 4, "shard_student": True},
}


def _job(root: Path, output: Path, name: str) -> Keys:
    validation = str(root / "train.parquet")
    return keys(root, output, How(epochs=2), validation=validation, **SHARED[name])


@pytest.fixture(scope="module")
def shared(torchrun: Sequence[str], root: Path) -> Callable[[str], Path]:
    """The folders of runs in two processes."""
    jobs = [_job(root, root / name, name) for name in SHARED]
    run_in_two_processes(torchrun, root / "plan.json", jobs)
    return root.joinpath


@pytest.mark.parametrize("name", SHARED)
def test_two_processes_are_one(
    root: Path, tmp_path: Path, shared: Callable[[str], Path], name: str
) -> None:
    """Weights to rounding in float64. The last batch has a text too few, or one for two."""
    run(_job(root, tmp_path, name))
    found = shared(name)
    assert json.loads((found / "metrics.json").read_bytes())["processes"] == 2
    for term in ("loss", "language", "distillation"):
        expected = losses(tmp_path, term)
        assert len(expected) >= 6
        assert np.isfinite(expected).all()
        assert losses(found, term) == pytest.approx(expected, rel=LOGGED), term
    assert_same_weights(weights(found), weights(tmp_path), 1e-12)


@pytest.mark.parametrize(("name", "looked_for"), [("adapters", False), ("uneven", None)])
def test_nobody_looks_for_adapters_that_are_not_used(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, looked_for: bool | None
) -> None:
    """All of them are, and torch warns of looking in vain; of other weights not all need be."""
    asked: list[bool | None] = []
    real = training.TrainingArguments

    def seen(**given: Any) -> Any:
        asked.append(given["ddp_find_unused_parameters"])
        return real(**given)

    monkeypatch.setattr(training, "TrainingArguments", seen)
    run(_job(root, tmp_path, name) | {"limit": 8, "epochs": 1})
    assert asked == [looked_for]
