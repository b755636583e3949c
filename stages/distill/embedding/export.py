"""A student that embeds, as a folder that sentence-transformers opens: a transformer, a pooling, a
dense layer where its width is another, length 1, and its prompts.

Queries have the prompt `query`, passages `document`, as `encode_query` and `encode_document` look
for them.
"""

from pathlib import Path
from typing import Any

from ....cache_schemas.errors import StudentSourceError
from ...embeddings.folders import dense_layer, write_embedding_files
from ...embeddings.layers import Dense, Normalize
from ...language.probes import probe
from ..embedding_student import state_pooling
from ..export import OBJECTIVE, StudentCard, save_beside, save_transformer
from ..objectives.base import Objective
from ..static_student import StaticStudent, save_static_model
from ..student import Student
from .student import EmbeddingStudent

_IDENTITY = "torch.nn.modules.linear.Identity"


def save_embedding_student(
    folder: Path, student: EmbeddingStudent, tokenizer: Any, objective: Objective, card: StudentCard
) -> None:
    """Write the student folder."""
    assert card.embedding is not None
    inner, most = student.inner, card.max_length
    named = {"query": card.embedding.query_prompt, "document": card.embedding.passage_prompt}
    prompts = named if any(named.values()) else {}
    layers: list[Dense | Normalize] = []
    if student.dense is not None:
        layers.append(dense_layer(student.dense.weight, student.dense.bias, _IDENTITY))
    if student.normalize:
        layers.append(Normalize())
    trained = objective.state_dict(prefix=OBJECTIVE)
    if isinstance(inner, StaticStudent):
        save_static_model(folder, inner, tokenizer, layers, most, folds=True, prompts=prompts)
        save_beside(folder, inner, trained, card)
        return
    save_transformer(folder, inner, tokenizer, card)
    save_beside(folder, inner, trained, card)
    found = state_pooling(inner)
    assert found is not None, "checked before training"
    pooling, pooler = found
    width = probe(inner.backbone)[0].last_hidden_state.shape[-1]
    write_embedding_files(folder, pooling, width, [*pooler, *layers], most, prompts)


def require_exportable(student: Student, source: str) -> None:
    """Raise StudentSourceError for a pooling that sentence-transformers does not have."""
    if not isinstance(student, StaticStudent) and state_pooling(student) is None:
        raise StudentSourceError(
            f"student {source}: its pooling {student.pooling} is not one of sentence-transformers; "
            "use pooling=mean, cls, last, max, mean_sqrt_len_tokens or weightedmean"
        )
