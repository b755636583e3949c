"""Open a cache and read features by text, key or row.

    cache = open_cache("cache", teacher="3fa9")
    rows = cache.lookup(["a red bird", "two dogs"])
    cache["embedding"][rows]          # float16 or float32, [2, E]

Rows count committed rows, 0 to len(cache) - 1, in the order of commit; they are stable as long as
nothing is removed. Only what was committed when the cache was opened is visible. Features that were
added to a teacher later are offered beside its own; a row may lack them.
"""

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeGuard

import numpy as np
import pyarrow as pa

from ....cache_schemas.errors import CacheError, MissingFeatureError, MissingKeysError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.keys import KEY_BYTES, IntArray, KeyArray, example_key, keys_to_array
from ....cache_schemas.layout import ROWS_TABLE, table_file, teacher_folder
from ....cache_schemas.locations import expand_home
from ....cache_schemas.manifest import (
    CacheIndex,
    RunRecord,
    TeacherIndex,
    TeacherManifest,
    content_digest,
)
from ..files.plain_files import entries, read_document
from ..format.manifests import (
    choose_teacher,
    has_commits,
    held_features,
    list_teachers,
    read_commits,
    read_part,
)
from ..format.rows import KeyIndex, Rows
from ..format.tables import read_first_rows, read_keys, read_lengths, read_table
from .feature_array import FeatureArray, JoinedArray, RaggedArray
from .feature_shards import Prepare
from .integrity import CheckedFiles, StillCommitted
from .memory import Access

Example = str | bytes | Sequence[str]


def open_cache(
    path: str | Path, teacher: str | None = None, verify: bool = False, access: Access = "auto"
) -> "Cache":
    """Open the features of one teacher of the cache at `path`.

    `teacher` is a fingerprint or a prefix of one that no other teacher of the cache shares; it may
    be left out if the cache has one teacher. Teachers that extend others, and those without a row,
    do not count, unless it takes one of them to match. With `verify`, the checksum of each file is
    compared when the file is first opened. `access` is how features are read: `warm` for those that
    fit into memory, `cold` for larger ones, `auto` by size. Raises CacheError (or
    CacheVersionError, DamagedCacheError) if there is no such cache or teacher.
    """
    path = Path(expand_home(str(path)))
    teachers = list_teachers(path)
    empty = [t.fingerprint for t in teachers if not has_commits(path, t)]
    chosen = choose_teacher(path, teachers, teacher, empty)
    added = [
        Cache(path, t, verify=verify, access=access)
        for t in teachers
        if t.extends == chosen.fingerprint
    ]
    return Cache(path, chosen, extensions=added, verify=verify, access=access)


class Cache:
    """The committed features of one teacher. Cheap to open; shards are mapped when touched."""

    def __init__(
        self,
        path: Path,
        teacher: TeacherManifest,
        prepare: Prepare | None = None,
        extensions: Sequence["Cache"] = (),
        verify: bool = False,
        access: Access = "auto",
        elsewhere: TeacherIndex | None = None,
    ) -> None:
        """`extensions`: the features of teachers that extend this one, each with its own hook;
        `verify`: compare the checksum of each file when it is first opened; `elsewhere`: documents
        of a remote cache, instead of local ones, with a hook that fetches files."""
        self.path = path
        self.teacher = teacher
        # Of two that hold a feature, the one with more rows.
        self._extensions = sorted(extensions, key=len, reverse=True)
        self._joins: dict[str, Rows] = {}
        self._access: Access = access
        self._arrays: dict[str, FeatureArray] = {}
        self.folder = teacher_folder(path, teacher.fingerprint)
        part = elsewhere.part if elsewhere else read_part(path, teacher.fingerprint)
        self._own = {spec.name: spec for spec in held_features(teacher, part)}
        self._elsewhere = elsewhere is not None
        self.commits = list(elsewhere.commits) if elsewhere else read_commits(path, teacher)
        self._checked = CheckedFiles(path, teacher, self.commits, prepare) if verify else None
        self._prepare = self._checked.feature if self._checked else prepare

    def __len__(self) -> int:
        return sum(commit.rows for commit in self.commits)

    def __repr__(self) -> str:
        name, spec = self.teacher.fingerprint[:12], self.teacher.spec
        features = (f"{each} {self.feature_spec(each).shown}" for each in self.features)
        return (
            f"<Cache {self.path}: teacher {name} ({spec.kind}:{spec.name}), {len(self)} rows, "
            f"{', '.join(features) or 'no feature here'}>"
        )

    def __contains__(self, item: object) -> bool:
        """Whether it is the name of a feature, or an example (a text, a sequence of text segments,
        a 16-byte key) that is cached."""
        if isinstance(item, str) and item in self.features:
            return True
        return is_example(item) and bool(self.find(keys_of([item]))[0] >= 0)

    def __iter__(self) -> Iterator[str]:
        return iter(self.features)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features, those that were added later last."""
        holders = (self, *self._extensions)
        return tuple(dict.fromkeys(name for holder in holders for name in holder._own))

    def feature_spec(self, name: str) -> FeatureSpec:
        """Shape, dtype and meaning of a feature; raises MissingFeatureError."""
        return self.holder(name)._own[name]

    def holder(self, name: str) -> "Cache":
        """The teacher that stores a feature: this one, or one that extends it; raises
        MissingFeatureError."""
        for holder in (self, *self._extensions):
            if name in holder._own:
                return holder
        elsewhere = any(h.teacher.spec.feature(name) for h in (self, *self._extensions))
        hint = "; this one was not pulled: get it with `armada cache pull`" if elsewhere else ""
        raise MissingFeatureError(
            f"feature {name!r}: teacher {self.teacher.fingerprint[:12]} "
            f"({self.teacher.spec.kind}) has {', '.join(self.features) or 'none here'}{hint}"
        )

    def __getitem__(self, name: str) -> FeatureArray:
        """The feature as an array-like [len(cache), *shape]; its shards stay mapped.

        Raises CacheError for one along an axis: `ragged` reads that."""
        if (axis := self.feature_spec(name).axis) is not None:
            raise CacheError(
                f"feature {name!r}: has a row for each of an example's {axis}; name a feature with "
                "one row per example, or read it by Cache.ragged"
            )
        if name not in self._arrays:
            self._arrays[name] = self._feature(name)
        return self._arrays[name]

    def ragged(self, name: str) -> RaggedArray:
        """A feature along an axis; raises CacheError for another."""
        holder, spec = self.holder(name), self.feature_spec(name)
        if spec.axis is None:
            raise CacheError(
                f"feature {name!r}: has one row per example; read it by its name alone"
            )
        lengths = holder.lengths(spec.axis)
        rows = None if holder is self else self._rows_in(holder)
        return RaggedArray(holder._stored(name), lengths, rows, _fill(holder))

    def lengths(self, axis: str) -> IntArray:
        """The length of each row along an axis of the teacher's own features, [len(cache)]."""
        longest = self.teacher.spec.axes[axis]
        parts = [
            read_lengths(
                self.table_path(ROWS_TABLE, commit.shard),
                commit.rows,
                axis,
                commit.lengths[axis],
                longest,
            )
            for commit in self.commits
        ]
        return np.concatenate([np.empty(0, dtype=np.int64), *parts])

    def _feature(self, name: str) -> FeatureArray:
        holder = self.holder(name)
        stored = holder._stored(name)
        if holder is self or np.array_equal(self.keys, holder.keys):
            return stored
        return JoinedArray(stored, self._rows_in(holder), _fill(holder))

    def _stored(self, name: str) -> FeatureArray:
        size, spec = self.teacher.rows_per_shard, self.feature_spec(name)
        shards = [(commit.shard, commit.rows_of(spec)) for commit in self.commits]
        check = None
        if not self._elsewhere:
            records = {commit.shard: commit for commit in self.commits}
            check = StillCommitted(self.folder, self.teacher, records)
        return FeatureArray(self.folder, spec, size, shards, self._prepare, self._access, check)

    def _rows_in(self, holder: "Cache") -> Rows:
        """The row of `holder` for each of ours; -1 where it has none."""
        fingerprint = holder.teacher.fingerprint
        if fingerprint not in self._joins:
            self._joins[fingerprint] = holder.find(self.keys)
        return self._joins[fingerprint]

    def table_path(self, name: str, shard: int) -> Path:
        """The file of a shard's table, checked if the cache was opened so.

        Raises CacheError if the shard was committed without it: a file there is not the shard's."""
        if name not in self._tables_of[shard]:
            raise CacheError(
                f"table {name!r}: shard {shard} of teacher {self.teacher.fingerprint[:12]} was "
                "committed without it"
            )
        if self._checked is not None:
            self._checked.table(name, shard)
        return table_file(self.folder, name, shard)

    @cached_property
    def _tables_of(self) -> dict[int, Collection[str]]:
        return {commit.shard: frozenset(commit.tables) for commit in self.commits}

    @cached_property
    def keys(self) -> KeyArray:
        """The key of every row, [len(cache), 16]."""
        parts = [
            read_keys(self.table_path(ROWS_TABLE, commit.shard), commit.rows)
            for commit in self.commits
        ]
        return np.concatenate(parts) if parts else keys_to_array([])

    @cached_property
    def _index(self) -> KeyIndex:
        return KeyIndex(self.keys)

    def find(self, keys: KeyArray, *features: str) -> Rows:
        """The row of each key [N, 16]; -1 for a key that is not cached, or not with all of the
        `features`, of which some may have been added later."""
        rows = self._index.find(keys)
        for holder in {self.holder(name) for name in features} - {self}:
            found = np.flatnonzero(rows >= 0)
            rows[found[self._rows_in(holder)[rows[found]] < 0]] = -1
        return rows

    def lookup(self, examples: str | Sequence[Example] | KeyArray, *features: str) -> Rows:
        """The row of each example: a text, a sequence of text segments, or a 16-byte key.

        Raises MissingKeysError with the count and the first five that are missing, or have not all
        of the `features`, of which some may have been added later."""
        examples = [examples] if isinstance(examples, str) else examples
        rows = self.find(keys_of(examples), *features)
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            first = "; ".join(f"{i}: {shown(examples[i])}" for i in missing[:5])
            added = [name for name in features if self.holder(name) is not self]
            lacking = f" with {', '.join(added)}" if added else ""
            raise MissingKeysError(
                f"{len(missing)} of {len(rows)} examples are not in the cache of teacher "
                f"{self.teacher.fingerprint[:12]}{lacking}; run `armada precompute` on them. "
                f"First: {first}",
                missing.tolist(),
            )
        return rows

    def table(self, name: str, columns: dict[str, pa.DataType]) -> pa.Table:
        """Columns of a per-example table, in row order."""
        parts = [
            read_table(self.table_path(name, commit.shard), columns, commit.rows)
            for commit in self.commits
        ]
        return pa.concat_tables(parts) if parts else pa.schema(columns).empty_table()

    def first_rows(
        self, name: str, columns: dict[str, pa.DataType], most: int
    ) -> tuple[Rows, pa.Table]:
        """At most so many rows of a per-example table, and their numbers, from the first shard that
        has it; none if no shard has it."""
        start = 0
        for commit in self.commits:
            if name in commit.tables:
                file = self.table_path(name, commit.shard)
                table = read_first_rows(file, columns, commit.rows, most)
                return np.arange(start, start + len(table)), table
            start += commit.rows
        return np.arange(0), pa.schema(columns).empty_table()

    def runs(self) -> list[RunRecord]:
        """Provenance and cost of the runs that wrote here, oldest first."""
        return list(self.runs_by_id().values())

    def runs_by_id(self) -> dict[str, RunRecord]:
        """The same, each under the name of its document."""
        files = entries(self.folder / "runs", "*.json")
        return {f.stem: read_document(RunRecord, f, self.path) for f in files}


def _fill(holder: Cache) -> str:
    """Remedy for rows that an extension lacks."""
    spec = holder.teacher.spec
    names = ", ".join(feature.name for feature in spec.features)
    return (
        f"run `armada precompute --teacher {spec.kind}:{spec.name} --set add_features=true` on the "
        f"texts, with the options that give {names}"
    )


def keys_of(examples: Sequence[Example] | KeyArray) -> KeyArray:
    """The keys of examples, [N, 16]; raises CacheError for what is no key."""
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


def is_example(item: object) -> TypeGuard[Example]:
    """Whether a cache can look it up."""
    if isinstance(item, bytes):
        return len(item) == KEY_BYTES
    if isinstance(item, str):
        return True
    return isinstance(item, list | tuple) and all(isinstance(part, str) for part in item)


def shown(example: object) -> str:
    """An example for people."""
    if isinstance(example, (bytes, np.ndarray)):
        return bytes(example).hex()
    text = example if isinstance(example, str) else " | ".join(example)  # type: ignore[arg-type]
    return repr(text if len(text) <= 60 else text[:57] + "...")


def read_contents(path: Path) -> CacheIndex:
    """Every document of the cache at `path`; raises CacheError or DamagedCacheError."""
    return CacheIndex(teachers=tuple(_contents(path, teacher) for teacher in list_teachers(path)))


def _contents(path: Path, teacher: TeacherManifest) -> TeacherIndex:
    cache = Cache(path, teacher)
    return TeacherIndex(
        manifest=teacher,
        commits=tuple(cache.commits),
        runs=cache.runs_by_id(),
        part=read_part(path, teacher.fingerprint),
    )


def read_digest(path: Path) -> str:
    """The content digest of the cache at `path`."""
    return content_digest(
        (teacher.fingerprint, record)
        for teacher in list_teachers(path)
        for record in read_commits(path, teacher)
    )


def check_digest(shown: str, found: str, expected: str | None) -> None:
    """Raise CacheError unless a cache holds exactly what is expected, if anything is."""
    if expected is not None and found != expected:
        raise CacheError(f"cache {shown}: its digest is {found}, not {expected} as expected")
