"""A trained language model as a folder, and back.

student/config.json, model.safetensors, tokenizer files   opens with AutoModelForCausalLM, or, of a
                    masked one, with AutoModelForMaskedLM; or
student/adapter_*   adapters, which peft opens on the model they were made for
student/heads.safetensors       what trained beside it, the aligner left out, if anything did
student/armada_language.json    LanguageCard: how texts were written for it
student/armada_masked.json      MaskedCard of a masked one: how they were masked
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ....cache_schemas.errors import StudentSourceError
from ...adapters import AdapterBase, find_base, read_adapters, save_adapters
from ...corpus.labels import LabelSpace
from ...language.masking import MaskSettings
from ...language.recipe import Recipe
from ...pretrained import quiet_transformers
from ..export import HEADS, read_card, save_parts
from ..objectives.base import Objective
from ..student_models import check_vocab_size, load_backbone, load_tokenizer
from .source import AUTO_CLASS, MASKED_AUTO_CLASS
from .student import LanguageStudent, MaskedStudent

LANGUAGE_CARD, MASKED_CARD = "armada_language.json", "armada_masked.json"


class LanguageCard(AdapterBase):
    """Contents of `armada_student.json`, beside a plain transformers or peft folder."""

    card_version: Literal[1] = 1
    recipe: Recipe
    max_length: int
    text_columns: tuple[str, ...]
    space: LabelSpace
    metric: str


class MaskedCard(BaseModel):
    """Contents of `armada_masked.json`, beside a plain transformers folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    card_version: Literal[1] = 1
    masks: MaskSettings
    max_length: int
    text_columns: tuple[str, ...]
    metric: str


def save_language_student(
    folder: Path, student: LanguageStudent, tokenizer: Any, objective: Objective, card: LanguageCard
) -> None:
    """Write the student folder."""
    with quiet_transformers():
        if card.base is None:
            student.model.save_pretrained(folder)
        else:
            save_adapters(student.model, folder, card)
    _save_beside(folder, LANGUAGE_CARD, student, tokenizer, objective, card)


def save_masked_student(
    folder: Path, student: MaskedStudent, tokenizer: Any, objective: Objective, card: MaskedCard
) -> None:
    """Write the student folder."""
    with quiet_transformers():
        student.model.save_pretrained(folder)
    _save_beside(folder, MASKED_CARD, student, tokenizer, objective, card)


def _save_beside(
    folder: Path,
    name: str,
    student: LanguageStudent,
    tokenizer: Any,
    objective: Objective,
    card: BaseModel,
) -> None:
    tokenizer.save_pretrained(folder)
    head = {} if student.head is None else student.head.state_dict(prefix="head.")
    parts = head | objective.state_dict(prefix="objective.")
    save_parts(folder / HEADS, parts)
    (folder / name).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")


def is_language_student(folder: Path) -> bool:
    """Whether a folder, or the output folder around it, holds a causal language model."""
    return _holds(folder, LANGUAGE_CARD)


def is_masked_student(folder: Path) -> bool:
    """Whether it holds a masked language model."""
    return _holds(folder, MASKED_CARD)


def _holds(folder: Path, card: str) -> bool:
    return any((each / card).is_file() for each in (folder, folder / "student"))


def load_language_folder(folder: Path) -> tuple[Any, Any, LanguageCard]:
    """The causal language model of a folder that `save_language_student` wrote, adapters on it,
    in eval mode; its tokenizer and its card. Raises StudentSourceError."""
    if not (folder / LANGUAGE_CARD).is_file():
        folder = folder / "student"
    card, tokenizer = read_card(folder / LANGUAGE_CARD, LanguageCard), load_tokenizer(folder)
    if card.base is None:
        model = load_backbone(folder, AUTO_CLASS)
    else:
        base = find_base(card, folder, StudentSourceError)
        model = load_backbone(base, AUTO_CLASS)
        check_vocab_size(model, tokenizer, str(folder))
        model = read_adapters(model, folder, StudentSourceError)
    return model.eval(), tokenizer, card


def load_masked_folder(folder: Path) -> tuple[Any, Any, MaskedCard]:
    """The masked language model of a folder that `save_masked_student` wrote, in eval mode; its
    tokenizer and its card. Raises StudentSourceError."""
    if not (folder / MASKED_CARD).is_file():
        folder = folder / "student"
    card, tokenizer = read_card(folder / MASKED_CARD, MaskedCard), load_tokenizer(folder)
    return load_backbone(folder, MASKED_AUTO_CLASS).eval(), tokenizer, card
