"""Documents of a place that nobody vouches for: refused with one of our errors, nothing written."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from armada.cache_schemas.errors import ArmadaError, CacheVersionError, DamagedCacheError
from armada.cache_schemas.manifest import CacheIndex
from armada.stages.store.transfer.index import parse_index
from file_server import serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transfers import FOLDER, bring

Document = dict[str, Any]


def first_record(index: Document) -> Document:
    record: Document = index["teachers"][0]["commits"][0]
    return record


def table_outside(index: Document) -> None:
    tables = first_record(index)["tables"]
    tables["../../../../outside"] = tables["rows"]


def feature_outside(index: Document) -> None:
    features = first_record(index)["features"]
    features["/outside"] = features.pop("pooled")


def run_outside(index: Document) -> None:
    index["teachers"][0]["runs"]["../outside"] = {}


def teacher_outside(index: Document) -> None:
    index["teachers"][0]["manifest"]["fingerprint"] = "../../outside"


def too_many_rows(index: Document) -> None:
    first_record(index)["rows"] = 10**15


def rows_of_a_larger_shard(index: Document) -> None:
    first_record(index)["rows"] = 65


def negative_bytes(index: Document) -> None:
    first_record(index)["tables"]["rows"]["bytes"] = -1


def huge_shape(index: Document) -> None:
    index["teachers"][0]["manifest"]["spec"]["features"][0]["shape"] = [2**62, 2**62]


def the_same_shard_twice(index: Document) -> None:
    index["teachers"][0]["commits"].append(first_record(index))


def the_same_teacher_twice(index: Document) -> None:
    index["teachers"].append(index["teachers"][0])


def without_keys(index: Document) -> None:
    first_record(index)["tables"].clear()


def unknown_field(index: Document) -> None:
    index["script"] = "import os"


def deep_nesting(index: Document) -> None:
    for _ in range(400):
        index["teachers"] = [index["teachers"]]


@pytest.mark.parametrize(
    "change",
    [
        table_outside,
        feature_outside,
        run_outside,
        teacher_outside,
        too_many_rows,
        rows_of_a_larger_shard,
        negative_bytes,
        huge_shape,
        the_same_shard_twice,
        the_same_teacher_twice,
        without_keys,
        unknown_field,
        deep_nesting,
    ],
)
def test_an_index_that_lies(
    change: Callable[[Document], None], shared: Path, tmp_path: Path
) -> None:
    index = json.loads((shared / "index.json").read_bytes())
    change(index)
    there = tmp_path / "there"
    there.mkdir()
    (there / "index.json").write_text(json.dumps(index))
    with serving(there) as server:
        with pytest.raises(DamagedCacheError, match=rf"^{server.url}/index\.json: ") as caught:
            bring(server.url, tmp_path / "cache")
        assert server.asked == ["index.json"]
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 10**5])
def test_an_index_that_is_none(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_bytes(data)
    with serving(tmp_path) as server, pytest.raises(ArmadaError, match=r"index\.json: "):
        bring(server.url, tmp_path / "cache")


def test_an_index_of_another_version(shared: Path, tmp_path: Path) -> None:
    index = json.loads((shared / "index.json").read_bytes())
    index["cache"]["format_version"] = 3
    index["teachers"] = "who knows"
    (tmp_path / "index.json").write_text(json.dumps(index))
    with serving(tmp_path) as server, pytest.raises(CacheVersionError, match="format_version 3"):
        bring(server.url, tmp_path / "cache")


def test_a_document_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CacheIndex, "max_bytes", 2**22)
    with serving(tmp_path) as server:
        server.endless = "index.json"
        with pytest.raises(DamagedCacheError, match=r"has more than 4194304 bytes"):
            bring(server.url, tmp_path / "cache")
    assert server.sent_bytes < 2**26


def test_names_of_a_listing_lead_nowhere_else(source: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    fingerprint = "0" * 32
    (there / "teachers" / fingerprint).mkdir(parents=True)
    (there / "teachers" / "..%2f..%2foutside").mkdir()
    (there / "armada.json").write_bytes((source / "armada.json").read_bytes())
    manifest = next(source.glob("teachers/*/teacher.json"))
    (there / "teachers" / fingerprint / "teacher.json").write_bytes(manifest.read_bytes())
    with serving(there) as server:
        server.listing = True
        with pytest.raises(DamagedCacheError, match=rf"{fingerprint}: is of teacher"):
            bring(server.url, tmp_path / "cache")
        assert not any("outside" in name for name in server.asked)


def test_a_listed_record_that_is_of_another_shard(source: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    shutil.copytree(source, there)
    records = there / FOLDER / "commits"
    (records / "000000.json").rename(records / "000007.json")
    with serving(there) as server:
        server.listing = True
        with pytest.raises(DamagedCacheError, match=r"commits/000007\.json: is of shard 0"):
            bring(server.url, tmp_path / "cache")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 10**6), flip=st.integers(0, 255), junk=st.binary(max_size=8))
def test_random_damage_to_an_index_raises_our_errors_only(
    cut: int, flip: int, junk: bytes, shared: Path, tmp_path: Path
) -> None:
    data = bytearray((shared / "index.json").read_bytes())
    location = cut % len(data)
    data[location] ^= flip
    data[location:location] = junk
    with suppress(ArmadaError):
        parse_index(bytes(data), "index.json")
