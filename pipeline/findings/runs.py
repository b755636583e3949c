"""Finished runs of `distill`, read back from their folders, anywhere below a path; and which keys
of a job its student depends on."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...cache_schemas.errors import JobError, shown_url
from ...stages.corpus.hub_datasets import HUB_DATASET
from ...stages.store.transfer.location import is_local
from ..distill_job import DistillJob
from ..objective_keys import CacheKeys
from ..run_folder import JOB, METRICS, tidy
from .documents import (
    Figures,
    Metrics,
    Provenance,
    RunFolderError,
    read_job,
    read_log,
    read_metrics_of,
    read_plan,
    read_provenance,
    read_yaml,
)

FACTORS = ("alpha", "beta", "gamma")
"""Weights of the objective armada, the factors of the ANOVA."""

PLAN = "plan.json"
"""File in an ablation's folder that lists its runs."""

_TOLD_BY_THE_DATA = frozenset(
    {
        "limit",
        "skip_bad_rows",
        "id_column",
        "encoding",
        "delimiter",
        "task",
        "num_labels",
        "metric",
        "label_column",
        "label_separator",
    }
)

_MEANS_NOTHING = frozenset(
    {
        *("output", "name", "seed", "resume", "device", "mirror", "mirror_limit"),
        *("verify_cache", "expect_digest", "logging_steps", "save_steps"),
        *("report_to", "run_name", "push_to_hub", "measure_teacher"),
        *("compile_student", "gradient_checkpointing", "auto_batch_size", "shard_student"),
    }
)
"""Keys without effect on the student."""

_TEACHERS_SIDE = frozenset(
    {
        *CacheKeys.model_fields,
        *("teachers", "objectives", "stages"),
        *("objective", "control", "schedule", "aligner_batch_size", "aligner_learning_rate"),
        "responses",
    }
)
"""Keys without effect for a student without a teacher, besides options of the objective."""


def student_settings(job: DistillJob) -> dict[str, Any]:
    """The keys that a job's student depends on, with their values, as plain data; nested ones as
    `objectives.1.weight`. Two jobs that agree in these train the same student.

    Keys that the student's objective never reads are left out (an undistilled student has no
    alpha), and so are keys without effect on the student. Data are named by their files here; runs
    that are made know their digests."""
    unread = set(_MEANS_NOTHING)
    if not job.distilled:
        unread |= _TEACHERS_SIDE | job.options.keys()
    document = job.model_dump(mode="json", exclude=unread - job.options.keys())
    settings = {
        key: value
        for name, nested in document.items()
        if name not in unread
        for key, value in _flattened(name, nested)
        if key.rpartition(".")[2] not in _MEANS_NOTHING or "." not in key
    }
    settings["select"] = "+".join(rule.name for rule in job.rules) or None
    # But for this one, the order of examples does not depend on it.
    settings["placement"] = "streamed" if job.placement == "streamed" else "auto"
    return settings


def _flattened(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if name.partition(".")[0] not in ("teachers", "objectives", "select"):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _flattened(f"{name}.{key}", inner)
    elif isinstance(value, list) and name in ("objectives", "select"):
        for index, inner in enumerate(value):
            yield from _flattened(f"{name}.{index}", inner)
    else:
        yield name, value


def better_by(metric: str) -> int:
    """1 if a larger value of a metric is better, else -1."""
    from ...stages.distill.evaluation import lower_is_better

    return -1 if lower_is_better(metric) else 1


@dataclass(frozen=True)
class FinishedRun:
    """One student with one seed: its folder, its job, its figures, and what it was made with."""

    folder: Path
    job: DistillJob
    metrics: Metrics
    provenance: Provenance

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.metrics.seed

    @property
    def metric(self) -> str:
        """The name of the metric that the run was judged by."""
        return self.metrics.metric

    @property
    def value(self) -> float | None:
        """The metric on the validation set, for the kept student; None without one."""
        return self.figure(self.metric)

    @property
    def distilled(self) -> bool:
        """Whether it had a teacher."""
        return self.job.distilled

    def figure(self, metric: str) -> float | None:
        """Any metric on the validation set; None if it is missing or no finite number."""
        value = (self.metrics.validation or {}).get(metric)
        return value if value is not None and math.isfinite(value) else None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All keys that the student depends on; data by digest, so that a file may have moved."""
        keys = student_settings(self.job)
        made = self.provenance
        if made.train_digest:
            keys = {k: v for k, v in keys.items() if k not in _TOLD_BY_THE_DATA}
            keys |= {"train": made.train_digest, "validation": made.validation_digest}
        if made.weights_digest:
            keys["weights"] = made.weights_digest
        if made.unselected_digest:  # one corpus, of which rules choose different rows
            keys |= {"train": made.unselected_digest, "selected": made.train_digest}
        if not self.distilled:
            return keys
        if not made.teachers:
            keys |= {"teacher": made.teacher_fingerprint, "feature": made.feature}
        for name, source in made.teachers.items():
            keys |= {
                f"{name} teacher": source.teacher_fingerprint,
                f"{name} feature": source.feature,
            }
        return {key: value for key, value in keys.items() if not _is_location_of_cache(key)}

    @cached_property
    def weights(self) -> dict[str, Any]:
        """alpha, beta and gamma of its objective armada; none unless it has one of that name."""
        found = [keys.options for keys in self.job.all_objectives if keys.name == "armada"]
        return {name: found[0][name] for name in FACTORS} if len(found) == 1 else {}

    @cached_property
    def other_settings(self) -> dict[str, Any]:
        """The settings without those weights."""
        names = [keys.name for keys in self.job.all_objectives]
        of = f"objectives.{names.index('armada')}." if self.job.objectives and self.weights else ""
        mine = {f"{of}{name}" for name in self.weights}
        return {key: value for key, value in self.settings.items() if key not in mine}

    def log(self) -> list[Figures]:
        """Rows of loss terms and metrics, by step."""
        return read_log(self.folder)

    def readable_job(self, cache: Path | None = None, from_afar: bool = False) -> DistillJob:
        """Its job, to read its data again, with another `cache` if one is given. URLs and mirrors
        named by a stranger's run are not opened.

        Raises JobError for a cache at a URL unless `from_afar`."""
        if cache is not None and len(self.job.all_teachers) > 1:
            raise JobError(
                f"run {self.folder}: it has several teachers, and cache {cache} replaces only one; "
                "leave it out"
            )
        for keys in self.job.all_teachers.values():
            location = cache or keys.cache
            if not from_afar and not is_local(str(location)):
                raise JobError(
                    f"run {self.folder}: cache {shown_url(str(location))}: is at a URL, which "
                    "reports do not open; pull it, and name it with --set cache=FOLDER"
                )
            of_queries = keys.query_cache
            if not from_afar and of_queries is not None and not is_local(str(of_queries)):
                raise JobError(
                    f"run {self.folder}: query_cache {shown_url(str(of_queries))}: is at a URL, "
                    "which reports do not open; pull it, and name the folder in the run's job.yaml"
                )
        for source in () if from_afar else (*self.job.train, *self.job.validation):
            if not is_local(source) or source.startswith(HUB_DATASET):
                raise JobError(
                    f"run {self.folder}: corpus {source}: is not on this machine, and reports do "
                    "not fetch it"
                )
        mirror = {} if from_afar else {"mirror": None, "mirror_limit": None}
        changes = {"expect_digest": None} | mirror
        if self.job.teachers is None:
            return self.job.model_copy(update={"cache": cache or self.job.cache} | changes)
        teachers = {
            name: keys.model_copy(update=changes | ({"cache": cache} if cache else {}))
            for name, keys in self.job.teachers.items()
        }
        return self.job.model_copy(update={"teachers": teachers} | mirror)


def _is_location_of_cache(key: str) -> bool:
    """Whether a setting is only the location of a teacher's features, which the fingerprint
    identifies."""
    return key == "cache" or (key.startswith("teachers.") and key.endswith((".cache", ".teacher")))


@dataclass(frozen=True, slots=True)
class Found:
    """The finished runs below some paths; folders of runs that are not finished, or were planned
    and have not begun; and the problems of folders that cannot be read."""

    runs: tuple[FinishedRun, ...]
    unfinished: tuple[Path, ...]
    unreadable: tuple[str, ...]


def find_runs(paths: Sequence[Path]) -> Found:
    """All runs in folders that `distill` or `ablate` wrote; each once.

    Raises RunFolderError for a path below which no run is finished, or all cannot be read."""
    runs: dict[Path, FinishedRun] = {}
    unfinished: dict[Path, None] = {}
    unreadable: list[str] = []
    for path in paths:
        folders = list(_folders(path))
        if not folders:
            raise RunFolderError(
                f"run {path}: {_nothing(path)}; name a folder that `distill` or `ablate` wrote"
            )
        done = [folder for folder in folders if (folder / METRICS).is_file()]
        if not done:
            raise RunFolderError(
                f"run {path}: is not finished; continue it with `armada distill --resume`, or "
                "`ablate`"
            )
        read, wrong = _read_all(done)
        if not read:
            raise wrong[0]
        runs |= {run.folder.resolve(): run for run in read}
        unreadable += map(str, wrong)
        unfinished |= dict.fromkeys([*(f for f in folders if f not in done), *_not_begun(path)])
    return Found(tuple(runs.values()), tuple(unfinished), tuple(unreadable))


def _read_all(folders: Sequence[Path]) -> tuple[list[FinishedRun], list[RunFolderError]]:
    read, wrong = [], []
    for folder in folders:
        try:
            read.append(read_run(folder))
        except RunFolderError as error:
            wrong.append(error)
    return read, wrong


def _nothing(path: Path) -> str:
    if not path.exists():
        return "does not exist"
    return "holds no run" if path.is_dir() else "is not a folder"


def _folders(path: Path) -> Iterator[Path]:
    """Folders of single runs: not those around runs of several seeds."""
    jobs = [path / JOB] if (path / JOB).is_file() else []
    for file in sorted({*jobs, *path.glob(f"**/{JOB}")}, key=str):
        if not list(file.parent.glob(f"seed-*/{JOB}")):
            yield file.parent


def _not_begun(path: Path) -> Iterator[Path]:
    """Runs that are planned below a path and have no folder yet."""
    for plan in sorted(path.glob(f"**/{PLAN}")):
        folders = [plan.parent / planned for planned in read_plan(plan)]
        yield from (folder for folder in folders if not (folder / JOB).exists())
    for job in sorted({file.parent.parent / JOB for file in path.glob(f"**/seed-*/{JOB}")}):
        seeds = read_yaml(job).get("seed", []) if job.is_file() else []
        folders = [job.parent / f"seed-{seed}" for seed in seeds] if isinstance(seeds, list) else []
        yield from (folder for folder in folders if not (folder / JOB).exists())


def read_run(folder: Path) -> FinishedRun:
    """The run in a folder, tidied up; raises RunFolderError if it is not what `distill` leaves."""
    tidy(folder)
    return FinishedRun(folder, read_job(folder), read_metrics_of(folder), read_provenance(folder))
