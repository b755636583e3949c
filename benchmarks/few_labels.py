"""What distillation brings on real text with few labels, beside the controls.

One command, one table:

    python benchmarks/few_labels.py TRAIN.parquet VALIDATION.parquet

The files have columns `text` and `label` (made for SST-2: 67,349 and 872 rows). A teacher, a small
BERT, is trained on all labels of TRAIN and frozen. Students see the first `--rows` texts but the
labels of the first `--labels` only; each control is the same student with the same texts from the
same cache. Accuracy on VALIDATION is that of the best epoch, chosen there too, for every row of the
table alike.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from armada.pipeline.distill import run_distill
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.jobs import make
from armada.pipeline.precompute import run_precompute
from armada.pipeline.precompute_job import make_precompute_job

STUDENT = {
    "student": "scratch:bert",
    "student_layers": 2,
    "student_hidden_size": 128,
    "text_column": "text",
    "label_column": "label",
    "task": "classification",
    "learning_rate": 5e-4,
    "max_length": 64,
    "aligner_hidden_size": 128,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "undistilled": {"control": "undistilled"},
    "armada": {},
    "armada, aligner batches of 256": {"aligner_batch_size": 256},
    "armada, aligner batches of 1024": {"aligner_batch_size": 1024},
    "armada, joint schedule": {"schedule": "joint"},
    "armada, alpha = 0, beta = 0": {"alpha": 0.0, "beta": 0.0},
    "shuffled features": {"control": "shuffled"},
    "random aligner": {"control": "random-aligner"},
    "noise = 1": {"control": "noise=1"},
    "feature regression": {"objective": "feature"},
}


def main() -> None:
    options = read_options()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), options)
    print(f"{'student':32} {'accuracy':>10} {'std':>8}   {len(options.seeds)} seeds")
    for name, figure in rows.items():
        print(f"{name:32} {figure['mean']:10.4f} {figure['std']:8.4f}")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("--labels", type=int, default=200)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--only", default="", help="students whose name holds this")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser.parse_args()


def measure(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    teacher = train_teacher(folder, options)
    train = few_labels(options.train, folder / "few.parquet", options.labels, options.rows)
    fingerprint = ask(folder, train, teacher["folder"])
    rows = {"teacher (all labels)": {"mean": teacher["accuracy"], "std": 0.0}}
    for name, variant in VARIANTS.items():
        if options.only not in name:
            continue
        keys = STUDENT | {
            "train": str(train),
            "validation": str(options.validation),
            "cache": str(folder / "cache"),
            "teacher": fingerprint,
            "epochs": options.epochs,
            "seed": options.seeds,
            "output": str(folder / name),
        }
        metrics = run_distill(make(DistillJob, keys | variant), quiet=True)
        rows[name] = metrics["validation"]["accuracy"]
    return rows


def train_teacher(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    keys = STUDENT | {
        "train": str(options.train),
        "validation": str(options.validation),
        "control": "undistilled",
        "epochs": 1,
        "output": str(folder / "teacher"),
    }
    metrics = run_distill(make(DistillJob, keys))
    return {
        "folder": folder / "teacher" / "student",
        "accuracy": metrics["validation"]["accuracy"],
    }


def few_labels(source: Path, target: Path, labels: int, rows: int) -> Path:
    table = pq.read_table(source, columns=["text", "label"]).slice(0, rows)
    kept = [label if i < labels else None for i, label in enumerate(table["label"].to_pylist())]
    pq.write_table(pa.table({"text": table["text"], "label": pa.array(kept, pa.int64())}), target)
    return target


def ask(folder: Path, corpus: Path, teacher: Path) -> str:
    keys = {
        "corpus": str(corpus),
        "text_column": "text",
        "teacher": f"encoder:{teacher}",
        "pooling": "pooler",
        "cache": str(folder / "cache"),
    }
    return run_precompute(make_precompute_job(keys)).fingerprint


if __name__ == "__main__":
    main()
