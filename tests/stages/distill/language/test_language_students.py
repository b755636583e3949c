"""Students that are language models, from nothing."""

import pytest
import torch
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.jobs import make
from armada.stages.corpus.labels import NO_LABELS
from armada.stages.distill.language.source import load_language_student
from tiny_language_models import TEXTS

KEYS = {"task": "language", "objective": "undistilled", "train": "-", "text_column": "text"}


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_a_family_with_dropout_of_its_own_can_be_a_student(family: str) -> None:
    """Its logits are compared without it, and it is there again in training."""
    keys = {"student": f"scratch:{family}", "student_hidden_size": 16, "output": "-"}
    job = make(DistillJob, KEYS | keys)
    student, _ = load_language_student(job, job, NO_LABELS, TEXTS, dropout=0.1)
    ids = torch.arange(8)[None]
    mask = torch.ones_like(ids)
    draws = {student(ids, mask).sum().item() for _ in range(2)}
    assert len(draws) == (1 if family == "llama" else 2)
