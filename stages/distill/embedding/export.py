"""A student that embeds, as a folder that sentence-transformers opens: a transformer, a pooling, a
dense layer where its width is another, length 1, and its prompts. One with a vector for each token
has no pooling, and is a MultiVectorEncoder there.

Queries have the prompt `query`, passages `document`, as `encode_query` and `encode_document` look
for them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....cache_schemas.errors import StudentSourceError
from ...embeddings.folders import dense_layer, write_embedding_files, write_token_files
from ...embeddings.layers import Dense, Normalize
from ...embeddings.prompts import Prompts
from ...embeddings.router import TOWERS, write_router
from ...language.probes import probe
from ..embedding_student import state_pooling
from ..export import (
    HEADS,
    OBJECTIVE,
    StudentCard,
    save_beside,
    save_parts,
    save_transformer,
    write_card,
)
from ..objectives.base import Objective
from ..static_student import StaticStudent, save_static_model
from ..student import Student
from .student import EmbeddingStudent

_IDENTITY = "torch.nn.modules.linear.Identity"


def save_embedding_student(
    folder: Path,
    student: EmbeddingStudent,
    tokenizer: Any,
    objective: Objective | None,
    card: StudentCard,
) -> None:
    """Write the student folder; `objective`: what was trained beside it."""
    assert card.embedding is not None
    inner, most = student.inner, card.max_length
    prompts = card.embedding.named
    layers: list[Dense | Normalize] = []
    if student.dense is not None:
        layers.append(dense_layer(student.dense.weight, student.dense.bias, _IDENTITY))
    if student.normalize:
        layers.append(Normalize())
    trained = {} if objective is None else objective.state_dict(prefix=OBJECTIVE)
    if isinstance(inner, StaticStudent):
        save_static_model(folder, inner, tokenizer, layers, most, folds=True, prompts=prompts)
        save_beside(folder, inner, trained, card)
        return
    save_transformer(folder, inner, tokenizer, card)
    save_beside(folder, inner, trained, card)
    if student.of_tokens:
        write_token_files(folder, layers, most, prompts)
        return
    found = state_pooling(inner)
    assert found is not None, "checked before training"
    pooling, pooler = found
    width = probe(inner.backbone)[0].last_hidden_state.shape[-1]
    write_embedding_files(folder, pooling, width, [*pooler, *layers], most, prompts)


@dataclass(frozen=True, slots=True)
class SavedTower:
    """A tower, as it is to be saved."""

    student: EmbeddingStudent
    tokenizer: Any
    card: StudentCard


def save_towers(
    folder: Path, towers: tuple[SavedTower, SavedTower], objective: Objective, prompts: Prompts
) -> None:
    """Write a folder that sentence-transformers opens as a Router: `encode_query` reads by one
    tower, `encode_document` by the other. Each has a folder of its own, `query` and `document`,
    which is that of a student like any other."""
    for name, tower in zip(TOWERS, towers, strict=True):
        (folder / name).mkdir(parents=True)
        save_embedding_student(folder / name, tower.student, tower.tokenizer, None, tower.card)
    save_parts(folder / HEADS, objective.state_dict(prefix=OBJECTIVE))
    write_card(folder, towers[0].card)
    write_router(folder, TOWERS, prompts.named)


def require_exportable(student: Student, source: str) -> None:
    """Raise StudentSourceError for a pooling that sentence-transformers does not have."""
    if isinstance(student, StaticStudent) or student.pooling == "none":
        return
    if state_pooling(student) is None:
        raise StudentSourceError(
            f"student {source}: its pooling {student.pooling} is not one of sentence-transformers; "
            "use pooling=mean, cls, last, max, mean_sqrt_len_tokens or weightedmean"
        )
