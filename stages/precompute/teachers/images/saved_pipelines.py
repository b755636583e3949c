"""Saved diffusers pipelines and LoRAs: checked, measured and digested without opening them.

In: a local folder with `model_index.json` and one sub-folder a component. `read_folder` refuses
what is unsafe or incomplete; nothing heavy is imported. Digests cost a read of the weights (about
1 GB/s). The safety checker is left out; `loaded_pipelines.py` says why.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .....cache_schemas.errors import TeacherSourceError
from .....cache_schemas.locations import expand_home
from ....sources import MODEL_FILE_PATTERNS, digest_files, require_safetensors

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
    """What a VAE makes of a picture: `channels` numbers for each `factor` x `factor` pixels."""

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
            f"source {path}: _class_name {class_name!r} is not a class of diffusers; "
            "pipelines that bring their own code are not opened"
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
    # Models alone have a config.json: tokenizers, schedulers and processors name theirs otherwise.
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
            f"source {folder.path}: the shape of the latents cannot be told from the "
            "configuration: vae/config.json has no latent_channels and block_out_channels; "
            "choose an image_encoder to cache embeddings of the pictures instead"
        )
    return LatentGrid(channels, 2 ** (len(blocks) - 1))


def lora_file(source: str) -> Path:
    """The safetensors file of a LoRA, given as that file or as a folder that holds only it."""
    if find_spec("peft") is None:
        raise TeacherSourceError(f"lora {source}: needs peft; install armada-kd[lora]")
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
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:32]
