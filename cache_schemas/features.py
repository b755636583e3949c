"""What one cached feature is: name, shape per example, dtype, and what its numbers mean."""

from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from .layout import RESERVED_NAMES


def _not_reserved(name: str) -> str:
    if name in RESERVED_NAMES:
        raise ValueError(f"{name!r} is the name of a folder of the cache; choose another")
    return name


FeatureName = Annotated[
    str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$"), AfterValidator(_not_reserved)
]
"""A name is also a folder: lower case, no separators, nothing to escape with."""

StoredDtype = Literal["float32", "float16"]


class FeatureSpec(BaseModel):
    """One dense feature: every example has an array of `shape` and `dtype`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: FeatureName = Field(description="name of the feature and of its folder")
    shape: tuple[Annotated[int, Field(ge=1)], ...] = Field(description="shape of one example")
    dtype: StoredDtype = Field(description="type of the stored numbers, little-endian")
    description: str = Field(default="", description="what the numbers are, for people")
    labels: tuple[str, ...] | None = Field(
        default=None, description="names of the classes, for features that are class logits"
    )

    @property
    def values_per_example(self) -> int:
        """How many numbers one example has."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def row_bytes(self) -> int:
        """How many bytes one example takes."""
        return self.values_per_example * np.dtype(self.dtype).itemsize
