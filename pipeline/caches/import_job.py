"""The keys of an import."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import Field, field_validator, model_validator

from ...cache_schemas.errors import JobError
from ...cache_schemas.features import FeatureName, StoredDtype
from ...cache_schemas.locations import Source
from ...cache_schemas.manifest import RowsPerShard
from ...cache_schemas.teachers import SettingValue
from ..corpus_keys import TextFormatKeys
from ..jobs import LocalFolder

Layout = Literal["npy_per_example", "npy_rows", "parquet"]


class ImportJob(TextFormatKeys):
    """Keys of an `import`."""

    cache: LocalFolder = Field(description="folder of the cache; made if it is not there")
    source: Path = Field(
        description="a folder of .npy files, one .npy array of all rows, or Parquet"
    )
    name: str = Field(
        min_length=1, description="what the import is called; part of its fingerprint"
    )
    declare: dict[str, SettingValue] = Field(
        default_factory=dict, description="what is known of the features' origin, key by key"
    )
    corpus: tuple[Source, ...] = Field(
        default=(),
        description="files or folders of the texts; may be left out if they are in the Parquet",
    )
    text_column: tuple[str, ...] = Field(
        min_length=1, description="columns that hold the text segments, in order"
    )
    id_column: str | Literal[False] | None = Field(
        default=None, description="column of unique ids; default `id` if there is one; false: none"
    )
    ids: Path | None = Field(
        default=None, description="text file with the id of each row of one .npy array, one a line"
    )
    column: str | None = Field(
        default=None, description="Parquet column of the features; default the feature's name"
    )
    feature: FeatureName = Field(default="embedding", description="name of the feature")
    store_dtype: StoredDtype | None = Field(
        default=None, description="float32 or float16; default as found; required for float64"
    )
    rows_per_shard: RowsPerShard | None = Field(
        default=None, description="most rows of a shard; a multiple of 64"
    )
    skip_bad_rows: bool = Field(
        default=False, description="leave bad rows, and rows without features, out and list them"
    )

    @field_validator("corpus", "text_column", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("declare")
    @classmethod
    def _can_be_hashed(cls, declared: dict[str, SettingValue]) -> dict[str, SettingValue]:
        for key, value in declared.items():
            if key in ("name", "layout"):
                raise ValueError(f"{key} is said by the import itself; choose another key")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{key} is not a finite number")
        return declared

    @model_validator(mode="after")
    def _source_is_known(self) -> "ImportJob":
        layout = self.layout
        if self.ids is not None and layout != "npy_rows":
            raise ValueError("job key 'ids': is for one .npy array of all rows")
        if self.column is not None and layout != "parquet":
            raise ValueError("job key 'column': is for Parquet")
        return self

    @property
    def layout(self) -> Layout:
        """How the features lie, as far as names tell."""
        if self.source.is_dir():
            return "parquet" if any(self.source.glob("*.parquet")) else "npy_per_example"
        if not self.source.is_file():
            raise ValueError(f"job key 'source': {self.source} is not there")
        if self.source.suffix not in (".npy", ".parquet"):
            raise ValueError(f"job key 'source': {self.source} is neither .npy nor .parquet")
        return "npy_rows" if self.source.suffix == ".npy" else "parquet"

    def stored_dtype(self, found: np.dtype[Any]) -> str:
        """The type in which the cache keeps what was found."""
        return self.store_dtype or found.newbyteorder("=").name


def declared(settings: Iterable[str]) -> dict[str, Any]:
    """KEY=VALUE declarations with YAML values; raises JobError."""
    found = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise JobError(f"--declare {setting}: is not KEY=VALUE")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as cause:
            raise JobError(f"--declare {setting}: the value is not YAML") from cause
    return found
