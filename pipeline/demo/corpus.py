"""The demo's corpora: captions only, labelled by the family of one word.

A training caption has a label if its word is the common one of its family. The test set is of other
captions, all with the other words. Nothing in either text says that crimson is a red.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .world import COLOURS, SHAPES, Scene, Word, draw_scene

Task = Literal["colour", "shape"]

TRAIN_CAPTIONS = 1_500
TEST_CAPTIONS = 400


@dataclass(frozen=True, slots=True)
class DemoCorpus:
    """Parquet files with columns `text`, `label` (the name of a family, or none) and, for pictures
    of what was learned, `family`, which no student sees; and the scenes of the test."""

    train: Path
    test: Path
    test_scenes: tuple[Scene, ...]


def write_corpus(folder: Path, task: Task, seed: int) -> DemoCorpus:
    """Draw captions, each one once, and write both files: no text of one is in the other."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 0])
    scenes: dict[str, Scene] = {}
    test: dict[str, Scene] = {}
    while len(test) < TEST_CAPTIONS:
        scene = draw_scene(rng)
        if not word_of(scene, task).common:
            test[scene.caption] = scene
    while len(scenes) < TRAIN_CAPTIONS:
        scene = draw_scene(rng)
        if scene.caption not in test:
            scenes[scene.caption] = scene
    return DemoCorpus(
        train=_write(folder / "train.parquet", list(scenes.values()), task, all_labels=False),
        test=_write(folder / "test.parquet", list(test.values()), task, all_labels=True),
        test_scenes=tuple(test.values()),
    )


def word_of(scene: Scene, task: Task) -> Word:
    """The word that a task asks about."""
    return scene.colour if task == "colour" else scene.shape


def _write(file: Path, scenes: list[Scene], task: Task, all_labels: bool) -> Path:
    families = COLOURS if task == "colour" else SHAPES
    words = [word_of(scene, task) for scene in scenes]
    names = [families[word.family][0] for word in words]
    labels = [
        name if all_labels or word.common else None for name, word in zip(names, words, strict=True)
    ]
    texts = [scene.caption for scene in scenes]
    pq.write_table(pa.table({"text": texts, "label": labels, "family": names}), file)
    return file
