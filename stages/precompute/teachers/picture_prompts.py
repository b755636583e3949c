"""Prompts with a picture, as models of images and text read them: by a model's own processor.

Shapes: B prompts, T tokens.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ....cache_schemas.errors import JobError, TeacherOutputError, TeacherSourceError
from ...pretrained import LOCAL_ONLY, quiet_transformers, refusing


def read_processor(folder: Path) -> Any:
    """The processor in a model's folder. Raises TeacherSourceError for one without pictures."""
    from transformers import AutoProcessor

    with quiet_transformers(), refusing(TeacherSourceError, f"source {folder}"):
        processor = AutoProcessor.from_pretrained(folder, **LOCAL_ONLY)
    if not hasattr(processor, "image_processor"):
        raise TeacherSourceError(
            f"source {folder}: holds no processor of pictures (processor_config.json or "
            "preprocessor_config.json); save the model's processor with it"
        )
    return processor


def places_of(config: Any, tokenizer: Any, processor: Any = None) -> list[str]:
    """What stands for a picture, or a video, in a prompt, the model's own way of pictures first."""
    number = getattr(config, "image_token_id", None)
    places = [] if number is None else [tokenizer.convert_ids_to_tokens(number)]
    own = [getattr(processor, name, None) for name in ("boi_token", "image_token")]
    video = getattr(processor, "video_token", None)
    return [*filter(None, own), *places, *([video] if video else [])]


def require_place(option: str, template: str, places: Sequence[str]) -> None:
    """Raises JobError for a template that does not say where the picture stands."""
    place = next(iter(places), "<image>")
    if template.count(place) != 1:
        raise JobError(
            f"{option}: {template!r} does not say where the picture stands; put the model's "
            f"{place} into it once, with what belongs around it"
        )


def held_place(texts: Sequence[str], places: Sequence[str]) -> str | None:
    """Why texts cannot be read beside a picture; None if they can."""
    held = [place for place in places for text in texts if place in text]
    return f"its text has {held[0]}, which stands for a picture or video" if held else None


def read_pairs(
    processor: Any,
    pairs: Sequence[tuple[str, Any]],
    *,
    add_special_tokens: bool,
    positions: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, torch.Tensor]:
    """Prompts and pictures as the model reads them; `input_ids` and `attention_mask` are [B, T].

    Raises TeacherOutputError for more tokens than `positions`."""
    prompts, pictures = zip(*pairs, strict=True)
    with quiet_transformers():
        read = processor(
            text=list(prompts),
            images=[[picture] for picture in pictures],
            add_special_tokens=add_special_tokens,
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
    tokens = read["input_ids"].shape[1]
    if tokens > positions:
        raise TeacherOutputError(
            f"picture and text: {tokens} tokens, the model takes {positions}; use smaller pictures"
        )
    return {
        name: values.to(device, dtype if values.is_floating_point() else None)
        for name, values in read.items()
    }


def followed(inputs: Mapping[str, torch.Tensor], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The inputs of one prompt with tokens of a text, [N, 1], behind it."""
    more = {"input_ids": ids.T, "attention_mask": torch.ones_like(ids.T)}
    shape = inputs["input_ids"].shape
    longer = dict(inputs)
    for name, values in inputs.items():
        if values.shape == shape:  # of others that are of tokens, a text has 0
            rest = more.get(name, torch.zeros_like(ids.T)).to(values.dtype)
            longer[name] = torch.cat([values, rest], dim=1)
    return longer


def blank_picture() -> Any:
    """One that any model takes, PIL's."""
    from PIL import Image

    return Image.new("RGB", (224, 224), "grey")
