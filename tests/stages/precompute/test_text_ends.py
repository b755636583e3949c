"""Where a classifier teacher finds the end of a text: by the mask, whatever tokens are there.

By a second route: the family's transformer on one text without padding, and its last layer on the
state of the last token.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import TeacherSourceError
from armada.cache_schemas.keys import example_key
from armada.stages.precompute.teachers.base import Example
from armada.stages.precompute.teachers.classifier import ClassifierOptions, ClassifierTeacher
from tiny_checkpoints import POSITIONS, SPREAD, make_byte_tokenizer, make_tokenizer, save_quietly
from transformers import AutoModelForSequenceClassification, AutoTokenizer

TEXTS = (
    "a ferry leaves at noon",
    "rain",
    "the old Harbour clock is late again and nobody minds, least of all the gulls",
    "late ferry, long queue, cold tea",
)
LLAMA = {"num_key_value_heads": 2, "intermediate_size": 64}
FAMILIES = {
    "gpt2": ("GPT2", {"initializer_range": SPREAD}),
    "opt": ("OPT", {"ffn_dim": 64, "word_embed_proj_dim": 16, "init_std": SPREAD}),
    "llama": ("Llama", {**LLAMA, "initializer_range": SPREAD}),
    "qwen3": ("Qwen3", {**LLAMA, "head_dim": 8, "initializer_range": SPREAD}),
}


def make(folder: Path, family: str, tokenizer: Any, **more: Any) -> Path:
    """A decoder classifier for three classes."""
    import transformers

    name, settings = FAMILIES[family]
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = getattr(transformers, f"{name}Config")(**sizes | settings | more, num_labels=3)
    return save(folder, config, tokenizer)


def save(folder: Path, config: Any, tokenizer: Any) -> Path:
    torch.manual_seed(0)
    save_quietly(AutoModelForSequenceClassification.from_config(config), folder)
    tokenizer.save_pretrained(folder)
    return folder


def ask(folder: Path, texts: tuple[str, ...] = TEXTS, **options: Any) -> dict[str, np.ndarray]:
    """The features of texts, asked all at once, each then asked alone and found to be the same."""
    teacher = ClassifierTeacher(str(folder), ClassifierOptions(**options), torch.device("cpu"))
    teacher.load()
    examples = [Example(example_key((text,)), (text,)) for text in texts]
    with torch.inference_mode():
        together = teacher.encode(examples).features
        alone = [teacher.encode([example]).features for example in examples]
    for name, rows in together.items():
        np.testing.assert_allclose(rows, np.concatenate([one[name] for one in alone]), atol=1e-5)
    return dict(together)


def of_last_tokens(folder: Path, texts: tuple[str, ...] = TEXTS) -> tuple[np.ndarray, np.ndarray]:
    """Logits and pooled states, from the transformer alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        states = [
            model.base_model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1]
            for text in texts
        ]
        pooled = torch.stack(states)
        return model.score(pooled).numpy(), pooled.numpy()


@pytest.mark.parametrize("pad", [None, "</s>", "<pad>"])
@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_decoder_is_read_at_its_last_token(tmp_path, family, ends, pad):
    tokenizer = make_byte_tokenizer(TEXTS, bos="<s>", eos="</s>", pad=pad, ends=ends)
    folder = make(tmp_path / family, family, tokenizer)
    answers = ask(folder, pooled=True)
    logits, pooled = of_last_tokens(folder)
    np.testing.assert_allclose(answers["logits"], logits, atol=1e-5)
    np.testing.assert_allclose(answers["pooled"], pooled, atol=1e-5)
    assert logits.std(0).min() > 0.01


def test_padding_that_only_the_configuration_names_is_left_alone(tmp_path):
    tokenizer = make_byte_tokenizer(TEXTS, bos="<s>", eos="</s>", pad=None, ends=True)
    folder = make(tmp_path / "llama", "llama", tokenizer, pad_token_id=7)
    teacher = ClassifierTeacher(str(folder), ClassifierOptions(), torch.device("cpu"))
    teacher.load()
    assert teacher._model.config.pad_token_id == 7
    np.testing.assert_allclose(ask(folder)["logits"], of_last_tokens(folder)[0], atol=1e-5)


def test_answers_that_were_read_a_token_early_are_another_teacher_s(tmp_path):
    """Only where that could be: other caches stay what they are."""

    def settings(name: str, **tokenizer: Any) -> Any:
        made = make_byte_tokenizer(TEXTS, bos="<s>", eos="</s>", **tokenizer)
        folder = make(tmp_path / name, "llama", made)
        options = ClassifierOptions()
        return ClassifierTeacher(str(folder), options, torch.device("cpu")).spec.settings

    assert settings("a", pad="</s>", ends=True)["text_end"] == "mask"
    assert "text_end" not in settings("b", pad="<pad>", ends=True)
    assert "text_end" not in settings("c", pad="</s>", ends=False)


def test_a_classifier_that_reads_the_last_place_is_padded_on_its_left(tmp_path):
    from transformers import XLNetConfig

    tokenizer = make_tokenizer(TEXTS, padding_side="left")
    config = XLNetConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        n_layer=2,
        n_head=4,
        d_inner=64,
        initializer_range=SPREAD,
        num_labels=3,
    )
    folder = save(tmp_path / "xlnet", config, tokenizer)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        expected = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in TEXTS]
    np.testing.assert_allclose(ask(folder)["logits"], torch.stack(expected), atol=1e-5)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_a_text_that_names_the_end_of_sequence_stands_beside_others(tmp_path, family):
    """transformers wants as many ends in every row of a batch."""
    from transformers import BartConfig, T5Config

    tokenizer = make_byte_tokenizer(TEXTS, bos="<s>", eos="</s>", pad="<pad>", ends=True)
    ids = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "decoder_start_token_id": tokenizer.eos_token_id,
        "num_labels": 3,
    }
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 32, "init_std": SPREAD}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = (
        BartConfig(**ids, **sizes, **heads, encoder_ffn_dim=32, decoder_ffn_dim=32)
        if family == "bart"
        else T5Config(**ids, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
    )
    folder = save(tmp_path / family, config, tokenizer)
    texts = (*TEXTS, "one </s> two", "one </s> two </s> three")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        expected = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
    np.testing.assert_allclose(ask(folder, texts)["logits"], torch.stack(expected), atol=1e-5)


# --- a run's folder


def test_a_run_stands_for_its_student(tmp_path):
    tokenizer = make_byte_tokenizer(TEXTS, bos="<s>", eos="</s>", pad="<pad>")
    student = make(tmp_path / "run" / "student", "llama", tokenizer)
    one, other = (
        ClassifierTeacher(str(folder), ClassifierOptions(), torch.device("cpu"))
        for folder in (student, tmp_path / "run")
    )
    assert one.spec.fingerprint == other.spec.fingerprint
    make(tmp_path / "runs" / "seed-0" / "student", "llama", tokenizer)
    with pytest.raises(TeacherSourceError, match=r"students of several seeds; name one: .*seed-0$"):
        ClassifierTeacher(str(tmp_path / "runs"), ClassifierOptions(), torch.device("cpu"))
