"""Caches of every format version stay readable, and today's writer makes the same bytes.

Each folder of `tests/golden` was made once, by the release that had this version:
`python tests/stages/store/test_old_caches.py FOLDER`; none is ever made again. A change of the
format is a new version, with a folder of its own. Version 1 had other names for some fields of its
documents, and for the feature of sampled tokens.
"""

import json
import shutil
import sys
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from armada.cache_schemas.codings import Fidelity, SamplesCoding, TopKCoding
from armada.cache_schemas.features import FeatureSpec
from armada.cache_schemas.keys import KeyArray, canonical_json, example_key, keys_to_array
from armada.cache_schemas.manifest import (
    CommitRecord,
    CorpusRecord,
    RunRecord,
    TeacherManifest,
    content_digest,
)
from armada.cache_schemas.teachers import TeacherSpec
from armada.stages.precompute.teachers.base import Example
from armada.stages.precompute.teachers.hash import HashOptions, HashTeacher
from armada.stages.ragged import Ragged
from armada.stages.store.codec.samples import decode_samples, encode_samples
from armada.stages.store.codec.top_k import decode_top_k, encode_top_k
from armada.stages.store.reading.reader import open_cache
from armada.stages.store.upkeep.survey import survey_cache
from armada.stages.store.upkeep.verify import verify
from armada.stages.store.writing.writer import CacheWriter

GOLDEN = Path(__file__).parents[2] / "golden"
VERSION_1, VERSION_2 = GOLDEN / "cache_v1", GOLDEN / "cache_v2"
TOKENS_1, TOKENS_2 = GOLDEN / "token_cache_v1", GOLDEN / "token_cache_v2"
PAIRS = [(f"premise {number}", f"hypothesis {number % 7}") for number in range(104)]
SHARDS = (PAIRS[:64], PAIRS[64:])
RUN = RunRecord(
    started="2026-01-01T00:00:00+00:00",
    versions={"python": "3.11.7"},
    hardware={"device": "cpu"},
    corpora=(CorpusRecord(name="golden/pairs.csv", rows=104, unique_examples=104, licence="CC0"),),
    teacher_seconds={0: 0.5, 1: 0.25},
    truncated_examples=1,
)


def make_cache(path: Path) -> None:
    """Answers of hash:4 about 104 pairs in shards of 64 rows; the last text counts as truncated."""
    teacher = HashTeacher("4", HashOptions(), torch.device("cpu"))
    spec = teacher.spec
    manifest = TeacherManifest(fingerprint=spec.fingerprint, rows_per_shard=64, spec=spec)
    with CacheWriter(path, manifest) as writer:
        for pairs in SHARDS:
            examples = [Example(example_key(pair), pair) for pair in pairs]
            truncated = np.array([pair == PAIRS[-1] for pair in pairs])
            keys = keys_to_array(example.key for example in examples)
            writer.commit(keys, teacher.encode(examples).features, truncated)
        writer.record_run("20260101T000000-000000", RUN)


TEXTS = [("text", str(number)) for number in range(5)]
TOP_K = TopKCoding(k=4, vocab_size=300, bits=8, temperatures=(1.0, 2.0))
SAMPLES = SamplesCoding(samples=3, vocab_size=300, log_prob_bits=16)
COUNTS = np.array([3, 0, 1, 7, 2])
"""Predicted tokens of each text."""
IDS = (np.arange(13)[:, None] * [7, 11, 13, 17] + [0, 1, 2, 3]) % 300
LOG_PROBS = np.broadcast_to([-0.5, -1.5, -2.5, -3.5], (13, 4))


def token_manifest() -> TeacherManifest:
    """Of a language model: tokens, the four most probable predictions, and three samples."""
    along: dict[str, Any] = {"axis": "predictions", "max_length": 16, "dtype": "uint8"}
    tokens = FeatureSpec(name="token_ids", shape=(), dtype="uint32", axis="tokens", max_length=16)
    top_k = FeatureSpec(name="top_k", shape=(TOP_K.row_bytes,), coding=TOP_K, **along)
    samples = FeatureSpec(name="samples", shape=(SAMPLES.row_bytes,), coding=SAMPLES, **along)
    spec = TeacherSpec(
        kind="causal_lm",
        name="golden",
        weights={"model": "0" * 32},
        settings={"vocab_size": 300, "samples": 3, "samples_log_probs": True, "top_k": 4},
        features=(tokens, top_k, samples),
        vocab_digest="f" * 32,
    )
    return TeacherManifest(fingerprint=spec.fingerprint, rows_per_shard=64, spec=spec)


def make_token_cache(path: Path) -> None:
    """What a language model predicts of five texts, none of the second."""
    values = {
        "token_ids": Ragged(np.arange(18, dtype="u4"), COUNTS + 1),
        "top_k": Ragged(encode_top_k(TOP_K, IDS, LOG_PROBS, np.full((13, 2), -3.0)), COUNTS),
        "samples": Ragged(encode_samples(SAMPLES, IDS[:, :3], LOG_PROBS[:, :3]), COUNTS),
    }
    measured = Fidelity(tokens=13, entries=52, bytes_per_token=16.0, mean_error=0.25, max_error=0.5)
    with CacheWriter(path, token_manifest()) as writer:
        truncated = np.zeros(5, dtype=bool)
        writer.commit(token_keys(), values, truncated, fidelity={"top_k": measured})


def token_keys() -> KeyArray:
    return keys_to_array(example_key(text) for text in TEXTS)


def answer(key: bytes) -> Any:
    """What hash:4 says, without armada: standard normal numbers, seeded by a hash of the key."""
    seed = int.from_bytes(blake2b(key, digest_size=8, salt=bytes(8)).digest(), "little") >> 1
    return np.random.default_rng(seed).standard_normal(4).astype(np.float32)


def files_of(cache: Path) -> list[Path]:
    """All files but the lock, in which writers leave notes for each other."""
    return sorted(f for f in cache.rglob("*") if f.is_file() and f.name != "writer.lock")


def comparable(cache: Path) -> dict[str, Any]:
    """Files of a cache, without what depends on the Parquet library that wrote them."""
    content: dict[str, Any] = {}
    for file in files_of(cache):
        name = file.relative_to(cache).as_posix()
        if file.suffix == ".parquet":
            content[name] = pq.read_table(file, partitioning=None)
        elif file.parent.name == "commits":
            commit = json.loads(file.read_bytes())
            content[name] = commit | {"tables": sorted(commit["tables"])}
        else:
            content[name] = file.read_bytes()
    return content


@pytest.mark.parametrize("golden", [VERSION_1, VERSION_2], ids=lambda path: path.name)
def test_pooled_features_read_with_equal_values(golden: Path) -> None:
    cache = open_cache(golden)
    assert len(cache) == 104
    assert cache.features == ("embedding",)
    rows = cache.lookup(PAIRS)
    assert rows.tolist() == list(range(104))
    expected = np.stack([answer(example_key(pair)) for pair in PAIRS])
    np.testing.assert_array_equal(cache["embedding"][rows], expected, strict=True)
    truncated = cache.table("rows", {"truncated": pa.bool_()})["truncated"]
    assert truncated.to_pylist() == [False] * 103 + [True]
    assert cache.runs() == [RUN]
    # Literally, so that a change of both the teacher and `answer` shows.
    first = cache["embedding"][0]
    assert [round(float(number), 4) for number in first] == [0.8758, -0.6129, -1.9981, -0.288]


@pytest.mark.parametrize(
    ("golden", "samples"), [(TOKENS_1, "draws"), (TOKENS_2, "samples")], ids=["v1", "v2"]
)
def test_features_of_tokens_read_with_equal_values(golden: Path, samples: str) -> None:
    cache = open_cache(golden)
    assert cache.features == ("token_ids", "top_k", samples)
    spec = cache.teacher.spec
    assert spec.settings["vocab_size"] == 300
    assert spec.vocab_digest == "f" * 32
    rows = cache.lookup(TEXTS)
    assert cache.ragged("token_ids").spec.max_length == 16
    found = cache.ragged("token_ids").gather(rows)
    assert found.lengths.tolist() == (COUNTS + 1).tolist()
    assert found.values.tolist() == list(range(18))
    top_k = cache.ragged("top_k")
    assert top_k.spec.coding == TOP_K
    decoded = decode_top_k(TOP_K, top_k.gather(rows).values)
    assert decoded.ids_Nk.tolist() == IDS.tolist()
    np.testing.assert_allclose(np.diff(decoded.log_probs_Nk), -1, atol=0.02)
    drawn = cache.ragged(samples)
    assert drawn.spec.coding == SAMPLES
    sampled = decode_samples(SAMPLES, drawn.gather(rows).values)
    assert sampled.ids_NK.tolist() == np.sort(IDS[:, :3]).tolist()
    assert sampled.log_probs_NK is not None
    assert sorted(sampled.log_probs_NK[0]) == [-2.5, -1.5, -0.5]
    assert verify(survey_cache(golden)).damages == ()


def test_fingerprints_and_digests_are_those_of_version_1() -> None:
    assert open_cache(VERSION_1).teacher == open_cache(VERSION_2).teacher
    # What a language model was told has other names, and they alone do not set two teachers apart.
    document = json.loads(next(TOKENS_1.glob("teachers/*/teacher.json")).read_bytes())
    cached = open_cache(TOKENS_1).teacher
    assert cached.fingerprint == document["fingerprint"] == cached.spec.fingerprint
    assert "samples" in cached.spec.settings
    assert "draws" in document["spec"]["settings"]
    renamed = TeacherManifest.model_validate_json(cached.to_json())
    assert renamed == cached


MAKERS = {VERSION_2: make_cache, TOKENS_2: make_token_cache}
GOLDENS = pytest.mark.parametrize("golden", MAKERS, ids=lambda path: path.name)


@GOLDENS
def test_todays_writer_makes_the_same_files(golden: Path, tmp_path: Path) -> None:
    MAKERS[golden](tmp_path / "cache")
    assert comparable(tmp_path / "cache") == comparable(golden)


@GOLDENS
def test_todays_writer_makes_the_same_bytes(golden: Path, tmp_path: Path) -> None:
    MAKERS[golden](tmp_path / "cache")
    files = {path.relative_to(golden): path.read_bytes() for path in files_of(golden)}
    table = next(path for path in files if path.suffix == ".parquet")
    if (
        pq.read_metadata(golden / table).created_by
        != pq.read_metadata(tmp_path / "cache" / table).created_by
    ):
        pytest.skip("tables were written by another version of the Parquet library")
    assert {path: (tmp_path / "cache" / path).read_bytes() for path in files} == files


def test_a_cache_of_version_1_can_be_added_to_and_is_of_version_2_then(tmp_path: Path) -> None:
    shutil.copytree(VERSION_1, tmp_path / "cache")
    manifest = open_cache(VERSION_1).teacher
    with CacheWriter(tmp_path / "cache", manifest) as writer:
        key = example_key("new")
        features = {"embedding": answer(key)[None]}
        writer.commit(keys_to_array([key]), features, np.zeros(1, bool))
    assert json.loads((tmp_path / "cache" / "armada.json").read_bytes())["format_version"] == 2
    cache = open_cache(tmp_path / "cache")
    assert cache.lookup([*PAIRS, "new"]).tolist() == list(range(105))
    np.testing.assert_array_equal(cache["embedding"][104], answer(key), strict=True)


def test_shards_of_both_versions_lie_side_by_side(tmp_path: Path) -> None:
    shutil.copytree(TOKENS_1, tmp_path / "cache")
    manifest = open_cache(TOKENS_1).teacher
    before = open_cache(TOKENS_1)
    values = {spec.name: before.ragged(spec.name) for spec in manifest.spec.features}
    with CacheWriter(tmp_path / "cache", manifest) as writer:
        again = {name: feature.gather(np.arange(5)) for name, feature in values.items()}
        keys = keys_to_array(example_key(("other", str(number))) for number in range(5))
        writer.commit(keys, again, np.zeros(5, dtype=bool))
    commits = sorted((tmp_path / "cache").glob("teachers/*/commits/*.json"))
    old, new = (json.loads(file.read_bytes()) for file in commits)
    assert old["places"] == new["lengths"]
    assert "lengths" not in old
    assert "places" not in new
    cache = open_cache(tmp_path / "cache")
    for name in cache.features:
        both = cache.ragged(name).gather(np.arange(10))
        np.testing.assert_array_equal(both.values[: len(both.values) // 2], again[name].values)
        np.testing.assert_array_equal(both.values[len(both.values) // 2 :], again[name].values)
    assert verify(survey_cache(tmp_path / "cache")).damages == ()


def test_digests_are_made_of_the_names_of_version_1() -> None:
    (file,) = TOKENS_1.glob("teachers/*/commits/*.json")
    teacher = file.parent.parent
    document = json.loads(file.read_bytes())
    assert "places" in document
    line = f"{teacher.name} ".encode() + canonical_json(document) + b"\n"
    record = CommitRecord.model_validate(document)
    assert content_digest([(teacher.name, record)]) == sha256(line).hexdigest()
    assert CommitRecord.model_validate_json(record.to_json()) == record


if __name__ == "__main__":
    made = Path(sys.argv[1])
    (make_token_cache if made.name.startswith("token") else make_cache)(made)
