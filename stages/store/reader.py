"""Open a cache and read answers by text, key or row.

    cache = open_cache("cache", teacher="3fa9")
    rows = cache.lookup(["a red bird", "two dogs"])
    cache["embedding"][rows]          # float16 or float32, [2, E]

Rows count committed answers, 0 to len(cache) - 1, in the order of commit; they are stable as long
as nothing is removed. Only what was committed when the cache was opened is visible.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from ...cache_schemas.errors import CacheError, MissingFeatureError, MissingKeysError
from ...cache_schemas.features import FeatureSpec
from ...cache_schemas.keys import KEY_BYTES, KeyArray, example_key, keys_to_array
from ...cache_schemas.layout import ROWS_TABLE, table_file, teacher_folder
from ...cache_schemas.manifest import RunRecord, TeacherManifest, parse_document
from .feature_array import FeatureArray, Prepare
from .index import KeyIndex, Rows
from .manifests import list_teachers, read_commits
from .tables import read_keys, read_table

Example = str | bytes | Sequence[str]


def open_cache(path: str | Path, teacher: str | None = None) -> "Cache":
    """Open the answers of one teacher of the cache at `path`.

    `teacher` is a fingerprint or a prefix of one that no other teacher of the cache shares; it may
    be left out if the cache has one teacher. Raises CacheError (or CacheVersionError,
    DamagedCacheError) if there is no such cache or teacher.
    """
    path = Path(path)
    return Cache(path, _choose(path, list_teachers(path), teacher))


def _choose(path: Path, teachers: list[TeacherManifest], prefix: str | None) -> TeacherManifest:
    known = ", ".join(f"{t.fingerprint[:12]} ({t.spec.kind}:{t.spec.name})" for t in teachers)
    matches = [t for t in teachers if t.fingerprint.startswith(prefix or "")]
    if len(matches) == 1:
        return matches[0]
    if not teachers:
        raise CacheError(f"cache {path}: no teacher has answered yet; run `armada precompute`")
    if prefix is None:
        raise CacheError(f"cache {path}: holds several teachers; choose one: {known}")
    problem = "is the prefix of several teachers" if matches else "is not in the cache"
    raise CacheError(f"teacher {prefix!r}: {problem}; it holds {known}")


class Cache:
    """The committed answers of one teacher. Cheap to open; shards are mapped when touched."""

    def __init__(
        self, path: Path, teacher: TeacherManifest, prepare: Prepare | None = None
    ) -> None:
        self.path = path
        self._prepare = prepare
        self.teacher = teacher
        self.folder = teacher_folder(path, teacher.fingerprint)
        self.commits = read_commits(path, teacher)

    def __len__(self) -> int:
        return sum(commit.rows for commit in self.commits)

    def __contains__(self, name: object) -> bool:
        return name in self.features

    def __iter__(self) -> Iterator[str]:
        return iter(self.features)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features."""
        return tuple(feature.name for feature in self.teacher.spec.features)

    def feature_spec(self, name: str) -> FeatureSpec:
        """Shape, dtype and meaning of a feature; raises MissingFeatureError."""
        spec = self.teacher.spec.feature(name)
        if spec is None:
            raise MissingFeatureError(
                f"feature {name!r}: teacher {self.teacher.fingerprint[:12]} "
                f"({self.teacher.spec.kind}) has {', '.join(self.features)}"
            )
        return spec

    def __getitem__(self, name: str) -> FeatureArray:
        """The feature as an array-like [len(cache), *shape]."""
        spec = self.feature_spec(name)
        shards = [(commit.shard, commit.rows) for commit in self.commits]
        size = self.teacher.rows_per_shard
        return FeatureArray(self.folder, spec, size, shards, self._prepare)

    @cached_property
    def keys(self) -> KeyArray:
        """The key of every row, [len(cache), 16]."""
        parts = [
            read_keys(table_file(self.folder, ROWS_TABLE, commit.shard), commit.rows)
            for commit in self.commits
        ]
        return np.concatenate(parts) if parts else keys_to_array([])

    @cached_property
    def _index(self) -> KeyIndex:
        return KeyIndex(self.keys)

    def find(self, keys: KeyArray) -> Rows:
        """The row of each key [N, 16]; -1 for a key that is not cached."""
        return self._index.find(keys)

    def lookup(self, examples: str | Sequence[Example] | KeyArray) -> Rows:
        """The row of each example: a text, a sequence of text segments, or a 16-byte key.

        Raises MissingKeysError with the count and the first five that are missing."""
        examples = [examples] if isinstance(examples, str) else examples
        keys = _keys_of(examples)
        rows = self.find(keys)
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            first = "; ".join(f"{i}: {_shown(examples[i])}" for i in missing[:5])
            raise MissingKeysError(
                f"{len(missing)} of {len(rows)} examples are not in the cache of teacher "
                f"{self.teacher.fingerprint[:12]}; run `armada precompute` on them. First: {first}",
                missing.tolist(),
            )
        return rows

    def table(self, name: str, columns: dict[str, pa.DataType]) -> pa.Table:
        """Columns of a per-example table, in row order."""
        parts = [
            read_table(table_file(self.folder, name, commit.shard), columns, commit.rows)
            for commit in self.commits
        ]
        return pa.concat_tables(parts) if parts else pa.schema(columns).empty_table()

    def runs(self) -> list[RunRecord]:
        """Provenance and cost of the runs that wrote here, oldest first."""
        files = sorted(self.folder.glob("runs/*.json"))
        return [parse_document(RunRecord, file.read_bytes(), file) for file in files]


def _keys_of(examples: Sequence[Example] | KeyArray) -> KeyArray:
    if isinstance(examples, np.ndarray) and examples.dtype == np.uint8:
        if examples.ndim != 2 or examples.shape[1] != KEY_BYTES:
            raise CacheError(f"keys of shape {examples.shape}: keys are [N, {KEY_BYTES}] bytes")
        return examples
    return keys_to_array(_key(example) for example in examples)


def _key(example: Example) -> bytes:
    if not isinstance(example, bytes):
        return example_key(example)
    if len(example) != KEY_BYTES:
        raise CacheError(f"key {example!r}: has {len(example)} bytes; a key has {KEY_BYTES}")
    return example


def _shown(example: object) -> str:
    if isinstance(example, (bytes, np.ndarray)):
        return bytes(example).hex()
    text = example if isinstance(example, str) else " | ".join(example)  # type: ignore[arg-type]
    return repr(text if len(text) <= 60 else text[:57] + "...")
