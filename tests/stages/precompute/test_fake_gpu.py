"""Teachers on a GPU that is none: batches are prepared here and computed there, and a tensor that
stays behind fails as it would on a real one. Numbers there are none, so nothing is stored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_diffusion
import torch
from armada.stages.precompute.teachers.base import Example
from armada.stages.precompute.teachers.causal_lm import CausalLMOptions, CausalLMTeacher
from armada.stages.precompute.teachers.classifier import ClassifierOptions, ClassifierTeacher
from armada.stages.precompute.teachers.diffusers import DiffusersOptions, DiffusersTeacher
from armada.stages.precompute.teachers.encoder import EncoderOptions, EncoderTeacher
from armada.stages.precompute.teachers.image_encoders import image_encoder
from armada.stages.precompute.teachers.latents import Request, text_to_latents
from armada.stages.precompute.teachers.open_clip import OpenClipOptions, OpenClipTeacher
from fake_gpus import FIRST, fake_gpus, placed
from PIL import Image
from tiny_checkpoints import make_bert_classifier, make_open_clip
from tiny_language_models import make_causal_lm

TEXTS = ["the cook praised the kettle", "nobody", "one old clerk forgot it much too late"]
EXAMPLES = [Example(bytes([n]) * 16, (text,)) for n, text in enumerate(TEXTS)]
DTYPES = ["float32", "bfloat16"]


def moved(teacher: Any, *parts: str) -> Any:
    """A loaded teacher, on the GPU from now on, with its other modules `parts`."""
    for part in ("_model", *parts):
        placed(getattr(teacher, part), {"": FIRST})
    teacher._device = FIRST
    return teacher


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler", "last", "max", "weightedmean"])
def test_encoders(checkpoint: Callable[[str], Path], pooling: str, dtype: str) -> None:
    options = EncoderOptions(pooling=pooling, layers=(0, 2), normalize=True, dim=4, dtype=dtype)
    teacher = EncoderTeacher(str(checkpoint("bert")), options, torch.device("cpu"))
    teacher.load()
    with fake_gpus(), torch.no_grad():
        moved(teacher, "_layers").start(teacher.prepare(EXAMPLES))


@pytest.mark.parametrize("dtype", DTYPES)
def test_classifiers(tmp_path: Path, dtype: str) -> None:
    folder = make_bert_classifier(tmp_path / "model", TEXTS, ["low", "high"])
    options = ClassifierOptions(pooled=True, dtype=dtype)
    teacher = ClassifierTeacher(str(folder), options, torch.device("cpu"))
    teacher.load()
    with fake_gpus(), torch.no_grad():
        moved(teacher).start(teacher.prepare(EXAMPLES))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "asked",
    [
        {"top_k": 4},
        {"top_k": None, "samples": 3, "samples_log_probs": True},
        {"top_k": None, "dense": True},
        {"top_k": None, "hidden_layers": (0, 2)},
    ],
    ids=["top_k", "samples", "dense", "hidden"],
)
def test_language_models(tmp_path: Path, asked: dict[str, Any], dtype: str) -> None:
    folder = make_causal_lm(tmp_path / "model")
    options = CausalLMOptions(**asked, dtype=dtype)
    teacher = CausalLMTeacher(str(folder), options, torch.device("cpu"))
    teacher.load()
    with fake_gpus(), torch.no_grad():
        moved(teacher).start(teacher.prepare(EXAMPLES))


@pytest.mark.parametrize("dtype", DTYPES)
def test_text_towers_of_open_clip(tmp_path: Path, dtype: str) -> None:
    folder = make_open_clip(tmp_path / "model")
    teacher = OpenClipTeacher(str(folder), OpenClipOptions(dtype=dtype), torch.device("cpu"))
    teacher.load()
    prepared = teacher.prepare(EXAMPLES)
    with fake_gpus(), torch.no_grad():
        moved(teacher).start(prepared)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pipelines_of_diffusers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    folder = tiny_diffusion.make_stable_diffusion(tmp_path / "model")
    options = DiffusersOptions(source="txt2img", steps=2, height=64, width=32, dtype=dtype)
    teacher: Any = DiffusersTeacher(str(folder), options, torch.device("cpu"))
    teacher.load()
    request = Request(["a kite", "x", "dogs"], [example.key for example in EXAMPLES])
    # Schedulers look their steps up by numbers, of which there are none.
    step = lambda noise, time, latents, **_: (latents + noise,)  # noqa: E731
    monkeypatch.setattr(teacher._pipeline.scheduler, "step", step)
    with fake_gpus(), torch.no_grad():
        for part in teacher._pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                placed(part, {"": FIRST})
        found = text_to_latents(teacher._pipeline, options, request)
    assert found.device == FIRST


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["clip", "vit", "dino", "open_clip"])
def test_image_encoders(tmp_path: Path, form: str, dtype: str) -> None:
    made = {
        "clip": tiny_diffusion.make_clip_vision,
        "vit": tiny_diffusion.make_vit,
        "dino": lambda folder: tiny_diffusion.make_vit(folder, pooler=False),
        "open_clip": tiny_diffusion.make_open_clip,
    }
    made[form](tmp_path / "model")
    kind = "open_clip" if form == "open_clip" else "transformers"
    encoder: Any = image_encoder(f"{kind}:{tmp_path / 'model'}")
    encoder.load(getattr(torch, dtype), torch.device("cpu"))
    picture = Image.new("RGB", (40, 30), "red")
    if form == "open_clip":  # which looks at numbers of a picture on the CPU
        read = encoder._transform(picture)
        encoder._transform = lambda _: read
    with fake_gpus(), torch.no_grad():
        placed(encoder._model, {"": FIRST})
        encoder._device = FIRST
        found = encoder([picture] * 2)
    assert found.device == FIRST
    assert found.shape == (2, encoder.dim)


def test_a_tensor_that_stays_behind_is_found(checkpoint: Callable[[str], Path]) -> None:
    teacher = EncoderTeacher(str(checkpoint("bert")), EncoderOptions(), torch.device("cpu"))
    teacher.load()
    with fake_gpus(), torch.no_grad():
        moved(teacher)
        teacher._device = torch.device("cpu")
        with pytest.raises(Exception, match="device"):
            teacher.start(teacher.prepare(EXAMPLES))
