"""Attention with masks that the batch's maker told of: states are those that transformers makes
from the numbers themselves, and nothing is read back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armada.stages.corpus.labels import NO_LABELS
from armada.stages.distill.language.batches import pack
from armada.stages.distill.language.student import LanguageStudent
from armada.stages.distill.tokens import encode
from armada.stages.language.masks import needs_mask
from armada.stages.language.recipe import Recipe
from armada.stages.language.tokens import encode_texts
from host_reads import HostReads
from tiny_language_models import FAMILIES, make_causal_lm
from tiny_runs import TEXTS, load
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

ENCODERS = ("bert", "roberta", "distilbert", "deberta", "opt", "llama")
WINDOW = 6
"""Tokens that Gemma's layers of local attention see, fewer than texts have."""


def both_ways(forward: Callable[..., Tensor], batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """States as transformers masks them, and as told, which nothing is read for."""
    masked = needs_mask(batch)
    with torch.no_grad():
        asked = forward(**batch, masked=None)
        with HostReads() as reads:
            reads.watching = True
            told = forward(**batch, masked=masked)
    assert reads.found == {}
    return asked, told


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("family", ENCODERS)
def test_a_student_of_texts_is_bit_for_bit_the_same(
    family: str, padded: bool, checkpoint: Callable[[str], Path]
) -> None:
    student, tokenizer = load(checkpoint(family))
    chosen = np.arange(5) if padded else np.array([3, 3])
    batch = encode(tokenizer, [(text,) for text in TEXTS[:5]], 32).pad(chosen)
    assert needs_mask(batch) == padded
    student.eval()
    asked, told = both_ways(lambda **each: student(**each)[0], batch)
    assert torch.equal(asked, told)


@pytest.mark.parametrize("rows", [(0, 1, 2), (1,)])
@pytest.mark.parametrize("packing", ["none", "concat", "document_mask"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_language_student_is_bit_for_bit_the_same(
    family: str, packing: Any, rows: tuple[int, ...], tmp_path: Path
) -> None:
    local = {"sliding_window": WINDOW} if family == "gemma2" else {}
    make_causal_lm(tmp_path, family, texts=TEXTS, seed=2, **local)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    texts = encode_texts(tokenizer, Recipe(), [(text,) for text in TEXTS], 96)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    student = LanguageStudent(model, NO_LABELS, dropout=0.0).eval()
    batch = pack(texts, packing, 96, 0).pad(np.array(rows))
    seen = ("input_ids", "attention_mask", "position_ids")
    batch = {name: batch[name] for name in seen if name in batch}
    if family == "opt" and packing == "document_mask":
        return  # refused: it takes no notice of positions
    asked, told = both_ways(student, batch)
    assert torch.equal(asked, told)


def test_rows_of_one_text_without_padding_need_no_mask() -> None:
    positions = torch.tensor([[0, 1, 2], [0, 1, 2]])
    assert not needs_mask({"position_ids": positions})
    assert needs_mask({"position_ids": torch.tensor([[0, 1, 2], [0, 1, 0]])})
    assert not needs_mask({"attention_mask": torch.ones(2, 3)})
    assert needs_mask({"attention_mask": torch.tensor([[1, 1], [0, 1]])})
