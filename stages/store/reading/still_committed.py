"""Whether a shard is still the one that was committed when the cache was opened.

A number does not tell a shard: it may have been dropped and made again, of other texts, while a
reader was open. A shard's record goes first and comes last; so who opens its file first and finds
the same record afterwards has opened the right file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ....cache_schemas.errors import DamagedCacheError
from ....cache_schemas.layout import commit_file
from ....cache_schemas.manifest import CommitRecord, TeacherManifest
from ..format.manifests import read_commit


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
