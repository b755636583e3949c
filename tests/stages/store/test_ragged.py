"""Features along an axis: what was written comes back for any examples, in any order, from any
shard; counts that lie are refused; other tools see plain Zarr arrays."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from armada.cache_schemas.errors import CacheError, DamagedCacheError
from armada.cache_schemas.features import FeatureSpec
from armada.cache_schemas.layout import commit_file, table_file
from armada.cache_schemas.manifest import CommitRecord, TeacherManifest
from armada.cache_schemas.teachers import TeacherSpec
from armada.stages.ragged import Ragged, joined
from armada.stages.store.reading.reader import Cache, open_cache
from armada.stages.store.upkeep.merge import merge_teacher
from armada.stages.store.upkeep.repair import carry_out, plan_repair
from armada.stages.store.upkeep.survey import Damage, survey_cache
from armada.stages.store.upkeep.verify import verify
from armada.stages.store.writing.writer import CacheWriter
from pydantic import ValidationError
from small_caches import answer, keys_of, make_manifest, numbered_texts

LONGEST = 40
FEATURES = (
    FeatureSpec(name="pooled", shape=(5,), dtype="float16"),
    FeatureSpec(name="hidden", shape=(2, 3), dtype="float16", axis="tokens", max_length=LONGEST),
    FeatureSpec(name="token_ids", shape=(), dtype="uint32", axis="tokens", max_length=LONGEST),
    FeatureSpec(name="packed", shape=(7,), dtype="uint8", axis="predictions", max_length=9),
)
MANIFEST = make_manifest(FEATURES, rows_per_shard=64)
SHARDS = [numbered_texts(0, 64), numbered_texts(64, 75), numbered_texts(75, 139)]
TEXTS = [text for shard in SHARDS for text in shard]


def places(spec: FeatureSpec, text: str) -> npt.NDArray[Any]:
    """What a text's feature holds; some texts have no places at all."""
    seed = int(text.split()[1])
    most = 9 if spec.axis == "predictions" else LONGEST
    count = np.random.default_rng([seed, most]).integers(0, most + 1)
    random = np.random.default_rng([seed, len(spec.name)])
    return (random.standard_normal((count, *spec.shape)) * 100).astype(np.int64).astype(spec.dtype)


def values(spec: FeatureSpec, texts: Sequence[str]) -> Any:
    if spec.axis is None:
        return answer(spec, texts)
    return joined([places(spec, text) for text in texts], spec.shape, spec.dtype)


def write(
    path: Path, shards: Sequence[Sequence[str]], manifest: TeacherManifest = MANIFEST
) -> None:
    with CacheWriter(path, manifest) as writer:
        for texts in shards:
            features = {spec.name: values(spec, texts) for spec in manifest.spec.features}
            writer.commit(keys_of(texts), features, np.zeros(len(texts), dtype=bool))


def damages_of(path: Path) -> tuple[Damage, ...]:
    return verify(survey_cache(path)).damages


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    write(tmp_path / "cache", SHARDS)
    return open_cache(tmp_path / "cache")


@pytest.mark.parametrize("spec", FEATURES[1:], ids=lambda spec: spec.name)
def test_any_examples_come_back_in_any_order(cache: Cache, spec: FeatureSpec) -> None:
    feature = cache.ragged(spec.name)
    rows = np.random.default_rng(0).integers(0, len(TEXTS), 300)
    found = feature.gather(rows)
    wanted = [places(spec, TEXTS[row]) for row in rows]
    assert found.values.dtype == spec.dtype
    np.testing.assert_array_equal(found.lengths, [len(each) for each in wanted])
    np.testing.assert_array_equal(found.values, np.concatenate(wanted))
    for part, each in zip(found.parts(), wanted, strict=True):
        np.testing.assert_array_equal(part, each)
    np.testing.assert_array_equal(feature[len(TEXTS) - 1], places(spec, TEXTS[-1]))
    np.testing.assert_array_equal(feature.lengths(rows), found.lengths)
    again = pickle.loads(pickle.dumps(feature)).gather(rows)
    np.testing.assert_array_equal(again.values, found.values)


def test_no_examples_and_examples_that_are_not_there(cache: Cache) -> None:
    feature = cache.ragged("hidden")
    nothing = feature.gather(np.empty(0, dtype=np.int64))
    assert nothing.values.shape == (0, 2, 3)
    assert len(nothing) == 0 == len(nothing.parts())
    for row in (-1, len(TEXTS)):
        with pytest.raises(IndexError, match=f"{row} to {row} of {len(TEXTS)}"):
            feature.gather(np.array([row]))


def test_a_shard_of_examples_without_places(tmp_path: Path) -> None:
    spec = FEATURES[2]
    manifest = make_manifest([spec], rows_per_shard=64)
    texts = numbered_texts(0, 5)
    with CacheWriter(tmp_path / "cache", manifest) as writer:
        for start, count in ((0, 0), (5, 3)):
            ragged = Ragged(np.arange(5 * count, dtype="u4"), np.full(5, count, dtype=np.int64))
            keys = keys_of(numbered_texts(start, start + 5))
            writer.commit(keys, {spec.name: ragged}, np.zeros(5, dtype=bool))
    feature = open_cache(tmp_path / "cache").ragged(spec.name)
    assert feature.gather(np.arange(10)).values.tolist() == list(range(15))
    assert feature.gather(np.arange(5)).lengths.tolist() == [0] * 5
    assert damages_of(tmp_path / "cache") == ()
    assert len(texts) == 5


def test_the_two_ways_to_read_are_not_mixed_up(cache: Cache) -> None:
    with pytest.raises(CacheError, match="row for each of an example's tokens"):
        cache["hidden"]
    with pytest.raises(CacheError, match="has one row per example"):
        cache.ragged("pooled")
    np.testing.assert_array_equal(cache["pooled"][:], answer(FEATURES[0], TEXTS))


def test_zarr_reads_the_values_of_each_shard(cache: Cache) -> None:
    for spec in FEATURES[1:]:
        array = zarr.open_array(cache.folder / spec.name, mode="r")
        assert spec.max_length is not None
        room = 64 * spec.max_length
        for number, texts in enumerate(SHARDS):
            wanted = values(spec, texts).values
            np.testing.assert_array_equal(array[number * room :][: len(wanted)], wanted)
        last = values(spec, SHARDS[-1]).values
        assert array.shape == (2 * room + len(last), *spec.shape)
        assert array.attrs["axis"] == spec.axis


def test_shards_take_the_bytes_of_their_places(cache: Cache) -> None:
    from armada.stages.store.format.zarr_shards import shard_bytes

    for commit, texts in zip(cache.commits, SHARDS, strict=True):
        for spec in FEATURES[1:]:
            count = len(values(spec, texts).values)
            assert commit.rows_of(spec) == count
            assert commit.features[spec.name].bytes == shard_bytes(count, spec, 64)
            # A shard's index has an entry of 16 bytes for each of an example's places.
            most = (count + 63) * spec.row_bytes + 16 * (spec.max_length or 0) + 4
            assert commit.features[spec.name].bytes <= most


def test_merge_copies_places(tmp_path: Path) -> None:
    write(tmp_path / "one", SHARDS[:2])
    write(tmp_path / "two", [numbered_texts(70, 139)[:64], numbered_texts(134, 139)])
    sources = [(tmp_path / name, MANIFEST) for name in ("one", "two")]
    merged = merge_teacher(tmp_path / "all", make_manifest(FEATURES, rows_per_shard=128), sources)
    assert (merged.copied, merged.already_there) == (139, 5)
    whole = open_cache(tmp_path / "all", MANIFEST.fingerprint)
    rows = whole.lookup(TEXTS)
    for spec in FEATURES[1:]:
        found = whole.ragged(spec.name).gather(rows)
        np.testing.assert_array_equal(found.values, values(spec, TEXTS).values)
    assert damages_of(tmp_path / "all") == ()


def test_features_added_later_are_joined_by_key(cache: Cache) -> None:
    base = cache.teacher
    late = FEATURES[3].model_copy(update={"name": "late"})
    spec = TeacherSpec(kind="made_up", name="made up", weights={}, settings={}, features=(late,))
    added = TeacherManifest(
        fingerprint=spec.fingerprint_extending(base.fingerprint),
        rows_per_shard=64,
        spec=spec,
        extends=base.fingerprint,
    )
    asked = TEXTS[100:] + TEXTS[:30]
    with CacheWriter(cache.path, added) as writer:
        for texts in (asked[:60], asked[60:]):
            writer.commit(
                keys_of(texts), {"late": values(late, texts)}, np.zeros(len(texts), dtype=bool)
            )
    again = open_cache(cache.path, base.fingerprint)
    feature = again.ragged("late")
    rows = again.lookup([TEXTS[5], TEXTS[120], TEXTS[0]])
    wanted = values(late, [TEXTS[5], TEXTS[120], TEXTS[0]])
    np.testing.assert_array_equal(feature.gather(rows).values, wanted.values)
    with pytest.raises(CacheError, match="1 of 1 rows do not have it"):
        feature.gather(again.lookup([TEXTS[50]]))


def _rewrite_rows(cache: Cache, change: Any) -> None:
    """Write the rows table of shard 1 anew; its record says what it said."""
    path = table_file(cache.folder, "rows", 1)
    pq.write_table(change(pq.read_table(path)), path, compression="none", store_schema=False)


@pytest.mark.parametrize(
    ("lengths", "told"),
    [
        (lambda old: [n + 1 for n in old], "counts"),
        (lambda old: [old[0] + LONGEST, *old[1:]], "per example; the commit record"),
        (lambda old: [None, *old[1:]], "counts"),
    ],
)
def test_counts_that_lie_are_refused(cache: Cache, lengths: Any, told: str) -> None:
    def change(table: pa.Table) -> pa.Table:
        column = lengths(table["tokens"].to_pylist())
        place = table.schema.get_field_index("tokens")
        return table.set_column(place, "tokens", pa.array(column, pa.uint32()))

    _rewrite_rows(cache, change)
    with pytest.raises(DamagedCacheError, match=told):
        open_cache(cache.path).ragged("hidden")
    assert damages_of(cache.path)


def test_a_record_without_its_axes_fits_no_teacher(cache: Cache) -> None:
    file = commit_file(cache.folder, 0)
    document = json.loads(file.read_text())
    assert document["lengths"].keys() == {"tokens", "predictions"}
    for lengths in ({}, {"tokens": 3}, {"tokens": 64 * LONGEST + 1, "predictions": 1}):
        file.write_text(json.dumps(document | {"lengths": lengths}))
        with pytest.raises(DamagedCacheError, match="matches neither its name nor the teacher"):
            open_cache(cache.path)


def test_damage_of_places_is_found_and_its_shard_repaired(cache: Cache) -> None:
    file = cache.folder / "hidden" / "c" / "1" / "0" / "0"
    data = bytearray(file.read_bytes())
    data[3] ^= 4
    file.write_bytes(data)
    damages = damages_of(cache.path)
    assert [damage.shard for damage in damages] == [1]
    carry_out(cache.path, plan_repair(survey_cache(cache.path), damages))
    assert damages_of(cache.path) == ()
    left = open_cache(cache.path)
    rows = left.lookup(SHARDS[2])
    np.testing.assert_array_equal(
        left.ragged("hidden").gather(rows).values, values(FEATURES[1], SHARDS[2]).values
    )


def test_documents_of_features_of_one_row_are_what_they_were() -> None:
    record = CommitRecord.model_validate(
        {
            "shard": 0,
            "rows": 1,
            "features": {},
            "tables": {"rows": {"bytes": 1, "xxh3_128": "0" * 32}},
        }
    )
    assert "lengths" not in json.loads(record.to_json())
    assert FEATURES[0].model_dump(mode="json").keys() == {
        "name",
        "shape",
        "dtype",
        "description",
        "labels",
    }


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"axis": "tokens"}, "both or neither"),
        ({"max_length": 3}, "both or neither"),
        ({"axis": "key", "max_length": 3}, "column of the table of rows"),
        ({"axis": "tokens", "max_length": 2**20, "shape": (4096,)}, "bytes per example"),
        ({"axis": "To/kens", "max_length": 3}, "pattern"),
    ],
)
def test_axes_that_cannot_be(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        FeatureSpec(**({"name": "x", "shape": (), "dtype": "float32"} | fields))


def test_features_of_one_axis_agree_on_its_end() -> None:
    other = FeatureSpec(name="other", shape=(), dtype="float32", axis="tokens", max_length=41)
    with pytest.raises(
        ValidationError, match="at most 40 rows along the axis 'tokens', another feature 41"
    ):
        make_manifest([FEATURES[1], other])
