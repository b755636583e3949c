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

from pydantic import Field

from .canonical import canonical_json
from .manifest import CacheManifest, CommitRecord, Document, RunRecord, TeacherManifest
from .teachers import Fingerprint


def content_digest(commits: Iterable[tuple[Fingerprint, CommitRecord]]) -> str:
    """64 hexadecimal digits that name a set of commits, in whatever order they are given."""
    lines = sorted(
        fingerprint.encode() + b" " + canonical_json(record.model_dump(mode="json")) + b"\n"
        for fingerprint, record in commits
    )
    return hashlib.sha256(b"".join(lines)).hexdigest()


class TeacherIndex(Document):
    """One teacher of a cache: its manifest, commits in shard order, runs by id."""

    manifest: TeacherManifest
    commits: tuple[CommitRecord, ...]
    runs: dict[str, RunRecord] = Field(default_factory=dict)


class CacheIndex(Document):
    """`index.json`: every document of a cache."""

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
