"""Students of a feature open in sentence-transformers, and as teachers, as what armada says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armada import load_student as load_saved
from armada.cache_schemas.errors import StudentSourceError
from armada.cache_schemas.keys import example_key
from armada.stages.adapters import named_base
from armada.stages.corpus.labels import NO_LABELS, LabelSpace
from armada.stages.distill.embedding_student import has_length_1
from armada.stages.distill.export import StudentCard, save_student
from armada.stages.distill.objectives.base import Sizes
from armada.stages.distill.objectives.features import FeatureObjective
from armada.stages.distill.objectives.options import FeatureOptions
from armada.stages.distill.rotations import OrthogonalMap
from armada.stages.distill.settings import LoraSettings, StudentSettings
from armada.stages.distill.student_source import default_max_length, load_student
from armada.stages.precompute.teachers.base import Example
from armada.stages.precompute.teachers.classifier import ClassifierOptions, ClassifierTeacher
from armada.stages.precompute.teachers.encoder import EncoderOptions, EncoderTeacher
from tiny_embeddings import dense, encode, make_embedding_model, modules
from tiny_runs import NUMBERS, TEXTS
from transformers import pipeline

WIDTH = 10
LONG = (*TEXTS[:9], "a map of the harbour " * 20)
MAX_LENGTH = 20


@pytest.fixture
def save(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A student of a feature in a folder, with weights of its own."""

    def make(
        source: str | Path,
        pooling: str = "auto",
        length_1: bool = False,
        orthogonal: OrthogonalMap | None = None,
        lora_rank: int | None = None,
        projector: str = "linear",
        **settings: Any,
    ) -> Path:
        folder = checkpoint(source) if isinstance(source, str) else source
        torch.manual_seed(3)
        chosen = StudentSettings(student=str(folder), pooling=pooling, **settings)
        lora = LoraSettings(lora_rank=lora_rank)
        student, tokenizer = load_student(chosen, NO_LABELS, [], 0.1, lora)
        sizes = Sizes(student.dim, 1, False, (WIDTH,))
        chosen_map = {"orthogonal_map": orthogonal, "orthogonal_projection": True}
        given = FeatureOptions.model_validate(
            chosen_map if orthogonal else {"projector": projector}
        )
        objective = FeatureObjective(given, sizes)
        with torch.no_grad():
            for parameter in [*student.parameters(), *objective.parameters()]:
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=0.05)
        card = StudentCard(
            space=NO_LABELS,
            pooling=student.pooling,
            dropout=0.1,
            max_length=MAX_LENGTH,
            text_columns=("text",),
            label_column=None,
            metric="loss",
            **(named_base(str(folder), None, StudentSourceError) if lora_rank else {}),
        )
        save_student(tmp_path / "student", student, tokenizer, objective, card, length_1)
        return tmp_path / "student"

    return make


def by_armada(folder: Path) -> Any:
    return np.stack([said["embedding"] for said in load_saved(folder).predict(LONG, 4)])


def as_teacher(folder: Path) -> Any:
    teacher = EncoderTeacher(str(folder), EncoderOptions(), torch.device("cpu"))
    assert teacher.notes == ()
    teacher.load()
    with torch.inference_mode():
        examples = [Example(example_key((text,)), (text,)) for text in LONG]
        return np.concatenate([teacher.encode([one]).features["pooled"] for one in examples])


def as_scorer(folder: Path) -> Any:
    teacher = ClassifierTeacher(
        str(folder), ClassifierOptions(max_length=MAX_LENGTH), torch.device("cpu")
    )
    teacher.load()
    with torch.inference_mode():
        examples = [Example(example_key((text,)), (text,)) for text in LONG]
        found = [teacher.encode([one]).features["logits"] for one in examples]
    return np.concatenate(found)[:, 0]


@pytest.mark.parametrize("lora_rank", [None, 2], ids=["whole", "adapters"])
@pytest.mark.parametrize(
    ("kind", "pooling"),
    [
        ("bert", "auto"),
        ("bert", "context"),
        ("bert", "cls"),
        ("bert", "mean"),
        ("bert", "max"),
        ("bert", "weightedmean"),
        ("bert", "mean_sqrt_len_tokens"),
        ("roberta", "auto"),
        ("distilbert", "auto"),
        ("deberta", "auto"),
        ("opt", "auto"),
        ("llama", "auto"),
        ("llama", "mean"),
    ],
)
def test_a_student_opens_with_its_projection(
    save: Callable[..., Path], kind: str, pooling: str, lora_rank: int | None
) -> None:
    folder = save(kind, pooling, lora_rank=lora_rank)
    expected = by_armada(folder)
    assert expected.shape == (len(LONG), WIDTH)
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    np.testing.assert_allclose(encode(folder, LONG), expected, atol=1e-5)
    for text, row in zip(LONG[-3:], expected[-3:], strict=True):
        np.testing.assert_allclose(encode(folder, [text])[0], row, atol=1e-5)
    np.testing.assert_allclose(as_teacher(folder), expected, atol=1e-5)


def test_a_projector_of_two_layers_opens(save: Callable[..., Path]) -> None:
    folder = save("bert", length_1=True, projector="mlp")
    expected = by_armada(folder)
    np.testing.assert_allclose(np.linalg.norm(encode(folder, LONG), axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(as_teacher(folder), encode(folder, LONG), atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 0.01


@pytest.mark.parametrize("lora_rank", [None, 2], ids=["whole", "adapters"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "deberta", "opt", "llama"])
def test_a_classifier_that_learned_a_feature_opens_as_both(
    checkpoint: Callable[[str], Path], tmp_path: Path, kind: str, lora_rank: int | None
) -> None:
    torch.manual_seed(3)
    source = str(checkpoint(kind))
    chosen, lora = StudentSettings(student=source), LoraSettings(lora_rank=lora_rank)
    space = LabelSpace(task="classification", num_labels=3)
    student, tokenizer = load_student(chosen, space, [], 0.1, lora)
    if lora_rank is not None:
        with torch.no_grad():
            for parameter in filter(lambda each: each.requires_grad, student.parameters()):
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    assert student.pooling == "own"
    objective = FeatureObjective(FeatureOptions(), Sizes(student.dim, 3, False, (WIDTH,)))
    card = StudentCard(
        space=space,
        pooling="own",
        dropout=0.1,
        max_length=MAX_LENGTH,
        text_columns=("text",),
        label_column="label",
        metric="accuracy",
        **(named_base(source, None, StudentSourceError) if lora_rank else {}),
    )
    folder = tmp_path / "student"
    save_student(folder, student, tokenizer, objective, card)
    student.eval()
    expected, logits = [], []
    for text in LONG:
        with torch.inference_mode():
            given = tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
            pooled, output = student(**given)
            expected.append(objective.projection(pooled)[0].numpy())
            logits.append(output[0].softmax(0).numpy())
    np.testing.assert_allclose(encode(folder, LONG), expected, atol=1e-5)
    np.testing.assert_allclose(as_teacher(folder), expected, atol=1e-5)
    said = [each["probabilities"] for each in load_saved(folder).predict(LONG, 4)]
    np.testing.assert_allclose(said, logits, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "opt", "llama"])
def test_a_regression_that_learned_a_feature_opens_as_both(
    checkpoint: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    torch.manual_seed(3)
    chosen = StudentSettings(student=str(checkpoint(kind)))
    student, tokenizer = load_student(chosen, NUMBERS, [], 0.1)
    assert student.pooling == "own"
    objective = FeatureObjective(FeatureOptions(), Sizes(student.dim, 1, True, (WIDTH,)))
    with torch.no_grad():
        student.last_layer.weight.mul_(20)  # scores that differ, of both signs before the ReLU
    card = StudentCard(
        space=NUMBERS,
        pooling="own",
        dropout=0.1,
        max_length=MAX_LENGTH,
        text_columns=("text",),
        label_column="score",
        metric="mse",
    )
    folder = tmp_path / "student"
    save_student(folder, student, tokenizer, objective, card)
    student.eval()
    embeddings, logits = [], []
    for text in LONG:
        with torch.inference_mode():
            given = tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
            given.pop("token_type_ids", None)
            embeddings.append(objective.projection(student(**given)[0])[0].numpy())
            logits.append(student.model(**given).logits[0].item())
    assert np.ptp(logits) > 0.01
    said = [each["score"] for each in load_saved(folder).predict(LONG, 4)]
    np.testing.assert_allclose(said, np.maximum(logits, 0), atol=1e-5)
    ask = pipeline("text-classification", str(folder))
    told = [each["score"] for each in ask(list(LONG), truncation=True, batch_size=4)]
    np.testing.assert_allclose(told, logits, atol=1e-5)
    np.testing.assert_allclose(encode(folder, LONG), embeddings, atol=1e-5)
    np.testing.assert_allclose(as_teacher(folder), embeddings, atol=1e-5)
    np.testing.assert_allclose(as_scorer(folder), logits, atol=1e-5)


@pytest.mark.parametrize("orthogonal", ["matrix_exp", "cayley"])
def test_an_orthogonal_projection_is_kept(
    save: Callable[..., Path], orthogonal: OrthogonalMap
) -> None:
    folder = save("bert", "mean", orthogonal=orthogonal)
    expected = by_armada(folder)
    assert expected.shape == (len(LONG), WIDTH)
    np.testing.assert_allclose(encode(folder, LONG), expected, atol=1e-5)
    np.testing.assert_allclose(as_teacher(folder), expected, atol=1e-5)
    (folder / "modules.json").unlink()
    with pytest.raises(StudentSourceError, match="orthogonal projection"):
        load_saved(folder)


def test_a_student_of_embeddings_of_length_1_has_them_too(save: Callable[..., Path]) -> None:
    folder = save("bert", "mean", length_1=True)
    expected = by_armada(folder)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(encode(folder, LONG), expected, atol=1e-5)
    np.testing.assert_allclose(as_teacher(folder), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "yes"),
    [
        ([[3.0, 4.0]], False),
        ([[0.6, 0.8], [1.0, 0.0]], True),
        ([[0.6, 0.8], [1.0, 0.2]], False),
        (np.empty((0, 2)), False),
    ],
)
def test_length_1_is_seen_in_the_feature(rows: Any, yes: bool) -> None:
    assert has_length_1(np.asarray(rows, dtype=np.float16)) is yes


def test_a_pooling_that_no_layer_holds_is_not_pretended(
    save: Callable[..., Path],
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import shutil

    source = shutil.copytree(checkpoint("bert"), tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu_fast"}))
    folder = save(source, "context")
    assert not (folder / "modules.json").exists()
    assert "so its embeddings need armada.load_student" in caplog.text
    assert by_armada(folder).shape == (len(LONG), WIDTH)


@pytest.mark.parametrize("mode", ["cls", "mean", "max", "weightedmean"])
def test_a_student_begins_as_its_folder_declares(
    save: Callable[..., Path], checkpoint: Callable[[str], Path], tmp_path: Path, mode: str
) -> None:
    model = make_embedding_model(
        tmp_path / "model", checkpoint("bert"), mode, [modules().Normalize()], max_length=14
    )
    settings = StudentSettings(student=str(model))
    student, tokenizer = load_student(settings, NO_LABELS, [], 0.1)
    assert student.pooling == mode
    assert min(default_max_length(settings, NO_LABELS), tokenizer.model_max_length) == 14
    inputs = tokenizer(list(TEXTS[:5]), padding=True, return_tensors="pt")
    with torch.inference_mode():
        pooled, _ = student.eval()(**inputs)
    pooled = torch.nn.functional.normalize(pooled, dim=-1)
    np.testing.assert_allclose(pooled, encode(model, TEXTS[:5]), atol=1e-5)
    other = load_student(StudentSettings(student=str(model), pooling="last"), NO_LABELS, [], 0.1)
    assert other[0].pooling == "last"


def test_what_a_student_cannot_begin_with_is_said(
    checkpoint: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layers = [dense(32, 8, torch.nn.Tanh())]
    model = make_embedding_model(tmp_path / "one", checkpoint("bert"), "cls", layers)
    student, _ = load_student(StudentSettings(student=str(model)), NO_LABELS, [], 0.1)
    assert student.pooling == "cls"
    assert "without the layers after it (Dense 32 to 8, Tanh)" in caplog.text
    both = make_embedding_model(tmp_path / "both", checkpoint("bert"), ("cls", "mean"))
    with pytest.raises(StudentSourceError, match="several poolings"):
        load_student(StudentSettings(student=str(both)), NO_LABELS, [], 0.1)
