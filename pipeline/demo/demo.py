"""`armada demo`: both stages in a small visual world, nothing downloaded.

    pictures + captions -> a small CLIP learns what words look like      (teacher.py)
    training captions   -> precompute: the frozen CLIP embeds them once
    cache + captions    -> ablate: students and controls, three seeds each
    runs                -> report.html

A student reads captions only, with labels for the common words only, and is tested on the others.
"""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from ...cache_schemas.extras import require_extra
from ..ablation.ablate import run_ablate
from ..ablation.job import make_ablation
from ..findings.conditions import Condition
from ..findings.findings import Findings
from ..findings.table import figure
from ..jobs import Job
from ..precompute import run_precompute
from ..precompute_job import make_precompute_job
from ..reports.gallery import Gallery, TextImage
from ..reports.job import ReportJob
from ..reports.report import run_report
from ..run_folder import make_folder, require_free, write_json
from .teacher import Teachers, train_teachers
from .world import DemoCorpus, Task, picture, write_corpus

SEEDS = 3
SHOWN_PICTURES, SHOWN_PIXELS = 12, 96
SUMMARY = ("undistilled", "distilled", "shuffled", "untrained teacher", "random aligner")

_STUDENT = {
    "student": "scratch:bert",
    "student_layers": 2,
    "student_hidden_size": 64,
    "text_column": "text",
    "label_column": "label",
    "learning_rate": 2e-3,
    "aligner_learning_rate": 1e-2,
    "epochs": 6,
    "batch_size": 32,
    "aligner_hidden_size": 64,
    "manifold": "pointwise",
    # The test set chooses nothing.
    "keep": "last",
}

Summary = dict[str, Any]


class DemoJob(Job):
    """Keys of the demo."""

    output: Path = Field(description="empty folder to write to")
    seed: int = Field(
        default=0, ge=0, lt=2**32 - SEEDS, description="seed of world, teacher and students"
    )
    quick: bool = Field(default=False, description="one seed instead of three")
    task: Task = Field(default="colour", description="what students learn: colour or shape")


def say(line: str) -> None:
    """Print progress at once, also into a pipe."""
    print(line, flush=True)


def run_demo(job: DemoJob) -> Summary:
    """Run the demo in an empty folder; returns what `OUTPUT/summary.json` holds: for each kind of
    student the accuracy on unseen words, 0 to 1, as mean, standard deviation and single runs."""
    require_extra("armada demo", "all", "open_clip", "PIL", "matplotlib", "statsmodels")
    output = job.output
    require_free(output)
    make_folder(output)
    corpus = write_corpus(output / "corpus", job.task, job.seed)
    say("1. A small CLIP looks at pictures and their captions")
    unseen = frozenset(scene.caption for scene in corpus.test_scenes)
    teachers = train_teachers(output / "teachers", unseen, job.seed)
    say(f"   for {teachers.right_pictures:.0%} of new captions it finds a picture that fits")
    say("2. precompute: the frozen CLIP embeds every training caption once")
    cached = {
        name: _precompute(output, corpus, folder) for name, folder in _folders(teachers).items()
    }
    say("3. ablate: students read captions; labels are for common words, the test for others")
    seeds = [job.seed + offset for offset in range(1 if job.quick else SEEDS)]
    findings = run_ablate(make_ablation(_job(output, corpus, cached, seeds)))
    summary = _summary(findings)
    write_json(output / "summary.json", summary)
    for condition in findings.studies[0].conditions:
        say(f"   {condition.name:18} accuracy {figure(condition.figure('accuracy'))}")
    say(f"4. report: look at {_report(job, corpus)}")
    return summary


def _report(job: DemoJob, corpus: DemoCorpus) -> Path:
    report = ReportJob(
        runs=(job.output / "students",),
        out=job.output / "report.html",
        title=f"The demo: {job.task}s of words that no label was given for",
        colour_by="family",
    )
    gallery = Gallery("What unseen captions look like", tuple(_images(corpus, job.seed)))
    return run_report(report, quiet=True, gallery=gallery)[0]


def _images(corpus: DemoCorpus, seed: int) -> Iterator[TextImage]:
    rng = np.random.default_rng([seed, 2])
    for scene in corpus.test_scenes[:SHOWN_PICTURES]:
        buffer = BytesIO()
        picture(scene, rng, SHOWN_PIXELS).save(buffer, format="PNG")
        yield TextImage(scene.caption, buffer.getvalue())


def _folders(teachers: Teachers) -> dict[str, Path]:
    return {"trained": teachers.trained, "untrained": teachers.untrained}


def _precompute(output: Path, corpus: DemoCorpus, teacher: Path) -> str:
    keys = {
        "corpus": str(corpus.train),
        "text_column": "text",
        "teacher": f"open_clip:{teacher}",
        "cache": str(output / "cache"),
    }
    return run_precompute(make_precompute_job(keys), quiet=True).fingerprint


def _job(
    output: Path, corpus: DemoCorpus, teachers: dict[str, str], seeds: list[int]
) -> dict[str, Any]:
    return _STUDENT | {
        "train": str(corpus.train),
        "validation": str(corpus.test),
        "cache": str(output / "cache"),
        "output": str(output / "students"),
        "seed": seeds,
        "grid": [
            {"name": "undistilled", "control": "undistilled"},
            *({"teacher": teachers["trained"]} | one for one in _GRID),
            {"name": "untrained teacher", "teacher": teachers["untrained"]},
        ],
    }


_GRID: tuple[dict[str, Any], ...] = (
    {"name": "distilled"},
    {"name": "shuffled", "control": "shuffled"},
    {"name": "random aligner", "control": "random-aligner"},
    {"name": "noise=1", "control": "noise=1"},
    {"name": "noise=4", "control": "noise=4"},
    {"name": "alpha=0", "alpha": 0},
    {"name": "beta=0", "beta": 0},
    {"name": "gamma=0", "gamma": 0},
)


def _summary(findings: Findings) -> Summary:
    by_name: dict[str, Condition] = {
        condition.name: condition for condition in findings.studies[0].conditions
    }
    return {name.replace(" ", "_"): by_name[name].figure("accuracy") for name in SUMMARY}
