"""What `dtype=auto` means: the checkpoint's own on a GPU, float32 on a CPU. Teachers are made,
which asks no device for anything, and not loaded."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import armada
import pyarrow as pa
import pytest
import torch
from armada.cache_schemas.errors import JobError
from armada.cache_schemas.manifest import TeacherManifest
from armada.stages.corpus.corpus import read_corpus
from armada.stages.corpus.hub_datasets import in_memory
from armada.stages.precompute.batching import BatchSizes
from armada.stages.precompute.precompute import EncodingRun, precompute
from armada.stages.precompute.teachers.base import Answers, Example, PrecisionOptions, Prepared
from armada.stages.precompute.teachers.causal_lm import CausalLMTeacher
from armada.stages.precompute.teachers.causal_options import CausalLMOptions
from armada.stages.precompute.teachers.encoder import EncoderOptions, EncoderTeacher
from armada.stages.store.reading.reader import open_cache
from armada.stages.store.writing.writer import CacheWriter, Work
from hangs import HANG_S
from spying_teacher import SpyingTeacher
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


def test_coarser_products_are_another_teacher(checkpoint: Any) -> None:
    folder, device = str(checkpoint("bert")), torch.device("cpu")
    plain = EncoderTeacher(folder, EncoderOptions(), device)
    assert "matmul_precision" not in plain.spec.settings  # nor was it in earlier releases
    coarse = EncoderTeacher(folder, EncoderOptions(matmul_precision="high"), device)
    assert coarse.spec.settings["matmul_precision"] == "high"
    assert coarse.spec.fingerprint != plain.spec.fingerprint


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_products_are_of_the_precision_of_the_run_alone(
    checkpoint: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, precision: str
) -> None:
    seen = set()
    answer = EncoderTeacher._answer

    def noted(teacher: EncoderTeacher, inputs: Any) -> Any:
        seen.add(torch.get_float32_matmul_precision())
        return answer(teacher, inputs)

    monkeypatch.setattr(EncoderTeacher, "_probe", lambda teacher: None)  # it is of loading
    monkeypatch.setattr(EncoderTeacher, "_answer", noted)
    torch.set_float32_matmul_precision("medium")
    try:
        armada.precompute(
            corpus=pa.table({"text": ["a red bird"]}),
            text_column="text",
            teacher=f"encoder:{checkpoint('bert')}",
            cache=tmp_path / "cache",
            device="cpu",
            matmul_precision=precision,
        )
        assert seen == {precision}
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_thread_that_ends_leaves_the_precision_to_the_next(tmp_path: Path) -> None:
    """Two threads with one teacher: the second prepares its text while the first has the device."""
    device, begun, prepared = threading.Lock(), threading.Event(), threading.Event()
    seen = []

    class Noted(SpyingTeacher):
        def prepare(self, examples: Sequence[Example]) -> Prepared:
            if begun.is_set():
                prepared.set()
            return super().prepare(examples)

        def encode(self, examples: Sequence[Example]) -> Answers:
            begun.set()
            assert prepared.wait(HANG_S)
            seen.append(torch.get_float32_matmul_precision())
            return super().encode(examples)

    teacher = Noted(options=PrecisionOptions(matmul_precision="high"))
    spec = teacher.spec
    manifest = TeacherManifest(fingerprint=spec.fingerprint, rows_per_shard=64, spec=spec)

    def run(text: str) -> None:
        corpus = read_corpus((in_memory(pa.table({"text": [text]})),), ("text",))
        encoding = EncodingRun(BatchSizes(8), turn=lambda: device)
        work = Work(writer, corpus.keys())
        precompute(corpus, corpus.keys(), work, teacher, writer, encoding)

    with CacheWriter(tmp_path / "cache", manifest) as writer, ThreadPoolExecutor(2) as threads:
        first = threads.submit(run, "first")
        assert begun.wait(HANG_S)
        second = threads.submit(run, "second")
        first.result()
        second.result()
    assert seen == ["high", "high"]
    assert torch.get_float32_matmul_precision() == "highest"
    assert len(open_cache(tmp_path / "cache")) == 2


@pytest.mark.parametrize("asked", [{"samples": 2}, {"max_new_tokens": 2, "text_format": "plain"}])
def test_samples_need_a_device_that_has_float64(asked: dict[str, Any], tmp_path: Path) -> None:
    folder = str(make_causal_lm(tmp_path / "model"))
    CausalLMTeacher(folder, CausalLMOptions(**asked), torch.device("xpu"))
    with pytest.raises(JobError, match="float64, which an mps device does not have"):
        CausalLMTeacher(folder, CausalLMOptions(**asked), torch.device("mps"))
