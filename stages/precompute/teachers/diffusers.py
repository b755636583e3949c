"""Teachers that generate an image, a video or a sound for a text: what a diffusion model made of
it, as latents or as an embedding.

In: the texts of examples. Out, one feature a teacher: `latent` [C * h * w]: the final latents of
the second pass (`source: img2img`, the paper's feature, [1024] for Stable Diffusion v1-4) or of the
first (`txt2img`), flattened; see `latents.py`. `image_embedding` [E]: with an `image_encoder`, its
embedding of the first pass's image. `video_embedding` [E]: with `num_frames` and an
`image_encoder`, that of a frame of a text-to-video pipeline's video, or the mean of all.
`audio_embedding` [E]: with an `audio_encoder`, that of a text-to-audio pipeline's sound.

Cost with the defaults, per example: 20 steps at 512 x 512, 15 at 128 x 128. On a GPU features agree
in any batch up to rounding. On a CPU they are equal bit for bit, since a batch is computed one
example at a time: oneDNN's convolutions round differently in other batches, and batching gains
nothing there (a half-width Stable Diffusion UNet at 512 x 512, two cores: 2.2 to 3.1 s a row with 2
rows as with 16).
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from ....cache_schemas.errors import JobError, TeacherOutputError, TeacherSourceError
from ....cache_schemas.extras import require_extra
from ....cache_schemas.features import FeatureSpec, StoredDtype
from ....cache_schemas.teachers import SettingValue, TeacherSpec
from ...pictures import png_file
from ...pretrained import source_name
from ...sources import PIPELINE_FILE_PATTERNS, resolve
from ...tokenizing.long_texts import shortened
from . import latents, pipelines, videos_and_sounds
from .audio_encoders import audio_encoder
from .base import Answers, Example, Teacher
from .diffusers_options import OF_PICTURES, DiffusersOptions
from .image_encoders import image_encoder

NOT_SETTINGS = {"revision", "lora", "image_encoder", "audio_encoder", "keep_images"}
"""Outside the fingerprint: the location of weights (their digests are inside), and options that do
not change features."""


class DiffusersTeacher(Teacher):
    """Any text-to-image, text-to-video or text-to-audio pipeline that diffusers opens from a folder
    or a hub id."""

    Options = DiffusersOptions
    kind = "diffusers"
    default_batch_size: ClassVar[int] = 8
    default_rows_per_shard = 1024

    def __init__(self, source: str, options: DiffusersOptions, device: torch.device) -> None:
        require_extra("teacher diffusers", "teachers", "diffusers", "PIL")
        self._options, self._device = options, device
        self._precision = options.precision_on(device)
        _check_steps(options)
        self._folder = pipelines.read_folder(
            resolve(source, options.revision, TeacherSourceError, PIPELINE_FILE_PATTERNS)
        )
        self._encoder = image_encoder(options.image_encoder) if options.image_encoder else None
        self._hearing = audio_encoder(options.audio_encoder) if options.audio_encoder else None
        self._lora = pipelines.lora_file(options.lora) if options.lora else None
        self.spec = TeacherSpec(
            kind=self.kind,
            name=source_name(source, options.revision),
            weights=self._digests(),
            settings=self._settings(),
            features=(self._feature_spec(self._precision.stored),),
        )

    def _feature_spec(self, dtype: StoredDtype) -> FeatureSpec:
        medium = self._options.medium
        if encoder := self._encoder or self._hearing:
            frames = {"mean": "all frames of the", "first": "the first frame of the"}
            frame = frames.get(self._options.frame, "the middle frame of the")
            what = f"{frame} video" if medium == "video" else f"the {medium}"
            text = f"embedding of {what} generated for the text"
            name, shape = f"{medium}_embedding", (encoder.dim,)
            return FeatureSpec(name=name, shape=shape, dtype=dtype, description=text)
        options, grid = self._options, pipelines.latent_grid(self._folder)
        _check_sizes(options, grid.factor)
        second = options.two_passes
        height, width = (options.resize,) * 2 if second else (options.height, options.width)
        text = f"final latents of {options.source}, flattened, channels first"
        shape = (grid.values(height, width),)
        return FeatureSpec(name="latent", shape=shape, dtype=dtype, description=text)

    def _digests(self) -> dict[str, str]:
        digests = {"pipeline": self._folder.digest()}
        if self._lora is not None:
            digests["lora"] = pipelines.file_digest(self._lora)
        if self._encoder is not None:
            digests["image_encoder"] = self._encoder.digest()
        if self._hearing is not None:
            digests["audio_encoder"] = self._hearing.digest()
        return digests

    def _settings(self) -> dict[str, SettingValue]:
        options = self._options
        resolved: dict[str, SettingValue] = {
            "source": "img2img" if options.two_passes else "txt2img",
            "second_steps": options.steps_of_second,
            "image_encoder": self._encoder.form if self._encoder else "",
        }
        own = {k: v for k, v in options.settings().items() if k not in NOT_SETTINGS}
        if self._hearing is not None:
            own = {k: v for k, v in own.items() if k not in OF_PICTURES}
            resolved = {"audio_encoder": self._hearing.form}
        return own | self._precision.settings() | resolved

    def load(self) -> None:
        """Open the pipeline, its image-to-image counterpart on the same weights, the encoder."""
        with pipelines.quiet():
            self._check_calls()
        dtype, device = self._precision.torch_dtype, self._device
        pipeline = pipelines.open_pipeline(self._folder, dtype, device)
        if self._lora is not None:
            pipelines.merge_lora(pipeline, self._lora, self._options.lora_scale)
        if self._options.two_passes:
            self._second = pipelines.image_to_image(pipeline)
        for encoder in filter(None, (self._encoder, self._hearing)):
            encoder.load(dtype, device)
        if self._hearing is not None:
            self._rate = videos_and_sounds.sampling_rate(pipeline)
            self._hearing.check_length(self._options.audio_seconds)
        self._pipeline = pipeline

    def _check_calls(self) -> None:
        # Here, not in the constructor: importing diffusers takes seconds.
        options, name = self._options, self._folder.class_name
        needed = latents.first_pass_arguments(options)
        if options.medium == "video":
            needed = videos_and_sounds.video_arguments(options)
        elif options.medium == "audio":
            taken = pipelines.arguments_of(name)
            needed = videos_and_sounds.audio_arguments(options, taken)
        pipelines.check_class(name, needed, options.medium)
        if options.two_passes:
            pipelines.check_counterpart(name, latents.second_pass_arguments(options))

    def encode(self, examples: Sequence[Example]) -> Answers:
        """Generate for B texts: `latent` [B, C * h * w], or an embedding [B, E]."""
        prompts, parts = self._requests(examples)
        with pipelines.quiet(), latents.own_randomness(self._device):
            answers, pictures = zip(*map(self._answer, parts), strict=True)
        answer = _checked(torch.cat(answers).flatten(1), self.spec.features[0])
        kept = (
            [png_file(picture) for picture in chain(*pictures)] if self._options.keep_images else []
        )
        numbers = answer.float().cpu().numpy().astype(self._precision.stored)
        return Answers({self.spec.features[0].name: numbers}, self._truncated(prompts), kept)

    def _requests(self, examples: Sequence[Example]) -> tuple[list[str], list[latents.Request]]:
        """The prompts, and what is asked of the pipeline at once."""
        prompts = [self._options.text(example.segments) for example in examples]
        prompts = pipelines.shortened_prompts(self._pipeline, prompts)
        request = latents.Request(prompts, [example.key for example in examples])
        alone = self._folder.class_name in pipelines.ONE_BY_ONE or self._device.type == "cpu"
        return prompts, request.singly() if alone else [request]

    def pictures(self, examples: Sequence[Example]) -> tuple[list[Any], list[bool]]:
        """The first pass's pictures of B texts, for another teacher to look at, and which of them
        were finite."""
        _, parts = self._requests(examples)
        with pipelines.quiet(), latents.own_randomness(self._device):
            drawn = [
                latents.text_to_pictures(self._pipeline, self._options, part) for part in parts
            ]
        pictures, finite = zip(*drawn, strict=True)
        return list(chain(*pictures)), torch.cat(finite).tolist()

    def _answer(self, request: latents.Request) -> tuple[torch.Tensor, list[Any]]:
        options = self._options
        if options.medium == "audio":
            return self._heard(request), []
        if options.medium == "video":
            return self._seen(request)
        if options.source == "txt2img" and self._encoder is None:
            if options.keep_images:
                drawn, pictures, finite = latents.text_to_both(self._pipeline, options, request)
                return _only(drawn, finite), pictures
            return latents.text_to_latents(self._pipeline, options, request), []
        pictures, finite = latents.text_to_pictures(self._pipeline, options, request)
        if self._encoder is not None:
            return _only(self._encoder(pictures), finite), pictures
        drawn = latents.pictures_to_latents(self._second, options, request, pictures)
        return _only(drawn, finite), pictures

    def _heard(self, request: latents.Request) -> torch.Tensor:
        sounds = videos_and_sounds.text_to_sounds(self._pipeline, self._options, request)
        finite = torch.from_numpy(np.isfinite(sounds).all(axis=1))
        assert self._hearing is not None
        return _only(self._hearing(np.nan_to_num(sounds), self._rate), finite)

    def _seen(self, request: latents.Request) -> tuple[torch.Tensor, list[Any]]:
        videos, finite = videos_and_sounds.text_to_frames(self._pipeline, self._options, request)
        assert self._encoder is not None
        kept = [video[0 if self._options.frame == "first" else len(video) // 2] for video in videos]
        if self._options.frame != "mean":
            return _only(self._encoder(kept), finite), kept
        means = [self._encoder(video).float().mean(dim=0) for video in videos]
        return _only(torch.stack(means), finite), kept

    def _truncated(self, prompts: list[str]) -> npt.NDArray[np.bool_]:
        """Prompts of more tokens than the pipeline's (first) tokenizer takes."""
        tokenizer = getattr(self._pipeline, "tokenizer", None)
        if tokenizer is None:
            return np.zeros(len(prompts), dtype=bool)
        most = pipelines.prompt_tokens(self._pipeline)
        prompts = shortened(tokenizer, prompts, most)
        tokens = tokenizer(prompts, truncation=False, verbose=False).input_ids
        return np.array([len(row) > most for row in tokens])


def _only(answer: torch.Tensor, finite_B: torch.Tensor) -> torch.Tensor:
    """NaN in place of what was read out of a picture that was not finite, so that it is reported:
    the picture itself is black."""
    invalid = ~finite_B.to(answer.device).view(-1, *[1] * (answer.dim() - 1))
    return answer.masked_fill(invalid, torch.nan)


def _check_steps(options: DiffusersOptions) -> None:
    if options.two_passes and int(options.steps_of_second * options.strength) < 1:
        raise JobError(
            f"strength: {options.strength} of {options.steps_of_second} steps leaves no steps; "
            "raise strength, or the steps of the second pass"
        )


def _check_sizes(options: DiffusersOptions, factor: int) -> None:
    for name in ("height", "width", "resize"):
        if getattr(options, name) % factor:
            raise JobError(
                f"{name}: {getattr(options, name)} is not a multiple of {factor}, the factor of "
                "the pipeline's VAE; choose one"
            )


def _checked(answer: torch.Tensor, feature: FeatureSpec) -> torch.Tensor:
    if answer.shape[1:] != feature.shape:
        raise TeacherOutputError(
            f"{feature.name}: {answer.shape[1]} numbers per example, but its configuration says "
            f"{feature.shape[0]}; this pipeline rounds image sizes to its own multiples"
        )
    return answer
