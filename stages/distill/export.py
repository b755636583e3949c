"""A trained student as a folder, and back.

student/config.json, model.safetensors, tokenizer files   opens with AutoModel.from_pretrained
student/heads.safetensors     pooler.*, head.*, and the objective's parts beside the aligner
student/armada_student.json   StudentCard: what the heads are and what they read
aligner/aligner.safetensors   the TS aligner, if the objective has one
"""

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...cache_schemas.errors import StorageError, StudentSourceError
from ..corpus.labels import LabelSpace
from ..pretrained import quiet_transformers, refusing
from .objectives.base import Objective
from .pooling import Pooling
from .student import Student
from .student_source import load_backbone, load_tokenizer, match_tokenizer

CARD = "armada_student.json"
HEADS = "heads.safetensors"
ALIGNER = "aligner.safetensors"
_OBJECTIVE = "objective."
_ALIGNER = "objective.aligner."


class StudentCard(BaseModel):
    """What a student folder adds to a plain transformers folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    card_version: Literal[1] = 1
    space: LabelSpace
    pooling: Pooling
    dropout: float
    max_length: int
    text_columns: tuple[str, ...]
    label_column: str | None
    metric: str


def save_student(
    folder: Path, student: Student, tokenizer: Any, objective: Objective, card: StudentCard
) -> None:
    """Write the student folder."""
    with quiet_transformers():
        student.backbone.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tensors = student.state_dict() | objective.state_dict(prefix=_OBJECTIVE)
    save_parts(folder / HEADS, {n: t for n, t in tensors.items() if not n.startswith("backbone.")})
    (folder / CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")


def save_parts(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write what trained beside a backbone, the aligner left out."""
    _save({name: t for name, t in tensors.items() if not name.startswith(_ALIGNER)}, file)


def save_aligner(folder: Path, aligner: nn.Module) -> None:
    """Write the aligner's weights."""
    folder.mkdir(parents=True, exist_ok=True)
    _save(aligner.state_dict(), folder / ALIGNER)


def load_saved_student(folder: Path) -> tuple[Student, Any, StudentCard]:
    """A student written by `save_student`, its tokenizer and its card.

    Accepts the student folder or the output folder around it; raises StudentSourceError."""
    if not (folder / CARD).is_file() and (folder / "student" / CARD).is_file():
        folder = folder / "student"
    card = read_card(folder / CARD, StudentCard)
    student = Student(load_backbone(folder), card.pooling, card.space, card.dropout)
    _load_heads(folder, student)
    tokenizer = load_tokenizer(folder)
    match_tokenizer(tokenizer, student.backbone.config)
    return student.eval(), tokenizer, card


def load_saved_objective(folder: Path, objective: Objective) -> Objective:
    """Fill a built objective with what a run in an output folder trained beside its student; it
    comes back in eval mode. Raises StudentSourceError."""
    heads, aligner = folder / "student" / HEADS, folder / "aligner" / ALIGNER
    with refusing(StudentSourceError, f"student {folder}"):
        tensors = {
            name.removeprefix(_OBJECTIVE): tensor
            for name, tensor in load_file(heads).items()
            if name.startswith(_OBJECTIVE)
        }
        if objective.aligner is not None:
            tensors |= {f"aligner.{name}": t for name, t in load_file(aligner).items()}
        objective.load_state_dict(tensors)
    return objective.eval()


def _load_heads(folder: Path, student: Student) -> None:
    with refusing(StudentSourceError, f"student {folder}: {HEADS}"):
        tensors = load_file(folder / HEADS)
        own = {name: t for name, t in tensors.items() if not name.startswith(_OBJECTIVE)}
        missing, unexpected = student.load_state_dict(own, strict=False)
    wrong = [*unexpected, *(name for name in missing if not name.startswith("backbone."))]
    if wrong:
        raise StudentSourceError(f"student {folder}: {HEADS} does not fit its card: {wrong[0]}")


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, file)
    except (OSError, SafetensorError) as cause:
        raise StorageError(f"{file}: cannot be written: {cause}") from cause


CardT = TypeVar("CardT", bound=BaseModel)


def read_card(file: Path, model: type[CardT]) -> CardT:
    """The card of a student folder; raises StudentSourceError."""
    if not file.is_file():
        raise StudentSourceError(
            f"student {file.parent}: holds no {file.name}; name a folder that `distill` wrote"
        )
    try:
        return model.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise StudentSourceError(f"{file}: {first['loc']}: {first['msg']}") from error
