"""Finished runs of `distill`, read back from their folders, wherever below a path they lie."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ...cache_schemas.errors import InputError, one_line
from ...stages.distill.evaluation import lower_is_better
from ..distill_job import DistillJob
from ..run_folder import JOB, LOG, METRICS, RUN

_MEANS_NOTHING = frozenset({"output", "name", "seed", "resume", "device", "mirror", "mirror_limit"})
_WHERE_FEATURES_LIE = frozenset({"placement", "verify_cache", "expect_digest"})


class RunFolderError(InputError):
    """A folder that is no finished run."""


@dataclass(frozen=True)
class FinishedRun:
    """One student with one seed: its folder, its job, its figures, and what it was made with."""

    folder: Path
    job: DistillJob
    metrics: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """What it was drawn from."""
        return int(self.metrics["seed"])

    @property
    def metric(self) -> str:
        """The name of the metric that the run was judged by."""
        return str(self.metrics["metric"])

    @property
    def value(self) -> float | None:
        """That metric on the validation set, for the student that was kept; None without one."""
        return self.figure(self.metric)

    @property
    def better_by(self) -> int:
        """1 if a larger value is better, else -1."""
        return -1 if lower_is_better(self.metric) else 1

    @property
    def distilled(self) -> bool:
        """Whether it had a teacher."""
        return self.job.distilled

    def figure(self, metric: str) -> float | None:
        """Any metric on the validation set."""
        value = (self.metrics["validation"] or {}).get(metric)
        return None if value is None else float(value)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All keys that can matter; data by digest, so that a file may have moved."""
        keys = self.job.model_dump(mode="json", exclude=set(_MEANS_NOTHING | _WHERE_FEATURES_LIE))
        keys |= {"train": self.provenance.get("train_digest") or keys["train"]}
        keys |= {"validation": self.provenance.get("validation_digest") or keys["validation"]}
        if not self.distilled:
            keys |= {"teacher": None, "cache": None, "feature": None}
        else:
            keys |= {"teacher": self.provenance.get("teacher_fingerprint"), "cache": None}
            keys |= {"feature": self.provenance.get("feature")}
        return keys

    def log(self) -> Iterator[dict[str, float]]:
        """Rows of loss terms and metrics, by step."""
        file = self.folder / LOG
        if file.is_file():
            with file.open(encoding="utf-8") as lines:
                for line in lines:
                    yield json.loads(line)


@dataclass(frozen=True, slots=True)
class Found:
    """The finished runs below some paths, and folders of runs that are not finished."""

    runs: tuple[FinishedRun, ...]
    unfinished: tuple[Path, ...]


def find_runs(paths: Sequence[Path]) -> Found:
    """All runs in folders that `distill` or `ablate` wrote; each once.

    Raises RunFolderError for a path below which no run is finished."""
    runs: dict[Path, FinishedRun] = {}
    unfinished: dict[Path, None] = {}
    for path in paths:
        folders = list(_folders(path))
        if not folders:
            raise RunFolderError(
                f"run {path}: {_nothing(path)}; name a folder that `distill` or `ablate` wrote"
            )
        done = [folder for folder in folders if (folder / METRICS).is_file()]
        if not done:
            raise RunFolderError(
                f"run {path}: is not finished; go on with `armada distill --resume`, or `ablate`"
            )
        runs |= {folder.resolve(): read_run(folder) for folder in done}
        unfinished |= dict.fromkeys(folder for folder in folders if folder not in done)
    return Found(tuple(runs.values()), tuple(unfinished))


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


def read_run(folder: Path) -> FinishedRun:
    """The run in a folder; raises RunFolderError if it is not what `distill` leaves."""
    try:
        keys = yaml.safe_load((folder / JOB).read_bytes())
        job = DistillJob.model_validate(keys)
        metrics = json.loads((folder / METRICS).read_bytes())
        file = folder / RUN
        provenance = json.loads(file.read_bytes()) if file.is_file() else {}
        return FinishedRun(folder, job, dict(metrics), dict(provenance))
    except (OSError, ValueError, TypeError, yaml.YAMLError, ValidationError) as cause:
        reason = " ".join(one_line(str(cause)).split())
        raise RunFolderError(f"run {folder}: cannot be read: {reason[:200]}") from cause
