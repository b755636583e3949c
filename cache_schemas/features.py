"""What one cached feature is: name, shape per example, dtype, and what its numbers mean."""

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from .layout import RESERVED_NAMES


def _not_reserved(name: str) -> str:
    if name in RESERVED_NAMES:
        raise ValueError(f"{name!r} is the name of a folder of the cache; choose another")
    return name


TableName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
"""A name is also a folder: lower case, no separators, nothing to escape with."""

FeatureName = Annotated[TableName, AfterValidator(_not_reserved)]
"""Likewise; features lie beside other folders."""

MAX_DIMENSIONS = 8
MAX_ROW_BYTES = 2**30
"""1 GiB: larger than any answer, small enough that sizes made of it are exact and checked."""

StoredDtype = Literal["float32", "float16"]


class FeatureSpec(BaseModel):
    """One dense feature: every example has an array of `shape` and `dtype`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: FeatureName = Field(description="name of the feature and of its folder")
    shape: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        max_length=MAX_DIMENSIONS, description="shape of one example"
    )
    dtype: StoredDtype = Field(description="type of the stored numbers, little-endian")
    description: str = Field(default="", description="what the numbers are, for people")
    labels: tuple[str, ...] | None = Field(
        default=None, description="names of the classes, for features that are class logits"
    )

    @model_validator(mode="after")
    def _fits_into_memory(self) -> "FeatureSpec":
        if self.row_bytes > MAX_ROW_BYTES:
            raise ValueError(
                f"shape: {list(self.shape)} takes {self.row_bytes} bytes an example; "
                f"at most {MAX_ROW_BYTES} are cached"
            )
        return self

    @property
    def values_per_example(self) -> int:
        """How many numbers one example has."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """How many bytes one example takes."""
        return self.values_per_example * np.dtype(self.dtype).itemsize
