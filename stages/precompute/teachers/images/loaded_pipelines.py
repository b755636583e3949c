"""Diffusers pipelines in memory: opened frozen, with a LoRA merged and an image-to-image twin.

In: a checked `PipelineFolder`. Out: pipelines in eval mode, without gradients or progress bars, on
their device. `check_class` and `check_counterpart` refuse before weights are read.

The safety checker is left out: it puts a black picture in place of one it objects to, and black is
not what the model answered.
"""

import inspect
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .....cache_schemas.errors import TeacherSourceError
from ....pretrained import LOCAL_ONLY, quiet_transformers, refusing
from ....tokenizing.long_texts import shortened
from .saved_pipelines import SAFETY_CHECKER, PipelineFolder

PROMPTS_AS_THEY_ARE = frozenset(
    {
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusion3Pipeline",
        "FluxPipeline",
        "LatentConsistencyModelPipeline",
    }
)
"""Pipelines that give a prompt as it is to each of their tokenizers. Others clean it first, or
write more around it."""

_MOST_OF_T5 = 512
"""Tokens that a pipeline keeps at most where its tokenizer takes fewer, or does not say."""


def check_class(class_name: str, arguments: set[str]) -> None:
    """Refuse a class that is no pipeline, or whose call takes not all of `arguments`."""
    import diffusers

    _check_call(class_name, getattr(diffusers, class_name, None), arguments)


def check_counterpart(class_name: str, arguments: set[str]) -> None:
    """Refuse a class without image-to-image counterpart that takes all of `arguments`."""
    counterpart = _image_to_image_class(class_name)
    if counterpart is None:
        raise TeacherSourceError(
            f"source: {class_name} has no image-to-image counterpart; set source to txt2img"
        )
    _check_call(class_name, counterpart, arguments)


def _check_call(class_name: str, pipeline: Any, arguments: set[str]) -> None:
    from diffusers import DiffusionPipeline

    if not (isinstance(pipeline, type) and issubclass(pipeline, DiffusionPipeline)):
        raise TeacherSourceError(
            f"source: {class_name} is no pipeline of this diffusers; update it"
        )
    missing = arguments - takes(pipeline)
    if missing:
        raise TeacherSourceError(
            f"source: {pipeline.__name__} takes no {', '.join(sorted(missing))}; "
            "choose a text-to-image pipeline, or leave that option out"
        )


def _image_to_image_class(class_name: str) -> Any:
    from diffusers.pipelines import auto_pipeline

    families = auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.items()
    family = next((key for key, cls in families if cls.__name__ == class_name), None)
    return auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING.get(family)


def takes(pipeline: Any) -> set[str]:
    """Names of the arguments of a pipeline's call; `pipeline` is a class or an object."""
    return set(inspect.signature(pipeline.__call__).parameters)


def open_pipeline(folder: PipelineFolder, dtype: torch.dtype, device: torch.device) -> Any:
    """The pipeline, frozen; raises TeacherSourceError where a component does not open whole."""
    from diffusers import DiffusionPipeline

    # Passed only to pipelines that know it, and with the second: else each of them warns.
    off: dict[str, Any] = {SAFETY_CHECKER: None, "requires_safety_checker": False}
    with refusing(TeacherSourceError, f"source {folder.path}"), quiet():
        pipeline = DiffusionPipeline.from_pretrained(
            folder.path,
            dtype=dtype,
            use_safetensors=True,
            **LOCAL_ONLY,
            **_transformers_models(folder, dtype),
            **(off if folder.names_safety_checker else {}),
        )
    for name, component in _modules(pipeline):
        # What the checkpoint lacks, diffusers leaves without numbers.
        _refuse_random(folder.path / name, [key for key, w in _weights(component) if w.is_meta])
    return _frozen(pipeline.to(device))


def _transformers_models(folder: PipelineFolder, dtype: torch.dtype) -> dict[str, Any]:
    # Opened here, since inside a pipeline transformers fills what a checkpoint lacks with random
    # numbers and only warns. A class it does not know is left to diffusers, to rename or refuse.
    import transformers

    models = {}
    for name, class_name in folder.transformers_models:
        if model_class := getattr(transformers, class_name, None):
            models[name], report = model_class.from_pretrained(
                folder.path / name,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                **LOCAL_ONLY,
            )
            _refuse_random(folder.path / name, report["missing_keys"])
    return models


def _refuse_random(folder: Path, missing: Iterable[str]) -> None:
    first = min(missing, default=None)
    if first is not None:
        raise TeacherSourceError(
            f"source {folder}: the weights lack {first}, which would be random; "
            "save the whole pipeline"
        )


def _modules(pipeline: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    for name, component in pipeline.components.items():
        if isinstance(component, torch.nn.Module):
            yield name, component


def _weights(component: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from component.named_parameters()
    yield from component.named_buffers()


def _frozen(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    for _, component in _modules(pipeline):
        component.eval().requires_grad_(False)
    return pipeline


def merge_lora(pipeline: Any, file: Path, scale: float) -> None:
    """Add a LoRA to the weights, so that it costs nothing per step."""
    name = "teacher"
    # It warns of each component the LoRA leaves alone, which most do.
    with refusing(TeacherSourceError, f"lora {file}"), quiet():
        pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
    # A LoRA for another model loads as nothing, without an error.
    if not any(name in adapters for adapters in pipeline.get_list_adapters().values()):
        raise TeacherSourceError(f"lora {file}: has no weights for this pipeline")
    pipeline.fuse_lora(lora_scale=scale)
    pipeline.unload_lora_weights()
    _frozen(pipeline)


def image_to_image(pipeline: Any) -> Any:
    """The image-to-image pipeline of the same components; takes no memory of its own."""
    from diffusers import AutoPipelineForImage2Image

    return _frozen(AutoPipelineForImage2Image.from_pipe(pipeline))


def shortened_prompts(pipeline: Any, prompts: Sequence[str]) -> list[str]:
    """The prompts, of which those that are very long are cut far behind what the pipeline reads."""
    names = [name for name in pipeline.components if name.startswith("tokenizer")]
    tokenizers = [each for name in names if (each := pipeline.components[name]) is not None]
    if type(pipeline).__name__ not in PROMPTS_AS_THEY_ARE or any(map(_expands, tokenizers)):
        return list(prompts)
    return [_shortened(tokenizers, prompt) for prompt in prompts]


def _expands(tokenizer: Any) -> bool:
    """Whether the pipeline writes several tokens for one of a textual inversion, anywhere."""
    added = tokenizer.added_tokens_encoder
    return any(f"{token}_1" in added for token in added)


def _shortened(tokenizers: Sequence[Any], prompt: str) -> str:
    cuts = [shortened(each, [prompt], _most(each))[0] for each in tokenizers]
    longest = max(cuts, key=len, default=prompt)
    if longest == prompt:
        return prompt
    # One that is cut for one tokenizer is read by all.
    both = zip(tokenizers, cuts, strict=True)
    alike = all(_first(each, longest) == _first(each, cut) for each, cut in both)
    return longest if alike else prompt


def _first(tokenizer: Any, text: str) -> list[int]:
    found = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return list(found[: _most(tokenizer) + 1])


def _most(tokenizer: Any) -> int:
    return max(int(tokenizer.model_max_length), _MOST_OF_T5)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and loading bars of diffusers and transformers: what matters of them
    is checked and raised here, and `truncated` tells of the prompts they warn about."""
    from diffusers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with quiet_transformers(), warnings.catch_warnings():
            # Importing diffusers calls functions that torch has deprecated.
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
