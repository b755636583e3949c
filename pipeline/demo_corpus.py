"""The demo's corpus: captions from templates, labelled by the family of their colour word.

Each family has a common word and rarer ones. The teacher is taught all of them; the student gets
labels only for captions with the common words, and is tested on other captions with the rarer ones.
Nothing in its text says that crimson is a red: only the teacher's features do.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FAMILIES = (
    ("red", "crimson", "scarlet", "ruby"),
    ("blue", "navy", "azure", "cobalt"),
    ("green", "emerald", "olive", "jade"),
    ("yellow", "amber", "golden", "lemon"),
)
SIZES = ("small", "large", "tiny", "huge")
SHAPES = ("ball", "box", "ring", "cone", "star", "disc")
PLACES = ("on a table", "in the grass", "under a lamp", "beside a wall")
TEST_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class DemoFiles:
    """Parquet files with columns `text` and `label`."""

    taught: Path
    train: Path
    test: Path


def write_demo_corpus(folder: Path, seed: int) -> DemoFiles:
    """All captions, split at random: no caption of `test` is in `train`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        (f"a {size} {word} {shape} {place}", family, word == words[0])
        for family, words in enumerate(FAMILIES)
        for word, size, shape, place in product(words, SIZES, SHAPES, PLACES)
    ]
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    cut = int(len(rows) * TEST_SHARE)
    test, train = [rows[i] for i in order[:cut]], [rows[i] for i in order[cut:]]
    return DemoFiles(
        taught=_write(folder / "taught.parquet", [(text, label) for text, label, _ in train]),
        train=_write(
            folder / "train.parquet",
            [(text, label if common else None) for text, label, common in train],
        ),
        test=_write(
            folder / "test.parquet", [(text, label) for text, label, common in test if not common]
        ),
    )


def _write(file: Path, rows: list[tuple[str, int | None]]) -> Path:
    texts, labels = zip(*rows, strict=True)
    table = pa.table({"text": pa.array(texts), "label": pa.array(labels, pa.int64())})
    pq.write_table(table, file)
    return file
