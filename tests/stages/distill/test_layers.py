"""Objectives that read layers of a student: the states that transformers gives, and no others."""

import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import JobError
from armada.stages.corpus.labels import NO_LABELS
from armada.stages.distill.language.batches import pack
from armada.stages.distill.language.source import load_language_student
from armada.stages.distill.language.trainer import LanguageModel
from armada.stages.distill.model import DistillModel, TrainedModel, layer_dims
from armada.stages.distill.objectives import OBJECTIVES
from armada.stages.distill.objectives.base import Objective, Sizes, StudentSide
from armada.stages.distill.objectives.sum import SummedObjective
from armada.stages.distill.settings import LoraSettings, StudentSettings, TrainingSettings
from armada.stages.distill.student_source import load_student
from armada.stages.distill.tokens import encode
from armada.stages.distill.training import speed_up
from armada.stages.language.recipe import Recipe
from armada.stages.language.tokens import encode_texts
from tiny_language_models import make_causal_lm
from tiny_runs import THREE_CLASSES, Bench, train_logged
from transformers import AutoModel

TEXTS = ["the cook praised the kettle", "nobody", "one old clerk forgot it much too late"]
PLUG_INS = Path(__file__).parents[2] / "hint_objective"


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PLUG_INS)


def hint(student: Any, layers: Sequence[int], label: str = "hint") -> Objective:
    kind = OBJECTIVES.load("hint")
    sizes = Sizes(student.dim, 3, False, (5,), dropout=0.0, layer_dims=layer_dims(student))
    made: Objective = kind(kind.Options(layers=layers), sizes)
    made.label = label
    return made


def made(
    folder: Path, pooling: Any = "auto", layers: Sequence[int] = (1, -1), **how: Any
) -> tuple[DistillModel, dict[str, Any]]:
    """A student with hints of its layers, and a batch."""
    torch.manual_seed(0)
    settings = StudentSettings(student=str(folder), pooling=pooling)
    student, tokenizer = load_student(settings, THREE_CLASSES, [], 0.0, LoraSettings(**how))
    tokens = encode(tokenizer, [(text,) for text in TEXTS], 32)
    labels = torch.tensor([0, 1, 2])
    batch = {**tokens.pad(np.arange(3)), "labels": labels, "rows": 3}
    batch["features"] = {"teacher": torch.randn(3, 5)}
    return DistillModel(student, hint(student, layers)), batch


def still(model: TrainedModel) -> TrainedModel:
    """In training mode, without any dropout."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):  # which attention takes as a number
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model.train()


def sides(model: TrainedModel, monkeypatch: pytest.MonkeyPatch) -> list[StudentSide]:
    """What the objective is told from now on."""
    told: list[StudentSide] = []
    inner = model.objective.of_sources

    def noted(side: StudentSide, *more: Any) -> Any:
        told.append(side)
        return inner(side, *more)

    monkeypatch.setattr(model.objective, "of_sources", noted)
    return told


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [
        *[("bert", "auto"), ("bert", "mean"), ("roberta", "auto"), ("opt", "auto")],
        *[("llama", "auto"), ("llama", "mean")],
    ],
)
def test_layers_are_those_of_transformers(
    checkpoint: Any, kind: str, pooling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = made(checkpoint(kind), pooling)
    still(model)
    (told,) = (sides(model, monkeypatch), model(**batch))[0]
    assert told.layers.keys() == {1, -1}
    assert told.mask_BT is not None
    assert torch.equal(told.mask_BT, batch["attention_mask"])
    plain = AutoModel.from_pretrained(checkpoint(kind)).eval()
    inputs = {n: batch[n] for n in ("input_ids", "attention_mask", "token_type_ids") if n in batch}
    asked = plain(**inputs, output_hidden_states=True).hidden_states
    real = batch["attention_mask"] == 1
    for layer, states in told.layers.items():
        torch.testing.assert_close(states[real], asked[layer][real], rtol=1e-5, atol=1e-5)
    assert layer_dims(model.student) == tuple(each.shape[-1] for each in asked)


def test_losses_are_those_of_numpy(checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = made(checkpoint("bert"), layers=(0, 2))
    still(model)
    told = sides(model, monkeypatch)
    terms = model(**batch)["terms"]
    (side,) = told
    lengths = batch["attention_mask"].sum(1)
    hints = []
    for layer, mapped in zip((0, 2), model.objective.maps, strict=True):  # type: ignore[arg-type]
        states = side.layers[layer].detach().double().numpy()
        means = np.stack([row[: int(n)].mean(0) for row, n in zip(states, lengths, strict=True)])
        weight, bias = (each.detach().double().numpy() for each in (mapped.weight, mapped.bias))
        feature = batch["features"]["teacher"].double().numpy()
        hints.append(((means @ weight.T + bias - feature) ** 2).mean())
    assert float(terms["hint"]) == pytest.approx(np.mean(hints), rel=1e-5)


def gradients(model: TrainedModel, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch)["loss"].backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("lora_rank", [None, 2])
def test_checkpointing_keeps_the_gradients_of_layers(
    checkpoint: Any, kind: str, lora_rank: int | None
) -> None:
    """And there are some below each layer that is read, adapters alone where there are any."""
    model, batch = made(checkpoint(kind), layers=(1,), lora_rank=lora_rank)
    still(model)
    with torch.no_grad():  # adapters begin as zero, and what is before them then has no gradient
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    plain = gradients(model, batch)
    settings = TrainingSettings(gradient_checkpointing=True)
    speed_up(model.student, settings, torch.device("cpu"))
    found = gradients(model, batch)
    assert found.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)
    below = [n for n in plain if n.startswith("student.model") and "classifier" not in n]
    assert all(lora_rank is None or "lora_" in n or "modules_to_save" in n for n in below)
    model.objective.options = model.objective.options.model_copy(update={"beta": 0.0})
    without = gradients(model, batch)
    assert any(not torch.equal(without[name], plain[name]) for name in below)


def test_hidden_states_are_kept_for_those_who_read_them_alone(
    checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in an evaluation, not for other objectives; uncopied, and gone after a step."""
    model, batch = made(checkpoint("bert"))
    first, given = model.student.backbone.encoder.layer[0], []
    first.register_forward_hook(lambda *told: given.append(told[-1].data_ptr()))
    told = sides(model.train(), monkeypatch)
    asked: list[bool] = []
    model.student.backbone.register_forward_pre_hook(
        lambda _, inputs, named: asked.append(named.get("output_hidden_states", False)),
        with_kwargs=True,
    )
    model(**batch)["loss"].backward()
    assert told[0].layers[1].data_ptr() == given.pop()
    kept = [weakref.ref(states) for states in told.pop().layers.values()]
    gc.collect()
    assert [ref() for ref in kept] == [None, None]
    with torch.no_grad():
        model.eval()(**batch)
    other = DistillModel(model.student, SummedObjective([], [], model.objective.sizes))
    assert other.layers == []
    assert asked == [True, False]


def test_a_sum_reads_the_layers_of_all(checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = made(checkpoint("bert"))
    student = model.student
    one, two = hint(student, (1, 2), "one"), hint(student, (-1,), "two")
    whole = SummedObjective([one, two], [0.5, 2.0], replace(one.sizes, feature_shape=None))
    summed = DistillModel(student, whole).train()
    told = sides(summed, monkeypatch)
    terms = summed(**batch)["terms"]
    (side,) = told
    assert side.layers.keys() == {1, 2, -1}
    assert side.layers[2] is side.layers[-1]
    expected = terms["task"] + 0.5 * terms["one.hint"] + 2 * terms["two.hint"]
    torch.testing.assert_close(terms["total"].detach(), expected)


def test_a_language_model_has_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_causal_lm(tmp_path / "llama", "llama", texts=TEXTS)
    settings = StudentSettings(student=str(folder))
    student, tokenizer = load_language_student(settings, LoraSettings(), NO_LABELS, [], 0.0)
    model = LanguageModel(student, hint(student, (0, -1))).train()
    told = sides(model, monkeypatch)
    rows = pack(encode_texts(tokenizer, Recipe(), [(t,) for t in TEXTS], 64), "none", 64, 0)
    batch = rows.pad(np.arange(3)) | {"features": {"teacher": torch.randn(3, 5)}, "rows": 3}
    model(**batch)["loss"].backward()
    (side,) = told
    plain = AutoModel.from_pretrained(folder)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    asked = plain(**inputs, output_hidden_states=True).hidden_states
    real = batch["attention_mask"] == 1
    for layer in (0, -1):
        torch.testing.assert_close(side.layers[layer][real], asked[layer][real])
    torch.testing.assert_close(side.layers[-1], student(**inputs))


@pytest.mark.parametrize(("layer", "fits"), [(2, True), (-3, True), (3, False), (-4, False)])
def test_layers_beyond_the_student_are_refused(checkpoint: Any, layer: int, fits: bool) -> None:
    if fits:
        made(checkpoint("bert"), layers=(layer,))
        return
    told = (
        rf"objective HintObjective: layer {layer} is beyond the student's; choose from 0 \(its "
        r"embeddings\) to 2 \(its last\), or from -1 \(its last\) to -3"
    )
    with pytest.raises(JobError, match=told):
        made(checkpoint("bert"), layers=(1, layer))


@pytest.mark.slow
def test_compiling_keeps_layers(bench: Bench, tmp_path: Path) -> None:
    found = []
    for compiled in (False, True):
        run = bench.run(
            tmp_path / str(compiled), objective="hint", dropout=0.0, epochs=1, validate=False
        )
        still(run.model)
        settings = TrainingSettings(compile_student=compiled)
        speed_up(run.model.student, settings, run.device)
        found.append(train_logged(run)[1])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
