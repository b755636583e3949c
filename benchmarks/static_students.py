"""Static students of a sentence encoder: what they keep of it, and how fast they read.

    python benchmarks/static_students.py TRAIN.parquet PAIRS.parquet --source FOLDER --cache CACHE

TRAIN has a column `text`, without labels; PAIRS have `text_a`, `text_b` and a score `label` (made
for the test set of STS-B). The cache holds embeddings of all of these texts by the encoder in
FOLDER; it is filled if it does not. Students start from one table for each of `--dims`, made once;
each objective trains from the cache alone. The figure is Spearman's correlation of cosine and
score.

Then `--texts` short texts, those of PAIRS again and again with a number behind them, are read by
armada and by model2vec with the same table, in turn; the rates are medians of `--rounds`.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from armada import load_student
from armada.cache_schemas.keys import example_key
from armada.pipeline.distill import run_distill
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.jobs import make
from armada.pipeline.precompute import run_precompute
from armada.pipeline.precompute_job import make_precompute_job
from armada.stages.corpus.labels import NO_LABELS
from armada.stages.distill.settings import StudentSettings
from armada.stages.distill.static_student import save_static_model
from armada.stages.distill.student_source import load_student as make_student
from armada.stages.store.reading.reader import open_cache
from scipy.stats import spearmanr

OBJECTIVES: dict[str, dict[str, Any]] = {
    "feature (mse)": {"objective": "feature"},
    "feature (cosine)": {"objective": "feature", "distance": "cosine"},
    "infonce": {"objective": "infonce"},
    "rkd (distances)": {"objective": "rkd", "angle_weight": 0.0},
}


def main() -> None:
    options = read_options()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        ask(options)
        student = quality(folder, options)
        if not options.quality_only:
            speed(student, options)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--source", type=Path, required=True, help="folder of the encoder")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--dims", type=int, nargs="+", default=[256, 384])
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=OBJECTIVES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quality-only", action="store_true")
    return parser.parse_args()


def ask(options: argparse.Namespace) -> None:
    """Fill the cache with what it lacks."""
    files = ((options.train, "text"), (options.pairs, "text_a"), (options.pairs, "text_b"))
    for file, column in files:
        keys = {"corpus": str(file), "text_column": [column], "cache": str(options.cache)}
        run_precompute(make_precompute_job(keys | {"teacher": f"encoder:{options.source}"}))


def start_tables(folder: Path, options: argparse.Namespace) -> dict[int, Path]:
    """The tables that students start from, as static models, by width: of principal components, so
    that a narrower one is the first numbers of the widest."""
    began, widest = time.perf_counter(), max(options.dims)
    settings = StudentSettings(student=f"static:{options.source}", static_dim=widest)
    student, tokenizer = make_student(settings, NO_LABELS, [], 0.0)
    print(f"start of {widest} numbers: {time.perf_counter() - began:.1f} s", flush=True)
    table, found = student.backbone.weight.detach(), {}
    for dim in options.dims:
        cut = table[:, :dim]
        scale = cut[cut.any(1)].square().sum(1).mean().sqrt()
        found[dim] = folder / f"start-{dim}"
        found[dim].mkdir()
        student.backbone.weight = torch.nn.Parameter(cut / scale)
        save_static_model(found[dim], student, tokenizer, [], 512, folds=False)
    return found


def run(folder: Path, options: argparse.Namespace, start: Path, seed: int, **more: Any) -> Path:
    """The folder of a trained student."""
    output = folder / "-".join([start.name, *map(str, more.values()), str(seed)])
    keys = {
        "train": [str(options.train)],
        "text_column": ["text"],
        "student": f"static:{start}",
        "cache": str(options.cache),
        "objective": "feature",
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "logging_steps": 1000,
        "report_to": "none",
        "seed": seed,
        "output": str(output),
    }
    run_distill(make(DistillJob, keys | more), quiet=True)
    return output


def quality(folder: Path, options: argparse.Namespace) -> Path:
    """Print the table of students; returns the last one."""
    pairs = pq.read_table(options.pairs)
    scores = pairs["label"].to_numpy()
    sides = [pairs[name].to_pylist() for name in ("text_a", "text_b")]
    print(f"{'student':36} {'spearman':>9} {'std':>7} {'train s':>8} {'step ms':>8}")
    show("teacher", [correlation(of_cache(options.cache), sides, scores)])
    for dim, start in start_tables(folder, options).items():
        show(f"start, {dim} numbers", [correlation(of_start(start), sides, scores)])
        for name in options.objectives:
            runs = [run(folder, options, start, s, **OBJECTIVES[name]) for s in options.seeds]
            found = [correlation(embedder(each), sides, scores) for each in runs]
            figures = [json.loads((each / "metrics.json").read_bytes()) for each in runs]
            seconds = statistics.median(each["train_seconds"] for each in figures)
            steps = statistics.median(each["step_seconds"]["median"] for each in figures)
            show(f"{name}, {dim} numbers", found, f"{seconds:8.1f} {1e3 * steps:8.2f}")
    return runs[-1]


def show(name: str, found: Sequence[float], more: str = "") -> None:
    print(f"{name:36} {np.mean(found):9.4f} {np.std(found):7.4f} {more}", flush=True)


Embed = Callable[[Sequence[str]], npt.NDArray[Any]]


def correlation(embed: Embed, sides: Sequence[list[str]], scores: npt.NDArray[Any]) -> float:
    one, other = (unit(embed(side)) for side in sides)
    return float(spearmanr((one * other).sum(1), scores).statistic)


def unit(rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    whole = rows.astype(np.float64)
    return whole / np.maximum(np.linalg.norm(whole, axis=1, keepdims=True), 1e-12)


def of_cache(cache: Path) -> Embed:
    opened = open_cache(cache)

    def embed(texts: Sequence[str]) -> npt.NDArray[Any]:
        keys = np.frombuffer(b"".join(example_key((text,)) for text in texts), np.uint8)
        return opened["pooled"].gather(opened.find(keys.reshape(-1, 16), "pooled"))

    return embed


def of_start(folder: Path) -> Embed:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode


def embedder(folder: Path, batch_size: int = 1024) -> Embed:
    student = load_student(folder)

    def embed(texts: Sequence[str]) -> npt.NDArray[Any]:
        return np.stack([each["embedding"] for each in student.predict(texts, batch_size)])

    return embed


def speed(student: Path, options: argparse.Namespace) -> None:
    """Print the rates of armada and model2vec."""
    from model2vec import StaticModel

    pairs = pq.read_table(options.pairs)
    own = [*pairs["text_a"].to_pylist(), *pairs["text_b"].to_pylist()]
    texts = [f"{own[number % len(own)]} {number}" for number in range(options.texts)]
    model = StaticModel.from_pretrained(student / "student")
    ways: dict[str, Embed] = {
        "armada": embedder(student),
        "model2vec": lambda texts: model.encode(texts),
        "model2vec, one process": lambda texts: model.encode(texts, use_multiprocessing=False),
    }
    vectors = [embed(texts[:2000]) for embed in ways.values()]
    apart = max(float(np.abs(each - vectors[0]).max()) for each in vectors)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, embed in ways.items():
            os.environ.pop("TOKENIZERS_PARALLELISM", None)  # model2vec switches it off for all
            began = time.perf_counter()
            embed(texts)
            seconds[name].append(time.perf_counter() - began)
    print(
        f"{len(texts):,} texts of {np.mean([len(t) for t in texts]):.0f} characters; "
        f"vectors differ by at most {apart:.1e}"
    )
    base = statistics.median(seconds["model2vec"])
    for name, each in seconds.items():
        median = statistics.median(each)
        rate = len(texts) / median
        print(f"{name:24} {rate:10,.0f} texts/s  {base / median:5.2f} of model2vec's rate")


if __name__ == "__main__":
    main()
