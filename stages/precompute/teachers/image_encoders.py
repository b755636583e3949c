"""Vision towers that embed the pictures, or the frames of videos, that a teacher generated.

`transformers:PATH_OR_ID` is a CLIP, SigLIP, ViT, DINO or other vision model with its image
processor; `open_clip:FOLDER` is a folder that open_clip published. In: B pictures (PIL, RGB); out:
[B, E], not normalised. E is known from the configuration, before weights are read.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from ....cache_schemas.errors import JobError, TeacherSourceError
from ...pretrained import LOCAL_ONLY, quiet_transformers, read_config, refusing
from ...sources import digest_files, require_safetensors, resolve
from .clip_source import CONFIG_FILE, PREFERRED_WEIGHTS


class MediaEncoder(ABC):
    """A model that embeds what was generated, [B, dim]; made in two steps, as teachers are."""

    form: ClassVar[str]
    dim: int

    def __init__(self, source: str) -> None:
        self._folder = resolve(source, None, TeacherSourceError)
        require_safetensors(self._folder, TeacherSourceError)

    def digest(self) -> str:
        """128-bit digest of configuration, processor and weights."""
        return digest_files(self._folder)

    @abstractmethod
    def load(self, dtype: torch.dtype, device: torch.device) -> None:
        """Build the model, frozen."""

    def _frozen(self, model: Any, dtype: torch.dtype, device: torch.device) -> Any:
        self._dtype, self._device = dtype, device
        return model.to(device=device, dtype=dtype).eval().requires_grad_(False)


class ImageEncoder(MediaEncoder):
    """Pictures in, embeddings [B, dim] out."""

    @abstractmethod
    def __call__(self, pictures: Sequence[Any]) -> torch.Tensor:
        """Embed B pictures: [B, dim]."""


class TransformersEncoder(ImageEncoder):
    """A vision model of transformers, of the class its configuration names.

    The embedding is the projected one where the model projects, else the pooled one, else the first
    token: also if the checkpoint has no pooler (DINO), which would be random."""

    form = "transformers"

    def __init__(self, source: str) -> None:
        super().__init__(source)
        if not (self._folder / "preprocessor_config.json").is_file():
            raise TeacherSourceError(f"image_encoder {source}: holds no preprocessor_config.json")
        self._config = read_config(self._folder, TeacherSourceError)
        self.dim = _embedding_width(self._config, source)

    def load(self, dtype: torch.dtype, device: torch.device) -> None:
        with refusing(TeacherSourceError, f"image_encoder {self._folder}"), quiet_transformers():
            model, report = self._opened(dtype)
        absent = set(report["missing_keys"])
        self._has_pooler = not any("pooler." in name for name in absent)
        if any("pooler." not in name for name in absent):
            raise TeacherSourceError(
                f"image_encoder {self._folder}: the weights lack {min(absent)}, which would be "
                "random; use a checkpoint of the whole model"
            )
        self._model = self._frozen(model, dtype, device)

    def _opened(self, dtype: torch.dtype) -> Any:
        from transformers import AutoImageProcessor

        self._processor = AutoImageProcessor.from_pretrained(self._folder, **LOCAL_ONLY)
        return self._model_class().from_pretrained(
            self._folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **LOCAL_ONLY
        )

    def _model_class(self) -> Any:
        import transformers

        names = self._config.architectures or [""]
        return getattr(transformers, names[0] if _projects(self._config) else "AutoModel")

    def __call__(self, pictures: Sequence[Any]) -> torch.Tensor:
        pixels = self._processor(images=list(pictures), return_tensors="pt").pixel_values
        pixels = pixels.to(device=self._device, dtype=self._dtype)
        if hasattr(self._config, "vision_config"):
            return self._pooled(self._model.get_image_features(pixel_values=pixels))
        return self._pooled(self._model(pixel_values=pixels))

    def _pooled(self, output: Any) -> torch.Tensor:
        pooled = getattr(output, "image_embeds", None)
        if pooled is None and self._has_pooler:
            pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            pooled = output.last_hidden_state[:, 0]
        embedding: torch.Tensor = pooled.flatten(1)
        return embedding


def _projects(config: Any) -> bool:
    architecture: str = (config.architectures or [""])[0]
    return architecture.endswith("VisionModelWithProjection")


def _embedding_width(config: Any, source: str) -> int:
    vision = getattr(config, "vision_config", None)
    candidates = (
        getattr(config, "projection_dim", None) if vision or _projects(config) else None,
        getattr(vision or config, "hidden_size", None),
        (getattr(config, "hidden_sizes", None) or [None])[-1],
    )
    width = next((value for value in candidates if value), None)
    if width is None:
        raise TeacherSourceError(
            f"image_encoder {source}: the width of a {config.model_type} embedding cannot be told "
            "from config.json; choose a CLIP, SigLIP, ViT or DINO model"
        )
    return int(width)


class OpenClipEncoder(ImageEncoder):
    """The vision tower of an open_clip folder: `open_clip_config.json` and its weights."""

    form = "open_clip"

    def __init__(self, source: str) -> None:
        super().__init__(source)
        # Of weights with other names, open_clip prefers a pickle.
        if not any((self._folder / name).is_file() for name in PREFERRED_WEIGHTS):
            raise TeacherSourceError(f"image_encoder {source}: holds no {PREFERRED_WEIGHTS[0]}")
        try:
            config = json.loads((self._folder / CONFIG_FILE).read_text("utf-8"))
            self.dim = int(config["model_cfg"]["embed_dim"])
        except (OSError, ValueError, KeyError, TypeError) as cause:
            raise TeacherSourceError(
                f"image_encoder {source}: no {CONFIG_FILE} with model_cfg.embed_dim"
            ) from cause

    def load(self, dtype: torch.dtype, device: torch.device) -> None:
        import open_clip

        with refusing(TeacherSourceError, f"image_encoder {self._folder}"):
            model, self._transform = open_clip.create_model_from_pretrained(
                f"local-dir:{self._folder}"
            )
        self._model = self._frozen(model, dtype, device)

    def __call__(self, pictures: Sequence[Any]) -> torch.Tensor:
        pixels = torch.stack([self._transform(picture) for picture in pictures])
        embedding: torch.Tensor = self._model.encode_image(
            pixels.to(device=self._device, dtype=self._dtype)
        )
        return embedding


ENCODERS: dict[str, type[ImageEncoder]] = {
    encoder.form: encoder for encoder in (TransformersEncoder, OpenClipEncoder)
}


def image_encoder(reference: str) -> ImageEncoder:
    """The encoder of a 'FORM:SOURCE' reference, checked but not loaded."""
    form, colon, source = reference.partition(":")
    if not (colon and source and form in ENCODERS):
        raise JobError(
            f"image_encoder {reference!r}: is neither transformers:PATH_OR_ID nor open_clip:FOLDER"
        )
    return ENCODERS[form](source)
