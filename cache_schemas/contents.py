"""What a cache holds, as one document and as one digest.

The digest names the content: SHA-256 over one line a commit record, sorted, each the teacher's
fingerprint, a space, and the record as canonical JSON. Records hold the checksum of every file, so
equal digests mean equal answers under equal fingerprints, as far as the checksums can tell
(XXH3 finds damage, not forgery).

`CacheIndex` is all documents of a cache in one file, `index.json`: what a reader fetches first from
a place that is slow to list or cannot be listed. It holds nothing that the other documents do not.
"""

import hashlib
from collections.abc import Iterable
from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from .canonical import canonical_json
from .manifest import CacheManifest, CommitRecord, Document, PartRecord, RunRecord, TeacherManifest
from .teachers import Fingerprint

RunId = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z][0-9A-Za-z_-]{0,99}$")]
"""Also the name of the run's document."""


def content_digest(commits: Iterable[tuple[Fingerprint, CommitRecord]]) -> str:
    """64 hexadecimal digits that name a set of commits, in whatever order they are given."""
    lines = sorted(
        fingerprint.encode() + b" " + canonical_json(record.model_dump(mode="json")) + b"\n"
        for fingerprint, record in commits
    )
    return hashlib.sha256(b"".join(lines)).hexdigest()


class TeacherIndex(Document):
    """One teacher of a cache: its manifest, commits in shard order, runs by id, and what is missing
    if the cache holds a part."""

    manifest: TeacherManifest
    commits: tuple[CommitRecord, ...]
    runs: dict[RunId, RunRecord] = Field(default_factory=dict)
    part: PartRecord | None = None


class CacheIndex(Document):
    """`index.json`: every document of a cache."""

    max_bytes: ClassVar[int] = 2**27
    """128 MiB, about 200,000 shards."""

    cache: CacheManifest = CacheManifest()
    teachers: tuple[TeacherIndex, ...]

    @property
    def digest(self) -> str:
        """The content digest of all that is listed."""
        return content_digest(
            (teacher.manifest.fingerprint, record)
            for teacher in self.teachers
            for record in teacher.commits
        )
