"""The documents of a run's folder, read with care: the folder may come from anybody.

job.yaml       a DistillJob; no aliases, which can make a few bytes into gigabytes
metrics.json   Metrics           run.json   Provenance          log.jsonl   rows of numbers
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field

from ...cache_schemas.errors import InputError, JobError
from ...cache_schemas.locations import shown
from ...stages.distill.objectives.options import SOURCE
from ..distill_job import DistillJob
from ..jobs import make
from ..objective_keys import without_once_shared
from ..run_folder import JOB, LOG, METRICS, RUN

MOST_BYTES = 2**24
"""Size limit of a job, metrics or provenance file."""
MOST_LOG_BYTES = 2**28
MOST_LINE_BYTES = 2**16
MOST_ROWS = 2_000
"""Limit of plotted log rows: of a longer log, every second, third, ... row."""

MOST_PAIRS = 1_000
"""Limit of pairs of teachers, those of 45."""

_NAME = r"^[\w .+/@-]{1,200}$"
Figures = dict[str, float]


class RunFolderError(InputError):
    """A folder that is no finished run."""


class _Document(BaseModel):
    """Unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class TeacherPair(_Document):
    """How far two teachers agree: share of texts with the same class, divergences in nats."""

    teachers: tuple[str, str]
    agreement: float
    kl: float
    reverse_kl: float
    total_variation: float


class FeaturePair(_Document):
    """How alike the features of two teachers are: linear CKA, 0 to 1."""

    teachers: tuple[str, str]
    cka: float


class FeatureConflicts(_Document):
    """Features of different teachers, compared on some training texts."""

    rows: int = Field(ge=0)
    pairs: tuple[FeaturePair, ...] = Field(default=(), max_length=MOST_PAIRS)


class TeacherConflicts(_Document):
    """Conflicts between the teachers of a run on training texts that all of them have."""

    features: FeatureConflicts | None = None
    rows: int = Field(ge=0)
    accuracy: dict[str, float | None] = Field(default_factory=dict)
    pairs: tuple[TeacherPair, ...] = Field(default=(), max_length=MOST_PAIRS)


class Metrics(_Document):
    """`metrics.json` of one seed."""

    seed: int = Field(ge=0)
    metric: str = Field(pattern=_NAME)
    validation: Figures | None = None
    epochs: tuple[Figures, ...] = ()
    train_examples: int = Field(ge=0)
    steps: int = Field(ge=0)
    train_seconds: float = Field(ge=0, allow_inf_nan=False)
    teacher_conflicts: TeacherConflicts | None = None


class TeacherProvenance(_Document):
    """Provenance of one teacher's features."""

    teacher_fingerprint: str | None = None
    feature: str | None = None


class Provenance(TeacherProvenance):
    """`run.json`."""

    train_digest: str | None = None
    unselected_digest: str | None = None
    """Digest of the training rows that `select` chose among."""
    validation_digest: str | None = None
    weights_digest: str | None = None
    """Digest of the weights of training rows."""
    teachers: dict[str, TeacherProvenance] = Field(default_factory=dict)
    """Teachers by source name, for a run with several."""
    measured: dict[str, TeacherProvenance] = Field(default_factory=dict)
    """Teachers by source name whose outputs for validation texts the student was compared with."""
    versions: dict[str, str] = Field(default_factory=dict)
    hardware: dict[str, str] = Field(default_factory=dict)

    @property
    def sources(self) -> dict[str, TeacherProvenance]:
        """All sources by name, also a single one."""
        return self.teachers or {SOURCE: self}

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Known fingerprints of the teachers."""
        found = [each.teacher_fingerprint for each in self.sources.values()]
        return tuple(dict.fromkeys(each for each in found if each))


DocumentT = TypeVar("DocumentT", bound=_Document)


def read_job(folder: Path) -> DistillJob:
    """The job of a run; raises RunFolderError."""
    keys = read_yaml(folder / JOB)
    known = without_once_shared(str(keys.get("objective")), keys)
    try:
        return make(DistillJob, known, what="its job's")
    except JobError as error:
        raise RunFolderError(f"run {folder}: {error}") from error


def read_metrics_of(folder: Path) -> Metrics:
    """The figures of a run; raises RunFolderError."""
    return _read(Metrics, folder / METRICS)


def read_provenance(folder: Path) -> Provenance:
    """Provenance of a run; empty if it has none."""
    return _read(Provenance, folder / RUN) if (folder / RUN).is_file() else Provenance()


def read_plan(file: Path) -> list[str]:
    """Folders of the runs of an ablation, relative to its own; raises RunFolderError."""
    try:
        planned = json.loads(_bytes(file))
    except (ValueError, RecursionError) as cause:
        raise _unreadable(file, cause) from cause
    if not isinstance(planned, list) or not all(isinstance(folder, str) for folder in planned):
        raise RunFolderError(f"run {file.parent}: {file.name} is not a list of folders")
    return planned


def read_yaml(file: Path) -> dict[str, Any]:
    """A mapping in YAML without aliases; raises RunFolderError."""
    try:
        content = yaml.load(_bytes(file), _WithoutAliases)
    except (yaml.YAMLError, RecursionError, ValueError) as cause:
        raise _unreadable(file, cause) from cause
    if not isinstance(content, dict):
        raise RunFolderError(f"run {file.parent}: {file.name} is not a mapping of keys to values")
    return dict(shown(content))


class _WithoutAliases(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("has an alias; a job that armada wrote has none")
        return super().compose_node(parent, index)


def _read(model: type[DocumentT], file: Path) -> DocumentT:
    try:
        document = json.loads(_bytes(file))
        if not isinstance(document, dict):
            raise TypeError("is not a document of names and values")
        return make(model, document, what=f"{file.name}:")
    except (JobError, TypeError, ValueError, RecursionError) as cause:
        raise _unreadable(file, cause) from cause


def _bytes(file: Path) -> bytes:
    try:
        if file.stat().st_size > MOST_BYTES:
            raise RunFolderError(
                f"run {file.parent}: {file.name} is larger than {MOST_BYTES} bytes"
            )
        return file.read_bytes()
    except OSError as cause:
        raise _unreadable(file, cause) from cause


def _unreadable(file: Path, cause: Exception) -> RunFolderError:
    reason = " ".join(str(cause).split())[:200]
    return RunFolderError(f"run {file.parent}: {file.name} cannot be read: {reason}")


def read_log(folder: Path) -> list[Figures]:
    """Rows of loss terms and metrics by step, at most MOST_ROWS of them spread evenly; other lines
    are left out, such as a truncated last one of a killed run."""
    file = folder / LOG
    if not file.is_file() or file.stat().st_size > MOST_LOG_BYTES:
        return []
    rows: list[Figures] = []
    stride = 1
    for number, row in enumerate(_rows(file)):
        if number % stride == 0:
            rows.append(row)
        if len(rows) > MOST_ROWS:
            rows, stride = rows[::2], 2 * stride
    return rows


def _rows(file: Path) -> Iterator[Figures]:
    with file.open("rb") as opened:
        while line := opened.readline(MOST_LINE_BYTES):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                numbers = {str(name): value for name, value in row.items() if _is_number(value)}
                if "step" in numbers:
                    yield numbers


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
