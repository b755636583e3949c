"""Damage of any kind to any file: what comes out is one of our errors, or right.

A tiny cache is damaged at random: bytes flipped, cut, put in twice, fields of JSON changed. Then it
is read, verified, and repaired. A cache that passes as whole gives the right answer for every key
that it has; so does one whose checksums are compared on first open; so does a repaired one.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from armada.cache_schemas.errors import ArmadaError, CacheError, DamagedCacheError
from armada.cache_schemas.features import FeatureSpec
from armada.cache_schemas.manifest import CacheIndex, CorpusRecord, RunRecord, parse_document
from armada.stages.store.format.tables import read_keys, read_whole_table
from armada.stages.store.reading.reader import Cache, open_cache, read_contents
from armada.stages.store.upkeep.repair import carry_out, plan_repair
from armada.stages.store.upkeep.survey import CacheSurvey, survey_cache
from armada.stages.store.upkeep.verify import Verification, verify
from armada.stages.store.writing.writer import CacheWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from small_caches import answer, keys_of, make_manifest, numbered_texts

FEATURES = (
    FeatureSpec(name="pooled", shape=(3,), dtype="float16"),
    FeatureSpec(name="score", shape=(), dtype="float32"),
)
MANIFEST = make_manifest(FEATURES, rows_per_shard=64)
SHARDS = [numbered_texts(0, 64), numbered_texts(64, 74)]
TEXTS = [text for shard in SHARDS for text in shard]
RUN = RunRecord(
    started="2026-01-01T00:00:00+00:00",
    versions={"python": "3.11"},
    hardware={"device": "cpu"},
    corpora=(CorpusRecord(name="a.csv", rows=74, unique_examples=74),),
    teacher_seconds={0: 0.5, 1: 0.25},
)
IMAGES = {"png": pa.binary()}


def image(text: str) -> bytes:
    return text.encode() * 3


@dataclass(frozen=True)
class Answers:
    """What one text was answered with."""

    values: dict[str, npt.NDArray[Any]]
    truncated: bool
    image: bytes


EXPECTED = {
    keys_of([text]).tobytes(): Answers(
        {spec.name: answer(spec, [text])[0] for spec in FEATURES}, text.endswith("7"), image(text)
    )
    for text in TEXTS
}


def write(path: Path) -> None:
    with CacheWriter(path, MANIFEST) as writer:
        for texts in SHARDS:
            features = {spec.name: answer(spec, texts) for spec in FEATURES}
            truncated = np.array([text.endswith("7") for text in texts])
            images = pa.table({"png": pa.array([image(text) for text in texts], pa.binary())})
            writer.commit(keys_of(texts), features, truncated, {"images": images})
        writer.record_run("20260101T000000-000000", RUN)
    (path / "writer.lock").unlink()


HOSTILE: list[Any] = [
    *(None, True, 0, 1, -1, 63, 128, 10**15, 2**64, 10**30, 0.5, -0.0, 1e308),
    *("", ".", "..", "../..", "/", "rows", "pooled", "NaN", "0" * 32, "x" * 10**4, "\x00", "big"),
    *([], {}, [[]], [0], [{}], {"": None}),
]
HOWS = ("flip", "set", "cut", "drop", "insert", "twice", "zero", "swap", "json", "json", "remove")


@dataclass(frozen=True)
class Damage:
    """One change of one file. `place` is where, of 0 to 1; `size` of how many bytes."""

    file: int
    how: str
    place: float
    size: int
    value: int

    def of(self, whole: bytes, other: bytes) -> bytes | None:
        """The damaged bytes; None if the file is gone."""
        at = int(self.place * len(whole))
        before, hit, after = whole[:at], whole[at : at + self.size], whole[at + self.size :]
        match self.how:
            case "flip":
                return before + bytes([whole[at] ^ 1 << self.value % 8]) + whole[at + 1 :]
            case "set":
                return before + bytes([self.value % 256]) * len(hit) + after
            case "cut":
                return before
            case "drop":
                return before + after
            case "insert":
                return before + self.value.to_bytes(8, "little") + hit + after
            case "twice":
                return before + hit + hit + after
            case "zero":
                return before + bytes(len(hit)) + after
            case "swap":
                return other
            case "json":
                return self._of_json(whole)
        return None

    def _of_json(self, whole: bytes) -> bytes:
        """Another value for some field, or none."""
        try:
            document = json.loads(whole)
            places = list(_places(document))
        except (ValueError, AttributeError):
            places = []
        if not places:
            return whole[::-1]
        inner, key = places[int(self.place * len(places))]
        if self.value % 10 == 0:
            del inner[key]
        else:
            inner[key] = HOSTILE[self.value % len(HOSTILE)]
        return json.dumps(document).encode()


def _places(document: Any) -> Any:
    """Each field of a document, as what holds it and its key there."""
    inside = enumerate(document) if isinstance(document, list) else list(document.items())
    for key, value in inside:
        yield document, key
        if isinstance(value, (list, dict)):
            yield from _places(value)


DAMAGES = st.lists(
    st.builds(
        Damage,
        file=st.integers(0, 10**6),
        how=st.sampled_from(HOWS),
        place=st.floats(0, 1, exclude_max=True),
        size=st.integers(1, 100),
        value=st.integers(0, 10**6),
    ),
    min_size=1,
    max_size=3,
)


class Specimen:
    """A cache that can be damaged and made whole again."""

    def __init__(self, path: Path) -> None:
        write(path)
        self.path = path
        self.files = {p: p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}

    def damage(self, damages: list[Damage]) -> None:
        """Files are replaced, not written to: somebody may have them mapped."""
        self._restore()
        names = list(self.files)
        for damage in damages:
            file = names[damage.file % len(names)]
            other = self.files[names[damage.value % len(names)]]
            data = file.read_bytes() if file.exists() else b""
            changed = damage.of(data, other) if data else data
            file.unlink(missing_ok=True)
            if changed is not None:
                file.write_bytes(changed)

    def _restore(self) -> None:
        for file in self.path.rglob("*"):
            if file.is_file() and file not in self.files:
                file.unlink()
        for file, data in self.files.items():
            if not file.is_file() or file.read_bytes() != data:
                file.unlink(missing_ok=True)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)


def check_answers(cache: Cache) -> None:
    """Every key that is there is one that was asked, and its answers are right."""
    keys = [key.tobytes() for key in cache.keys]
    for name in cache.features:
        values = cache[name][:]
        for key, value in zip(keys, values, strict=True):
            np.testing.assert_array_equal(value, EXPECTED[key].values[name], strict=True)
    truncated = cache.table("rows", {"truncated": pa.bool_()})["truncated"].to_pylist()
    assert truncated == [EXPECTED[key].truncated for key in keys]
    if all("images" in commit.tables for commit in cache.commits):  # a record may say otherwise
        images = cache.table("images", IMAGES)["png"].to_pylist()
        assert images == [EXPECTED[key].image for key in keys]


def read_all(path: Path) -> None:
    """Everything a reader can ask for; what it says may be wrong."""
    read_contents(path)
    cache = open_cache(path)
    cache.find(keys_of(TEXTS))
    for name in cache.features:
        cache[name][:]
    cache.table("rows", {"truncated": pa.bool_()})
    cache.table("images", IMAGES)


def verified(path: Path) -> tuple[CacheSurvey, Verification] | None:
    """None for what is no cache of this version."""
    try:
        survey = survey_cache(path)
    except CacheError:
        return None
    return survey, verify(survey)


def check(path: Path) -> None:
    with suppress(ArmadaError):
        read_all(path)
    with suppress(ArmadaError):
        check_answers(open_cache(path, verify=True))
    found = verified(path)
    if found is None:
        return
    survey, verification = found
    if not verification.damages:
        check_whole(path)
    else:
        check_repair(survey, verification)


def check_repair(survey: CacheSurvey, verification: Verification) -> None:
    try:
        steps = plan_repair(survey, verification.damages)
    except CacheError:  # all of a feature may be what another tool re-wrote
        assert any(teacher.foreign for teacher in survey.teachers)
        return
    carry_out(survey.path, steps)
    again = verified(survey.path)
    assert again is not None
    # What is left, only people can bring back.
    assert {damage.kind for damage in again[1].damages} <= {"cache", "teacher"}
    if not again[1].damages:
        check_whole(survey.path)


def check_whole(path: Path) -> None:
    for teacher in read_contents(path).teachers:
        check_answers(Cache(path, teacher.manifest))


@pytest.fixture(scope="module")
def specimen(tmp_path_factory: pytest.TempPathFactory) -> Specimen:
    return Specimen(tmp_path_factory.mktemp("specimen") / "cache")


def test_the_specimen_is_whole(specimen: Specimen) -> None:
    specimen.damage([])
    found = verified(specimen.path)
    assert found is not None
    assert found[1].damages == ()
    assert len(open_cache(specimen.path)) == len(EXPECTED)
    check_whole(specimen.path)


@given(damages=DAMAGES)
@settings(max_examples=60)
def test_damage_is_refused_or_harmless(specimen: Specimen, damages: list[Damage]) -> None:
    specimen.damage(damages)
    check(specimen.path)


@given(damages=DAMAGES)
def test_a_damaged_table_is_refused_or_read(specimen: Specimen, damages: list[Damage]) -> None:
    """Closer to the table than `test_damage...`, which mostly stops at its checksum."""
    specimen.damage([])
    table = next(path for path in specimen.files if path.suffix == ".parquet")
    data = specimen.files[table]
    for damage in damages:
        data = (damage.of(data, b"PAR1") if data else None) or b""
    table.unlink()
    table.write_bytes(data)
    with suppress(DamagedCacheError):
        assert read_keys(table, 64).shape == (64, 16)
    with suppress(DamagedCacheError):
        assert read_whole_table(table, 64).num_rows == 64


@pytest.mark.slow
@given(damages=DAMAGES)
@settings(max_examples=5_000)
def test_much_damage_is_refused_or_harmless(specimen: Specimen, damages: list[Damage]) -> None:
    specimen.damage(damages)
    check(specimen.path)


@given(damages=DAMAGES)
def test_a_damaged_index_is_refused_or_harmless(specimen: Specimen, damages: list[Damage]) -> None:
    specimen.damage([])
    data = read_contents(specimen.path).to_json()
    for damage in damages:
        data = (damage.of(data, b"{}") if data else None) or b""
    try:
        index = parse_document(CacheIndex, data, specimen.path / "index.json")
    except ArmadaError:
        return
    assert len(index.digest) == 64
