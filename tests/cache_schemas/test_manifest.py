"""The documents of a cache: they round-trip, and say what is wrong with a damaged one."""

import json
from pathlib import Path
from typing import Any

import pytest
from armada.cache_schemas import manifest
from armada.cache_schemas.errors import CacheError, CacheVersionError, DamagedCacheError
from armada.cache_schemas.manifest import (
    BatchFigures,
    CacheManifest,
    CommitRecord,
    CorpusRecord,
    FileRecord,
    RunRecord,
    TeacherManifest,
    check_cache_manifest,
    parse_document,
)
from small_caches import make_manifest

FILE = FileRecord(bytes=1412, xxh3_128="0123456789abcdef" * 2)
DOCUMENTS = (
    CacheManifest(),
    make_manifest(scale=0.5, layers=(1, 2), names=("a", "b"), prompt="Grüße", nothing=None),
    CommitRecord(shard=3, rows=64, features={"pooled": FILE}, tables={"rows": FILE}),
    RunRecord(
        started="2026-01-01T00:00:00+00:00",
        versions={"numpy": "2.4.6"},
        hardware={"device": "cpu"},
        corpora=(CorpusRecord(name="data/texts.csv", rows=3, unique_examples=2),),
        teacher_seconds={0: 0.25, 12: 3.0},
        truncated_examples=1,
    ),
    RunRecord(
        started="2026-01-01T00:00:00+00:00",
        versions={},
        hardware={},
        corpora=(),
        batches=BatchFigures(batches=2, rows=9, tokens=70, padded_tokens=96, seconds=0.5),
    ),
)
PATH = Path("cache/some.json")
CASES = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: type(d).__name__)


@CASES
def test_documents_round_trip(document: Any) -> None:
    written = document.to_json()
    assert parse_document(type(document), written, PATH) == document
    assert written.endswith(b"\n")
    assert parse_document(type(document), written, PATH).to_json() == written


def test_a_run_of_an_earlier_release_has_no_batches_and_gets_none() -> None:
    written = DOCUMENTS[3].to_json()
    assert b"batches" not in written
    assert parse_document(RunRecord, written, PATH).to_json() == written


def test_batches_of_several_runs_are_added_up() -> None:
    one = BatchFigures(batches=2, rows=9, refused=1, seconds=0.5)
    two = BatchFigures(
        batches=1, rows=1, tokens=7, padded_tokens=8, busy_seconds=0.25, auto_limit=8
    )
    assert BatchFigures.together([one, two]).model_dump() == {
        **{"batches": 3, "rows": 10, "tokens": 7, "padded_tokens": 8, "refused": 1},
        **{"seconds": 0.5, "busy_seconds": 0.25, "auto_limit": 8},
    }


@CASES
def test_extra_keys_are_refused(document: Any) -> None:
    extra = json.dumps(json.loads(document.to_json()) | {"surprise": 1}).encode()
    with pytest.raises(DamagedCacheError, match=r"some\.json: surprise: Extra inputs"):
        parse_document(type(document), extra, PATH)


@CASES
def test_cut_documents_are_refused(document: Any) -> None:
    with pytest.raises(DamagedCacheError, match=r"some\.json: document: Invalid JSON"):
        parse_document(type(document), document.to_json()[:-3], PATH)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"rows": 0}, "rows"),
        ({"rows": 2**20 + 1}, "rows"),
        ({"shard": -1}, "shard"),
        (
            {"features": {"pooled": {"bytes": -1, "xxh3_128": FILE.xxh3_128}}},
            "features.pooled.bytes",
        ),
        ({"tables": {"rows": {"bytes": 1, "xxh3_128": "zz"}}}, "tables.rows.xxh3_128"),
    ],
    ids=str,
)
def test_impossible_commits_are_refused(change: dict[str, Any], field: str) -> None:
    changed = json.dumps(json.loads(DOCUMENTS[2].to_json()) | change).encode()
    with pytest.raises(DamagedCacheError, match=f"{field}:"):
        parse_document(CommitRecord, changed, PATH)


@pytest.mark.parametrize("rows", [0, 63, 65, 2**20 + 64])
def test_shards_are_whole_inner_chunks(rows: int) -> None:
    changed = json.loads(DOCUMENTS[1].to_json()) | {"rows_per_shard": rows}
    with pytest.raises(DamagedCacheError, match="rows_per_shard:"):
        parse_document(TeacherManifest, json.dumps(changed).encode(), PATH)


def test_edited_settings_do_not_keep_their_fingerprint() -> None:
    changed = json.loads(DOCUMENTS[1].to_json())
    changed["spec"]["settings"]["scale"] = 0.25
    with pytest.raises(DamagedCacheError, match="is not that of the spec"):
        parse_document(TeacherManifest, json.dumps(changed).encode(), PATH)


def test_cache_manifest_is_these_bytes() -> None:
    written = b'{\n  "format": "armada-cache",\n  "format_version": 2\n}\n'
    assert CacheManifest().to_json() == written
    assert check_cache_manifest(written, PATH) == CacheManifest()
    earlier = check_cache_manifest(written.replace(b"2", b"1"), PATH)
    assert earlier == CacheManifest(format_version=1)


@pytest.mark.parametrize("version", [0, 3, True, "1", None], ids=repr)
def test_another_format_version_is_refused_by_name(version: object) -> None:
    # A later version may have any other keys: they are not looked at.
    data = {"format": "armada-cache", "format_version": version, "new_in_that_version": {}}
    with pytest.raises(CacheVersionError) as caught:
        check_cache_manifest(json.dumps(data).encode(), PATH)
    message = str(caught.value)
    assert f"format_version {version!r}" in message
    assert f"reads versions 1, {manifest.FORMAT_VERSION}" in message


@pytest.mark.parametrize("data", [b"[]", b"{}", b'{"format": "zarr"}'])
def test_other_json_is_no_cache(data: bytes) -> None:
    with pytest.raises(CacheError, match="not an armada cache"):
        check_cache_manifest(data, PATH)


def test_what_is_not_json_is_damaged() -> None:
    with pytest.raises(DamagedCacheError, match="not JSON"):
        check_cache_manifest(b"{", PATH)
