"""The files of a shard by name: what is sent, what is fetched, what has arrived."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from ....cache_schemas.layout import shard_file, table_file, teacher_folder
from ....cache_schemas.manifest import CommitRecord, FileRecord, TeacherManifest
from ..files.plain_files import check_way


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One file of a shard. `name` is its path from the cache's folder on, with slashes."""

    name: str
    record: FileRecord

    def is_at(self, cache: Path) -> bool:
        """Whether a file of that name and size is in a local cache; raises LinkedPathError."""
        path = cache / self.name
        check_way(path, cache)
        return path.is_file() and path.stat().st_size == self.record.bytes


def shard_files(
    teacher: TeacherManifest,
    record: CommitRecord,
    features: Collection[str] | None = None,
    tables: Collection[str] | None = None,
) -> Iterator[ShardFile]:
    """The files of some features and tables of a shard; of all where None is given."""
    folder = teacher_folder(Path(), teacher.fingerprint)
    for spec in teacher.spec.features:
        if features is None or spec.name in features:
            path = shard_file(folder, spec.name, record.shard, len(spec.shape))
            yield ShardFile(path.as_posix(), record.features[spec.name])
    for name, file in record.tables.items():
        if tables is None or name in tables:
            yield ShardFile(table_file(folder, name, record.shard).as_posix(), file)
