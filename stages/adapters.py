"""Folders of low-rank adapters (arXiv 2106.09685): the model they were made for, and the way back.

adapter_config.json, adapter_model.safetensors    as peft writes them
armada_*.json                                     the card of the student: its base, and its digest

Adapters on another model than their own are noise, so that one is named with the digest of its
weights, and refused where these have changed.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ..cache_schemas.errors import InputError
from ..cache_schemas.extras import require_extra
from ..cache_schemas.locations import expand_home
from .embeddings.folders import transformer_folder
from .pretrained import one_line
from .sources import digest_files, require_safetensors, resolve


class AdapterBase(BaseModel):
    """What the card of a student says of the model that its adapters were made for, if any."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str | None = None
    """A whole path, or a hub id."""
    base_revision: str | None = None
    base_digest: str | None = None
    """Of its configuration and weights; earlier cards do not tell it."""


def named_base(source: str, revision: str | None, error: type[InputError]) -> dict[str, str | None]:
    """What a card says of the model that adapters are made for. Raises `error`."""
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
            f"student {folder}: its adapters were made for {card.base} of digest "
            f"{card.base_digest}, which now has {found}; bring that model back"
        )
    return base


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


def without_adapters(model: Any) -> Any:
    """The model itself, adapters in its layers, where peft has wrapped it."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without warnings that nobody can act upon: of a name that transformers has renamed, of a
    layer whose weights lie the other way round, which peft then sees to, and of an adapter on a
    head that is the embeddings, too, which is refused."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
        yield
