"""Training steps on the meta device, where tensors have no numbers.

One that reads a number back, or mixes in a tensor of the CPU, fails at its line."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armada.stages.corpus.labels import NO_LABELS
from armada.stages.distill.finite import FiniteLosses
from armada.stages.distill.language.batches import Counts, pack
from armada.stages.distill.language.source import load_language_student
from armada.stages.distill.language.trainer import LanguageModel, only_rows
from armada.stages.distill.model import TrainedModel, layer_dims
from armada.stages.distill.negatives import Negatives
from armada.stages.distill.objectives import OBJECTIVES
from armada.stages.distill.objectives.base import Sizes, aligned_parts, freeze
from armada.stages.distill.objectives.options import SOURCE
from armada.stages.distill.optimizers import parameter_groups
from armada.stages.distill.settings import LoraSettings, StudentSettings, TrainingSettings
from armada.stages.distill.training import Run, speed_up
from armada.stages.language.masks import needs_mask
from armada.stages.language.recipe import Recipe
from armada.stages.language.tokens import encode_texts
from tiny_language_models import FAMILIES, make_causal_lm
from tiny_runs import NUMBERS, TEXTS, Bench
from token_loss_reference import DIVERGENCES

META = torch.device("meta")
ROWS = 8
LOGITS = {
    name
    for name in OBJECTIVES.built_in
    if OBJECTIVES.load(name).reads.classes and OBJECTIVES.load(name).reads.features == 1
} - {"kd"}
PLUG_INS = Path(__file__).parents[2] / "hint_objective"


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none for this device."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


def on_meta(value: Any) -> Any:
    """A batch with its tensors there."""
    if isinstance(value, torch.Tensor | Negatives):
        return value.to(META)
    if isinstance(value, tuple):
        return type(value)(*map(on_meta, value))
    if isinstance(value, Mapping):
        return {name: on_meta(each) for name, each in value.items()}
    return value


def step(model: TrainedModel, batch: dict[str, Any], dataset: Any = None) -> None:
    """Forward, the look at the loss, backward, clipping, optimizer."""
    model.to(META).train()
    optimizer = torch.optim.AdamW(parameter_groups(model.parameters(), 1e-3, 0.01))
    terms = model(**on_meta(batch))["terms"]
    FiniteLosses(dataset, deferred=True).look_at(1, terms, np.arange(ROWS), optimizer)
    del optimizer.found_inf  # type: ignore[attr-defined]  # which the fused one alone takes
    terms["total"].backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    assert {each.device.type for each in gradients} == {"meta"}


def labelled(run: Run) -> tuple[TrainedModel, dict[str, Any], Any]:
    """A run's model, its first batch, and the dataset; frozen aligners have answered ahead."""
    batch = run.train.__getitems__(list(range(ROWS)))
    batch["rows"] = len(batch.pop("indices"))
    for part in aligned_parts(run.model.objective):
        part.joint = run.settings.schedule == "joint"
        if not part.joint:
            freeze(part.aligner)
            read = part.read(batch["features"][part.sources[0]])
            batch["features"][part.answers_name] = read
    return run.model, batch, run.train


@pytest.mark.parametrize("objective", ["armada", "kd", "feature", "undistilled"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "deberta", "opt", "llama"])
def test_of_every_objective_and_family(
    family: str, objective: str, bench: Bench, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    run = replace(bench, student=checkpoint(family)).run(tmp_path, objective=objective)
    step(*labelled(run))


@pytest.mark.parametrize("weights", [{"map": "learned"}, {"map": (-1, 1), "normalize": True}])
def test_of_hidden_layers(weights: dict[str, Any], bench: Bench, tmp_path: Path) -> None:
    several = {"objective": "hidden_layers", "features": ("embedding", "logits")}
    step(*labelled(bench.run(tmp_path, weights=weights, **several)))


@pytest.mark.parametrize("objective", sorted(LOGITS))
def test_of_every_objective_of_logits(objective: str, bench: Bench, tmp_path: Path) -> None:
    step(*labelled(bench.run(tmp_path, objective=objective)))


@pytest.mark.parametrize(
    "objective",
    [
        *("rkd", "similarity_preserving", "in_batch", "cka", "mmd", "prototypes"),
        *("infonce", "crd", "wcord"),
    ],
)
def test_of_relations_and_contrast(objective: str, bench: Bench, tmp_path: Path) -> None:
    weights = {"negatives": 5} if objective in ("infonce", "crd", "wcord") else {}
    run = bench.run(tmp_path, objective=objective, weights=weights)
    run.train.draws = dict.fromkeys([SOURCE] if weights else [], 5)
    step(*labelled(run))


@pytest.mark.parametrize(
    "weights",
    [{"manifold": "euclid"}, {"manifold": "pointwise"}, {"aligner_hidden_size": 4}],
    ids=str,
)
@pytest.mark.parametrize("space", ["classes", "numbers"])
def test_of_every_manifold(
    weights: dict[str, Any], space: str, bench: Bench, tmp_path: Path
) -> None:
    task = {"space": NUMBERS, "labels": np.linspace(0, 1, len(TEXTS))} if space == "numbers" else {}
    step(*labelled(bench.run(tmp_path, weights=weights, **task)))


@pytest.mark.parametrize("pooling", ["pooler", "context", "cls", "mean", "last", "max"])
def test_of_every_pooling(pooling: str, bench: Bench, tmp_path: Path) -> None:
    step(*labelled(replace(bench, pooling=pooling).run(tmp_path)))


@pytest.mark.parametrize(
    "how", [{"lora_rank": 2}, {"weights": {"temperature": "learned"}}], ids=str
)
def test_of_adapters_and_learned_temperatures(
    how: dict[str, Any], bench: Bench, tmp_path: Path
) -> None:
    step(*labelled(bench.run(tmp_path, objective="kd", **how)))


def test_of_a_checkpointed_student(bench: Bench, tmp_path: Path) -> None:
    run = bench.run(tmp_path)
    speed_up(run.model.student, TrainingSettings(gradient_checkpointing=True), META)
    step(*labelled(run))


def test_of_a_sum_of_objectives(bench: Bench, tmp_path: Path) -> None:
    step(*labelled(bench.summed(tmp_path)))


def test_with_an_aligner_that_trains_along(bench: Bench, tmp_path: Path) -> None:
    weights = {"orthogonal_map": "cayley"}
    step(*labelled(bench.run(tmp_path, schedule="joint", weights=weights)))


def test_of_an_aligner_alone(bench: Bench, tmp_path: Path) -> None:
    run = bench.run(tmp_path, weights={"orthogonal_map": "cayley"})
    (part,) = aligned_parts(run.model.to(META).objective)
    batch = on_meta(run.train.aligner_batch(np.arange(ROWS)))
    part.aligner.train()
    loss = part.aligner_loss(batch["features"]["teacher"], batch["labels"])
    loss.backward()
    torch.nn.utils.clip_grad_norm_(part.aligner.parameters(), 1.0)
    assert all(each.grad is not None for each in part.aligner.parameters())


# --- Language models


def predictions(kind: str, count: int, vocab_size: int) -> dict[str, torch.Tensor]:
    """What a teacher predicted, in each of its forms; half of it is missing."""
    ids = torch.randint(0, vocab_size, (count, 4), dtype=torch.int32)
    log_probs = torch.randn(count, 4).log_softmax(1)
    answers = {
        "top_k": {"ids": ids, "log_probs": log_probs, "tail": torch.full((count,), -2.0)},
        "renormalised": {"ids": ids, "log_probs": log_probs},
        "samples": {"drawn": ids, "log_probs": log_probs},
        "dense": {"dense": torch.randn(count, vocab_size).log_softmax(1).half()},
    }[kind]
    return answers | {"answered": torch.arange(count) % 2 == 0}


def language(
    folder: Path,
    family: str = "llama",
    packing: Any = "none",
    objective: str = "tokens",
    **how: Any,
) -> tuple[LanguageModel, dict[str, Any]]:
    """A language model with its objective, and a batch without predictions."""
    make_causal_lm(folder / family, family, texts=TEXTS)
    settings = StudentSettings(student=str(folder / family))
    student, tokenizer = load_language_student(settings, LoraSettings(), NO_LABELS, [], 0.1)
    kind = OBJECTIVES.load(objective)
    layers = layer_dims(student) if objective == "hint" else ()
    sizes = Sizes(student.dim, 1, False, (5,), layer_dims=layers)
    model = LanguageModel(student, kind(kind.Options(**how), sizes))
    texts = encode_texts(tokenizer, Recipe(), [(text,) for text in TEXTS], 64)
    batch = pack(texts, packing, 96, 0).pad(np.arange(ROWS))
    batch |= {"masked": needs_mask(batch), "rows": ROWS}
    batch["counts"] = Counts(len(batch["targets"]), {"teacher": len(batch["targets"]) // 2})
    return model, batch


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("kind", ["top_k", "renormalised", "samples", "dense"])
def test_of_every_loss_of_tokens(kind: str, divergence: str, tmp_path: Path) -> None:
    model, batch = language(tmp_path, divergence=divergence)
    vocab_size = model.student.head_weights[0].shape[0]
    said = predictions(kind, len(batch["targets"]), vocab_size)
    only_rows(batch | {"answers": {"teacher": said}}, ROWS - 1)
    step(model, batch | {"answers": {"teacher": said}})


@pytest.mark.parametrize("kind", ["top_k", "renormalised", "dense"])
def test_of_tokens_with_their_own_temperatures(kind: str, tmp_path: Path) -> None:
    model, batch = language(tmp_path, divergence="self_evolution")
    vocab_size = model.student.head_weights[0].shape[0]
    said = predictions(kind, len(batch["targets"]), vocab_size)
    said["temperatures"] = torch.linspace(1, 2, len(batch["targets"]))
    step(model, batch | {"answers": {"teacher": said}})


@pytest.mark.parametrize("kind", ["top_k", "dense"])
def test_of_two_tokenizers(kind: str, tmp_path: Path) -> None:
    model, batch = language(tmp_path, cross_tokenizer=True)
    said = predictions(kind, len(batch["targets"]), 50)
    step(model, batch | {"answers": {"teacher": said}})


@pytest.mark.parametrize("packing", ["none", "concat", "document_mask"])
@pytest.mark.parametrize("family", FAMILIES)
def test_of_every_family_and_packing(family: str, packing: str, tmp_path: Path) -> None:
    if (family, packing) == ("opt", "document_mask"):
        pytest.skip("refused: it takes no notice of positions")
    model, batch = language(tmp_path, family, packing)
    vocab_size = model.student.head_weights[0].shape[0]
    said = predictions("top_k", len(batch["targets"]), vocab_size)
    step(model, batch | {"answers": {"teacher": said}})


def test_of_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PLUG_INS)
    model, batch = language(tmp_path, objective="hint", layers=(0, -1))
    step(model, batch | {"features": {"teacher": torch.randn(ROWS, 5)}})
