"""One cache of each kind of answer, filled by one teacher from one corpus, and what each costs."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armada import open_cache
from armada.pipeline.precompute import run_precompute
from armada.pipeline.precompute_job import make_precompute_job

CACHES: dict[str, dict[str, Any]] = {
    "top_k": {"top_k": 50},
    "samples": {"top_k": None, "samples": 50},
    "dense": {"top_k": None, "dense": True},
}
"""By feature: what the teacher is asked for."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a cache: bytes of all its files over the tokens that were answered, and the seconds of
    asking."""

    bytes_per_token: float
    seconds: float


def fill(cache: Path, feature: str, corpus: Path, teacher: Path, max_length: int) -> Cost:
    """Ask the teacher for one feature of all texts of a corpus."""
    keys = {
        "corpus": str(corpus),
        "text_column": "text",
        "teacher": f"causal_lm:{teacher}",
        "max_length": max_length,
        "cache": str(cache),
    }
    started = time.perf_counter()
    run_precompute(make_precompute_job(keys | CACHES[feature]), quiet=True)
    seconds = time.perf_counter() - started
    size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    return Cost(size / len(open_cache(cache).ragged(feature).values), seconds)
