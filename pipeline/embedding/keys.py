"""Keys of a `distill` job whose student embeds (task=embedding)."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, field_validator

from ...cache_schemas.locations import Source
from ...stages.embeddings.prompts import PassageTower, Prompts
from ..jobs import Names
from ..objective_keys import options_class


class EmbeddingKeys(BaseModel):
    """The embedding, prompts, and texts to validate by."""

    embedding_dim: int | None = Field(
        default=None,
        ge=1,
        description="numbers of an embedding; default: those of the feature that an objective "
        "meets number by number, or of the layer that it starts with; 128 of a vector for each "
        "token (pooling=none), else as wide as the student's pooled texts (task=embedding)",
    )
    matryoshka_dims: tuple[int, ...] | None = Field(
        default=None,
        description="first numbers of an embedding that are to be one by themselves, such as [256, "
        "128, 64]: the loss is the mean over these and the whole",
    )
    normalize_embeddings: bool | None = Field(
        default=None,
        description="embeddings have length 1 (task=embedding); default: unless an objective meets "
        "numbers of a feature that has another length",
    )
    query_prompt: str | None = Field(
        default=None,
        description="prefix of queries: the first of several text columns, or the only one "
        "(task=embedding)",
    )
    passage_prompt: str | None = Field(
        default=None,
        description="prefix of passages: the other text columns, or the only one (task=embedding)",
    )
    passage_tower: PassageTower | None = Field(
        default=None,
        description="what embeds passages (task=embedding): shared (default), the student that "
        "embeds queries; own, a second one, trained beside it; cached, nothing: they have the "
        "teacher's embeddings, and the student reads queries alone",
    )
    passage_student: Source | None = Field(
        default=None,
        description="what the passages' own tower starts from: folder, hub id or static:SOURCE; "
        "default: what the student starts from (passage_tower=own)",
    )
    passage_student_layers: int | None = Field(
        default=None, ge=1, description="layers of passage_student to keep (passage_tower=own)"
    )
    mini_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="texts that the student reads at once (task=embedding): losses and gradients "
        "are those of the whole batch (gradient caching), in the memory of so many texts",
    )
    validation_text_column: Names | None = Field(
        default=None,
        description="text columns of validation, if not those of training: pairs with scores, or "
        "queries and passages (task=embedding)",
    )
    validation_label_column: str | None = Field(
        default=None,
        description="column of the scores of validation pairs; default label_column "
        "(task=embedding)",
    )

    @field_validator("matryoshka_dims")
    @classmethod
    def _are_widths(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        for number in value or ():
            if number < 1:
                raise ValueError(f"{number} is no number of numbers; choose 1 or more")
        if value is not None and len(set(value)) < len(value):
            raise ValueError("one of them is there twice")
        return value

    @property
    def tower(self) -> PassageTower:
        """What embeds passages."""
        return self.passage_tower or "shared"

    @property
    def prefix_dims(self) -> tuple[int, ...]:
        """Numbers of the prefixes that are embeddings by themselves."""
        return self.matryoshka_dims or ()


def with_embedding_defaults(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a job whose student embeds, with what is usual for one: objective `feature`, and no
    projector, since the embedding itself is to be in the teacher's space."""
    own = dict(keys)
    if own.get("objectives") is None:
        own.setdefault("objective", "feature")
        return _without_projector(own.get("objective"), own)
    if isinstance(own["objectives"], list | tuple):
        own["objectives"] = [
            _without_projector(each.get("name"), each) if isinstance(each, Mapping) else each
            for each in own["objectives"]
        ]
    return own


def _without_projector(name: Any, keys: Mapping[str, Any]) -> dict[str, Any]:
    options = options_class(name) if isinstance(name, str) else None
    given = keys.get("options")
    chosen = {*keys, *(given if isinstance(given, Mapping) else ())}
    if options is None or "projector" not in options.model_fields:
        return dict(keys)
    if "projector" in chosen or "orthogonal_projection" in chosen:
        return dict(keys)
    return {**keys, "projector": "none"}


def prompts_of(job: EmbeddingKeys, columns: int) -> Prompts:
    """The prefixes of queries and passages; of a student that has learned from single texts, those
    of both are the one that is named."""
    query, passage = job.query_prompt or "", job.passage_prompt or ""
    if columns == 1:
        query = passage = query or passage
    return Prompts(query_prompt=query, passage_prompt=passage)
