"""Texts in one row: kept apart they are what they are alone, joined they are not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from armada.cache_schemas.errors import StudentSourceError
from armada.stages.corpus.labels import NO_LABELS
from armada.stages.distill.language.batches import PackedTexts, pack
from armada.stages.distill.language.source import check_document_mask
from armada.stages.distill.language.student import LanguageStudent
from armada.stages.language.logits import isolates_packed_documents
from armada.stages.language.recipe import Recipe
from armada.stages.language.tokens import TokenTexts, encode_texts
from tiny_language_models import FAMILIES, make_causal_lm
from tiny_runs import TEXTS
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

disable_progress_bar()

LONGEST = 100
"""Tokens of a row; the texts have 9 to 32."""
FORGETFUL = ("opt", "bloom")
"""Families that take no notice of positions that begin again."""
APART = tuple(family for family in FAMILIES if family not in FORGETFUL)


def load(folder: Path, family: str) -> tuple[LanguageStudent, TokenTexts]:
    """A student in float64 and the texts as it reads them."""
    make_causal_lm(folder, family, texts=TEXTS, seed=2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    texts = encode_texts(tokenizer, Recipe(), [(text,) for text in TEXTS], LONGEST)
    return LanguageStudent(model, NO_LABELS, dropout=0.0).eval(), texts


@torch.no_grad()
def losses(student: LanguageStudent, rows: PackedTexts) -> Tensor:
    """The cross entropy of each text, all rows in one batch."""
    batch: dict[str, Any] = rows.pad(np.arange(len(rows)))
    seen = {name: batch[name] for name in ("attention_mask", "position_ids") if name in batch}
    states = student(batch["input_ids"], **seen).flatten(0, 1)[batch["predicted_at"]]
    weight, bias = student.head_weights
    logits = student.transform.apply_(F.linear(states, weight, bias))
    each = F.cross_entropy(logits, batch["targets"], reduction="none")
    texts = rows.packs.texts
    parts = each.split(rows.texts.predicted[texts].tolist())
    return torch.stack([part.sum() for part in parts])[np.argsort(texts)]


@pytest.mark.parametrize("family", APART)
def test_texts_apart_have_the_losses_that_they_have_alone(family: str, tmp_path: Path) -> None:
    """To rounding in float64; a text that sees others would differ in the first digit."""
    student, texts = load(tmp_path, family)
    alone = losses(student, pack(texts, "none", LONGEST, 0))
    rows = pack(texts, "document_mask", LONGEST, 0)
    assert len(rows) < len(texts) / 3
    torch.testing.assert_close(losses(student, rows), alone, rtol=1e-12, atol=0)
    assert isolates_packed_documents(student.language_model)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_texts_joined_see_those_before_them(family: str, tmp_path: Path) -> None:
    """The first of each row sees none, so it alone has the loss that it has alone."""
    student, texts = load(tmp_path, family)
    alone = losses(student, pack(texts, "none", LONGEST, 0))
    rows = pack(texts, "concat", LONGEST, 0)
    first = np.isin(np.arange(len(texts)), rows.packs.texts[rows.packs.offsets[:-1]])
    differ = ((losses(student, rows) - alone).abs() > 1e-9 * alone).numpy()
    assert (differ == ~first).all()


@pytest.mark.parametrize("family", FORGETFUL)
def test_a_student_that_cannot_keep_texts_apart_is_refused(family: str, tmp_path: Path) -> None:
    student, texts = load(tmp_path, family)
    alone = losses(student, pack(texts, "none", LONGEST, 0))
    found = losses(student, pack(texts, "document_mask", LONGEST, 0))
    assert not torch.allclose(found, alone, rtol=1e-3)
    name = {"opt": "OPTForCausalLM", "bloom": "BloomForCausalLM"}[family]
    with pytest.raises(StudentSourceError, match=f"packing document_mask: a {name} lets texts"):
        check_document_mask(student)
