"""What all loops share: texts, a cache of random features, a file for each example, a student."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from armada.cache_schemas.features import FeatureSpec
from armada.cache_schemas.keys import example_key, keys_to_array
from armada.cache_schemas.manifest import TeacherManifest
from armada.cache_schemas.teachers import TeacherSpec
from armada.stages.corpus.labels import LabelSpace
from armada.stages.distill.batches import DistillDataset
from armada.stages.distill.controls import Control, controlled
from armada.stages.distill.model import DistillModel
from armada.stages.distill.objectives import OBJECTIVES
from armada.stages.distill.objectives.base import Sizes
from armada.stages.distill.objectives.options import SOURCE
from armada.stages.distill.settings import StudentSettings
from armada.stages.distill.student_source import load_student
from armada.stages.distill.tokens import Tokens, encode
from armada.stages.store.reading.reader import Cache, open_cache
from armada.stages.store.writing.writer import CacheWriter

WORDS = 2000
SPACE = LabelSpace(task="classification", num_labels=2)
MAX_LENGTH = 128


@dataclass(frozen=True, slots=True)
class Size:
    """A student's shape."""

    kind: str
    layers: int
    width: int
    heads: int

    def __str__(self) -> str:
        return f"{self.kind}, {self.layers} layers of {self.width}"


def make_texts(count: int) -> list[str]:
    """Sentences of made-up words, as long as those of SST-2: 2 to 50 words, 9 in the middle."""
    random = np.random.default_rng(0)
    lengths = np.clip(np.round(random.lognormal(np.log(9), 0.7, count)), 2, 50).astype(int)
    # Zipf, like words of a language.
    odds = 1 / np.arange(1, WORDS + 1)
    words = random.choice(WORDS, lengths.sum(), p=odds / odds.sum())
    ends = np.cumsum(lengths)
    return [
        f"{number} " + " ".join(f"word{word}" for word in words[end - length : end])
        for number, (end, length) in enumerate(zip(ends, lengths, strict=True))
    ]


class Material:
    """`count` examples with features of `dim` float16 numbers, in a cache and one file each."""

    def __init__(self, folder: Path, count: int, dim: int) -> None:
        self.texts, self.dim = make_texts(count), dim
        random = np.random.default_rng(1)
        features = random.standard_normal((count, dim)).astype(np.float16)
        self.labels = random.integers(2, size=count)
        self.files = folder / "features"
        self.files.mkdir()
        for number, feature in enumerate(features):
            np.save(self.files / f"{number}.npy", feature.astype(np.float32))
        self.cache = _write_cache(folder / "cache", self.texts, features)
        self._tokens: dict[Size, Tokens] = {}

    def model(self, size: Size, objective: str, **knobs: Any) -> DistillModel:
        """A new student with its objective, with these settings; all students are equal."""
        torch.manual_seed(0)
        settings = StudentSettings(
            student=f"scratch:{size.kind}",
            student_layers=size.layers,
            student_hidden_size=size.width,
            student_heads=size.heads,
        )
        student, tokenizer = load_student(settings, SPACE, self.texts, dropout=0.1)
        if size not in self._tokens:
            examples = [(text,) for text in self.texts]
            self._tokens[size] = encode(tokenizer, examples, MAX_LENGTH)
        sizes = Sizes(student.dim, SPACE.num_labels, SPACE.regression, (self.dim,))
        chosen = OBJECTIVES.load(objective)
        return DistillModel(student, chosen(chosen.Options(**knobs), sizes))

    def dataset(self, size: Size, with_features: bool, count: int | None = None) -> DistillDataset:
        """Tokens and labels of all examples, or of the first `count`, with or without features."""
        tokens = self._tokens[size]
        if count is not None:
            tokens = replace(tokens, offsets=tokens.offsets[: count + 1])
        rows = self.cache.lookup(self.texts[:count])
        gather = controlled(self.cache["embedding"], rows, Control("none"), 0)
        return DistillDataset(
            tokens, self.labels[:count], {SOURCE: gather} if with_features else {}
        )

    def from_files(self, indices: npt.NDArray[np.int64]) -> torch.Tensor:
        """Features [B, H], each read from its own file, as the paper's code does."""
        return torch.from_numpy(np.stack([np.load(self.files / f"{p}.npy") for p in indices]))


def _write_cache(path: Path, texts: list[str], features: npt.NDArray[np.float16]) -> Cache:
    spec = FeatureSpec(name="embedding", shape=features.shape[1:], dtype="float16")
    teacher = TeacherSpec(kind="random", name="numbers", weights={}, settings={}, features=(spec,))
    manifest = TeacherManifest(fingerprint=teacher.fingerprint, rows_per_shard=16_384, spec=teacher)
    keys = keys_to_array(example_key(text) for text in texts)
    with CacheWriter(path, manifest) as writer:
        for start in range(0, len(texts), manifest.rows_per_shard):
            part = slice(start, start + manifest.rows_per_shard)
            uncut = np.zeros(len(keys[part]), dtype=bool)
            writer.commit(keys[part], {spec.name: features[part]}, uncut)
    return open_cache(path)
