"""A text teacher begins a batch without waiting for its device: watched on a CPU, operation by
operation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from armada.cache_schemas.keys import example_key
from armada.stages.precompute.teachers.base import Example
from armada.stages.precompute.teachers.causal_lm import CausalLMTeacher
from armada.stages.precompute.teachers.causal_options import CausalLMOptions
from armada.stages.precompute.teachers.classifier import ClassifierOptions, ClassifierTeacher
from armada.stages.precompute.teachers.encoder import EncoderOptions, EncoderTeacher
from armada.stages.precompute.teachers.open_clip import OpenClipOptions, OpenClipTeacher
from host_reads import HostReads
from tiny_checkpoints import (
    make_bert,
    make_bert_classifier,
    make_distilbert,
    make_open_clip,
    make_roberta,
)
from tiny_language_models import make_causal_lm

TEXTS = ["a red bird", "two dogs play in the rain and run", "a cat sleeps on the warm stone wall"]
FULL = [" ".join(["rain"] * 40)] * 2
"""Cut to the same length: no padding."""


def teacher_of(kind: str, folder: Path) -> Any:
    device = torch.device("cpu")
    if kind in ("llama", "opt", "gpt2"):
        options = CausalLMOptions(top_k=4, samples=3, hidden_layers=(1,), max_length=16)
        return CausalLMTeacher(str(make_causal_lm(folder, kind)), options, device)
    if kind == "classifier":
        made = make_bert_classifier(folder, TEXTS, ["no", "yes"])
        return ClassifierTeacher(str(made), ClassifierOptions(max_length=16), device)
    if kind == "clip":
        return OpenClipTeacher(str(make_open_clip(folder / "clip")), OpenClipOptions(), device)
    make = {"bert": make_bert, "roberta": make_roberta, "distilbert": make_distilbert}[kind]
    options = EncoderOptions(pooling="mean", normalize=True, max_length=16)
    return EncoderTeacher(str(make(folder, TEXTS)), options, device)


@pytest.mark.parametrize(
    "kind", ["bert", "roberta", "distilbert", "classifier", "llama", "opt", "gpt2", "clip"]
)
@pytest.mark.parametrize("texts", [TEXTS, FULL], ids=["padded", "full"])
def test_a_batch_begins_without_a_read(kind: str, texts: list[str], tmp_path: Path) -> None:
    teacher = teacher_of(kind, tmp_path)
    teacher.load()
    examples = [Example(example_key((text,)), (text,)) for text in texts]
    batch = teacher.prepare(examples)
    reads = HostReads()
    with torch.inference_mode(), reads:
        reads.watching = True
        outputs = teacher.start(batch)
        reads.watching = False
        answers = outputs()
    assert not reads.found
    assert len(answers.truncated) == len(texts)
