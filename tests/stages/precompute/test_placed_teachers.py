"""Where a teacher's weights are read to: straight to a device, over several, and quantised."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import RunError, StudentSourceError, TeacherSourceError
from armada.stages.distill.student_models import load_config
from armada.stages.language.logits import hidden_states
from armada.stages.precompute.teachers.base import Example
from armada.stages.precompute.teachers.causal_lm import CausalLMOptions, CausalLMTeacher
from armada.stages.precompute.teachers.checkpoint_teacher import spread_over
from armada.stages.precompute.teachers.encoder import EncoderOptions, EncoderTeacher
from fake_gpus import FIRST, SECOND, fake_gpus, placed
from safetensors.torch import load_file, save_file
from tiny_language_models import make_causal_lm
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

CPU = torch.device("cpu")
EXAMPLES = [Example(bytes([n]) * 16, (text,)) for n, text in enumerate(["the cook", "a red hat"])]


def answers(teacher: Any) -> dict[str, Any]:
    teacher.load()
    with torch.inference_mode():
        return dict(teacher.encode(EXAMPLES).features)


def test_a_device_map_changes_no_setting_and_no_number(checkpoint: Callable[[str], Path]) -> None:
    folder = str(checkpoint("bert"))
    plain = EncoderTeacher(folder, EncoderOptions(layers=(1,)), CPU)
    spread = EncoderTeacher(folder, EncoderOptions(layers=(1,), device_map="auto"), CPU)
    assert spread.spec == plain.spec
    expected = answers(plain)
    for name, values in answers(spread).items():
        np.testing.assert_array_equal(values, expected[name])


# --- over several devices

LLAMA = {
    "model.embed_tokens": FIRST,
    "model.layers.0": FIRST,
    "model.rotary_emb": FIRST,
    "model.layers.1": SECOND,
    "model.norm": SECOND,
    "lm_head": SECOND,
}
BERT = {"embeddings": FIRST, "encoder.layer.0": FIRST, "encoder.layer.1": SECOND, "pooler": SECOND}


def test_parts_of_a_spread_model_return_what_they_were_given(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(make_causal_lm(tmp_path / "llama"))
    with fake_gpus():
        model = placed(AutoModelForCausalLM.from_config(config).eval(), LLAMA)
        ids = torch.ones(4, 16, dtype=torch.int64, device=FIRST)
        told = hidden_states(model, ids, torch.ones_like(ids), output_hidden_states=True)
        assert told.last_hidden_state.device == SECOND, "the test shows nothing"
        assert spread_over(model, torch.device("cuda"), tmp_path) == FIRST
        told = hidden_states(model, ids, torch.ones_like(ids), output_hidden_states=True)
        assert {each.device for each in (told.last_hidden_state, *told.hidden_states)} == {FIRST}
        assert model.get_output_embeddings()(told.last_hidden_state).device == SECOND


@pytest.mark.parametrize("spread", [False, True], ids=["one", "two"])
def test_an_encoder_on_gpus(checkpoint: Callable[[str], Path], spread: bool) -> None:
    options = EncoderOptions(layers=(0, 1), normalize=True)
    teacher = EncoderTeacher(str(checkpoint("bert")), options, FIRST)
    prepared = teacher.prepare(EXAMPLES)
    with fake_gpus():
        model = placed(
            AutoModel.from_config(teacher._config).eval(), BERT if spread else {"": FIRST}
        )
        teacher._model = model
        teacher._device = spread_over(model, FIRST, Path())
        teacher._prepare()
        found = teacher._answer(teacher._texts.inputs(prepared.inputs, teacher._device))
    assert {name: values.device for name, values in found.items()} == dict.fromkeys(found, FIRST)


def test_a_model_that_is_spread_over_the_disk_is_refused(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1)
    model.hf_device_map = {"a": 0, "b": "disk"}
    with pytest.raises(RunError, match="fits neither the GPUs nor this machine's memory"):
        spread_over(model, FIRST, tmp_path)


# --- quantised


def quantised(folder: Path, config: dict[str, Any], **more: Any) -> Path:
    """A causal language model whose configuration says that it is quantised."""
    make_causal_lm(folder, hidden_size=64, head_dim=16, intermediate_size=128)
    file = folder / "config.json"
    told = {"quantization_config": config, "dtype": "bfloat16", **more}
    file.write_text(json.dumps(json.loads(file.read_text()) | told))
    return folder


BLOCK = 16


def to_fp8(folder: Path) -> dict[str, torch.Tensor]:
    """Write a checkpoint's linear layers in 8 bits, a scale for each block; returns the weights
    that this rounds to."""
    rounded, stored = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        rounded[name] = stored[name] = weight.bfloat16()
        if "proj" in name:
            blocks = weight.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
            scale = blocks.abs().amax((1, 3), keepdim=True) / 448
            eights = (blocks / scale).to(torch.float8_e4m3fn)
            rounded[name] = (eights.float() * scale).reshape(weight.shape).bfloat16()
            stored[name] = eights.float().reshape(weight.shape).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scale[:, 0, :, 0].float().contiguous()
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return rounded


def test_quantised_weights_compute_in_the_dtype_that_they_were_saved_with(tmp_path: Path) -> None:
    fp8 = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
    folder = quantised(tmp_path / "fp8", fp8)
    whole = shutil.copytree(folder, tmp_path / "whole")
    config = json.loads((whole / "config.json").read_text())
    del config["quantization_config"]
    (whole / "config.json").write_text(json.dumps(config))
    save_file(to_fp8(folder), whole / "model.safetensors", metadata={"format": "pt"})
    teacher = CausalLMTeacher(str(folder), CausalLMOptions(top_k=None, dense=True), CPU)
    assert teacher.spec.settings["dtype"] == "bfloat16"  # on a CPU, too
    options = CausalLMOptions(top_k=None, dense=True, dtype="bfloat16")
    plain = CausalLMTeacher(str(whole), options, CPU)
    assert teacher.spec.fingerprint != plain.spec.fingerprint
    expected = answers(plain)
    for name, values in answers(teacher).items():
        for one, other in zip(values, expected[name], strict=True):
            np.testing.assert_array_equal(one, other)


def test_weights_in_4_bits_are_those_of_bitsandbytes(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    sizes = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128}
    folder = make_causal_lm(tmp_path / "model", **sizes)
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    made = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=four, dtype=torch.bfloat16, device_map={"": "cpu"}
    )
    made.save_pretrained(folder)
    options = {"top_k": None, "dense": True}
    teacher = CausalLMTeacher(str(folder), CausalLMOptions(**options), CPU)
    said = answers(teacher)["dense"]
    for text, ids in zip(said, answers(teacher)["token_ids"], strict=True):
        with torch.inference_mode():
            logits = made(input_ids=torch.from_numpy(ids.astype("i8"))[None]).logits[0, :-1]
        np.testing.assert_allclose(text, logits.float().log_softmax(1), atol=0.15)
    other = CausalLMTeacher(str(folder), CausalLMOptions(dtype="float32", **options), CPU)
    with pytest.raises(TeacherSourceError, match="compute in bfloat16, not in float32; set dtype="):
        other.load()


def test_a_quantised_student_is_refused(tmp_path: Path) -> None:
    folder = quantised(tmp_path / "model", {"quant_method": "fp8"})
    with pytest.raises(StudentSourceError, match="its weights are quantised"):
        load_config(folder)
