"""A trained student as a folder, and back.

student/config.json, model.safetensors, tokenizer files   opens as the class that the configuration
                              names: the family's sequence classifier, or its transformer alone
student/adapter_*             instead of the weights: adapters, which peft opens on the model they
                              were made for, as a classifier with the configuration in task/
student/heads.safetensors     the objectives' parts beside aligners; pooler.* and head.* where the
                              class has none of its own
student/modules.json, 1_Pooling/, ...   of feature, infonce: opens with sentence-transformers, with
                              the projection that was learned; a classifier stays one as well
                              a static student is one as well, its table in model.safetensors
student/armada_student.json   StudentCard: what the student is and what it reads
aligner/aligner.safetensors   the TS aligner, if the objective has one; of several objectives
                              LABEL.safetensors each
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...cache_schemas.errors import StorageError, StudentSourceError
from ..adapters import TASK, AdapterBase, find_base, read_adapters, save_adapters
from ..corpus.labels import LabelSpace
from ..embeddings.folders import write_embedding_files
from ..embeddings.router import TOWERS, is_router
from ..embeddings.static import is_static_folder
from ..language.probes import probe
from ..pretrained import quiet_transformers, refusing
from .embedding.student import EmbeddingSettings
from .embedding_student import embedding_layers, state_pooling
from .objectives.base import Objective
from .own_classifier import read_classifier
from .projectors import WithProjector
from .settings import AnyPooling
from .static_student import StaticStudent, load_static_model, save_static_model
from .student import ClassifierStudent, PooledStudent, Student
from .student_models import load_backbone, load_config, load_tokenizer, match_tokenizer

CARD = "armada_student.json"
HEADS = "heads.safetensors"
ALIGNER = "aligner.safetensors"
OBJECTIVE = "objective."
_OF_ALIGNER = re.compile(r"objective\.(each\.\d+\.)?aligner\.")
_LOGGER = logging.getLogger(__name__)


class StudentCard(AdapterBase):
    """Contents of `armada_student.json`, beside a plain transformers or peft folder."""

    card_version: Literal[1] = 1
    space: LabelSpace
    pooling: AnyPooling
    dropout: float
    max_length: int
    text_columns: tuple[str, ...]
    label_column: str | tuple[str, ...] | None
    label_separator: str | None = None
    metric: str
    learned_feature: bool | None = None
    """Whether a static student with labels learned a feature as well, with or without a projection;
    None: a projection tells."""
    embedding: EmbeddingSettings | None = None
    """Set for a student of task=embedding, whose text column is a single one."""


def save_student(
    folder: Path,
    student: Student,
    tokenizer: Any,
    objective: Objective,
    card: StudentCard,
    length_1: bool = False,
) -> None:
    """Write the student folder; `length_1`: whether embeddings are scaled to it."""
    learned = [part for part in objective.parts if isinstance(part, WithProjector)]
    trained = objective.state_dict(prefix=OBJECTIVE)
    if isinstance(student, StaticStudent):
        if learned and student.space.task != "none":
            card = card.model_copy(update={"learned_feature": True})
        layers = embedding_layers(learned[0].projection, length_1) if learned else []
        folds = len(learned) == 1 and student.space.task == "none"
        if save_static_model(folder, student, tokenizer, layers, card.max_length, folds):
            trained |= _of_folded(trained)
    else:
        save_transformer(folder, student, tokenizer, card)
    save_beside(folder, student, trained, card)
    if learned and not isinstance(student, StaticStudent):
        _write_embeddings(folder, student, learned[0], card.max_length, length_1)
    if len(learned) > 1:
        _LOGGER.warning(
            f"student {folder}: trained on several features; its embeddings match the first,"
            f" {learned[0].label}"
        )


def save_beside(
    folder: Path, student: Student, trained: Mapping[str, Tensor], card: StudentCard
) -> None:
    """Write what is beside the model: heads, what `trained` with them, and the card."""
    own = {} if isinstance(student, ClassifierStudent) else student.state_dict()
    beside = {name: t for name, t in own.items() if not name.startswith("model.")}
    save_parts(folder / HEADS, beside | dict(trained))
    write_card(folder, card)


def write_card(folder: Path, card: StudentCard) -> None:
    """Write what the student is and reads."""
    (folder / CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _of_folded(trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """The linear projection behind a table that it has become part of: none."""
    found = {name: t for name, t in trained.items() if name.endswith("projection.weight")}
    identities = {name: torch.eye(len(weight)) for name, weight in found.items()}
    biases = (f"{name.removesuffix('weight')}bias" for name in found)
    return identities | {n: torch.zeros_like(trained[n]) for n in biases if n in trained}


def save_transformer(folder: Path, student: Student, tokenizer: Any, card: StudentCard) -> None:
    """Write the model, or its adapters, and the tokenizer."""
    tokenizer.model_max_length = card.max_length  # truncation length for other tools
    # A tokenizer saves its padding side only if it was given one at construction.
    tokenizer.init_kwargs["padding_side"] = tokenizer.padding_side
    with quiet_transformers():
        _save_model(folder, student, card)
    tokenizer.save_pretrained(folder)


def _save_model(folder: Path, student: Student, card: StudentCard) -> None:
    if card.base is None:
        student.model.save_pretrained(folder)
        return
    save_adapters(student.model, folder, card)
    if isinstance(student, ClassifierStudent):
        config = student.classifier.config
        config.architectures = [type(student.classifier).__name__]
        config.save_pretrained(folder / TASK)


def _write_embeddings(
    folder: Path,
    student: Student,
    objective: WithProjector,
    max_length: int,
    length_1: bool,
) -> None:
    found = state_pooling(student)
    if found is None:
        _LOGGER.warning(
            f"student {folder}: its pooling {student.pooling} is not supported by "
            "sentence-transformers, so its embeddings need armada.load_student; pooling=mean or "
            "cls opens"
        )
        return
    pooling, pooler = found
    layers = [*pooler, *embedding_layers(objective.projection, length_1)]
    states_BTD = probe(student.backbone)[0].last_hidden_state
    write_embedding_files(folder, pooling, states_BTD.shape[-1], layers, max_length)


def save_parts(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write what trained beside a backbone, the aligner left out."""
    _save({name: t for name, t in tensors.items() if not _OF_ALIGNER.match(name)}, file)


def save_aligners(folder: Path, objective: Objective) -> None:
    """Write the aligners' weights, if there are any."""
    for file, _, aligner in _aligners(folder, objective):
        folder.mkdir(parents=True, exist_ok=True)
        _save(aligner.state_dict(), file)


def _aligners(folder: Path, objective: Objective) -> list[tuple[Path, str, nn.Module]]:
    """The file of each aligner, and what the names of its weights begin with in the objective's."""
    if len(objective.parts) == 1 and objective.parts[0] is objective:
        one = objective.aligner
        return [] if one is None else [(folder / ALIGNER, "aligner.", one)]
    return [
        (
            folder / (f"{part.label}.safetensors" if part.label else ALIGNER),
            f"each.{number}.aligner.",
            part.aligner,
        )
        for number, part in enumerate(objective.parts)
        if part.aligner is not None
    ]


def load_saved_student(folder: Path) -> tuple[Student, Any, StudentCard]:
    """A student written by `save_student`, its tokenizer and its card.

    Accepts the student folder or the output folder around it; raises StudentSourceError."""
    folder = student_folder(folder)
    card = read_card(folder / CARD, StudentCard)
    if is_router(folder):
        raise StudentSourceError(
            f"student {folder}: has a tower for queries and another for passages; name its folder "
            f"{TOWERS[0]} or {TOWERS[1]}"
        )
    if is_static_folder(folder, StudentSourceError):
        static, tokenizer = load_static_model(folder, card.space, card.dropout)
        if card.space.task != "none":
            _load_heads(folder, static)
        return static.eval(), tokenizer, card
    tokenizer = load_tokenizer(folder)
    base = None if card.base is None else find_base(card, folder, StudentSourceError)
    match_tokenizer(tokenizer, load_config(base or folder))
    student: Student
    if card.pooling == "own":
        student = read_classifier(folder, tokenizer, card.space, card.dropout, base)
    else:
        tokenizer.padding_side = "right"  # which tokenizers of older folders may lack
        backbone = load_backbone(base or folder)
        student = PooledStudent(backbone, card.pooling, card.space, card.dropout)
        if base is not None:
            student.model = read_adapters(backbone, folder, StudentSourceError)
        _load_heads(folder, student)
    return student.eval(), tokenizer, card


def student_folder(folder: Path) -> Path:
    """The folder of the student in a run's folder, or that folder itself."""
    if not (folder / CARD).is_file() and (folder / "student" / CARD).is_file():
        return folder / "student"
    return folder


def tower_folders(folder: Path) -> list[Path]:
    """The folders of a student's towers: of queries, then of passages; or its only one."""
    own = student_folder(folder)
    return [own / name for name in TOWERS] if is_router(own) else [own]


def load_saved_objective(folder: Path, objective: Objective) -> Objective:
    """Fill a built objective with what a run in an output folder trained beside its student; it
    comes back in eval mode. Raises StudentSourceError."""
    heads = folder / "student" / HEADS
    with refusing(StudentSourceError, f"student {folder}"):
        tensors = {
            name.removeprefix(OBJECTIVE): tensor
            for name, tensor in load_file(heads).items()
            if name.startswith(OBJECTIVE)
        }
        for file, prefix, _ in _aligners(folder / "aligner", objective):
            tensors |= {f"{prefix}{name}": t for name, t in load_file(file).items()}
        objective.load_state_dict(tensors)
    return objective.eval()


def _load_heads(folder: Path, student: Student) -> None:
    with refusing(StudentSourceError, f"student {folder}: {HEADS}"):
        tensors = load_file(folder / HEADS)
        own = {name: t for name, t in tensors.items() if not name.startswith(OBJECTIVE)}
        missing, unexpected = student.load_state_dict(own, strict=False)
    wrong = [*unexpected, *(name for name in missing if not name.startswith("model."))]
    if wrong:
        raise StudentSourceError(f"student {folder}: {HEADS} does not match its card: {wrong[0]}")


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, file)
    except (OSError, SafetensorError) as cause:
        raise StorageError(f"{file}: cannot be written: {cause}") from cause


CardT = TypeVar("CardT", bound=BaseModel)


def read_card(file: Path, model: type[CardT]) -> CardT:
    """The card of a student folder; raises StudentSourceError."""
    if not file.parent.exists():
        raise StudentSourceError(
            f"student {file.parent}: no such folder; name a folder that `distill` wrote"
        )
    if not file.is_file():
        raise StudentSourceError(
            f"student {file.parent}: holds no {file.name}; name a folder that `distill` wrote"
        )
    try:
        return model.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise StudentSourceError(f"{file}: {first['loc']}: {first['msg']}") from error
