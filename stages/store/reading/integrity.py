"""Whether files are still what was committed, looked at when each is first opened.

`CheckedFiles` compares checksums, for `open_cache(verify=True)`: one more read of each file that is
used, 1 to 2 GB/s a process; those that are not used cost nothing. Damage is met when a batch needs
it, not before: `armada cache verify` looks ahead.

`StillCommitted` compares records. A number does not identify a shard: it may have been dropped and
rewritten, of other texts, while a reader was open. A shard's record goes first and comes last; so a
reader that opens its file first and finds the same record afterwards has opened the right file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ....cache_schemas.errors import DamagedCacheError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.layout import (
    ZARR_METADATA,
    commit_file,
    shard_file,
    table_file,
    teacher_folder,
)
from ....cache_schemas.manifest import CommitRecord, FileRecord, TeacherManifest
from ..files.plain_files import check_file
from ..format.manifests import read_commit
from ..format.zarr_shards import check_array
from .feature_shards import Prepare


class CheckedFiles:
    """The committed files of one teacher, each checked once by each process; safe to pickle."""

    def __init__(
        self,
        cache: Path,
        teacher: TeacherManifest,
        commits: Sequence[CommitRecord],
        prepare: Prepare | None = None,
    ) -> None:
        """`prepare` is called first: it may fetch what is to be checked."""
        self._cache, self._teacher, self._prepare = cache, teacher, prepare
        self._commits = {commit.shard: commit for commit in commits}
        self._folder = teacher_folder(cache, teacher.fingerprint)
        self._done: set[Path] = set()

    def feature(self, name: str, shard: int) -> None:
        """Check the file of a feature; raises DamagedCacheError. It is a `Prepare`."""
        if self._prepare is not None:
            self._prepare(name, shard)
        spec = self._teacher.spec.feature(name)
        assert spec is not None, name
        self._check_layout(spec)
        path = shard_file(self._folder, name, shard, len(spec.shape))
        self._check(path, self._commits[shard].features[name])

    def table(self, name: str, shard: int) -> None:
        """Check the file of a table; raises DamagedCacheError."""
        tables = self._commits[shard].tables
        if name in tables:  # else it is missing, which reading reports
            self._check(table_file(self._folder, name, shard), tables[name])

    def _check_layout(self, spec: FeatureSpec) -> None:
        """No checksum covers a Zarr document; one with another row layout would make other numbers
        of the same bytes."""
        path = self._folder / spec.name / ZARR_METADATA
        if path in self._done or not path.exists():
            return
        if check_array(path, self._cache, spec, 0, self._teacher.rows_per_shard) == "foreign":
            raise DamagedCacheError(
                f"{path}: has another row layout: another tool wrote it, or it is damaged"
            )
        self._done.add(path)

    def _check(self, path: Path, record: FileRecord) -> None:
        if path not in self._done:
            check_file(path, self._cache, record)
            self._done.add(path)


@dataclass(frozen=True, slots=True)
class StillCommitted:
    """The records of one teacher's folder as a reader knows them, by shard number."""

    folder: Path
    manifest: TeacherManifest
    records: Mapping[int, CommitRecord]

    def __call__(self, shard: int) -> None:
        """Raises DamagedCacheError if the shard was dropped or replaced."""
        file = commit_file(self.folder, shard)
        if (
            not file.exists()
            or read_commit(self.folder, file, self.manifest) != (self.records[shard])
        ):
            raise DamagedCacheError(
                f"{file}: the shard was dropped or replaced since the cache was opened; "
                "open the cache again"
            )
