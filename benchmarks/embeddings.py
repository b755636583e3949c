"""A student that embeds, trained by armada and by sentence-transformers: the same texts, teacher
vectors, start, batch size, epochs and learning rate.

    python benchmarks/embeddings.py MINILM STSB TEXTS...

MINILM is a folder of a sentence encoder, the teacher; STSB a folder with test.parquet, of columns
`text_a`, `text_b` and `label`; TEXTS are Parquet files, FILE or FILE:COLUMN, else the column
`text`. Students see the first `--rows` different sentences of all files in a random order, but
those of the test pairs. The student is the encoder's first three layers; it learns the teacher's
vectors by their mean squared difference (objective `feature`; `MSELoss`). Each run is a process of
its own, by turns, one round a seed:

    spearman   of the student's cosines on the pairs of STSB
    seconds    of training: tokens made, steps taken, without imports, models and caches
    MiB        most memory of the process

`--tables objectives` compares objectives of single texts from the same cache, with all seeds;
`--static 256` makes the students tables of so many numbers a token, which start from the encoder.
`--folder` keeps the cache and all runs: what is broken off goes on.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from embedding_runs import (
    add_training_options,
    in_a_process,
    most_memory,
    spread,
    train_by_sentence_transformers,
    training_keys,
    training_options,
)

LAYERS, RATE = 3, 1e-4
OBJECTIVES: Mapping[str, Mapping[str, Any]] = {
    "feature": {},
    "feature, cosine": {"objective": "feature", "distance": "cosine"},
    "in_batch": {},
    "similarity_preserving": {},
    "rkd": {},
    "rkd, distances": {"objective": "rkd", "angle_weight": 0.0},
    "cka": {},
    "mmd": {},
    "infonce": {},
    "infonce, 512 negatives": {"objective": "infonce", "negatives": 512},
    "similarity_bank": {},
    "similarity_bank, 512 of the cache": {"objective": "similarity_bank", "negatives": 512},
    "crd": {},
    "wcord": {},
}
"""Name -> keys of a job, beside the objective of that name."""


def main() -> None:
    options = read_options()
    if options.run is not None:
        print(json.dumps(RUNS[options.run](options)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = options.folder or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": _sentences(options)}), work / "texts.parquet")
        cached = _call(options, "cache", work, seed=0)
        print(f"teacher: spearman {cached['spearman']:.4f}; {cached['texts']} texts", flush=True)
        if options.static is not None:
            start = _call(options, "table", work, seed=0)
            print(f"table: spearman {start['spearman']:.4f}", flush=True)
        if "libraries" in options.tables:
            _show_libraries(options, work)
        if "objectives" in options.tables:
            _show_objectives(options, work)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoder", type=Path)
    parser.add_argument("stsb", type=Path)
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--rows", type=int, default=4000)
    add_training_options(parser, RATE)
    parser.add_argument("--tables", nargs="+", default=["libraries"])
    parser.add_argument("--only", nargs="+", help="names of objectives")
    parser.add_argument("--static", type=int, help="numbers of a token, of static students")
    parser.add_argument("--layer-choice", choices=["first", "every"], default="first")
    parser.add_argument("--folder", type=Path, help="where runs are kept")
    parser.add_argument("--run", choices=RUNS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--keys", default="{}", help=argparse.SUPPRESS)
    return parser.parse_args()


def _sentences(options: argparse.Namespace) -> list[str]:
    """Different ones of all files, none of the test pairs."""
    sides = pq.read_table(options.stsb / "test.parquet", columns=["text_a", "text_b"])
    tested = {text for column in sides.columns for text in column.to_pylist()}
    found: dict[str, None] = {}
    for each in options.texts:
        file, _, column = each.partition(":")
        texts = pq.read_table(file, columns=[column or "text"]).column(0).to_pylist()
        found |= dict.fromkeys(text for text in texts if text not in tested)
    sentences = list(found)
    np.random.default_rng(0).shuffle(sentences)
    return sentences[: options.rows]


# --- One process each


def cache(options: argparse.Namespace) -> dict[str, Any]:
    """Teacher vectors of all texts, and as an array for the other library."""
    import armada

    job = {"corpus": options.work / "texts.parquet", "text_column": "text"}
    armada.precompute(
        **job, teacher=f"encoder:{options.encoder}", cache=options.work / "cache", quiet=True
    )
    opened = armada.open_cache(options.work / "cache")
    texts = pq.read_table(options.work / "texts.parquet")["text"].to_pylist()
    rows = opened.find(_keys(texts), "pooled")
    np.save(options.work / "vectors.npy", opened["pooled"].gather(rows).astype(np.float32))
    return {"texts": len(texts), "spearman": _spearman(options.encoder, options.stsb)}


def _keys(texts: Sequence[str]) -> Any:
    from armada.cache_schemas.keys import example_key, keys_to_array

    return keys_to_array(example_key(text) for text in texts)


def table(options: argparse.Namespace) -> dict[str, Any]:
    """The table that static students start from, as a static model."""
    from armada.stages.corpus.labels import NO_LABELS
    from armada.stages.distill.settings import StudentSettings
    from armada.stages.distill.static_student import save_static_model
    from armada.stages.distill.student_source import load_student

    folder = options.work / f"table-{options.static}"
    if not folder.exists():
        settings = StudentSettings(student=f"static:{options.encoder}", static_dim=options.static)
        student, tokenizer = load_student(settings, NO_LABELS, [], 0.0)
        folder.mkdir()
        save_static_model(folder, student, tokenizer, [], 512, folds=False)
    return {"spearman": _spearman(folder, options.stsb)}


def by_armada(options: argparse.Namespace) -> dict[str, Any]:
    """A run of `distill`."""
    import armada

    student = {
        "student": options.encoder,
        "student_layers": LAYERS,
        "student_layer_choice": options.layer_choice,
    }
    if options.static is not None:
        student = {"student": f"static:{options.work / f'table-{options.static}'}"}
    name = hashlib.sha256(options.keys.encode()).hexdigest()[:8]
    output = options.work / f"armada-{options.seed}-{name}"
    report = armada.distill(
        train=options.work / "texts.parquet",
        text_column="text",
        cache=options.work / "cache",
        task="embedding",
        output=output,
        resume=True,
        **training_keys(options),
        **student,
        **json.loads(options.keys),
    )
    return _result(options, output / "student", report["train_seconds"])


def by_sentence_transformers(options: argparse.Namespace) -> dict[str, Any]:
    """The same by its trainer and its loss."""
    import torch
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MSELoss

    model = SentenceTransformer(str(options.encoder), device="cpu")
    encoder = model[0].auto_model.encoder
    encoder.layer = torch.nn.ModuleList(list(encoder.layer)[:LAYERS])
    model[0].auto_model.config.num_hidden_layers = LAYERS
    texts = pq.read_table(options.work / "texts.parquet")["text"].to_pylist()
    vectors = np.load(options.work / "vectors.npy")
    data = Dataset.from_dict({"text": texts, "label": list(vectors)})
    output = options.work / f"other-{options.seed}"
    seconds = train_by_sentence_transformers(
        options,
        output,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        model=model,
        train_dataset=data,
        loss=MSELoss(model),
    )
    return _result(options, output / "student", seconds)


def _result(options: argparse.Namespace, student: Path, seconds: float) -> dict[str, Any]:
    used = most_memory()  # before it is evaluated
    return {"seconds": seconds, "MiB": used, "spearman": _spearman(student, options.stsb)}


def _spearman(folder: Path, stsb: Path) -> float:
    from scipy.stats import spearmanr
    from sentence_transformers import SentenceTransformer

    table = pq.read_table(stsb / "test.parquet")
    model = SentenceTransformer(str(folder), device="cpu")
    sides = [
        model.encode(table[name].to_pylist(), normalize_embeddings=True, show_progress_bar=False)
        for name in ("text_a", "text_b")
    ]
    return float(spearmanr((sides[0] * sides[1]).sum(1), table["label"].to_numpy()).statistic)


RUNS = {
    "cache": cache,
    "table": table,
    "armada": by_armada,
    "sentence-transformers": by_sentence_transformers,
}


# --- Tables


def _call(
    options: argparse.Namespace, run: str, work: Path, seed: int, **keys: Any
) -> dict[str, Any]:
    return in_a_process(
        __file__,
        *(options.encoder, options.stsb, *options.texts),
        *("--run", run, "--work", work, "--seed", seed, "--keys", json.dumps(keys)),
        *training_options(options),
        *("--layer-choice", options.layer_choice),
        *(() if options.static is None else ("--static", options.static)),
    )


def _show_libraries(options: argparse.Namespace, work: Path) -> None:
    names = ("armada", "sentence-transformers")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for seed in options.seeds:
        for name in names:
            keys = {"objective": "feature"} if name == "armada" else {}
            found[name].append(_call(options, name, work, seed, **keys))
            print(name, seed, found[name][-1], file=sys.stderr, flush=True)
    print("\n| library | spearman | seconds, median | MiB, most |\n| --- | ---: | ---: | ---: |")
    for name, runs in found.items():
        score = spread([run["spearman"] for run in runs])
        seconds, most = median(run["seconds"] for run in runs), max(run["MiB"] for run in runs)
        print(f"| {name} | {score} | {seconds:.1f} | {most:.0f} |")
    pairs = zip(*found.values(), strict=True)
    ratios = [ours["seconds"] / theirs["seconds"] for ours, theirs in pairs]
    shown = ", ".join(f"{each:.2f}" for each in ratios)
    print(f"\narmada's time by that of sentence-transformers, by round: {shown}")


def _show_objectives(options: argparse.Namespace, work: Path) -> None:
    print("\n| objective | spearman | seconds, median |\n| --- | ---: | ---: |", flush=True)
    for name in options.only or OBJECTIVES:
        keys = {"objective": name, **OBJECTIVES[name]}
        runs = [_call(options, "armada", work, seed, **keys) for seed in options.seeds]
        seconds = median(run["seconds"] for run in runs)
        score = spread([run["spearman"] for run in runs])
        print(f"| {name} | {score} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
