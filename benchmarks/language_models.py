"""What a cached teacher brings to small language models, and what its cache costs.

One command, one table:

    python benchmarks/language_models.py TRAIN.parquet VALIDATION.parquet

The files have a column of texts (made for WikiText-2, whose lines are texts). A teacher is trained
from scratch on the first `--teacher-rows` texts of TRAIN and asked once about the first `--rows` of
them, for one cache of each kind of answer. Students, all of one size, see these texts alone: for
each seed the same batches in the same order from the same weights. Figures are of the first
`--validation-rows` texts of VALIDATION, at the best epoch, chosen there too, for every row of the
table alike. `top_k, alpha = 0` reads a cache and gives its answers no weight: it is a check, and
has to be `undistilled`.

bytes a token   all files of the cache over the tokens that were answered
training s      of the student: cached answers read and decoded, evaluations included
teacher s       of asking the teacher, once for any number of students
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
from armada.stages.corpus.corpus import read_corpus
from figures import table
from language_students.caches import fill
from language_students.rows import HEADER, Row

MAX_LENGTH = 128
TRAINED = {
    "task": "language",
    "text_column": "text",
    "student": "scratch:llama",
    "packing": "document_mask",
    "max_length": MAX_LENGTH,
    "batch_size": 16,
    "lr_scheduler": "linear",
    "warmup_ratio": 0.05,
}
TEACHER = {
    "objective": "undistilled",
    "student_layers": 4,
    "student_hidden_size": 256,
    "student_heads": 4,
    "epochs": 2,
    "learning_rate": 1e-3,
}
STUDENT = {"student_layers": 2, "student_hidden_size": 128, "epochs": 4, "learning_rate": 2e-3}
QUICK = {
    "student_layers": 1,
    "student_hidden_size": 16,
    "student_heads": 2,
    "batch_size": 4,
    "epochs": 2,
}

STUDENTS: dict[str, dict[str, Any]] = {
    "undistilled": {"objective": "undistilled"},
    "top_k, alpha = 0": {"feature": "top_k", "alpha": 0.0},
    "top_k": {"feature": "top_k"},
    "top_k, renormalised": {"feature": "top_k", "tail": "renormalised"},
    "samples": {"feature": "samples"},
    "dense, float32": {"feature": "dense"},
}
"""What sets them apart: the feature they learn from, and how."""


def main() -> None:
    options = read_options()
    with tempfile.TemporaryDirectory() as folder:
        print(table([HEADER, *measure(Path(folder), options)], options.markdown))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--teacher-rows", type=int, default=4000)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--validation-rows", type=int, default=300)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--alpha", type=float, default=0.7, help="weight of the teacher's answers")
    parser.add_argument("--only", default="", help="students whose name holds this")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--quick", action="store_true", help="tiny models; for a test")
    parser.add_argument("--markdown", action="store_true")
    return parser.parse_args()


def measure(folder: Path, options: argparse.Namespace) -> list[tuple[str, ...]]:
    """The lines of the table, the teacher's first."""
    column, many, few = options.text_column, folder / "many.parquet", folder / "few.parquet"
    first_rows(options.train, many, column, options.teacher_rows)
    first_rows(options.train, few, column, options.rows)
    first_rows(options.validation, folder / "validation.parquet", column, options.validation_rows)
    teacher = Row()
    words = {"student_vocab_size": options.vocabulary}
    train(folder / "teacher", many, TEACHER | words, teacher, options.quick)
    lines = [teacher.cells("teacher", None)]
    chosen = {name: how for name, how in STUDENTS.items() if options.only in name}
    model = folder / "teacher" / "student"
    costs = {
        feature: fill(folder / feature, feature, few, model, MAX_LENGTH)
        for feature in dict.fromkeys(how["feature"] for how in chosen.values() if "feature" in how)
    }
    for name, how in chosen.items():
        row = Row()
        for seed in options.seeds:
            keys = student_keys(folder, model, options.alpha, how) | {"seed": seed}
            train(folder / f"{name}-{seed}", few, keys, row, options.quick)
        lines.append(row.cells(name, costs.get(how.get("feature", ""))))
    return lines


def first_rows(source: Path, target: Path, column: str, rows: int) -> None:
    """Write the first texts of a file to a file of their own."""
    corpus = read_corpus((str(source),), (column,), limit=rows)
    texts = [text for batch in corpus.batches() for (text,) in batch]
    pq.write_table(pa.table({"text": texts}), target)


def student_keys(folder: Path, teacher: Path, alpha: float, how: dict[str, Any]) -> dict[str, Any]:
    """Of a job, but for what it reads and writes."""
    keys = STUDENT | {"student_tokenizer": str(teacher), "alpha": alpha, "objective": "tokens"}
    cache = {"cache": str(folder / how["feature"])} if "feature" in how else {}
    return keys | cache | how


def train(output: Path, corpus: Path, keys: dict[str, Any], row: Row, quick: bool) -> None:
    """One run; its figures go into the row."""
    read = {"train": str(corpus), "validation": str(output.with_name("validation.parquet"))}
    job = TRAINED | keys | (QUICK if quick else {}) | read | {"output": str(output)}
    row.add(output, run_distill(make(DistillJob, job), quiet=True))


if __name__ == "__main__":
    main()
