"""One committed shard against its record: every file of it, and what is in the files.

Each file is a plain file of the recorded size and hash. A feature's has a whole index (crc32c), all
rows, and only finite numbers. A table has as many rows as the record says; that of the keys can be
read.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec

from ....cache_schemas.errors import DamagedCacheError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.keys import KeyArray
from ....cache_schemas.layout import ROWS_TABLE, shard_file, table_file
from ....cache_schemas.manifest import CommitRecord, FileRecord, PartRecord, TeacherManifest
from ..files.plain_files import FiniteNumbers, check_file, check_size
from ..format.manifests import held_features
from ..format.tables import check_table, read_keys, read_lengths
from ..format.zarr_shards import is_plain, opened
from ..reading.feature_array import FeatureArray

Arguments = ParamSpec("Arguments")


@dataclass(frozen=True, slots=True)
class ShardCheck:
    """What is wrong with a shard, one line a file; its keys [N, 16] if they could be read."""

    problems: tuple[str, ...]
    keys: KeyArray | None = None


@dataclass(frozen=True, slots=True)
class CommittedShard:
    """The files of one committed shard, as far as this cache holds them. `part` says what was not
    pulled; `foreign` are features laid out by another tool."""

    cache: Path
    folder: Path
    manifest: TeacherManifest
    record: CommitRecord
    part: PartRecord | None = None
    foreign: tuple[str, ...] = ()

    def features(self) -> Iterator[tuple[FeatureSpec, Path, FileRecord]]:
        """Spec, file and record of each feature."""
        for spec in held_features(self.manifest, self.part):
            path = shard_file(self.folder, spec.name, self.record.shard, len(spec.shape))
            yield spec, path, self.record.features[spec.name]

    def tables(self) -> Iterator[tuple[Path, FileRecord]]:
        """File and record of each table."""
        missing = self.part.missing_tables if self.part else ()
        for name, record in self.record.tables.items():
            if name not in missing:
                yield table_file(self.folder, name, self.record.shard), record

    def files(self) -> list[tuple[Path, FileRecord]]:
        """Each file and its record."""
        return [*((path, record) for _, path, record in self.features()), *self.tables()]

    @property
    def bytes(self) -> int:
        """Bytes of all files, as recorded."""
        return sum(record.bytes for _, record in self.files())

    def check_sizes(self) -> ShardCheck:
        """Look at the size of each file; read none."""
        problems = []
        for path, record in self.files():
            problems += self._problem(check_size, path, self.cache, record)
        return ShardCheck(tuple(problems))

    def check(self) -> ShardCheck:
        """Read every file."""
        problems = []
        for spec, path, record in self.features():
            problems += self._problem(self._check_feature, spec, path, record)
        for path, record in self.tables():
            problems += self._problem(self._check_table, path, record)
        return ShardCheck(tuple(problems), None if problems else self._keys())

    def _problem(
        self, check: Callable[Arguments, object], *given: Arguments.args, **named: Arguments.kwargs
    ) -> list[str]:
        try:
            check(*given, **named)
        except DamagedCacheError as error:
            # Files are named from the teacher's folder on.
            return [str(error).removeprefix(f"{self.folder}/")]
        return []

    def _check_feature(self, spec: FeatureSpec, path: Path, record: FileRecord) -> None:
        rows, size = self.record.rows_of(spec), self.manifest.rows_per_shard
        numbers = None if spec.whole else FiniteNumbers(spec, rows)
        check_file(path, self.cache, record, numbers)
        if not self._is_plain(spec, path):
            # A Zarr library finds the rows, and whether all of them are there.
            FeatureArray(self.folder, spec, size, [(self.record.shard, rows)])[:]
        elif numbers is not None and not numbers.all_finite:
            raise DamagedCacheError(f"{path}: holds numbers that are not finite")

    def _is_plain(self, spec: FeatureSpec, path: Path) -> bool:
        """Whatever a Zarr document says: these bytes were committed, so they tell."""
        try:
            with opened(path, self.cache) as file:
                rows = self.record.rows_of(spec)
                return is_plain(file, path, spec, rows, self.manifest.rows_per_shard)
        except DamagedCacheError:
            if spec.name in self.foreign:  # laid out by another tool, there may be no index
                return False
            raise

    def _check_table(self, path: Path, record: FileRecord) -> None:
        check_file(path, self.cache, record)
        check_table(path, self.record.rows)
        if path == table_file(self.folder, ROWS_TABLE, self.record.shard):
            self._keys()
            for axis, longest in self.manifest.spec.axes.items():
                read_lengths(path, self.record.rows, axis, self.record.places[axis], longest)

    def _keys(self) -> KeyArray:
        path = table_file(self.folder, ROWS_TABLE, self.record.shard)
        return read_keys(path, self.record.rows)
