"""`armada demo`: both stages on a corpus made in place, with a teacher trained in place.

A teacher learns what family each colour word belongs to; `precompute` asks it once about every
caption; students that get labels for common words only are trained from the cache, with and
without it. Nothing is downloaded; a minute on two cores.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..cache_schemas.errors import OutputError
from .demo_corpus import DemoFiles, write_demo_corpus
from .distill import run_distill
from .distill_job import DistillJob
from .jobs import make
from .precompute import run_precompute
from .precompute_job import make_precompute_job
from .run_folder import spread, write_json

STUDENTS = {"undistilled": "undistilled", "distilled": "none", "shuffled": "shuffled"}
SEEDS = (0, 1, 2)

_STUDENT = {
    "student": "scratch:bert",
    "student_layers": 2,
    "student_hidden_size": 64,
    "text_column": "text",
    "label_column": "label",
    "learning_rate": 1e-3,
}

Summary = dict[str, Any]


def run_demo(
    output: Path, seed: int = 0, quick: bool = False, say: Callable[[str], None] = print
) -> Summary:
    """Run the demo in an empty folder; returns what `OUTPUT/summary.json` holds: for each kind of
    student the accuracy on rare words, 0 to 1, as mean, standard deviation and single runs."""
    if output.exists() and any(output.iterdir()):
        raise OutputError(f"output {output}: is not an empty folder; choose another")
    seeds = [seed + offset for offset in (SEEDS[:1] if quick else SEEDS)]
    files = write_demo_corpus(output / "corpus", seed)
    say("1. a teacher learns the families of all colour words")
    teacher = _train_teacher(output, files, seed)
    say("2. precompute: the frozen teacher is asked once about every training caption")
    fingerprint = _ask_teacher(output, files, teacher)
    say("3. distill: students with labels for the common words only, tested on the rare ones")
    summary = {}
    for name, control in STUDENTS.items():
        summary[name] = _train_students(output, name, files, fingerprint, control, seeds)
        say(f"   {name:12} accuracy {summary[name]['mean']:.3f} ± {summary[name]['std']:.3f}")
    write_json(output / "summary.json", summary)
    return summary


def _train_teacher(output: Path, files: DemoFiles, seed: int) -> Path:
    keys = _STUDENT | {
        "train": str(files.taught),
        "control": "undistilled",
        "epochs": 5,
        "seed": seed,
        "output": str(output / "teacher"),
    }
    run_distill(make(DistillJob, keys), quiet=True)
    return output / "teacher" / "student"


def _ask_teacher(output: Path, files: DemoFiles, teacher: Path) -> str:
    keys = {
        "corpus": str(files.train),
        "text_column": "text",
        "teacher": f"encoder:{teacher}",
        "pooling": "pooler",
        "cache": str(output / "cache"),
    }
    return run_precompute(make_precompute_job(keys), quiet=True).fingerprint


def _train_students(
    output: Path, name: str, files: DemoFiles, teacher: str, control: str, seeds: list[int]
) -> Summary:
    keys = _STUDENT | {
        "train": str(files.train),
        "validation": str(files.test),
        "cache": str(output / "cache"),
        "teacher": teacher,
        "control": control,
        "epochs": 10,
        "aligner_hidden_size": 64,
        "seed": seeds,
        "output": str(output / "students" / name),
    }
    accuracy = run_distill(make(DistillJob, keys), quiet=True)["validation"]["accuracy"]
    if len(seeds) == 1:
        return spread([accuracy])
    return dict(accuracy)
