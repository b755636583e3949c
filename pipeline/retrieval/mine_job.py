"""The keys of a `mine` job."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ...stages.retrieval.metrics import Similarity
from ..jobs import Corpora, LocalFolder, Names, TextFormatKeys


class MineJob(TextFormatKeys):
    """Keys of `mine`."""

    corpus: Corpora = Field(min_length=1, description="files or folders of queries and positives")
    text_column: Names = Field(
        min_length=2,
        max_length=2,
        description="columns of the query and of its positive; several rows of a query have "
        "several positives",
    )
    id_column: str | Literal[False] | None = Field(
        default=None, description="column of unique ids; default `id` if there is one; false: none"
    )
    passages: Corpora = Field(
        default=(), description="files or folders of the passages; default the positives"
    )
    passage_column: str | None = Field(
        default=None, min_length=1, description="their column; default that of the positives"
    )
    cache: LocalFolder = Field(description="folder of the cache of embeddings")
    teacher: str | None = Field(
        default=None, description="fingerprint of the teacher, or a prefix no other one shares"
    )
    query_cache: LocalFolder | None = Field(
        default=None, description="cache of the queries' embeddings; default that of passages"
    )
    query_teacher: str | None = Field(
        default=None,
        description="fingerprint of the teacher of the queries, where they have another prompt; "
        "default that of the passages",
    )
    feature: str | None = Field(
        default=None, description="feature with the embeddings; may be left out if there is one"
    )
    similarity: Similarity = Field(
        default="cosine", description="score of a query and a passage: cosine, dot, euclid"
    )
    index: Literal["exact", "ivf"] = Field(
        default="exact",
        description="exact: compare each query with all passages; ivf: with those near it, by an "
        "inverted file of FAISS; how many of the exact ones that finds is measured and told",
    )
    output: Path = Field(description="new .parquet file to write to")
    negatives: int = Field(default=4, ge=1, description="negatives for each row")
    sampling: Literal["top", "random"] = Field(
        default="top",
        description="top: the nearest that are left; random: any of them, by seed and key",
    )
    range_min: int = Field(
        default=0, ge=0, description="nearest passages to pass over, the query's positives aside"
    )
    range_max: int = Field(
        default=100, ge=1, description="how many of the nearest passages are candidates"
    )
    max_score: float | None = Field(default=None, description="highest score of a negative")
    margin: float | None = Field(
        default=None,
        ge=0,
        description="least difference to the score of the row's positive; less is a likely answer",
    )
    relative_margin: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="the same as a share of the positive's score, such as 0.05",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="of sampling=random")
    layout: Literal["columns", "pairs"] = Field(
        default="columns",
        description="columns: query, positive, negative_1, ..., null where there are fewer; pairs: "
        "a row for each query with a passage, for a cross_encoder to read",
    )
    scores: bool = Field(
        default=False, description="write the teacher's scores, too: positive first, then negatives"
    )
    limit: int | None = Field(default=None, ge=1, description="maximum rows to read from each file")
    skip_bad_rows: bool = Field(
        default=False, description="leave bad rows, and rows that are not cached, out and list them"
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps, xpu")

    @field_validator("output")
    @classmethod
    def _is_parquet(cls, value: Path) -> Path:
        if value.suffix != ".parquet":
            raise ValueError("is no .parquet file, which has room for where its rows come from")
        return value

    @model_validator(mode="after")
    def _has_room_for_negatives(self) -> "MineJob":
        if self.range_max - self.range_min < self.negatives:
            raise ValueError(
                f"range_min {self.range_min}, range_max {self.range_max}: leave fewer than "
                f"negatives={self.negatives} candidates; raise range_max"
            )
        if self.passage_column is not None and not self.passages:
            raise ValueError("passage_column: is of passages; name their files, or leave it out")
        return self
