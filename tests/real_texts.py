"""Text as people have it, for tests: from files if there are any, else from templates.

Real if ARMADA_CORPORA names a folder with sst2/train.parquet (text, label) and rte/train.parquet
(text_a, text_b, label); else sentences in the same form.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

ROWS = 240

Columns = dict[str, list[Any]]


def read_corpus(name: str, columns: Sequence[str]) -> Columns | None:
    """The first rows of a real corpus; None if there are none here."""
    root = os.environ.get("ARMADA_CORPORA")
    file = Path(root or "", name, "train.parquet")
    if not root or not file.is_file():
        return None
    return {k: v[:ROWS] for k, v in pq.read_table(file, columns=list(columns)).to_pydict().items()}


def reviews() -> Columns:
    """Short opinions: 1 is praise."""
    praise = ("a warm and clever", "an honest , quietly funny", "the loveliest", "a gripping")
    blame = ("a flat and noisy", "an endless", "the laziest", "a clumsy , humourless")
    what = ("thriller", "family drama", "sequel", "debut", "road movie", "documentary")
    why = (
        "that never loses its nerve",
        "with two leads who seem to share one thought",
        "-- and the ending is no surprise",
        "",
        "about a lighthouse and those who leave it",
    )
    rows = [
        (f"{opinion} {kind} {reason}".strip(), label)
        for reason in why
        for kind in what
        for label, opinions in enumerate((blame, praise))
        for opinion in opinions
    ]
    order = np.random.default_rng(0).permutation(len(rows))[:ROWS]
    texts, labels = zip(*(rows[place] for place in order), strict=True)
    return {"text": list(texts), "label": list(labels)}


def inferences() -> Columns:
    """Premise and hypothesis: 0 is that it follows."""
    who = ("The ferry", "A freight train", "The night bus", "Her old bicycle")
    places = ("Lisbon", "the harbour", "Bergen", "the county fair", "Turin")
    days = ("on Monday", "after the storm", "before dawn")
    rows = [
        (
            f"{it} reached {place} {day}, said the operator.",
            f"{it} went to {other}.",
            place != other,
        )
        for it in who
        for place in places
        for other in places[:4]
        for day in days
    ]
    first, second, labels = zip(*rows, strict=True)
    return {"text_a": list(first), "text_b": list(second), "label": [int(x) for x in labels]}
