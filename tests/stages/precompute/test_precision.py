"""What `dtype=auto` means: the checkpoint's own on a GPU, float32 on a CPU. Teachers are made,
which asks no device for anything, and not loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from armada.stages.precompute.teachers.base import PrecisionOptions
from armada.stages.precompute.teachers.causal_lm import CausalLMTeacher
from armada.stages.precompute.teachers.causal_options import CausalLMOptions
from armada.stages.precompute.teachers.encoder import EncoderOptions, EncoderTeacher
from tiny_checkpoints import make_bert
from tiny_language_models import make_causal_lm
from transformers import AutoModel, AutoModelForCausalLM

DEVICES = ["cpu", "cuda", "mps", "xpu"]


def saved_in(folder: Path, auto: Any, dtype: torch.dtype) -> str:
    auto.from_pretrained(folder, dtype=dtype).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_auto(device: str, dtype: torch.dtype, tmp_path: Path) -> None:
    encoder = saved_in(make_bert(tmp_path / "one", ["a b c"]), AutoModel, dtype)
    causal = saved_in(make_causal_lm(tmp_path / "two", "llama"), AutoModelForCausalLM, dtype)
    teachers = (
        EncoderTeacher(encoder, EncoderOptions(), torch.device(device)),
        CausalLMTeacher(causal, CausalLMOptions(), torch.device(device)),
    )
    own = "float32" if device == "cpu" else str(dtype).removeprefix("torch.")
    for teacher in teachers:
        assert teacher.spec.settings["dtype"] == own
        stored = "float32" if own == "float32" else "float16"
        assert teacher.spec.settings["store_dtype"] == stored


def test_what_a_job_says_goes_before() -> None:
    options = PrecisionOptions(dtype="float32", store_dtype="float16")
    precision = options.precision(torch.device("cuda"), torch.bfloat16)
    assert (precision.compute, precision.stored) == ("float32", "float16")
