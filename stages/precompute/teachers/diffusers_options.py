"""Options of a teacher that generates pictures, videos or sounds from texts."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from ....cache_schemas.teachers import SettingValue
from .options import Precision, PrecisionOptions, TextOptions

if TYPE_CHECKING:
    import torch


class GenerationOptions(TextOptions):
    """Settings of the two passes; the defaults are the paper's."""

    lowercase: bool = Field(default=True, description="lower-case the segments, as the paper does")
    source: Literal["img2img", "txt2img"] = Field(
        default="img2img",
        description="pass whose latents are the feature; txt2img leaves the second pass out",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="seed of the noise")
    steps: int = Field(default=20, ge=1, description="denoising steps of the first pass")
    guidance: float = Field(default=7.5, ge=0, description="classifier-free guidance, both passes")
    height: int = Field(default=512, ge=8, description="height of the first image, in pixels")
    width: int = Field(default=512, ge=8, description="width of the first image, in pixels")
    resize: int = Field(
        default=128, ge=8, description="height and width the second pass starts from, in pixels"
    )
    strength: float = Field(
        default=0.75, gt=0, le=1, description="share of the second pass's steps that are done"
    )
    second_steps: int | None = Field(
        default=None, ge=1, description="denoising steps of the second pass; null: as in the first"
    )
    negative_prompt: str = Field(
        default="", description="negative prompt; empty: the pipeline's default"
    )
    channel_order: Literal["rgb", "bgr"] = Field(
        default="rgb", description="channel order of the second pass; bgr as in the paper's code"
    )

    @property
    def steps_of_second(self) -> int:
        """Steps of the second pass, before `strength` cuts them."""
        return self.second_steps or self.steps


OF_PICTURES = ("source", "height", "width", "resize", "strength", "second_steps", "channel_order")
"""Options of pictures, of which a sound has none."""


class DiffusersOptions(PrecisionOptions, GenerationOptions):
    """Options of the diffusers teacher."""

    earlier: ClassVar[Mapping[str, SettingValue]] = {
        **{"num_frames": None, "frame": "first", "audio_encoder": "", "audio_seconds": 5.0},
    }

    num_frames: int | None = Field(
        default=None,
        ge=1,
        description="frames of the video that a text-to-video pipeline generates; needs an "
        "image_encoder",
    )
    frame: Literal["first", "middle", "mean"] = Field(
        default="first",
        description="which frame of a video is embedded, or the mean of the embeddings of all",
    )
    audio_encoder: str = Field(
        default="",
        description="cache an embedding of the sound that a text-to-audio pipeline generates: "
        "transformers:PATH_OR_ID of a Wav2Vec2, HuBERT, WavLM or CLAP model",
    )
    audio_seconds: float = Field(default=5.0, gt=0, description="length of the sound")
    revision: str | None = Field(default=None, description="commit, tag or branch of a hub id")
    lora: str = Field(
        default="", description="LoRA weights: a safetensors file, or a folder with one; needs peft"
    )
    lora_scale: float = Field(default=1.0, description="weight of the LoRA")
    image_encoder: str = Field(
        default="",
        description="cache an embedding of the first image, or of a video, instead of latents: "
        "transformers:PATH_OR_ID or open_clip:FOLDER",
    )
    keep_images: bool = Field(
        default=False, description="keep the first image of each example as PNG"
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto",
        description="dtype the model computes in; auto is float16 on CUDA, else float32",
    )

    @property
    def two_passes(self) -> bool:
        """Whether the second pass runs."""
        return self.source == "img2img" and not (self.image_encoder or self.audio_encoder)

    @property
    def medium(self) -> Literal["image", "video", "audio"]:
        """What is generated."""
        return "audio" if self.audio_encoder else "video" if self.num_frames else "image"

    @model_validator(mode="after")
    def _of_one_medium(self) -> "DiffusersOptions":
        given = self.model_fields_set
        if self.num_frames and not self.image_encoder:
            raise ValueError("num_frames: of a video, frames are embedded; set image_encoder")
        if "frame" in given and not self.num_frames:
            raise ValueError("frame: a picture has none; set num_frames for a video")
        if self.audio_encoder and (self.image_encoder or self.num_frames or self.keep_images):
            raise ValueError(
                "audio_encoder: a sound has no pictures; leave image_encoder, num_frames and "
                "keep_images out"
            )
        if "audio_seconds" in given and not self.audio_encoder:
            raise ValueError("audio_seconds: of a sound; set audio_encoder")
        if self.audio_encoder and (wrong := [name for name in OF_PICTURES if name in given]):
            raise ValueError(f"{wrong[0]}: a sound has none; leave it out")
        return self

    def precision_on(self, device: "torch.device") -> Precision:
        """The types with 'auto' resolved for a device."""
        if self.dtype == "auto" and device.type == "cuda":
            return self.model_copy(update={"dtype": "float16"}).precision()
        return self.precision()
