"""Texts of like length are read together, and are the same as read all at once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armada.stages.corpus.labels import NO_LABELS
from armada.stages.distill.embedding.export import save_embedding_student
from armada.stages.distill.embedding.model import EmbeddingModel, parts_by_length
from armada.stages.distill.embedding.student import EmbeddingSettings, EmbeddingStudent
from armada.stages.distill.export import StudentCard
from armada.stages.distill.objectives import OBJECTIVES
from armada.stages.distill.objectives.base import Sizes
from armada.stages.distill.settings import StudentSettings
from armada.stages.distill.student_source import load_student
from armada.stages.distill.tokens import encode
from tiny_embeddings import encode as by_sentence_transformers

TEXTS = 4 * [
    "a sailor",
    "the cook mended it " * 9,
    "my aunt",
    "one old clerk " * 3,
    "it",
    "it " * 30,
]


def test_parts_are_those_that_cost_least() -> None:
    """One long text among short ones; equal lengths; a single text."""
    long = np.array([8] * 31 + [500])
    parts = parts_by_length(long)
    assert sorted(np.concatenate(parts).tolist()) == list(range(32))
    assert sum(len(rows) * long[rows].max() for rows in parts) < 0.2 * 32 * 500
    assert len(parts_by_length(np.full(32, 16))) == 1
    assert [rows.tolist() for rows in parts_by_length(np.array([7]))] == [[0]]


@pytest.mark.parametrize(
    ("kind", "sides"), [("bert", ["right"]), ("opt", ["right", "left"]), ("llama", ["right"])]
)
def test_embeddings_and_gradients_are_the_same(
    checkpoint: Any, kind: str, sides: list[str]
) -> None:
    """On the side on which padding changes nothing."""
    settings = StudentSettings(student=str(checkpoint(kind)))
    inner, tokenizer = load_student(settings, NO_LABELS, [], 0.0, embeds=True)
    for side in sides:
        tokenizer.padding_side = side
        tokens = encode(tokenizer, [(text,) for text in TEXTS], 32)
        lengths = np.diff(tokens.offsets)
        assert len(parts_by_length(lengths)) > 1
        contrastive = OBJECTIVES.load("contrastive")
        student = EmbeddingStudent(inner, None, True).double().eval()
        objective = contrastive(contrastive.Options(), Sizes(student.dim, 1, False, None))
        model = EmbeddingModel(student, objective).eval()
        batch = tokens.pad(np.arange(len(TEXTS)))
        inputs = (batch["input_ids"], batch["attention_mask"], batch.get("token_type_ids"))
        found = []
        for given in (None, lengths):
            student.zero_grad()
            embeddings = model._embedded(student, inputs, given, True)
            (embeddings * torch.arange(embeddings.numel()).view_as(embeddings)).sum().backward()
            grads = [p.grad.clone() for p in student.parameters() if p.grad is not None]
            found.append((embeddings.detach(), grads))
        torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-8, atol=1e-9)
        for one, other in zip(found[0][1], found[1][1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_a_text_without_tokens_is_zeros_as_in_the_folder_of_a_static_student(
    checkpoint: Any, tmp_path: Path
) -> None:
    start = StudentSettings(student=f"static:{checkpoint('bert')}", static_dim=5)
    inner, tokenizer = load_student(start, NO_LABELS, [], 0.0, embeds=True)
    student = EmbeddingStudent(inner, 7, normalize=False).eval()
    assert student.dense is not None
    torch.nn.init.normal_(student.dense.bias)
    settings = EmbeddingSettings(embedding_dim=7, has_dense=True, normalize=False)
    card = StudentCard(
        **{"space": NO_LABELS, "pooling": "mean", "dropout": 0.0, "max_length": 32},
        **{"text_columns": ("text",), "label_column": None, "metric": "loss"},
        embedding=settings,
    )
    save_embedding_student(tmp_path, student, tokenizer, None, card)
    tokens = encode(tokenizer, [(text,) for text in ("", *TEXTS)], 32)
    with torch.no_grad():
        batch = tokens.pad(np.arange(len(TEXTS) + 1))
        found = student(batch["input_ids"], batch["attention_mask"])[0].numpy()
    assert not found[0].any()
    assert found[1:].any(axis=1).all()
    np.testing.assert_allclose(found, by_sentence_transformers(tmp_path, ["", *TEXTS]), atol=1e-6)
