"""Of what a folder is a mirror: `mirror.json`, made when the folder is first used as one.

It keeps the documents that were there, so that files that came long ago are used only while they
are still the ones that are there.
"""

from pathlib import Path
from typing import ClassVar

from ....cache_schemas.contents import CacheIndex, TeacherIndex
from ....cache_schemas.errors import CacheError
from ....cache_schemas.layout import MIRROR, TEACHER_MANIFEST, teacher_folder
from ....cache_schemas.manifest import CommitRecord, Document
from ..files.lock import locked
from ..files.own_files import write_file
from ..files.plain_files import read_document
from ..format.manifests import list_teachers, read_commits
from ..writing.teacher_folder import create_cache


class MirrorRecord(Document):
    """`mirror.json`: a URL, without passwords, and what was there when it was last looked at."""

    max_bytes: ClassVar[int] = 2 * CacheIndex.max_bytes

    origin: str
    index: CacheIndex


def claim_mirror(folder: Path, origin: str, index: CacheIndex) -> None:
    """Make `folder` the mirror of the cache at `origin`, whose documents are `index`.

    Raises CacheError if it is something else, or holds what is not there any more."""
    create_cache(folder)
    record = MirrorRecord(origin=origin, index=index)
    with locked(folder):
        file = folder / MIRROR
        before = read_document(MirrorRecord, file, folder) if file.exists() else None
        if before is None and list_teachers(folder):
            raise CacheError(f"mirror {folder}: is a cache of its own; name an empty folder")
        if before is not None and before.origin != origin:
            raise CacheError(
                f"mirror {folder}: is that of {before.origin}; name an empty folder for {origin}"
            )
        if before == record:
            return
        for teacher in index.teachers:
            _refuse_changed(folder, origin, teacher, before)
        write_file(file, [record.to_json()], folder)


def _refuse_changed(
    folder: Path, origin: str, there: TeacherIndex, before: MirrorRecord | None
) -> None:
    records = _records_before(there, before)
    if (teacher_folder(folder, there.manifest.fingerprint) / TEACHER_MANIFEST).exists():
        records |= {r.shard: r for r in read_commits(folder, there.manifest)}
    for record in there.commits:
        if records.get(record.shard, record) != record:
            raise CacheError(
                f"mirror {folder}: shard {record.shard} of teacher "
                f"{there.manifest.fingerprint[:12]} is not the one at {origin} any more; "
                "name an empty folder"
            )


def _records_before(there: TeacherIndex, before: MirrorRecord | None) -> dict[int, CommitRecord]:
    for teacher in before.index.teachers if before else ():
        if teacher.manifest.fingerprint == there.manifest.fingerprint:
            return {record.shard: record for record in teacher.commits}
    return {}
