"""Latents of texts: the two passes of the paper's stage 1, batched and in memory.

    prompts -> text-to-image -> 8-bit images -> smaller images -> image-to-image -> latents

The recipe is that of arXiv 2603.10877: 20 steps and guidance 7.5 in both passes, 512 x 512 images
made 128 x 128, strength 0.75, the final latents before VAE decoding (4 x 16 x 16 for Stable
Diffusion v1-4). There a PNG file is written between the passes; here the image is rounded to 8 bits
and stays in memory, which is the same. The filter of the resize is our choice: PIL's bicubic.

Each example has its own two generators, one per pass, both on the processor: its noise depends on
seed and key alone, not on the batch or the device.

Shapes: B examples, C latent channels, h x w latent cells. Pictures are PIL images, RGB.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ....cache_schemas.errors import TeacherOutputError
from ...memory import free_cached_memory, is_out_of_memory
from .base import example_seed
from .diffusers_options import GenerationOptions
from .pipelines import takes

SECOND_PASS = b"second pass"
"""Appended to the key, which is 16 bytes: no key and no other use gives the same seed."""

_BOTH_PASSES = ("num_inference_steps", "generator", "output_type")


@dataclass(frozen=True, slots=True)
class Request:
    """B prompts and the keys of their examples."""

    prompts: list[str]
    keys: list[bytes]

    def singly(self) -> "list[Request]":
        """The same as batches of one example."""
        pairs = zip(self.prompts, self.keys, strict=True)
        return [Request([prompt], [key]) for prompt, key in pairs]

    def generators(self, seed: int, stream: bytes) -> list[torch.Generator]:
        """One generator an example, on the processor whatever the device."""
        return [
            torch.Generator("cpu").manual_seed(example_seed(seed, key + stream))
            for key in self.keys
        ]


@dataclass(slots=True)
class _LastLatents:
    """Keeps the result of the last denoising step, for a call that goes on to decode it."""

    latents: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def __call__(
        self, _pipeline: Any, _step: int, _time: Any, now: dict[str, Any]
    ) -> dict[str, Any]:
        self.latents = now["latents"]
        return {}


def first_pass_arguments(options: GenerationOptions) -> set[str]:
    """Arguments that the text-to-image pipeline must take."""
    return {*_BOTH_PASSES, *both_passes(options, Request([], [])), "height", "width"}


def second_pass_arguments(options: GenerationOptions) -> set[str]:
    """Arguments that the image-to-image pipeline must take."""
    return {*_BOTH_PASSES, *both_passes(options, Request([], [])), "image", "strength"}


def text_to_pictures(
    pipeline: Any, options: GenerationOptions, request: Request
) -> tuple[list[Any], torch.Tensor]:
    """First pass, decoded: B pictures of `width` x `height`, and which [B] were finite before they
    were rounded."""
    with watched(pipeline.vae) as decoded:
        pictures = list(first_pass(pipeline, options, request, output_type="pil").images)
    return pictures, finite_of(decoded, len(pictures))


def text_to_latents(pipeline: Any, options: GenerationOptions, request: Request) -> torch.Tensor:
    """First pass, not decoded: latents [B, C, h, w], or as the pipeline packs them."""
    latents: torch.Tensor = first_pass(pipeline, options, request, output_type="latent").images
    return latents


def text_to_both(
    pipeline: Any, options: GenerationOptions, request: Request
) -> tuple[torch.Tensor, list[Any], torch.Tensor]:
    """First pass: the latents of `text_to_latents`, bit for bit, their pictures, and which [B] of
    these were finite before they were rounded."""
    last, more = _LastLatents(), {"output_type": "pil"}
    with watched(pipeline.vae) as decoded:
        pictures = list(
            first_pass(pipeline, options, request, callback_on_step_end=last, **more).images
        )
    return last.latents, pictures, finite_of(decoded, len(pictures))


@contextmanager
def watched(vae: Any) -> Iterator[list[torch.Tensor]]:
    """Which pictures of each call of the VAE are finite. As 8 bits, NaN is black: a picture like
    any other. Those that overflowed in half precision are decoded again in float32, whether or not
    the pipeline knows that its VAE needs that."""
    decode, finite = vae.decode, []

    def decoding(latents: torch.Tensor, *given: Any, **more: Any) -> Any:
        decoded = _decoded(vae, lambda: decode(latents, *given, **more), len(latents))
        sound = _are_finite(decoded[0])
        if len(sound) == len(latents) and vae.dtype in _HALVES and not sound.all():
            again = _in_float32(vae, lambda: decode(latents[~sound].float(), *given, **more))
            decoded[0][~sound] = again[0].to(decoded[0].dtype)
            sound = _are_finite(decoded[0])
        finite.append(sound)
        return decoded

    vae.decode = decoding
    try:
        yield finite
    finally:
        vae.decode = decode


_HALVES = (torch.float16, torch.bfloat16)


def _are_finite(pictures: torch.Tensor) -> torch.Tensor:
    return pictures.isfinite().flatten(1).all(dim=1)


def _decoded(vae: Any, decode: Callable[[], Any], count: int) -> Any:
    """Pictures; where memory does not suffice for all of a batch, one after another from then
    on."""
    try:
        return decode()
    except (RuntimeError, MemoryError) as error:
        slices = hasattr(vae, "enable_slicing") and not getattr(vae, "use_slicing", True)
        if not is_out_of_memory(error) or not slices or count == 1:
            raise
    free_cached_memory()  # outside the handler the failed call's tensors are free
    vae.enable_slicing()
    return decode()


def _in_float32(vae: Any, decode: Callable[[], Any]) -> Any:
    weights = [*vae.parameters(), *vae.buffers()]
    halves = [weight.data for weight in weights]
    vae.float()
    try:
        return decode()
    finally:
        for weight, half in zip(weights, halves, strict=True):
            weight.data = half


def finite_of(decoded: Sequence[torch.Tensor], count: int) -> torch.Tensor:
    """For each of `count` pictures or videos, whose frames may have been decoded one by one; if
    they were decoded in other numbers, for all together."""
    finite = torch.cat([*decoded])
    if len(finite) % count:
        return finite.all().expand(count)
    return finite.view(count, -1).all(dim=1)


def first_pass(pipeline: Any, options: GenerationOptions, request: Request, **more: Any) -> Any:
    """The output of a pipeline that generates from texts alone."""
    return pipeline(
        **both_passes(options, request),
        num_inference_steps=options.steps,
        height=options.height,
        width=options.width,
        generator=request.generators(options.seed, b""),
        **more,
    )


def pictures_to_latents(
    pipeline: Any, options: GenerationOptions, request: Request, pictures: Sequence[Any]
) -> torch.Tensor:
    """Second pass: B pictures of any size -> final latents [B, C, h, w], or as packed."""
    size = {"height": options.resize, "width": options.resize}
    latents: torch.Tensor = pipeline(
        **both_passes(options, request),
        image=[smaller(picture, options) for picture in pictures],
        strength=options.strength,
        num_inference_steps=options.steps_of_second,
        generator=request.generators(options.seed, SECOND_PASS),
        output_type="latent",
        # Where a pipeline takes a size, its default is not the picture's but the model's.
        **(size if size.keys() <= takes(pipeline) else {}),
    ).images
    return latents


def both_passes(options: GenerationOptions, request: Request) -> dict[str, Any]:
    """What a pipeline is told of the texts."""
    arguments = {"prompt": request.prompts, "guidance_scale": options.guidance}
    # Absent and empty differ for some pipelines: SDXL puts zeros for an absent one.
    if options.negative_prompt:
        arguments["negative_prompt"] = [options.negative_prompt] * len(request.prompts)
    return arguments


def smaller(picture: Any, options: GenerationOptions) -> Any:
    """A picture as the second pass reads it: `resize` x `resize`, colours in `channel_order`."""
    from PIL import Image

    if options.channel_order == "bgr":
        picture = Image.fromarray(np.ascontiguousarray(np.asarray(picture)[..., ::-1]))
    return picture.resize((options.resize, options.resize), Image.Resampling.BICUBIC)


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Raises TeacherOutputError if the global generators were used meanwhile.

    Some schedulers ignore the generators they are given, and their outputs would be random."""
    before = _shared_states(device)
    yield
    if not all(map(torch.equal, before, _shared_states(device))):
        raise TeacherOutputError(
            "teacher: the pipeline used torch's global random generator, so outputs depend on the "
            "batch; choose a scheduler that uses the given generators"
        )


def _shared_states(device: torch.device) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "mps":
        states.append(torch.mps.get_rng_state())
    elif device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states
