"""The digest of a cache names its commits, whatever their order; the index holds all documents."""

import hashlib
from pathlib import Path

import pytest
from armada.cache_schemas.errors import DamagedCacheError
from armada.cache_schemas.manifest import (
    CacheIndex,
    CommitRecord,
    FileRecord,
    TeacherIndex,
    content_digest,
    parse_document,
)
from small_caches import make_manifest

FILE = FileRecord(bytes=12, xxh3_128="0123456789abcdef" * 2)


def record(shard: int, rows: int = 3) -> CommitRecord:
    return CommitRecord(shard=shard, rows=rows, features={"pooled": FILE}, tables={"rows": FILE})


def test_the_digest_is_that_of_the_sorted_lines() -> None:
    file = '{"bytes":12,"xxh3_128":"' + "0123456789abcdef" * 2 + '"}'
    line = (
        'f0 {"features":{"pooled":' + file + '},"rows":3,"shard":SHARD,'
        '"tables":{"rows":' + file + "}}\n"
    )
    lines = line.replace("SHARD", "0") + line.replace("SHARD", "1")
    expected = hashlib.sha256(lines.encode()).hexdigest()
    assert content_digest([("f0", record(1)), ("f0", record(0))]) == expected


def test_another_teacher_shard_or_content_has_another_digest() -> None:
    digests = {
        content_digest([]),
        content_digest([("f0", record(0))]),
        content_digest([("f1", record(0))]),
        content_digest([("f0", record(1))]),
        content_digest([("f0", record(0, rows=4))]),
    }
    assert len(digests) == 5


def test_an_index_reads_back() -> None:
    manifest = make_manifest()
    index = CacheIndex(teachers=(TeacherIndex(manifest=manifest, commits=(record(0), record(1))),))
    again = parse_document(CacheIndex, index.to_json(), Path("index.json"))
    assert again == index
    pairs = [(manifest.fingerprint, record(0)), (manifest.fingerprint, record(1))]
    assert again.digest == content_digest(pairs)


def test_a_damaged_index_is_named() -> None:
    with pytest.raises(DamagedCacheError, match=r"index\.json: teachers: Field required"):
        parse_document(CacheIndex, b"{}", Path("index.json"))
