"""A student that embeds texts: pooled text -> a dense layer, if its width is another -> length 1.

    e = normalize(W s + b), E numbers; W begins orthogonal, so that a pretrained student keeps most
        of its geometry, b at 0

A text has one embedding, whatever it is compared with; or, where tokens are not pooled, one of each
of its tokens, [B, T, E] with zeros behind the last, of 128 numbers and by a new layer without b
(late interaction: Khattab and Zaharia, ColBERT, arXiv 2004.12832). Passages may have a tower of
their own: a second student, or none, where their embeddings are a teacher's.
"""

from typing import Any

import torch.nn.functional as F
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from ...embeddings.prompts import PassageTower, Prompts
from ..static_student import StaticStudent
from ..student import Student

TOKEN_DIM = 128
"""Numbers of a token's vector, unless others are named; ColBERT's."""


class EmbeddingSettings(Prompts):
    """What the student's embeddings are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedding_dim: int = Field(ge=1, description="numbers of an embedding")
    has_dense: bool = Field(description="whether a dense layer makes them of a pooled text")
    normalize: bool = Field(description="whether embeddings have length 1")
    matryoshka_dims: tuple[int, ...] = Field(
        default=(), description="first numbers that are an embedding by themselves"
    )
    passage_tower: PassageTower = Field(
        default="shared", description="what embeds the passages that it was trained with"
    )
    passage_teacher: str | None = Field(
        default=None, description="fingerprint of the teacher whose embeddings passages have"
    )


class EmbeddingStudent(nn.Module):
    """A text model whose pooled text is an embedding [B, E]; it has no head of a task."""

    def __init__(
        self,
        inner: Student,
        embedding_dim: int | None,
        normalize: bool,
        start: nn.Linear | None = None,
    ) -> None:
        """`embedding_dim`: E; None: the width of `start`, or of the inner student's texts, or
        TOKEN_DIM. `start`: the layer that makes embeddings, as trained before; left out where it
        does not fit."""
        super().__init__()
        self.inner = inner
        self.normalize = normalize
        self.space = inner.space
        self.dense: nn.Linear | None = None
        if start is not None and start.in_features == inner.dim:
            self.dense = start if embedding_dim in (None, start.out_features) else None
        usual = TOKEN_DIM if self.of_tokens else inner.dim
        self.dim = embedding_dim or (usual if self.dense is None else self.dense.out_features)
        if self.dense is None and self.dim != inner.dim:
            self.dense = nn.Linear(inner.dim, self.dim, bias=not self.of_tokens)
            nn.init.orthogonal_(self.dense.weight)
            if self.dense.bias is not None:
                nn.init.zeros_(self.dense.bias)

    @property
    def of_tokens(self) -> bool:
        """Whether a text has an embedding of each of its tokens."""
        return self.inner.pooling == "none"

    @property
    def towers(self) -> "tuple[EmbeddingStudent, ...]":
        """Itself: queries and passages have one."""
        return (self,)

    @property
    def model(self) -> Any:
        """The model saved and opened by transformers, or by peft."""
        return self.inner.model

    @property
    def backbone(self) -> Any:
        """The transformer."""
        return self.inner.backbone

    def forward(self, *inputs: Tensor | None, masked: bool | None = None) -> tuple[Tensor, Tensor]:
        """(embedding [B, E] or [B, T, E], an output of no meaning), of inputs as the inner student
        takes them."""
        pooled_BD, output_BK = self.inner(*inputs, masked=masked)
        return self.embed(pooled_BD), output_BK

    def with_hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        masked: bool | None = None,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """(embedding, output, hidden states [B, T, width] of the embeddings and of each layer)."""
        pooled_BD, output_BK, states = self.inner.with_hidden_states(
            input_ids, attention_mask, token_type_ids, masked
        )
        return self.embed(pooled_BD), output_BK, states

    def embed(self, pooled_BD: Tensor) -> Tensor:
        """The embeddings [B, E] of pooled texts, or [B, T, E] of tokens."""
        if self.dense is not None:
            embeddings_BE = self.dense(pooled_BD)
            if isinstance(self.inner, StaticStudent) or self.of_tokens:
                # A bias is no token. The folder of a static student has the layer in its table,
                # where a text without tokens has zeros.
                empty_B1 = ~pooled_BD.any(dim=-1, keepdim=True)
                embeddings_BE = embeddings_BE.masked_fill(empty_B1, 0.0)
            pooled_BD = embeddings_BE
        return F.normalize(pooled_BD, dim=-1) if self.normalize else pooled_BD


class TwoTowers(nn.Module):
    """A student for queries and another for passages, whose embeddings are in one space."""

    def __init__(self, query: EmbeddingStudent, passage: EmbeddingStudent) -> None:
        super().__init__()
        assert query.dim == passage.dim
        self.query, self.passage = query, passage
        self.dim, self.space, self.normalize = query.dim, query.space, query.normalize

    @property
    def towers(self) -> tuple[EmbeddingStudent, ...]:
        """The query's first."""
        return self.query, self.passage

    @property
    def backbone(self) -> Any:
        """The transformer of queries."""
        return self.query.backbone
