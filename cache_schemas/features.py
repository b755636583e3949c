"""Spec of a cached feature: name, shape per example, dtype, and meaning."""

import math
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)

from . import names
from .codings import Coding
from .layout import INNER_CHUNK_ROWS, RESERVED_NAMES, ROW_COLUMNS
from .names import either, of_version_1

TOKENS, TOKEN_IDS = "tokens", "token_ids"
"""The axis of a text's tokens, as a teacher reads them, and the feature of their ids."""

GENERATED_IDS, GENERATED_LENGTHS = "generated_ids", "generated_lengths"
"""Features of a teacher's own responses: their tokens, and how many each has where a prompt has
several."""
GENERATED_TEXT, GENERATED_TEXT_LENGTHS = "generated_text", "generated_text_lengths"
"""The same responses as text: bytes of UTF-8, and how many each has where there are several."""


def _not_reserved(name: str) -> str:
    if name in RESERVED_NAMES:
        raise ValueError(f"{name!r} is the name of a folder of the cache; choose another")
    return name


TableName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
"""A name is also a folder: lower case, no separators, nothing to escape with."""

FeatureName = Annotated[TableName, AfterValidator(_not_reserved)]
"""Likewise; features lie beside other folders."""


def _no_column_of_rows(name: str) -> str:
    if name in ROW_COLUMNS:
        raise ValueError(f"{name!r} is a column of the table of rows; choose another")
    return name


AxisName = Annotated[TableName, AfterValidator(_no_column_of_rows)]
"""Also a column of the table of rows: how many rows each example has along the axis."""

MAX_DIMENSIONS = 8
MAX_ROW_BYTES = 2**30
"""1 GiB: larger than any answer, small enough that sizes made of it are exact and checked."""

MAX_LENGTH = 2**20

StoredDtype = Literal["float32", "float16"]
"""Dtypes with NaN for absent rows."""

StoredWhole = Literal["uint8", "uint16", "uint32"]
"""Dtypes of ids and coded bytes, with 0 for absent rows."""


class FeatureSpec(BaseModel):
    """One feature: every example has an array of `shape` and `dtype`; or, along an axis, one for
    each of its tokens, say, of which examples have different numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: FeatureName = Field(description="name of the feature and of its folder")
    shape: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        max_length=MAX_DIMENSIONS, description="shape of one example"
    )
    dtype: StoredDtype | StoredWhole = Field(
        description="dtype of the stored numbers, little-endian"
    )
    description: str = Field(default="", description="description of the numbers")
    labels: tuple[str, ...] | None = Field(
        default=None, description="names of the classes, for features that are class logits"
    )

    axis: AxisName | None = Field(
        default=None, description="axis of several rows per example; absent: one row"
    )
    max_length: int | None = Field(
        default=None,
        ge=1,
        le=MAX_LENGTH,
        validation_alias=either("max_length", names.FEATURE),
        description="maximum rows of an example along the axis",
    )

    coding: Coding | None = Field(
        default=None, description="coding of the bytes of a row; absent: plain numbers"
    )

    @model_validator(mode="after")
    def _has_the_bytes_of_its_coding(self) -> "FeatureSpec":
        if self.coding is not None:
            stored, coded = (self.dtype, self.shape), ("uint8", (self.coding.row_bytes,))
            if stored != coded:
                raise ValueError(
                    f"coding: its rows are uint8[{self.coding.row_bytes}], the feature's "
                    f"{self.dtype}{list(self.shape)}"
                )
        return self

    @model_validator(mode="after")
    def _axis_has_an_end(self) -> "FeatureSpec":
        if (self.axis is None) != (self.max_length is None):
            raise ValueError("axis, max_length: a feature has both or neither")
        return self

    @model_validator(mode="after")
    def _fits_into_memory(self) -> "FeatureSpec":
        example_bytes = self.most_rows(self.row_bytes)
        if example_bytes > MAX_ROW_BYTES:
            raise ValueError(
                f"shape: {list(self.shape)}{f' at {self.max_length} rows' if self.axis else ''} "
                f"takes {example_bytes} bytes per example; at most {MAX_ROW_BYTES} are cached"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Features of one row an example are written as they were before there were others.
        document: dict[str, Any] = dump(self)
        return {k: v for k, v in document.items() if v is not None or k not in _OPTIONAL}

    def identity(self) -> dict[str, Any]:
        """Its hashed fields: all but descriptions, by their names in version 1."""
        document = self.model_dump(mode="json", exclude={"description"})
        if self.coding is not None:
            document["coding"] = self.coding.identity()
        return of_version_1(document, names.FEATURE)

    @property
    def values_per_row(self) -> int:
        """Numbers per row."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes per row: of an example, or of one position along an axis."""
        return self.values_per_row * np.dtype(self.dtype).itemsize

    @property
    def shown(self) -> str:
        """Readable form: `float16[768]`, or `float16[768] x tokens`."""
        return f"{self.dtype}{list(self.shape)}{f' x {self.axis}' if self.axis else ''}"

    @property
    def whole(self) -> bool:
        """Whether it is of whole numbers, which are finite and have none that stands for absent."""
        return np.dtype(self.dtype).kind == "u"

    def most_rows(self, examples: int) -> int:
        """The most rows that so many examples have."""
        return examples * (self.max_length or 1)

    def chunk_rows(self, rows_per_shard: int) -> int:
        """Rows of one inner chunk. Along an axis, a shard is far from full as a rule: larger chunks
        keep its index short."""
        return INNER_CHUNK_ROWS if self.axis is None else rows_per_shard


_OPTIONAL = frozenset({"axis", "max_length", "coding"})
