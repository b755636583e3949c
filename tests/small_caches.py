"""Caches of a few rows: specs, finite answers that follow from the text, and a cache's bytes."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from armada.cache_schemas.features import FeatureSpec
from armada.cache_schemas.keys import KeyArray, example_key, keys_to_array
from armada.cache_schemas.manifest import CommitRecord, TeacherManifest
from armada.cache_schemas.teachers import TeacherSpec
from armada.stages.store.writing.reservations import Reservation
from armada.stages.store.writing.writer import CacheWriter

TWO_FEATURES = (
    FeatureSpec(name="pooled", shape=(5,), dtype="float16", description="five numbers"),
    FeatureSpec(name="score", shape=(), dtype="float32"),
)


def make_manifest(
    features: Sequence[FeatureSpec] = TWO_FEATURES, rows_per_shard: int = 128, **settings: Any
) -> TeacherManifest:
    """A teacher that nobody has to run."""
    spec = TeacherSpec(
        kind="made_up", name="made up", weights={}, settings=settings, features=tuple(features)
    )
    return TeacherManifest(fingerprint=spec.fingerprint, rows_per_shard=rows_per_shard, spec=spec)


def numbered_texts(start: int, stop: int) -> list[str]:
    """Texts 'text 0', 'text 1', ..."""
    return [f"text {number}" for number in range(start, stop)]


THREE_SHARDS = [numbered_texts(0, 128), numbered_texts(128, 198), numbered_texts(198, 200)]
"""The texts of a full shard and of two that are not."""


def keys_of(texts: Iterable[str]) -> KeyArray:
    """Keys [N, 16]."""
    return keys_to_array(example_key(text) for text in texts)


def answer(spec: FeatureSpec, texts: Sequence[str]) -> npt.NDArray[Any]:
    """[N, *shape] in the stored type, seeded by feature and text."""
    rows = [
        np.random.default_rng(list(f"{spec.name} {text}".encode())).standard_normal(spec.shape)
        for text in texts
    ]
    return np.asarray(rows).reshape(len(texts), *spec.shape).astype(spec.dtype)


def commit(
    writer: CacheWriter, texts: Sequence[str], reservation: Reservation | None = None
) -> CommitRecord:
    """One shard of answers."""
    features = {spec.name: answer(spec, texts) for spec in writer.manifest.spec.features}
    truncated = np.array([text.endswith("7") for text in texts])
    return writer.commit(keys_of(texts), features, truncated, reservation=reservation)


def write_cache(path: Path, manifest: TeacherManifest, shards: Iterable[Sequence[str]]) -> Path:
    """A cache at `path` with one shard for each list of texts; returns the teacher's folder."""
    with CacheWriter(path, manifest) as writer:
        for texts in shards:
            commit(writer, texts)
        return writer.folder


def stored_bytes(cache: Path) -> dict[str, bytes]:
    """Every file of a cache but the provenance of its runs, which holds dates and times, and the
    lock, which holds who changed what in which order."""
    return {
        file.relative_to(cache).as_posix(): file.read_bytes()
        for file in sorted(cache.rglob("*"))
        if file.is_file()
        and "runs" not in file.relative_to(cache).parts
        and file != cache / "writer.lock"
    }
