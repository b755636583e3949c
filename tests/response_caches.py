"""Caches of responses that nobody has to generate, written as teachers write theirs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from armada.cache_schemas.features import FeatureSpec
from armada.cache_schemas.keys import example_key, keys_to_array
from armada.cache_schemas.manifest import TeacherManifest
from armada.cache_schemas.teachers import TeacherSpec
from armada.stages.precompute.teachers.generated import Response, ResponseFeatures
from armada.stages.ragged import joined
from armada.stages.store.writing.writer import CacheWriter

Segments = tuple[str, ...]


def response(text: str, log_prob: float = -1.0, finish: int = 1) -> Response:
    """A token for each word, of which each has this log-probability."""
    count = len(text.split())
    log_probs = np.full(count, log_prob, dtype=np.float32)
    return Response(text.encode(), finish, np.arange(count), log_probs)


def write_responses(
    path: Path,
    said: Mapping[Segments, Sequence[Response]],
    with_tokens: bool = True,
    **settings: Any,
) -> Path:
    """A cache of a teacher that was asked about prompts alone, unless the settings say so."""
    count = max(map(len, said.values()))
    features = ResponseFeatures(count, 64, "as made up" if with_tokens else None)
    given = {"text_format": "plain", "response_column": False} | settings
    _write(path, features.specs(), given, list(said), features.values(list(said.values())))
    return path


def write_scores(
    path: Path, scores: Mapping[Segments, Sequence[float]], labels: tuple[str, ...] | None = None
) -> Path:
    """A cache of a critic."""
    count = len(next(iter(scores.values())))
    spec = FeatureSpec(name="logits", shape=(count,), dtype="float32", labels=labels)
    values = {"logits": np.array(list(scores.values()), dtype=np.float32)}
    _write(path, [spec], {}, list(scores), values)
    return path


def _write(
    path: Path,
    features: Sequence[FeatureSpec],
    settings: dict[str, Any],
    examples: Sequence[Segments],
    values: dict[str, Any],
) -> None:
    spec = TeacherSpec(
        kind="made_up", name="made up", weights={}, settings=settings, features=tuple(features)
    )
    manifest = TeacherManifest(fingerprint=spec.fingerprint, rows_per_shard=256, spec=spec)
    values = {
        each.name: values[each.name]
        if each.axis is None
        else joined(values[each.name], each.shape, each.dtype)
        for each in features
    }
    with CacheWriter(path, manifest) as writer:
        keys = keys_to_array(map(example_key, examples))
        writer.commit(keys, values, np.zeros(len(keys), dtype=bool))
