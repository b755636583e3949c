"""A teacher that counts what it is asked, runs out of memory or answers badly; a bench for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from armada.cache_schemas.features import FeatureSpec
from armada.cache_schemas.manifest import TeacherManifest
from armada.stages.corpus.corpus import read_corpus
from armada.stages.precompute.batching import BatchSizes
from armada.stages.precompute.precompute import EncodingRun, precompute
from armada.stages.precompute.teachers.base import (
    Answers,
    Example,
    Teacher,
    TeacherOptions,
    make_spec,
)
from armada.stages.store.reading.reader import Cache, open_cache
from armada.stages.store.writing.writer import CacheWriter, Work

WriteParquet = Callable[[str, dict[str, Any]], str]
NAN, HUGE = "not a number", "huge"


def code(example: Example) -> npt.NDArray[np.float64]:
    """What the teacher should say: numbers from 0 to 1 out of the key."""
    return np.frombuffer(example.key[:3], dtype=np.uint8) / 256


class SpyingTeacher(Teacher):
    """Answers with `code`; keeps the batches it was asked. `fits`: the largest batch that fits."""

    kind = "spying"

    def __init__(
        self,
        source: str = "spy",
        options: TeacherOptions | None = None,
        device: torch.device | None = None,
        *,
        fits: int = 1000,
        breaks_at: str | None = None,
        images: bool = False,
    ) -> None:
        features = [
            FeatureSpec(name="code", shape=(3,), dtype="float16"),
            FeatureSpec(name="words", shape=(), dtype="float32"),
        ]
        self.spec = make_spec(self.kind, source, {}, options or TeacherOptions(), features)
        self.fits, self.breaks_at, self.images = fits, breaks_at, images
        self.asked: list[list[str]] = []

    def load(self) -> None:
        """Nothing to load."""

    def encode(self, examples: Sequence[Example]) -> Answers:
        assert torch.is_inference_mode_enabled()
        texts = [" | ".join(example.segments) for example in examples]
        if len(examples) > self.fits:
            raise torch.OutOfMemoryError("made up")
        if self.breaks_at in texts:
            raise ValueError("the teacher broke")
        self.asked.append(texts)
        codes = np.stack([code(example) for example in examples])
        codes[[HUGE in text for text in texts], 1] = 1e6  # more than half precision holds
        words = np.array([np.nan if NAN in text else len(text.split()) for text in texts])
        images = [text.encode() for text in texts] if self.images else ()
        truncated = np.array([len(text) > 15 for text in texts])
        return Answers({"code": codes, "words": words}, truncated, images)

    def buckets(self, examples: Sequence[Example]) -> Sequence[int]:
        return [len(example.segments[0].split()) for example in examples]

    @property
    def texts(self) -> list[str]:
        """All it was asked, in order."""
        return [text for batch in self.asked for text in batch]


@dataclass
class Bench:
    """One cache, and corpora to ask about."""

    write: WriteParquet
    path: Path
    commits: list[tuple[int, int]] = field(default_factory=list)
    advanced: int = 0
    skipped: list[str] = field(default_factory=list)

    def ask(self, teacher: Teacher, *corpora: list[str], batch_size: int = 8, **how: Any) -> None:
        """Ask about what is not cached, in shards of 64 rows."""
        files = [self.write(f"corpus{i}", {"a": texts}) for i, texts in enumerate(corpora)]
        corpus = read_corpus(files, ["a"])
        keys = corpus.keys()
        spec = teacher.spec
        manifest = TeacherManifest(fingerprint=spec.fingerprint, rows_per_shard=64, spec=spec)
        encoding = EncodingRun(BatchSizes(batch_size), **how, skipped=self.skipped)
        encoding.advance = self._advance
        encoding.committed = lambda record, seconds, cut: self.commits.append((record.shard, cut))
        with CacheWriter(self.path, manifest) as writer:
            precompute(corpus, keys, Work(writer, keys), teacher, writer, encoding)

    def _advance(self, rows: int) -> None:
        self.advanced += rows

    @property
    def cache(self) -> Cache:
        return open_cache(self.path)
