"""What a student is loaded from, and what is refused with one line."""

import shutil
from pathlib import Path

import pytest
import torch
from armada.cache_schemas.errors import StudentSourceError
from armada.stages.corpus.labels import NO_LABELS
from armada.stages.distill.settings import StudentSettings
from armada.stages.distill.student import is_decoder
from armada.stages.distill.student_models import load_backbone
from armada.stages.distill.student_source import load_student
from safetensors.torch import load_file, save_file
from tiny_checkpoints import make_bert_classifier
from tiny_runs import NUMBERS, TEXTS, TWO_CLASSES, load, outputs
from unprivileged import unprivileged


@pytest.fixture
def copy(checkpoint, tmp_path: Path) -> Path:
    """A BERT folder to spoil."""
    return Path(shutil.copytree(checkpoint("bert"), tmp_path / "student"))


def test_weights_are_those_of_the_folder_in_float32(copy):
    file = copy / "model.safetensors"
    halves = {name: tensor.half() for name, tensor in load_file(file).items()}
    save_file(halves, file, metadata={"format": "pt"})
    student, _ = load(copy)
    for name, tensor in student.backbone.state_dict().items():
        torch.testing.assert_close(tensor, halves[name].float(), rtol=0, atol=0)


def test_the_body_of_a_classifier_is_a_student(tmp_path):
    folder = make_bert_classifier(tmp_path / "classifier", TEXTS, ("a", "b"))
    student, _ = load(folder)
    saved = load_file(folder / "model.safetensors")
    for name, tensor in student.backbone.state_dict().items():
        torch.testing.assert_close(tensor, saved[f"bert.{name}"], rtol=0, atol=0)


def test_a_tokenizer_without_padding_pads_with_the_end(checkpoint):
    _, tokenizer = load(checkpoint("llama"))
    assert tokenizer.pad_token == tokenizer.eos_token == "</s>"


@pytest.mark.parametrize(
    ("kind", "decoder"),
    [("bert", False), ("deberta", False), ("fnet", False), ("opt", True), ("llama", True)],
)
def test_decoders_are_told_from_encoders(checkpoint, kind, decoder):
    assert is_decoder(load_backbone(checkpoint(kind)).config) == decoder


def test_a_regression_has_one_number_that_is_not_negative(checkpoint):
    torch.manual_seed(3)
    student, tokenizer = load_student(
        StudentSettings(student=str(checkpoint("bert"))), NUMBERS, [], 0.1
    )
    _, output = outputs(student, tokenizer)
    assert output.shape == (5, 1)
    assert (output >= 0).all()


def test_a_pooler_that_the_checkpoint_lacks_is_drawn(copy):
    """As in checkpoints of masked language models."""
    file = copy / "model.safetensors"
    kept = {n: t for n, t in load_file(file).items() if not n.startswith("pooler.")}
    save_file(kept, file, metadata={"format": "pt"})
    student, _ = load(copy)
    assert student.pooling == "own"
    assert student.backbone.pooler.dense.weight.std() > 0


# --- what is refused


def drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def make_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def drop_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def spoil_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "no-such-model"}')


def drop_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])


def lose_a_layer(folder: Path) -> None:
    file = folder / "model.safetensors"
    kept = {n: t for n, t in load_file(file).items() if not n.startswith("encoder.layer.1.")}
    save_file(kept, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (drop_weights, r"holds no \*.safetensors weights"),
        (pickle_weights, r"weights are pickled \(pytorch_model.bin\)"),
        (make_adapter, "holds an adapter; merge it"),
        (drop_config, "holds no config.json"),
        (spoil_config, "no-such-model"),
        (drop_tokenizer, "tokenizer"),
        (cut_weights, "student .*: "),
        (lose_a_layer, "the weights lack encoder.layer.1."),
    ],
)
def test_folders_that_are_refused(copy, spoil, words):
    spoil(copy)
    with pytest.raises(StudentSourceError, match=words) as caught:
        load(copy)
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value)


def test_weights_that_may_not_be_read_are_not_called_missing(copy):
    (copy / "model.safetensors").chmod(0)
    with (
        unprivileged(),
        pytest.raises(StudentSourceError, match=r"model\.safetensors is not readable for you"),
    ):
        load(copy)


@pytest.mark.parametrize("source", ["t5", "scratch:t5", "scratch:bart"])
def test_encoder_decoders_are_refused(checkpoint, source):
    source = source if source.startswith("scratch") else checkpoint(source)
    with pytest.raises(StudentSourceError, match="is an encoder-decoder"):
        load(source)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"student": "scratch:bertt"}, "scratch:bertt: is not a model type"),
        ({"student": "scratch:vit"}, "scratch:vit: "),
        ({"student": "scratch:bert", "student_heads": 3}, "is not a multiple of student_heads 3"),
        ({"student": "./no/such/folder"}, "no such folder"),
        ({"student": str(Path(__file__))}, "is a file; name the folder"),
    ],
    ids=["unknown-type", "no-words", "heads", "no-folder", "file"],
)
def test_sources_that_are_refused(settings, words):
    with pytest.raises(StudentSourceError, match=words) as caught:
        load(settings.pop("student"), **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("space", [NO_LABELS, NUMBERS, TWO_CLASSES], ids=lambda space: space.task)
def test_a_student_that_heeds_padding_is_told_so_with_the_difference(checkpoint, space, caplog):
    torch.manual_seed(0)
    settings = StudentSettings(student=str(checkpoint("fnet")))
    student, tokenizer = load_student(settings, space, [], 0.1)
    (told,) = [line.getMessage() for line in caplog.records]
    assert "a fnet depends on padding" in told
    assert "\n" not in told
    # By the tokenizer's own padding.
    model = student.eval()
    alone = tokenizer("a b c d e", return_tensors="pt")
    width = alone["input_ids"].shape[1] + 3
    padded = tokenizer("a b c d e", padding="max_length", max_length=width, return_tensors="pt")
    with torch.no_grad():
        found, wanted = (
            model(each["input_ids"], each["input_ids"] != tokenizer.pad_token_id)[0]
            for each in (padded, alone)
        )
    part = ((found - wanted).abs().max() / wanted.abs().max()).item()
    assert part > 0.001
    assert f"differ by {part:.1%}" in told


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "deberta", "opt", "llama"])
@pytest.mark.parametrize("space", [NO_LABELS, TWO_CLASSES], ids=lambda space: space.task)
def test_a_student_that_masks_padding_is_not_warned_of(checkpoint, kind, space, caplog):
    load_student(StudentSettings(student=str(checkpoint(kind))), space, [], 0.1)
    assert not [line for line in caplog.records if "padded" in line.getMessage()]
