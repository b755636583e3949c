"""Diffusers pipelines: checked and digested where they are saved, then opened frozen.

Saved, a pipeline is a local folder with `model_index.json` and one sub-folder a component, and a
LoRA is a file beside. `read_folder` refuses unsafe or incomplete ones; nothing heavy is imported.
Digests cost a read of the weights the first time (about 1 GB/s).

Opened, a checked `PipelineFolder` becomes pipelines in eval mode, without gradients or progress
bars, on their device, with a LoRA merged and an image-to-image twin. `check_class` and
`check_counterpart` refuse before weights are read.

The safety checker is left out: it replaces images it objects to by black ones, and black is not the
model's output.
"""

import inspect
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ....cache_schemas.errors import TeacherSourceError
from ....cache_schemas.extras import require_extra
from ....cache_schemas.locations import expand_home
from ...known_digests import sha256_of
from ...pretrained import LOCAL_ONLY, quiet_transformers, refusing
from ...sources import MODEL_FILE_PATTERNS, digest_files, require_safetensors
from ...tokenizing.long_texts import shortened

INDEX = "model_index.json"
SAFETY_CHECKER = "safety_checker"

WEIGHTS = re.compile(r"(diffusion_pytorch_)?model\b.*\.(safetensors|index.*\.json)")
OPENED_WEIGHTS = re.compile(
    r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
)
"""Folders also hold variants (`model.fp16.safetensors`), which are neither opened nor digested."""


@dataclass(frozen=True, slots=True)
class PipelineFolder:
    """A checked folder: its pipeline class and the components that are opened."""

    path: Path
    class_name: str
    components: tuple[str, ...]
    transformers_models: tuple[tuple[str, str], ...]
    """Name and class of the components that are models of transformers."""
    names_safety_checker: bool

    def digest(self) -> str:
        """128-bit digest of the index and of every file that is opened."""
        files = [self.path / INDEX]
        for component in self.components:
            files += _opened_files(self.path / component)
        return digest_files(self.path, files)

    def config(self, component: str) -> dict[str, Any]:
        """Configuration of a component; empty if there is none of that name."""
        file = self.path / component / "config.json"
        return _read_json(file) if component in self.components and file.is_file() else {}


@dataclass(frozen=True, slots=True)
class LatentGrid:
    """Latents of an image by a VAE: `channels` numbers for each `factor` x `factor` pixels."""

    channels: int
    factor: int

    def values(self, height: int, width: int) -> int:
        """Numbers of the latents of a picture of so many pixels."""
        return self.channels * (height // self.factor) * (width // self.factor)


def read_folder(path: Path) -> PipelineFolder:
    """Check a pipeline's folder. Raises TeacherSourceError for no index, custom code, a missing
    component, or weights that are not safetensors."""
    if not (path / INDEX).is_file():
        raise TeacherSourceError(
            f"source {path}: holds no {INDEX}; name a saved diffusers pipeline"
        )
    index = _read_json(path / INDEX)
    class_name = index.get("_class_name")
    if not isinstance(class_name, str):
        raise TeacherSourceError(
            f"source {path}: _class_name {class_name!r} is not a class of diffusers; pipelines "
            "with custom code are not opened"
        )
    components = dict(_components(index))
    for name in components:
        _check_component(path / name)
    models = tuple(
        (name, model)
        for name, (library, model) in components.items()
        if library == "transformers" and (path / name / "config.json").is_file()
    )
    return PipelineFolder(path, class_name, tuple(components), models, SAFETY_CHECKER in index)


def _components(index: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    for name, entry in sorted(index.items()):
        is_component = isinstance(entry, list) and len(entry) == 2 and entry[0] is not None
        if is_component and name != SAFETY_CHECKER:
            yield name, entry


def _check_component(folder: Path) -> None:
    if not folder.is_dir():
        raise TeacherSourceError(
            f"source {folder.parent}: {INDEX} names {folder.name}, but there is no such folder"
        )
    # Only models have a config.json: tokenizers, schedulers and processors use other names.
    if (folder / "config.json").is_file():
        weights = require_safetensors(folder, TeacherSourceError)
        if not any(OPENED_WEIGHTS.fullmatch(file.name) for file in weights):
            raise TeacherSourceError(
                f"source {folder}: holds {weights[0].name}, but neither model.safetensors nor "
                "diffusion_pytorch_model.safetensors; save the pipeline without a variant"
            )


def _opened_files(folder: Path) -> list[Path]:
    files = {file for pattern in MODEL_FILE_PATTERNS for file in folder.glob(pattern)}
    return [
        file
        for file in files
        if not WEIGHTS.fullmatch(file.name) or OPENED_WEIGHTS.fullmatch(file.name)
    ]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as cause:
        raise TeacherSourceError(f"source {file}: not JSON: {cause}") from cause
    if not isinstance(content, dict):
        raise TeacherSourceError(f"source {file}: not a JSON object")
    return content


def latent_grid(folder: PipelineFolder) -> LatentGrid:
    """The latents a pipeline's VAE makes; packed or not, their number is the same."""
    config = folder.config("vae")
    channels = config.get("latent_channels")
    blocks = config.get("block_out_channels") or config.get("encoder_block_out_channels")
    if not isinstance(channels, int) or not blocks:
        raise TeacherSourceError(
            f"source {folder.path}: the shape of the latents is not in the configuration: "
            "vae/config.json has no latent_channels and block_out_channels; choose an "
            "image_encoder to cache embeddings of the images instead"
        )
    return LatentGrid(channels, 2 ** (len(blocks) - 1))


def lora_file(source: str) -> Path:
    """The safetensors file of a LoRA, given as that file or as a folder that holds only it."""
    require_extra(f"lora {source}", "lora", "peft")
    path = Path(expand_home(source))
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if len(files) != 1:
        raise TeacherSourceError(
            f"lora {source}: holds {len(files)} *.safetensors files, not one; name the file"
        )
    if not files[0].is_file() or files[0].suffix != ".safetensors":
        raise TeacherSourceError(f"lora {source}: is not an existing *.safetensors file or folder")
    return files[0]


def file_digest(file: Path) -> str:
    """128-bit digest of one file's content; its name does not enter."""
    return sha256_of(file)[:32]


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

ONE_BY_ONE = frozenset({"AudioLDM2Pipeline"})
"""Pipelines that pad prompts to the longest of a batch, and count positions over that padding."""

_MOST_OF_T5 = 512
"""Maximum tokens of a pipeline if its tokenizer takes fewer, or declares none."""


def check_class(class_name: str, arguments: set[str], medium: str = "image") -> None:
    """Refuse a class that is no pipeline, or whose call takes not all of `arguments`; `medium`:
    what it is to generate."""
    import diffusers

    _check_call(class_name, getattr(diffusers, class_name, None), arguments, medium)
    if medium == "image" and "num_frames" in takes(getattr(diffusers, class_name)):
        raise TeacherSourceError(
            f"source: {class_name} generates videos; set num_frames and image_encoder"
        )


def arguments_of(class_name: str) -> set[str]:
    """Arguments of the call of a class of diffusers; none if there is no such class."""
    import diffusers

    found = getattr(diffusers, class_name, None)
    return set() if found is None else takes(found)


def check_counterpart(class_name: str, arguments: set[str]) -> None:
    """Refuse a class without image-to-image counterpart that takes all of `arguments`."""
    counterpart = _image_to_image_class(class_name)
    if counterpart is None:
        raise TeacherSourceError(
            f"source: {class_name} has no image-to-image counterpart; set source to txt2img"
        )
    _check_call(class_name, counterpart, arguments)


def _check_call(class_name: str, pipeline: Any, arguments: set[str], medium: str = "image") -> None:
    from diffusers import DiffusionPipeline

    if not (isinstance(pipeline, type) and issubclass(pipeline, DiffusionPipeline)):
        raise TeacherSourceError(
            f"source: {class_name} is no pipeline of this diffusers; update it"
        )
    missing = arguments - takes(pipeline)
    if missing:
        raise TeacherSourceError(
            f"source: {pipeline.__name__} takes no {', '.join(sorted(missing))}; "
            f"choose a text-to-{medium} pipeline, or leave that option out"
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
    """The prompts; very long ones are cut far beyond what the pipeline reads."""
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
    # A prompt that is cut for one tokenizer is read by all.
    both = zip(tokenizers, cuts, strict=True)
    alike = all(_first(each, longest) == _first(each, cut) for each, cut in both)
    return longest if alike else prompt


def _first(tokenizer: Any, text: str) -> list[int]:
    found = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return list(found[: _most(tokenizer) + 1])


def prompt_tokens(pipeline: Any) -> int:
    """Tokens of a prompt that a pipeline reads, by its (first) tokenizer."""
    parameter = inspect.signature(pipeline.__call__).parameters.get("max_sequence_length")
    longest = getattr(parameter, "default", None)
    own = int(pipeline.tokenizer.model_max_length)
    return min(own, longest) if isinstance(longest, int) else own


def _most(tokenizer: Any) -> int:
    return max(int(tokenizer.model_max_length), _MOST_OF_T5)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and loading bars of diffusers and transformers: relevant ones are
    checked and raised here, and `truncated` counts the prompts they warn about."""
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
