"""Folders of low-rank adapters (arXiv 2106.09685): the model they were made for, and the way back.

adapter_config.json, adapter_model.safetensors    as peft writes them
task/config.json                                  of a sequence classifier, with labels and padding
armada_*.json                                     the card of the student: its base, and its digest

Adapters on another model than their own are noise, so that one is named with the digest of its
weights, and refused where these have changed. The configuration of a classifier has a folder of its
own: transformers takes a folder that has one at its top for a whole model.
"""

import copy
import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ..cache_schemas.errors import InputError
from ..cache_schemas.extras import require_extra
from ..cache_schemas.keys import digest
from ..cache_schemas.locations import expand_home
from .embeddings.folders import transformer_folder
from .pretrained import one_line
from .sources import digest_files, require_safetensors, resolve

ADAPTER_CONFIG = "adapter_config.json"
TASK = "task"
"""The folder of a classifier's configuration."""


class AdapterBase(BaseModel):
    """The base model of a student's adapters, by its card; None without adapters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str | None = None
    """A whole path, or a hub id."""
    base_revision: str | None = None
    base_digest: str | None = None
    """Digest of its configuration and weights; earlier cards lack it."""


def named_base(source: str, revision: str | None, error: type[InputError]) -> dict[str, str | None]:
    """The base model that a card names. Raises `error`."""
    folder = resolve(source, revision, error)
    local = Path(expand_home(source)).is_dir()
    return {
        "base": str(folder.resolve()) if local else source,
        "base_revision": revision,
        "base_digest": _digest(transformer_folder(folder, error), error),
    }


def find_base(card: AdapterBase, folder: Path, error: type[InputError]) -> Path:
    """The folder of the model that the adapters in `folder` were made for. Raises `error` where it
    is gone or another one."""
    assert card.base is not None
    base = transformer_folder(resolve(card.base, card.base_revision, error), error)
    if card.base_digest is not None and (found := _digest(base, error)) != card.base_digest:
        raise error(
            f"student {folder}: its adapters were made for {card.base} with digest "
            f"{card.base_digest}, which is now {found}; restore that model"
        )
    return base


def base_of(folder: Path, error: type[InputError]) -> Path | None:
    """The folder of the model that a student's adapters were made for; None of a folder that holds
    no student with adapters. Raises `error`."""
    card = next(iter(sorted(folder.glob("armada_*.json"))), None)
    if card is None or not (folder / ADAPTER_CONFIG).is_file():
        return None
    try:
        document = json.loads(card.read_bytes())
        known = AdapterBase(**{name: document.get(name) for name in AdapterBase.model_fields})
    except (ValueError, AttributeError) as cause:
        raise error(f"{card}: {one_line(cause)}") from cause
    return None if known.base is None else find_base(known, folder, error)


def adapter_digests(folder: Path, base: Path) -> dict[str, str]:
    """Part of a model with adapters -> digest, which does not depend on where the base is."""
    settings = json.loads((folder / ADAPTER_CONFIG).read_bytes())
    where = {"base_model_name_or_path", "revision"}
    names = ("*.safetensors", "tokenizer*", f"{TASK}/config.json")
    files = {file for pattern in names for file in folder.glob(pattern)}
    return {
        "adapters": digest_files(folder, files),
        "adapter_config": digest({k: v for k, v in settings.items() if k not in where}),
        "base": digest_files(base, [base / "config.json", *base.glob("*.safetensors")]),
    }


def _digest(folder: Path, error: type[InputError]) -> str:
    return digest_files(folder, [folder / "config.json", *require_safetensors(folder, error)])


def read_adapters(model: Any, folder: Path, error: type[InputError]) -> Any:
    """A model with the adapters of a folder, all of them. Raises `error`."""
    require_extra(f"student {folder}", "lora", "peft")
    try:
        from peft import PeftModel

        with quiet_peft():
            warnings.filterwarnings("error", "Found missing adapter keys")
            return PeftModel.from_pretrained(model, folder)
    except Exception as cause:  # whatever a library raises at a folder that does not fit
        raise error(f"student {folder}: adapters: {one_line(cause)}") from cause


def save_adapters(model: Any, folder: Path, card: AdapterBase) -> None:
    """Write adapters as peft does, made for the model that the card names."""
    from peft import PeftConfig

    with quiet_peft():
        model.save_pretrained(folder)
    assert card.base is not None
    config = PeftConfig.from_pretrained(folder)
    if Path(card.base).is_absolute():
        # The transformer's own folder, which a folder of embeddings may have inside.
        config.base_model_name_or_path = str(Path(config.base_model_name_or_path).resolve())
    else:
        config.base_model_name_or_path, config.revision = card.base, card.base_revision
    # Sets, which peft would write in an order of the moment.
    for name in ("target_modules", "exclude_modules"):
        value = getattr(config, name)
        setattr(config, name, sorted(value) if isinstance(value, set) else value)
    config.save_pretrained(folder)


def trained_whole(model: Any) -> list[str]:
    """Names of the modules of a model with adapters that train whole."""
    from peft.utils import ModulesToSaveWrapper

    found = without_adapters(model).named_modules()
    return [name for name, module in found if isinstance(module, ModulesToSaveWrapper)]


def not_brought(model: Any, drawn: Iterable[str]) -> list[str]:
    """Weights missing in both base and adapters."""
    whole = tuple(f"{name}." for name in trained_whole(model))
    return [name for name in drawn if not name.startswith(whole)]


def without_adapters(model: Any) -> Any:
    """The model itself, adapters in its layers, where peft has wrapped it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def as_plain(module: Any) -> Any:
    """A module as it is without peft: one that trained whole is that, and a layer with an adapter
    has it in its weights, in a copy."""
    if not type(module).__module__.startswith("peft."):
        return module
    from peft.utils import ModulesToSaveWrapper

    if isinstance(module, ModulesToSaveWrapper):
        return module.modules_to_save[module.active_adapter]
    merged = copy.deepcopy(module)
    merged.merge()
    return merged.get_base_layer()


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Suppresses warnings without a remedy: about a renamed name of transformers, about transposed
    weights, which peft handles, and about adapters on tied embeddings, which are refused here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
        yield
