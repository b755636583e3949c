"""Exact search and mining of hard negatives beside a bare blocked matrix product with top-k.

    python benchmarks/retrieval.py [--queries 20000] [--passages 200000] [--rounds 3]

Made-up embeddings of length 1. The bare way is what one would write with torch alone: blocks of
scores by one product each, `topk` of each, merged with the best so far; it checks nothing, excludes
nothing, and leaves the order of equal scores open. By turns, in one process, each round:

search      `stages/retrieval/search.py`, from memory
cached      the same, passages read from a cache's feature (float16)
mine        search without the query's positive, then negatives by a margin of 0.05

Ratios are of the same round, medians over rounds; the bare way's results are compared with ours.
On a machine that others use, `--processor-time --threads 1` counts this process's seconds alone.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from armada.cache_schemas.features import FeatureSpec
from armada.cache_schemas.manifest import TeacherManifest
from armada.cache_schemas.teachers import TeacherSpec
from armada.pipeline.environment import hardware, library_versions, now
from armada.stages.retrieval.metrics import pair_scores
from armada.stages.retrieval.mining import MiningRules, choose_negatives
from armada.stages.retrieval.search import Found, Pairs, search
from armada.stages.store.reading.feature_array import FeatureArray
from armada.stages.store.reading.reader import open_cache
from armada.stages.store.writing.writer import CacheWriter
from figures import ratios, shown, shown_ratio, table

HEADER = ("k", "way", "seconds", "of the bare way", "same results")
BLOCK_QUERIES, BLOCK_PASSAGES = 1024, 8192
NEGATIVES, SHARD = 8, 16_384
WAYS = ("bare", "search", "cached", "mine")


def main() -> None:
    """Print the table."""
    options = parse()
    torch.set_num_threads(options.threads)
    print(
        f"{now()}: {hardware('cpu')['processor']}, {os.cpu_count()} cores, {options.threads} used"
    )
    print(", ".join(f"{name} {library_versions()[name]}" for name in ("python", "numpy", "torch")))
    print(
        f"{options.queries:,} queries, {options.passages:,} passages, {options.width} numbers, "
        f"{options.rounds} rounds"
    )
    queries, passages = (made_up(n, options.width) for n in (options.queries, options.passages))
    with tempfile.TemporaryDirectory() as folder:
        cached = in_a_cache(Path(folder), passages)
        rows = [row for k in options.k for row in measure(queries, passages, cached, k, options)]
    print(table([HEADER, *rows], options.markdown))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=20_000)
    parser.add_argument("--passages", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--k", type=int, nargs="+", default=[8, 100])
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--processor-time", action="store_true", help="seconds of this process")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a run that shows that it works")
    options = parser.parse_args()
    if options.quick:
        options.queries, options.passages, options.rounds, options.width = 50, 20_000, 1, 32
    return options


def made_up(count: int, width: int) -> np.ndarray:
    """Embeddings of length 1, exact in float16."""
    vectors = np.random.default_rng(count).standard_normal((count, width), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float16).astype(np.float32)


def in_a_cache(folder: Path, passages: np.ndarray) -> FeatureArray:
    """The same, as a cached feature."""
    feature = FeatureSpec(name="embedding", shape=passages.shape[1:], dtype="float16")
    spec = TeacherSpec(kind="made_up", name="made up", weights={}, settings={}, features=(feature,))
    manifest = TeacherManifest(fingerprint=spec.fingerprint, rows_per_shard=SHARD, spec=spec)
    with CacheWriter(folder / "cache", manifest) as writer:
        for start in range(0, len(passages), SHARD):
            part = passages[start : start + SHARD].astype(np.float16)
            numbers = np.arange(start, start + len(part), dtype=np.uint64)
            keys = np.stack([numbers, numbers], axis=1).view(np.uint8).reshape(-1, 16)
            writer.commit(keys, {"embedding": part}, np.zeros(len(part), dtype=bool))
    return open_cache(folder / "cache")["embedding"]


def bare(queries: np.ndarray, passages: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k best passages of each query, as torch alone finds them."""
    queries_QH, passages_PH = torch.from_numpy(queries), torch.from_numpy(passages)
    scores_QK = torch.full((len(queries), k), -torch.inf)
    rows_QK = torch.zeros((len(queries), k), dtype=torch.int64)
    for first in range(0, len(passages), BLOCK_PASSAGES):
        block_CH = passages_PH[first : first + BLOCK_PASSAGES]
        for start in range(0, len(queries), BLOCK_QUERIES):
            here = slice(start, start + BLOCK_QUERIES)
            found = (queries_QH[here] @ block_CH.T).topk(min(k, len(block_CH)), dim=1)
            scores = torch.cat([scores_QK[here], found.values], dim=1)
            rows = torch.cat([rows_QK[here], found.indices + first], dim=1)
            scores_QK[here], order = scores.topk(k, dim=1)
            rows_QK[here] = rows.gather(1, order)
    return rows_QK.numpy()


def mined(queries: np.ndarray, passages: Any, k: int) -> np.ndarray:
    """Negatives, where the positive of query n is passage n modulo their number."""
    positives = np.arange(len(queries)) % len(passages)
    pairs = Pairs(np.arange(len(queries)), positives)
    found: Found = search(queries, passages, k, exclude=pairs)
    keys = np.random.default_rng(0).integers(0, 256, (len(passages), 16), dtype=np.uint8)
    scores = pair_scores(queries, passages[positives])
    # Made-up positives are no nearer than other passages: a margin below their scores leaves few.
    rules = MiningRules(NEGATIVES, range_max=k, margin=0.05)
    return choose_negatives(found, scores + 1, keys[positives], keys, rules).rows_RN


def measure(
    queries: np.ndarray,
    passages: np.ndarray,
    cached: FeatureArray,
    k: int,
    options: argparse.Namespace,
) -> list[tuple[str, ...]]:
    """The lines of the table for one k."""
    ways: dict[str, Callable[[], np.ndarray]] = {
        "bare": lambda: bare(queries, passages, k),
        "search": lambda: search(queries, passages, k).rows_QK,
        "cached": lambda: search(queries, cached, k).rows_QK,
        "mine": lambda: mined(queries, passages, k),
    }
    ways = {name: way for name, way in ways.items() if name == "bare" or name in options.ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    clock = time.process_time if options.processor_time else time.perf_counter
    for _ in range(options.rounds):
        for name, way in ways.items():
            started = clock()
            results[name] = way()
            seconds[name].append(clock() - started)
            print(f"k {k}: {name} {seconds[name][-1]:.1f} s", file=sys.stderr, flush=True)
    lines = []
    for name, own in seconds.items():
        same = (np.sort(results[name]) == np.sort(results["bare"])) if name != "mine" else None
        lines.append(
            (
                str(k),
                name,
                shown(own),
                shown_ratio(ratios(own, seconds["bare"])),
                "-" if same is None else f"{same.mean():.5f}",
            )
        )
    return lines


if __name__ == "__main__":
    main()
