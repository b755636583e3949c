"""A trained language model as a folder, and back.

student/config.json, model.safetensors, tokenizer files   opens with AutoModelForCausalLM; or
student/adapter_*   adapters, which peft opens on the model they were made for
student/heads.safetensors       what trained beside it, the aligner left out, if anything did
student/armada_language.json    LanguageCard: how texts were written for it
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ....cache_schemas.errors import StudentSourceError
from ....cache_schemas.locations import expand_home
from ...corpus.labels import LabelSpace
from ...language.recipe import Recipe
from ...pretrained import quiet_transformers
from ...sources import digest_files, require_safetensors, resolve
from ..export import HEADS, read_card, save_parts
from ..objectives.base import Objective
from ..student_models import check_words, load_backbone, load_tokenizer
from .adapters import read_adapters
from .source import AUTO_CLASS
from .student import LanguageStudent

LANGUAGE_CARD = "armada_language.json"


class LanguageCard(BaseModel):
    """What a student folder adds to a plain transformers or peft folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    card_version: Literal[1] = 1
    recipe: Recipe
    max_length: int
    text_columns: tuple[str, ...]
    space: LabelSpace
    metric: str
    base: str | None = None
    """Of adapters: the model they were made for, a whole path, or a hub id and its revision."""
    base_revision: str | None = None
    base_digest: str | None = None
    """Of its configuration and weights; earlier cards do not tell it."""


def named_base(source: str, revision: str | None) -> dict[str, str | None]:
    """What a card says of the model that adapters are made for. Raises StudentSourceError."""
    folder = resolve(source, revision, StudentSourceError)
    local = Path(expand_home(source)).is_dir()
    return {
        "base": str(folder.resolve()) if local else source,
        "base_revision": revision,
        "base_digest": _digest(folder),
    }


def save_language_student(
    folder: Path, student: LanguageStudent, tokenizer: Any, objective: Objective, card: LanguageCard
) -> None:
    """Write the student folder."""
    with quiet_transformers():
        student.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    head = {} if student.head is None else student.head.state_dict(prefix="head.")
    parts = head | objective.state_dict(prefix="objective.")
    save_parts(folder / HEADS, parts)
    (folder / LANGUAGE_CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")


def is_language_student(folder: Path) -> bool:
    """Whether a folder, or the output folder around it, holds a student of this kind."""
    return any((each / LANGUAGE_CARD).is_file() for each in (folder, folder / "student"))


def load_language_folder(folder: Path) -> tuple[Any, Any, LanguageCard]:
    """The causal language model of a folder that `save_language_student` wrote, adapters on it,
    in eval mode; its tokenizer and its card. Raises StudentSourceError."""
    if not (folder / LANGUAGE_CARD).is_file():
        folder = folder / "student"
    card, tokenizer = read_card(folder / LANGUAGE_CARD, LanguageCard), load_tokenizer(folder)
    if card.base is None:
        model = load_backbone(folder, AUTO_CLASS)
    else:
        base = _resolve_base(card, folder)
        model = load_backbone(base, AUTO_CLASS)
        check_words(model, tokenizer, str(folder))
        model = read_adapters(model, folder)
    return model.eval(), tokenizer, card


def _resolve_base(card: LanguageCard, folder: Path) -> Path:
    """The folder of the model that adapters were made for; adapters on another one are noise."""
    assert card.base is not None
    base = resolve(card.base, card.base_revision, StudentSourceError)
    if card.base_digest is not None and (found := _digest(base)) != card.base_digest:
        raise StudentSourceError(
            f"student {folder}: its adapters were made for {card.base} of digest "
            f"{card.base_digest}, which now has {found}; bring that model back"
        )
    return base


def _digest(folder: Path) -> str:
    weights = require_safetensors(folder, StudentSourceError)
    return digest_files(folder, [folder / "config.json", *weights])
