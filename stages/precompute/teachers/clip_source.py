"""Source of an open_clip model: its configuration and one file of safetensors weights.

Three forms: a folder with `open_clip_config.json` and weights; `hf-hub:org/name`, a folder of the
hub; the name of one of open_clip's architectures, with the weights named apart, as a file or as one
of open_clip's pretrained tags. open_clip itself uses random weights if it finds none, and opens
pickles; here both are refused.
"""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....cache_schemas.errors import TeacherSourceError
from ....cache_schemas.locations import expand_home
from ...pretrained import source_name
from ...sources import PICKLE_SUFFIXES, require_safetensors, resolve

CONFIG_FILE = "open_clip_config.json"
HUB_PREFIX = "hf-hub:"
PREFERRED_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
"""Names that open_clip saves under; a folder may hold the same model for transformers as well."""


@dataclass(frozen=True, slots=True)
class ClipSource:
    """A model that can be built: nothing is left to find."""

    name: str
    model_name: str
    """Name in open_clip."""
    config: dict[str, Any]
    weights: Path
    folder: Path | None
    """Folder of the tokenizer too, unless open_clip's own is used."""


def is_open_clip(source: str) -> bool:
    """Whether a source is open_clip's and not transformers': by its name, or by what is in its
    folder."""
    folder = Path(expand_home(source))
    named = (folder / CONFIG_FILE).is_file() and not (folder / "config.json").is_file()
    return source.startswith(HUB_PREFIX) or named


def find_clip(source: str, weights: str | None, revision: str | None) -> ClipSource:
    """The model of that source. Raises TeacherSourceError for an invalid or unsafe one."""
    import open_clip

    here = weights is None and Path(expand_home(source)).is_dir()
    if source in open_clip.list_models() and not here:
        config = open_clip.get_model_config(source)
        file = _named_weights(source, config, weights, revision)
        return ClipSource(f"{source}:{Path(str(weights)).name}", source, config, file, None)
    if weights is not None:
        raise TeacherSourceError(
            f"weights: {weights!r} needs the name of an architecture, and {source!r} is none of "
            f"open_clip's; {_near(source, open_clip.list_models())}"
        )
    return _from_folder(source, revision)


def _from_folder(source: str, revision: str | None) -> ClipSource:
    index = source.removeprefix(HUB_PREFIX)
    if index == source and not Path(expand_home(source)).is_dir():
        raise TeacherSourceError(
            f"source {source}: is neither a folder, nor {HUB_PREFIX}org/name, nor an architecture "
            "of open_clip; name only one"
        )
    folder = resolve(index, revision, TeacherSourceError)
    config = _read_config(folder)
    weights = _choose(require_safetensors(folder, TeacherSourceError), folder)
    return ClipSource(source_name(index, revision), f"local-dir:{folder}", config, weights, folder)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.exists():
        ours = (folder / "config.json").exists()
        other = f"; for a model of transformers, use encoder:{folder}" if ours else ""
        raise TeacherSourceError(f"source {folder}: holds no {CONFIG_FILE}{other}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
        missing = {"embed_dim", "text_cfg", "vision_cfg"} - set(config)
    except (ValueError, KeyError, TypeError) as cause:
        raise TeacherSourceError(f"source {path}: is not JSON with a model_cfg") from cause
    if missing:
        raise TeacherSourceError(f"source {path}: model_cfg lacks {', '.join(sorted(missing))}")
    return dict(config)


def _choose(weights: list[Path], folder: Path) -> Path:
    names = {path.name: path for path in weights}
    for name in PREFERRED_WEIGHTS:
        if name in names:
            return names[name]
    if len(weights) == 1:
        return weights[0]
    raise TeacherSourceError(
        f"source {folder}: holds several weights ({', '.join(sorted(names))}); rename the one to "
        f"use to {PREFERRED_WEIGHTS[0]}"
    )


def _named_weights(
    source: str, config: dict[str, Any], weights: str | None, revision: str | None
) -> Path:
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    if weights is None:
        tags = ", ".join(list_pretrained_tags_by_model(source)) or "none"
        raise TeacherSourceError(
            f"weights: {source} is an architecture without weights; name a safetensors file or one "
            f"of its tags ({tags})"
        )
    file = Path(expand_home(weights))
    if file.suffix in PICKLE_SUFFIXES:
        raise TeacherSourceError(
            f"weights: {weights} is pickled, which can run code when opened; "
            "convert it to safetensors"
        )
    if file.suffix == ".safetensors":
        return _require_file(file)
    tag = get_pretrained_cfg(source, weights)
    if not tag:
        raise TeacherSourceError(
            f"weights: {weights!r} is neither a safetensors file nor a tag of {source}; "
            f"{_near(weights, list_pretrained_tags_by_model(source))}"
        )
    return _tagged_weights(source, config, weights, tag, revision)


def _require_file(file: Path) -> Path:
    if not file.is_file():
        raise TeacherSourceError(f"weights: {file}: no such file")
    return file


def _tagged_weights(
    source: str, config: dict[str, Any], weights: str, tag: dict[str, Any], revision: str | None
) -> Path:
    quick = bool(tag.get("quick_gelu", False))
    if quick != bool(config.get("quick_gelu", False)):
        # open_clip only warns, and computes other numbers than those it was trained with.
        raise TeacherSourceError(
            f"weights: {weights} was trained with quick_gelu {quick}, unlike {source}; name the "
            f"architecture {source}-quickgelu"
        )
    repository, _, file = tag.get("hf_hub", "").rpartition("/")
    if not repository:
        raise TeacherSourceError(
            f"weights: {weights} of {source} is published as a pickle only; choose another tag, or "
            "convert it to safetensors and name the file"
        )
    safe = str(Path(file).with_suffix(".safetensors")) if file else PREFERRED_WEIGHTS[0]
    return _download(repository, safe, revision)


def _download(repository: str, file: str, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.hf_hub_download(repository, file, revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as cause:
        raise TeacherSourceError(
            f"weights: the hub has no {file} in {repository}, revision {revision or 'main'} "
            f"({type(cause).__name__}); name a safetensors file"
        ) from cause


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}known are {', '.join(known) or 'none'}"
