"""A student folder opens with transformers and with armada, and gives the same numbers in both."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import StudentSourceError
from armada.stages.distill.evaluation import predict
from armada.stages.distill.export import (
    StudentCard,
    load_saved_student,
    save_aligners,
    save_student,
)
from armada.stages.distill.model import DistillModel
from armada.stages.distill.student_models import load_tokenizer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_runs import NUMBERS, TEXTS, THREE_CLASSES, Bench, class_labels, dataset, make_cache
from transformers import AutoModel, AutoTokenizer

LABELS = class_labels(len(TEXTS))
KINDS = ["bert", "roberta", "distilbert", "deberta", "opt", "llama"]


def make_card(model: DistillModel, **changes: Any) -> StudentCard:
    card = {
        "space": model.student.space,
        "pooling": model.student.pooling,
        "dropout": 0.1,
        "max_length": 16,
        "text_columns": ("text",),
        "label_column": "label",
        "metric": "accuracy",
    }
    return StudentCard(**card | changes)


def save(
    folder: Path, source: Path, cache: Any, space: Any = THREE_CLASSES, pooling: str = "auto"
) -> DistillModel:
    """A student that was not trained, but whose weights are no one else's."""
    model = Bench(source, cache, pooling).run(folder.parent / "run", space=space).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    save_student(folder, model.student, load_tokenizer(source), model.objective, make_card(model))
    return model.eval()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def saved(checkpoint, cache, tmp_path: Path) -> Path:
    """A student whose pooling no class of the library has."""
    save(tmp_path / "student", checkpoint("bert"), cache, pooling="mean")
    return tmp_path / "student"


@pytest.fixture
def saved_classifier(checkpoint, cache, tmp_path: Path) -> Path:
    save(tmp_path / "student", checkpoint("bert"), cache)
    return tmp_path / "student"


@pytest.mark.parametrize("pooling", ["auto", "cls", "mean", "last"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_student_gives_the_same_outputs(checkpoint, cache, tmp_path, kind, pooling):
    model = save(tmp_path / "student", checkpoint(kind), cache, pooling=pooling)
    student, tokenizer, card = load_saved_student(tmp_path / "student")
    assert card == make_card(model)
    data = dataset(tokenizer, TEXTS, LABELS, {})
    expected = predict(model.student, data, 16)
    np.testing.assert_array_equal(predict(student, data, 16), expected, strict=True)
    assert not student.training


@pytest.mark.parametrize("kind", KINDS)
def test_a_pooling_of_our_own_leaves_a_transformer(checkpoint, cache, tmp_path, kind):
    """The folder does not pretend to be a classifier."""
    model = save(tmp_path / "student", checkpoint(kind), cache, pooling="mean")
    opened, report = AutoModel.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys"))
    assert opened.config.architectures == [type(opened).__name__]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    batch = tokenizer(TEXTS[:1], return_tensors="pt")
    with torch.no_grad():
        pooled, output = model.student(**batch)
        again = opened.eval()(**batch).last_hidden_state.mean(1)
    torch.testing.assert_close(again, pooled)
    heads = load_file(tmp_path / "student" / "heads.safetensors")
    logits = again @ heads["head.linear.weight"].T + heads["head.linear.bias"]
    torch.testing.assert_close(logits, output)


@pytest.mark.parametrize("pooling", ["auto", "mean"])
def test_a_regression_is_saved_as_one(checkpoint, cache, tmp_path, pooling):
    model = save(tmp_path / "student", checkpoint("bert"), cache, space=NUMBERS, pooling=pooling)
    student, tokenizer, card = load_saved_student(tmp_path / "student")
    assert card.space == NUMBERS
    data = dataset(tokenizer, TEXTS, LABELS / 2, {})
    outputs = predict(student, data, 16)
    assert outputs.shape == (len(TEXTS), 1)
    assert (outputs >= 0).all()
    np.testing.assert_array_equal(outputs, predict(model.student, data, 16))


def test_beside_a_classifier_lies_the_objective_alone(saved_classifier):
    with safe_open(saved_classifier / "heads.safetensors", "pt") as file:
        assert {name.split(".")[0] for name in file.keys()}  # noqa: SIM118 == {"objective"}


def test_the_heads_are_all_that_is_trained_beside_transformer_and_aligner(saved):
    with safe_open(saved / "heads.safetensors", "pt") as file:
        assert set(file.keys()) == {
            "head.linear.weight",
            "head.linear.bias",
            "objective.projection.weight",
            "objective.aux_head.linear.weight",
            "objective.aux_head.linear.bias",
        }


def test_an_aligner_is_saved_whole(checkpoint, cache, tmp_path):
    objective = Bench(checkpoint("bert"), cache).run(tmp_path / "run").model.objective
    aligner = objective.aligner
    save_aligners(tmp_path / "aligner", objective)
    tensors = load_file(tmp_path / "aligner" / "aligner.safetensors")
    assert tensors.keys() == aligner.state_dict().keys()
    for name, tensor in aligner.state_dict().items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0)


def test_only_safetensors_hold_weights(saved):
    suffixes = {file.suffix for file in saved.rglob("*") if file.is_file()}
    assert suffixes == {".json", ".safetensors"}


def test_the_folder_around_a_student_will_do(saved):
    student, *_ = load_saved_student(saved.parent)
    other, *_ = load_saved_student(saved)
    torch.testing.assert_close(student.state_dict(), other.state_dict(), rtol=0, atol=0)


# --- what is refused


def drop(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def edit_card(**changes: Any) -> Any:
    def edit(folder: Path) -> None:
        file = folder / "armada_student.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


def not_json(folder: Path) -> None:
    (folder / "armada_student.json").write_text("student")


def lose_the_head(folder: Path) -> None:
    tensors = load_file(folder / "heads.safetensors")
    del tensors["head.linear.bias"]
    save_file(tensors, folder / "heads.safetensors")


def another_head(folder: Path) -> None:
    tensors = load_file(folder / "heads.safetensors")
    tensors["head.linear.weight"] = torch.zeros(7, 32)
    save_file(tensors, folder / "heads.safetensors")


def cut_heads(folder: Path) -> None:
    file = folder / "heads.safetensors"
    file.write_bytes(file.read_bytes()[:50])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(drop("armada_student.json"), "holds no armada_student.json", id="no-card"),
        pytest.param(not_json, "armada_student.json", id="card-is-no-json"),
        pytest.param(edit_card(card_version=2), "card_version", id="newer-card"),
        pytest.param(edit_card(colour="red"), "colour", id="unknown-key"),
        pytest.param(edit_card(pooling="median"), "pooling", id="unknown-pooling"),
        pytest.param(edit_card(pooling="context"), "does not match its card", id="other-pooling"),
        pytest.param(lose_the_head, "does not match its card: head.linear.bias", id="no-head"),
        pytest.param(another_head, "heads.safetensors: .* size mismatch", id="other-head"),
        pytest.param(drop("heads.safetensors"), "heads.safetensors", id="no-heads"),
        pytest.param(cut_heads, "heads.safetensors", id="cut-heads"),
        pytest.param(drop("model.safetensors"), "no file named model.safetensors", id="no-weights"),
        pytest.param(drop("config.json"), "config.json", id="no-config"),
    ],
)
def test_folders_that_are_refused(saved, spoil, words):
    spoil(saved)
    with pytest.raises(StudentSourceError, match=words) as caught:
        load_saved_student(saved)
    assert "\n" not in str(caught.value)
    assert str(saved) in str(caught.value)


def lose_the_last_layer(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["classifier.bias"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def two_labels(folder: Path) -> None:
    file = folder / "config.json"
    labels = {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}
    file.write_text(json.dumps(json.loads(file.read_text()) | labels))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(lose_the_last_layer, "the weights lack classifier.bias", id="no-layer"),
        pytest.param(two_labels, "has 2 labels, and its card 3", id="other-labels"),
        pytest.param(edit_card(pooling="mean"), "does not match its card", id="other-pooling"),
    ],
)
def test_classifiers_that_are_refused(saved_classifier, spoil, words):
    spoil(saved_classifier)
    with pytest.raises(StudentSourceError, match=words) as caught:
        load_saved_student(saved_classifier)
    assert "\n" not in str(caught.value)
    assert str(saved_classifier) in str(caught.value)


def test_a_folder_of_transformers_is_not_one_of_armada(checkpoint, tmp_path):
    shutil.copytree(checkpoint("bert"), tmp_path / "plain")
    with pytest.raises(StudentSourceError, match="name a folder that `distill` wrote"):
        load_saved_student(tmp_path / "plain")
