"""Students leave as their family's own sequence classifier: transformers' classes and its pipeline
give the logits that armada gives, of single texts and of padded batches."""

from pathlib import Path
from typing import Any

import armada
import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import StudentSourceError
from armada.stages.corpus.labels import LabelSpace
from armada.stages.distill.own_classifier import ADDED_PADDING
from armada.stages.distill.settings import StudentSettings
from armada.stages.distill.student import Student
from armada.stages.distill.student_source import load_student
from armada.stages.distill.tokens import encode
from saved_students import save_untrained
from tiny_checkpoints import make_byte_tokenizer, make_llama
from tiny_runs import NUMBERS, TEXTS, THREE_CLASSES, TWO_CLASSES
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

NAMED = LabelSpace(task="classification", num_labels=3, names=("bad", "fair", "good"))
ASKED = [*TEXTS[:5], "it", TEXTS[-1]]
"""Texts of different lengths."""

ANY_SIDE = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gpt_neox", "opt", "bloom", "eurobert"]
"""Families whose positions do not move when a text is padded on its left."""

FAMILIES = [
    *ANY_SIDE,
    *("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "deberta-v2", "modernbert"),
    *("electra", "albert", "mpnet", "xlnet", "xlm", "gpt2"),
]


def make(source: object, space: LabelSpace = NAMED, **settings: Any) -> tuple[Student, Any]:
    """A student whose weights are no one else's, and its tokenizer."""
    torch.manual_seed(0)
    small = {"student_hidden_size": 32, "student_heads": 4, "student_vocab_size": 200}
    chosen = StudentSettings(student=str(source), **small | settings)
    student, tokenizer = load_student(chosen, space, TEXTS, 0.1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return student.eval(), tokenizer


def one_by_one(student: Student, tokenizer: Any, texts: list[str] = ASKED) -> torch.Tensor:
    """A student's own answers, without padding."""
    tokens = encode(tokenizer, [(text,) for text in texts], 32)
    with torch.no_grad():
        return torch.cat([student(**tokens.pad(np.array([at])))[1] for at in range(len(texts))])


def library(folder: Path, side: str | None = None) -> torch.Tensor:
    """The logits of the class that the folder names, for one padded batch."""
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys"))
    assert model.config.architectures == [type(model).__name__]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(ASKED, padding=True, padding_side=side, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**batch).logits


def piped(folder: Path, batch_size: int) -> torch.Tensor:
    """What `pipeline` says of each class, in the order of the labels."""
    ask = pipeline("text-classification", str(folder), top_k=None)
    said = [
        {row["label"]: row["score"] for row in rows} for rows in ask(ASKED, batch_size=batch_size)
    ]
    return torch.tensor([[row[name] for name in NAMED.names] for row in said])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_library_gives_the_same_logits(tmp_path, family):
    student, tokenizer = make(f"scratch:{family}")
    expected = one_by_one(student, tokenizer)
    assert student.pooling == "own"
    assert expected.std(0).min() > 1e-4  # texts do differ
    folder = save_untrained(tmp_path / "student", student, tokenizer)
    for side in (None, "left") if family in ANY_SIDE else (None,):
        torch.testing.assert_close(library(folder, side), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(piped(folder, 3), expected.softmax(1), rtol=0, atol=1e-5)
    opened = armada.load_student(folder)
    with torch.no_grad():
        again = opened(**opened.encode(ASKED))
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-5)


def test_the_configuration_says_what_was_trained(tmp_path):
    folder = save_untrained(tmp_path / "student", *make("scratch:roberta"))
    config = AutoModelForSequenceClassification.from_pretrained(folder).config
    assert config.architectures == ["RobertaForSequenceClassification"]
    assert config.id2label == {0: "bad", 1: "fair", 2: "good"}
    assert config.label2id == {"bad": 0, "fair": 1, "good": 2}
    assert config.problem_type == "single_label_classification"
    assert config.classifier_dropout == 0.1
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 32


def test_a_regression_is_one_in_the_library_as_well(tmp_path):
    """ReLU, which no class of the library has, is left to whoever reads the score."""
    student, tokenizer = make("scratch:bert", NUMBERS)
    expected = one_by_one(student, tokenizer)
    folder = save_untrained(tmp_path / "student", student, tokenizer)
    score = library(folder)
    assert (score < 0).any() or (score > 0).any()
    torch.testing.assert_close(score.clamp(min=0), expected, rtol=0, atol=1e-5)
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.problem_type == (
        "regression"
    )
    ask = pipeline("text-classification", str(folder))
    said = torch.tensor([[row["score"]] for row in ask(ASKED)])
    torch.testing.assert_close(said, score, rtol=0, atol=1e-5)


# --- texts that end with the token that tokenizers pad with


@pytest.mark.parametrize("pad", [None, "</s>"])
@pytest.mark.parametrize("bos", ["<s>", "</s>"])
def test_a_text_that_ends_with_padding_is_read_to_its_end(tmp_path, pad, bos):
    source = make_llama(tmp_path / "source", TEXTS)
    ends = make_byte_tokenizer(TEXTS, bos=bos, eos="</s>", pad=pad, ends=True)
    ends.save_pretrained(source)
    student, tokenizer = make(source)
    expected = one_by_one(student, tokenizer)
    last = encode(tokenizer, [(ASKED[0],)], 32).pad(np.array([0]))["input_ids"][0, -1]
    assert last == tokenizer.eos_token_id != tokenizer.pad_token_id
    folder = save_untrained(tmp_path / "student", student, tokenizer)
    for side in ("right", "left"):
        torch.testing.assert_close(library(folder, side), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(piped(folder, 3), expected.softmax(1), rtol=0, atol=1e-5)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert tokenizer.pad_token == (ADDED_PADDING if bos == "</s>" else "<s>")
    assert tokenizer.pad_token_id < model.get_input_embeddings().weight.shape[0]


# --- where a student begins


def test_the_last_layer_is_drawn_as_the_method_does(tmp_path):
    torch.manual_seed(0)
    settings = StudentSettings(student="scratch:bert", student_hidden_size=256)
    student, _ = load_student(
        settings, LabelSpace(task="classification", num_labels=50), TEXTS, 0.1
    )
    assert student.last_layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not student.last_layer.bias.any()


def test_a_classifier_s_last_layer_is_drawn_anew_and_the_rest_of_it_kept(tmp_path):
    first = save_untrained(tmp_path / "first", *make("scratch:roberta", TWO_CLASSES))
    expected = AutoModelForSequenceClassification.from_pretrained(first).state_dict()
    for space in (TWO_CLASSES, THREE_CLASSES):
        student, _ = load_student(StudentSettings(student=str(first)), space, [], 0.1)
        found = student.model.state_dict()
        same = {n for n in found if torch.equal(found[n], expected.get(n, torch.empty(0)))}
        assert found.keys() - same == {"classifier.out_proj.weight", "classifier.out_proj.bias"}


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_dropout_in_training_is_that_of_the_job(family):
    """Where the family has none before its last layer, it is added."""
    student, tokenizer = make(f"scratch:{family}")
    batch = encode(tokenizer, [(text,) for text in ASKED], 32).pad(np.arange(len(ASKED)))
    for module in student.backbone.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    student.train()
    pooled, output = student(**batch)
    torch.testing.assert_close(pooled, student.eval()(**batch)[0], rtol=0, atol=1e-5)
    assert (output - student(**batch)[1]).abs().max() > 1e-3


def test_families_without_a_classifier_are_pooled(tmp_path):
    student, _ = make("scratch:cohere")  # a decoder that the library has no class for
    assert student.pooling == "last"
    with pytest.raises(StudentSourceError, match=r"pooling 'own': .* for cohere"):
        make("scratch:cohere", pooling="own")
