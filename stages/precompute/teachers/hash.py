"""Deterministic fake teachers: no weights, no model, no cost.

`hash:16` gives every text 16 numbers from a normal distribution, seeded by the text;
`hash_words:16` does so for each word. They ship with the package for quick checks of a pipeline,
and the tests use them as real teachers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ....cache_schemas.errors import TeacherSourceError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.keys import example_key
from .base import Answers, Example, Teacher, example_seed, make_spec
from .options import HashOptions, HashWordsOptions

MAX_DIM = 65_536


class HashTeacher(Teacher):
    """Feature `embedding` [dim], standard normal, a function of the example key alone."""

    Options = HashOptions
    kind = "hash"

    def __init__(self, source: str, options: HashOptions, device: torch.device) -> None:
        self._options = options
        feature = FeatureSpec(
            name="embedding",
            shape=(_width("hash", source),),
            dtype=options.store_dtype,
            description="standard normal numbers seeded by the text",
        )
        self.spec = make_spec("hash", source, {}, options, [feature])

    def load(self) -> None:
        """Nothing to load."""

    def encode(self, examples: Sequence[Example]) -> Answers:
        """[B, dim] numbers, one generator an example."""
        shape = self.spec.features[0].shape
        seeds = [example_seed(self._options.seed, example.key) for example in examples]
        rows = [np.random.default_rng(seed).standard_normal(shape) for seed in seeds]
        return Answers({"embedding": np.stack(rows)}, np.zeros(len(examples), dtype=bool))


class HashWordsTeacher(Teacher):
    """Features `words` [dim] and `word_bytes`, the length of each, for every word of a text: those
    of `hash` for the word alone."""

    Options = HashWordsOptions
    kind = "hash_words"

    def __init__(self, source: str, options: HashWordsOptions, device: torch.device) -> None:
        self._options = options
        along: dict[str, Any] = {"axis": "words", "max_length": options.max_words}
        words = FeatureSpec(
            name="words",
            shape=(_width("hash_words", source),),
            dtype=options.store_dtype,
            description="standard normal numbers seeded by the word",
            **along,
        )
        description = "UTF-8 bytes of the word"
        lengths = FeatureSpec(
            name="word_bytes", shape=(), dtype="uint32", description=description, **along
        )
        self.spec = make_spec("hash_words", source, {}, options, [words, lengths])

    def load(self) -> None:
        """Nothing to load."""

    def encode(self, examples: Sequence[Example]) -> Answers:
        """One row of numbers a word."""
        whole = [" ".join(example.segments).split() for example in examples]
        kept = [words[: self._options.max_words] for words in whole]
        return Answers(
            {
                "words": [self._numbers(words) for words in kept],
                "word_bytes": [np.array([len(w.encode()) for w in words]) for words in kept],
            },
            np.array([len(w) > len(k) for w, k in zip(whole, kept, strict=True)]),
        )

    def _numbers(self, words: Sequence[str]) -> npt.NDArray[np.float64]:
        shape = self.spec.features[0].shape
        seeds = [example_seed(self._options.seed, example_key(word)) for word in words]
        rows = [np.random.default_rng(seed).standard_normal(shape) for seed in seeds]
        return np.reshape(rows, (len(rows), *shape))  # a text may have no words


def _width(kind: str, source: str) -> int:
    if not source.isdecimal() or not 1 <= int(source) <= MAX_DIM:
        raise TeacherSourceError(
            f"teacher {kind}:{source}: {source!r} is not a width from 1 to {MAX_DIM}; "
            f"write {kind}:16"
        )
    return int(source)
