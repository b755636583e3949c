"""A deterministic fake teacher: no weights, no model, instant answers.

`hash:16` answers every text with 16 numbers from a normal distribution, seeded by the text. It
ships with the package for quick checks of a pipeline, and the tests use it as a real teacher.
"""

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field

from ....cache_schemas.errors import TeacherSourceError
from ....cache_schemas.features import FeatureSpec, StoredDtype
from .base import Answers, Example, Teacher, TeacherOptions, example_seed, make_spec

MAX_DIM = 65_536


class HashOptions(TeacherOptions):
    seed: int = Field(default=0, ge=0, lt=2**63, description="another seed, other answers")
    store_dtype: StoredDtype = Field(default="float32", description="type of the stored numbers")


class HashTeacher(Teacher):
    """Answers with `embedding` [dim], standard normal, a function of the example key alone."""

    Options = HashOptions
    kind = "hash"

    def __init__(self, source: str, options: HashOptions, device: torch.device) -> None:
        if not source.isdecimal() or not 1 <= int(source) <= MAX_DIM:
            raise TeacherSourceError(
                f"teacher hash:{source}: {source!r} is not a width from 1 to {MAX_DIM}; "
                "write hash:16"
            )
        self._options = options
        feature = FeatureSpec(
            name="embedding",
            shape=(int(source),),
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
