"""Masked language models as teachers: what they predict, next to transformers itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import JobError, TeacherSourceError
from armada.cache_schemas.keys import example_key
from armada.stages.precompute.teachers.base import Answers, Example
from armada.stages.precompute.teachers.masked_lm import MaskedLMTeacher
from armada.stages.precompute.teachers.masked_lm_options import MaskedLMOptions
from armada.stages.store.codec.top_k import decode_top_k
from tiny_checkpoints import make_byte_tokenizer, make_t5
from tiny_language_models import make_causal_lm
from tiny_masked_models import FAMILIES, make_masked_lm
from transformers import AutoModelForMaskedLM

TEXTS = (
    "the red bird sings at dawn over the river",
    "two dogs run",
    "a cat",
    "rain [MASK] falls",
    "",
    "day and night " * 30,
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("masked")
    for family in FAMILIES:
        make_masked_lm(root / family, family, texts=TEXTS)
    return root


def make(folder: Path, **options: Any) -> MaskedLMTeacher:
    teacher = MaskedLMTeacher(str(folder), MaskedLMOptions(**options), CPU)
    teacher.load()
    return teacher


def encode(teacher: MaskedLMTeacher, texts: Sequence[str]) -> Answers:
    with torch.inference_mode():
        return teacher.encode([Example(example_key((text,)), (text,)) for text in texts])


@pytest.mark.parametrize("family", FAMILIES)
def test_its_log_probabilities_are_those_of_the_model(folders: Path, family: str) -> None:
    """Of the ids that it says it has read, one text at a time, without padding."""
    teacher = make(folders / family, dense=True, top_k=4, top_k_bits=16, masks_per_text=2)
    answers = encode(teacher, TEXTS)
    model = AutoModelForMaskedLM.from_pretrained(folders / family).eval()
    of = answers.features
    assert [len(rows) for rows in of["masked_ids"]] == [2, 2, 2, 2, 0, 18]
    assert answers.truncated.tolist() == [False] * 5 + [True]
    seen = 0
    for text in range(len(TEXTS)):
        for half in np.split(np.arange(len(of["masked_ids"][text])), 2):
            if not len(half):
                continue
            ids = torch.from_numpy(of["token_ids"][text].astype(np.int64))[None]
            at = torch.from_numpy(of["masked_positions"][text][half].astype(np.int64))
            ids[0, at] = torch.from_numpy(of["masked_ids"][text][half].astype(np.int64))
            with torch.no_grad():
                expected = model(input_ids=ids).logits[0, at].log_softmax(-1)
            found = torch.from_numpy(of["dense"][text][half])
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=3e-6)
            coding = teacher.spec.feature("top_k").coding
            decoded = decode_top_k(coding, of["top_k"][text][half], 1.0)
            best = expected.topk(4)
            assert np.array_equal(decoded.ids_Nk, best.indices.numpy())
            np.testing.assert_allclose(decoded.log_probs_Nk, best.values, atol=2e-3)
            seen += len(half)
    assert seen == 26


def test_a_batch_changes_no_bit(folders: Path) -> None:
    teacher = make(folders / "bert", dense=True, top_k=None)
    together = TEXTS[1:4]  # of one bucket
    whole = encode(teacher, together)
    for text, own in enumerate(together):
        alone = encode(teacher, [own])
        for name, rows in whole.features.items():
            assert np.array_equal(rows[text], alone.features[name][0])


def test_what_it_cannot_teach_is_refused(folders: Path, tmp_path: Path) -> None:
    def refused(folder: Path, error: type[Exception], **options: Any) -> str:
        with pytest.raises(error) as caught:
            make(folder, **options)
        line = str(caught.value)
        assert "\n" not in line
        return line

    bytewise = make_byte_tokenizer(TEXTS, bos="<s>", eos="</s>", pad=None)
    no_mask = make_masked_lm(tmp_path / "a", "bert", texts=TEXTS, tokenizer=bytewise)
    assert "its tokenizer has no mask token" in refused(no_mask, TeacherSourceError)
    causal = make_causal_lm(tmp_path / "b", "llama")
    assert "'llama' is not supported by AutoModelForMaskedLM" in refused(causal, TeacherSourceError)
    t5 = make_t5(tmp_path / "c", TEXTS)
    assert "is not supported by AutoModelForMaskedLM" in refused(t5, TeacherSourceError)
    bert = folders / "bert"
    assert "max_length 65: the model takes at most 64" in refused(bert, JobError, max_length=65)
    assert "top_k: 999 is above the tokenizer's vocabulary" in refused(bert, JobError, top_k=999)


def test_an_encoder_without_a_head_is_refused(folders: Path, tmp_path: Path) -> None:
    from armada.stages.distill.student_models import load_backbone
    from tiny_checkpoints import save_quietly
    from transformers import AutoTokenizer

    save_quietly(load_backbone(folders / "bert"), tmp_path / "encoder")
    AutoTokenizer.from_pretrained(folders / "bert").save_pretrained(tmp_path / "encoder")
    with pytest.raises(TeacherSourceError, match=r"the weights lack cls\.predictions"):
        make(tmp_path / "encoder")


def test_nothing_to_keep_is_refused() -> None:
    with pytest.raises(ValueError, match="top_k, dense: set at least one"):
        MaskedLMOptions(top_k=None)
