"""All objectives from the same caches on equal terms: what they bring, and what they cost.

    python benchmarks/objectives.py --encoder MINILM --classification AGNEWS --regression COLOURS

MINILM is a folder of a sentence encoder; the other two are folders with train.parquet and
validation.parquet, of columns `text`, or `text_a` and `text_b`, and `label`: a class, and a number
or a list of numbers (how often an object has each of twelve colours). The teacher
is the encoder, fine-tuned on all labels of TRAIN; its logits, pooled texts, layers and tokens are
cached once. Students are the encoder's first two layers. They see the first `--rows` texts, of
which the first `--labels` keep their label. All have the same texts, steps, settings and seeds,
and the options of an objective are its defaults, but for those below; the metric is that of the
last epoch on validation, so that nothing is chosen there.

    quality   metric over seeds, p of Welch's test against undistilled and against the plain
              objectives kd and feature, each corrected by Holm for the table
    cost      seconds a step beside plain training, by turns: the whole encoder, 32 rows
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from armada.cache_schemas.errors import JobError
from armada.pipeline.caches.derive import run_derive
from armada.pipeline.caches.derive_job import DeriveJob
from armada.pipeline.distill import run_distill
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.findings.significance import holm, welch
from armada.pipeline.jobs import make
from armada.pipeline.objectives import Description, descriptions
from armada.pipeline.precompute import run_precompute
from armada.pipeline.precompute_job import make_precompute_job
from objective_costs import costs

PLAIN = "undistilled"

OPTIONS: Mapping[str, Mapping[str, Any]] = {}
"""Options of objectives that need some."""

FEATURES: Mapping[str, tuple[str, ...]] = {
    "attention_relations": ("attention_6",),
    "hidden_layers": ("layer_3", "layer_6"),
    "token_relations": ("token_states_6",),
    "token_states": ("token_states_3", "token_states_6"),
}
"""Features of the encoder teacher, for objectives of layers."""

STUDENT = {
    "student_layers": 2,
    "keep": "last",
}


@dataclass(frozen=True, slots=True)
class Task:
    """A corpus, and the teacher of it."""

    name: str
    folder: Path
    metric: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of texts."""
        names = pq.read_schema(self.folder / "train.parquet").names
        return ("text",) if "text" in names else ("text_a", "text_b")

    @property
    def keys(self) -> dict[str, Any]:
        """Keys of all jobs about it."""
        return {"text_column": list(self.columns), "label_column": "label", "task": self.name}


@dataclass(frozen=True, slots=True)
class Row:
    """An objective on a corpus: the metric of each seed."""

    task: str
    objective: str
    metrics: tuple[float, ...]
    seconds: float
    """Median of a step in training, of all seeds."""


def main() -> None:
    options = read_options()
    chosen = [each for each in descriptions() if fits(each, options.only)]
    if "quality" in options.tables:
        tasks = [
            Task("classification", options.classification, "accuracy"),
            Task("regression", options.regression, "pearson"),
        ]
        for task in (each for each in tasks if each.name in options.tasks):
            with made_in(options.folder) as folder:
                (folder / task.name).mkdir(parents=True, exist_ok=True)
                show_quality(task, list(quality(task, folder / task.name, chosen, options)))
    if "cost" in options.tables:
        show_cost(costs(options.encoder, chosen, OPTIONS, options.rounds))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--classification", type=Path, required=True)
    parser.add_argument("--regression", type=Path, required=True)
    parser.add_argument("--tables", nargs="+", default=["quality", "cost"])
    parser.add_argument("--tasks", nargs="+", default=["classification", "regression"])
    parser.add_argument("--only", nargs="+", default=[], help="names of objectives")
    parser.add_argument("--labels", type=int, default=300)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=64, help="tokens of a text")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="of students")
    parser.add_argument("--teacher-epochs", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, help="keep all runs here, and continue from them")
    parser.add_argument("--rounds", type=int, default=30, help="steps of each in the cost table")
    return parser.parse_args()


@contextmanager
def made_in(folder: Path | None) -> Iterator[Path]:
    """A folder that stays, or a temporary one."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def fits(objective: Description, only: Sequence[str]) -> bool:
    """Whether a student of whole texts can have it, and it is one of `only`."""
    needs = objective.needs
    of_texts = needs.axis != "predictions" and not {"pairs", "candidates"} & {*needs.student}
    return of_texts and (not only or objective.name in {*only, PLAIN, "kd", "feature"})


# --- What they bring


def quality(
    task: Task, folder: Path, chosen: Sequence[Description], options: argparse.Namespace
) -> Iterator[Row]:
    """A row for each objective that is defined for the task."""
    train, validation = corpora(task, folder, options)
    caches = teachers(task, folder, train, validation, options)
    for objective in chosen:
        of_classes = not objective.needs.regression or objective.name == "norm_direction"
        if task.name == "regression" and of_classes:
            continue
        keys = (
            STUDENT
            | task.keys
            | {
                "student": str(options.encoder),
                "train": str(train),
                "validation": str(validation),
                "epochs": options.epochs,
                "learning_rate": options.learning_rate,
                "max_length": options.max_length,
                "seed": options.seeds,
                "output": str(folder / objective.name),
                "resume": True,
                **reading(objective, caches),
            }
        )
        try:
            yield row(task, objective.name, make(DistillJob, keys))
        except JobError as refused:
            print(f"{task.name} {objective.name}: {refused}", file=sys.stderr)


def reading(objective: Description, caches: "Caches") -> dict[str, Any]:
    """Keys of an objective and of what it reads."""
    term = {"name": objective.name, **OPTIONS.get(objective.name, {})}
    if objective.needs.features == 0:
        return {"objective": objective.name}
    if objective.name in FEATURES:
        term |= {"features": list(FEATURES[objective.name])}
        return {"teachers": {"encoder": caches.encoder}, "objectives": [term]}
    if objective.name == "multi_kd":
        two = {"classifier": caches.classifier, "another": caches.another}
        return {"teachers": two, "objectives": [term]}
    if objective.name == "prototypes":
        return {"teachers": {"clusters": caches.clusters}, "objectives": [term]}
    if objective.name == "norm_direction":
        term |= {"teacher": "classifier", "features": ["pooled", "means.class_mean"]}
        pair = {"classifier": caches.classifier, "means": caches.means}
        return {"teachers": pair, "objectives": [term]}
    term |= {"feature": "logits" if objective.needs.classes else "pooled"}
    return {"teachers": {"classifier": caches.classifier}, "objectives": [term]}


def row(task: Task, name: str, job: DistillJob) -> Row:
    """The run of an objective, with all seeds."""
    run_distill(job, quiet=True)
    metrics = [
        json.loads((job.output / part / "metrics.json").read_text(encoding="utf-8"))
        for part in (f"seed-{seed}" for seed in job.seeds)
    ]
    found = tuple(each["epochs"][-1][task.metric] for each in metrics)
    print(f"{task.name} {name}: {', '.join(f'{each:.4f}' for each in found)}", file=sys.stderr)
    return Row(
        task.name, name, found, median(each["train_seconds"] / each["steps"] for each in metrics)
    )


def corpora(task: Task, folder: Path, options: argparse.Namespace) -> tuple[Path, Path]:
    """Training texts, of which the first few keep their label, and validation texts."""
    columns = [*task.columns, "label"]
    table = pq.read_table(task.folder / "train.parquet", columns=columns).slice(0, options.rows)
    labels = [n if at < options.labels else None for at, n in enumerate(table["label"].to_pylist())]
    few = table.set_column(len(columns) - 1, "label", pa.array(labels, table["label"].type))
    pq.write_table(few, folder / "train.parquet")
    return folder / "train.parquet", task.folder / "validation.parquet"


@dataclass(frozen=True, slots=True)
class Caches:
    """Keys of the teachers of logits and pooled texts, of another seed's logits, of layers and
    tokens, and of what is derived from pooled texts; the means are those of the few labels."""

    classifier: Mapping[str, str]
    another: Mapping[str, str] | None
    encoder: Mapping[str, str]
    clusters: Mapping[str, str]
    means: Mapping[str, str] | None


def teachers(
    task: Task, folder: Path, train: Path, validation: Path, options: argparse.Namespace
) -> Caches:
    """Fine-tunes the encoder on all labels, and caches what it says about the texts."""
    student = fine_tuned(task, folder / "teacher", validation, options, seed=0)
    common = {
        "corpus": [str(train)],
        "text_column": list(task.columns),
        "max_length": options.max_length,
    }
    layers = {"layers": [3, 6], "token_layers": [3, 6], "attention_layers": [6]}
    classifier = cached(
        common | {"teacher": f"classifier:{student}", "pooled": True}, folder / "logits"
    )
    pooled = {**classifier, "feature": "pooled"}
    clusters = derived(pooled | {"rule": "clusters", "clusters": 32}, folder / "clusters")
    means = another = None
    if task.name == "classification":
        second = fine_tuned(task, folder / "another", validation, options, seed=1)
        another = cached(common | {"teacher": f"classifier:{second}"}, folder / "logits-of-another")
        labels = {"corpus": str(train), "text_column": task.columns[0], "label_column": "label"}
        means = derived(
            pooled | labels | {"rule": "class-means", "skip_bad_rows": True}, folder / "means"
        )
        means |= {"missing": "without_teacher"}
    encoder = cached(common | {"teacher": f"encoder:{student}", **layers}, folder / "layers")
    return Caches(classifier, another, encoder, clusters, means)


def fine_tuned(
    task: Task, folder: Path, validation: Path, options: argparse.Namespace, seed: int
) -> Path:
    """The folder of an encoder that was trained on all labels."""
    keys = task.keys | {
        "student": str(options.encoder),
        "train": str(task.folder / "train.parquet"),
        "validation": str(validation),
        "control": PLAIN,
        "epochs": options.teacher_epochs,
        "learning_rate": 5e-5,
        "max_length": options.max_length,
        "seed": seed,
        "output": str(folder),
        "resume": True,
    }
    figures = run_distill(make(DistillJob, keys), quiet=True)["validation"]
    print(f"{task.name}: the teacher's {task.metric} is {figures[task.metric]:.4f}", flush=True)
    return folder / "student"


def cached(keys: Mapping[str, Any], cache: Path) -> dict[str, str]:
    run_precompute(make_precompute_job({**keys, "cache": str(cache)}), quiet=True)
    return {"cache": str(cache)}


def derived(keys: Mapping[str, Any], cache: Path) -> dict[str, str]:
    if not cache.exists():
        run_derive(make(DeriveJob, {**keys, "output": str(cache)}), quiet=True)
    return {"cache": str(cache)}


def show_quality(task: Task, rows: Sequence[Row]) -> None:
    """The table of a task, best first."""
    by_name = {each.objective: each for each in rows}
    against = {
        beside: holm([welch(each.metrics, by_name[beside].metrics) for each in rows])
        for beside in (PLAIN, "kd", "feature")
        if beside in by_name
    }
    print(
        f"\n| {task.name} | {task.metric} | std | seconds a step | "
        + " | ".join(f"p against {name}" for name in against)
        + " |"
    )
    print("| --- |" + " ---: |" * (3 + len(against)))
    for at in sorted(range(len(rows)), key=lambda at: -mean(rows[at].metrics)):
        each = rows[at]
        ps = [shown_p(found[at], each.objective == name) for name, found in against.items()]
        print(
            f"| {each.objective} | {mean(each.metrics):.4f} | {stdev(each.metrics):.4f} | "
            f"{each.seconds:.4f} | " + " | ".join(ps) + " |"
        )


def shown_p(p: float | None, itself: bool) -> str:
    return "" if itself else "-" if p is None else f"{p:.3f}"


def show_cost(found: Mapping[str, tuple[float, float, float]]) -> None:
    """The table of costs, cheapest first."""
    print("\n| objective | of a plain step | least | most |\n| --- | ---: | ---: | ---: |")
    for name, (middle, low, high) in sorted(found.items(), key=lambda item: item[1]):
        print(f"| {name} | {middle:.2f} | {low:.2f} | {high:.2f} |")


if __name__ == "__main__":
    main()
