"""Students that keep some layers of a checkpoint, and students from nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import StudentSourceError
from armada.stages.distill.scratch import train_tokenizer
from armada.stages.distill.student import keep_layers
from armada.stages.distill.student_models import load_backbone
from armada.stages.distill.tokens import encode
from safetensors.torch import load_file
from tiny_checkpoints import make_bert
from tiny_runs import TEXTS, load, outputs
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
)

pytestmark = pytest.mark.long

SCRATCH = ["bert", "roberta", "distilbert", "electra", "deberta-v2", "opt", "llama", "gpt2"]


@pytest.fixture(scope="module")
def five_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("five"), TEXTS, layers=5)


def logits(folder: Path, tokenizer: Any) -> torch.Tensor:
    """Those of the first five texts, by the class that a folder's configuration names."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch = encode(tokenizer, [(text,) for text in TEXTS[:5]], 32).pad(np.arange(5))
    with torch.no_grad():
        return model(**batch).logits


# --- layers


@pytest.mark.parametrize(
    ("count", "choice", "kept"),
    [
        (1, "first", [0]),
        (3, "first", [0, 1, 2]),
        (1, "every", [0]),
        (2, "every", [0, 4]),
        (3, "every", [0, 2, 4]),
        (5, "every", [0, 1, 2, 3, 4]),
    ],
)
def test_kept_layers_are_those_of_the_checkpoint(five_layers, tmp_path, count, choice, kept):
    student, tokenizer = load(five_layers, student_layers=count, student_layer_choice=choice)
    weights = load_file(five_layers / "model.safetensors")
    ours = student.backbone.state_dict()
    assert sum(name.endswith("attention.self.query.weight") for name in ours) == count
    for new, old in enumerate(kept):
        for name in (n for n in ours if n.startswith(f"encoder.layer.{new}.")):
            source = name.replace(f"layer.{new}.", f"layer.{old}.", 1)
            torch.testing.assert_close(ours[name], weights[source], rtol=0, atol=0)
    # A folder of it is a model of so many layers, and the same one.
    student.backbone.save_pretrained(tmp_path)
    reopened = AutoModel.from_pretrained(tmp_path).eval()
    assert reopened.config.num_hidden_layers == count
    batch = encode(tokenizer, [(text,) for text in TEXTS[:5]], 32).pad(np.arange(5))
    with torch.no_grad():
        expected = reopened(**batch).pooler_output
    torch.testing.assert_close(outputs(student, tokenizer)[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "deberta", "opt", "llama"])
@pytest.mark.parametrize("choice", ["first", "every"])
def test_every_family_can_lose_layers(checkpoint, tmp_path, kind, choice):
    student, tokenizer = load(checkpoint(kind), student_layers=1, student_layer_choice=choice)
    whole = load_backbone(checkpoint(kind))
    assert student.backbone.num_parameters() < whole.num_parameters()
    student.model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(tmp_path, tokenizer), outputs(student, tokenizer)[1])


def test_twelve_layers_become_six():
    sizes = {"vocab_size": 20, "hidden_size": 4, "num_attention_heads": 1, "intermediate_size": 4}
    backbone = BertModel(BertConfig(num_hidden_layers=12, **sizes))
    layers = list(backbone.encoder.layer)
    assert keep_layers(backbone, 6, "every") is None
    assert [layers.index(layer) for layer in backbone.encoder.layer] == [0, 2, 4, 7, 9, 11]


def test_too_many_layers(five_layers):
    with pytest.raises(StudentSourceError, match="student_layers 6: the checkpoint has 5 layers"):
        load(five_layers, student_layers=6)


# --- from random weights


@pytest.mark.parametrize("kind", SCRATCH)
def test_scratch(tmp_path, kind):
    student, tokenizer = load(
        f"scratch:{kind}", student_layers=3, student_hidden_size=16, student_vocab_size=200
    )
    config = student.backbone.config
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == (kind, 3, 16)
    assert config.num_attention_heads == 2
    assert config.vocab_size == len(tokenizer) <= 200
    assert config.pad_token_id == tokenizer.pad_token_id
    pooled, output = outputs(student, tokenizer)
    assert (pooled.shape, output.shape) == ((5, 16), (5, 3))
    assert (pooled[0] - pooled[1]).abs().max() > 1e-5
    student.train()
    batch = encode(tokenizer, [(text,) for text in TEXTS[:5]], 32).pad(np.arange(5))
    student(**batch)[1].sum().backward()  # trains
    student.model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(tmp_path, tokenizer), output)


def test_scratch_with_a_tokenizer_of_one_s_own(checkpoint):
    folder = checkpoint("bert")
    student, tokenizer = load("scratch:bert", student_tokenizer=str(folder), student_hidden_size=8)
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(folder).get_vocab()
    assert student.backbone.embeddings.word_embeddings.weight.shape == (len(tokenizer), 8)


def test_a_configuration_s_own_sizes_with_random_weights(checkpoint):
    folder = checkpoint("bert")
    student, tokenizer = load(folder, student_from_scratch=True, student_layers=3)
    assert len(student.backbone.encoder.layer) == 3
    assert student.dim == 32
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(folder).get_vocab()
    saved = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert not torch.equal(student.backbone.embeddings.word_embeddings.weight, saved)


def test_a_configuration_without_a_tokenizer_gets_a_vocabulary(checkpoint, tmp_path):
    shutil.copy(checkpoint("bert") / "config.json", tmp_path)
    student, tokenizer = load(tmp_path, student_from_scratch=True, student_vocab_size=90)
    assert student.backbone.config.vocab_size == len(tokenizer) <= 90
    outputs(student, tokenizer)


def test_a_trained_vocabulary_reads_pairs_as_bert_does():
    tokenizer = train_tokenizer(TEXTS, 200)
    encoded = tokenizer("The COOK", "a map", return_token_type_ids=True)
    text = tokenizer.decode(encoded["input_ids"])
    assert text.replace(" ", "") == "[CLS]thecook[SEP]amap[SEP]"
    second = encoded["input_ids"].index(tokenizer.sep_token_id) + 1
    assert encoded["token_type_ids"] == [0] * second + [1] * (len(encoded["input_ids"]) - second)


def test_a_vocabulary_is_the_same_in_two_processes():
    code = (
        "import json; from armada.stages.distill.scratch import train_tokenizer;"
        "from tiny_runs import TEXTS; print(json.dumps(train_tokenizer(TEXTS, 300).get_vocab()))"
    )
    # Neither the order of sets and dictionaries nor that of threads may matter.
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "TOKENIZERS_PARALLELISM": "true"}
    there = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        check=True,
    )
    assert json.loads(there.stdout) == train_tokenizer(TEXTS, 300).get_vocab()
