"""The commands as functions: `armada.precompute(...)`, `distill`, `evaluate`, `predict`.

Keys are those of a job file. Where a job names files of texts, a table may stand: a
`datasets.Dataset`, an Arrow table, a data frame of pandas or polars, or a list of dictionaries, one
a row. Results are frozen, with a name for each figure; those of `distill` and `evaluate` are also
mappings, of what `metrics.json` and `--json` hold.

They may be called from any thread, and where an event loop runs: no signal is handled but in the
main thread, and nothing waits on the caller's loop. Calls that write one output refuse each other,
as commands do.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Self

from ..stages.corpus.hub_datasets import in_memory
from .distill_job import DistillJob
from .jobs import make
from .messages import in_a_notebook
from .precompute import run_precompute
from .precompute_job import make_precompute_job
from .precompute_plan import PrecomputeReport
from .student_jobs import EvaluateJob

if TYPE_CHECKING:
    from .predict import PredictReport

_TEXTS = ("corpus", "train", "validation")


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure of runs with several seeds; `std` is that of a sample."""

    mean: float
    std: float
    runs: tuple[float, ...]


Figure = float | Spread
"""A number, or those of several seeds."""


class _Document(Mapping[str, Any]):
    """A result that is also the document it was made from."""

    __slots__ = ()
    document: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.document[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.document)

    def __len__(self) -> int:
        return len(self.document)


@dataclass(frozen=True, slots=True, eq=False)
class DistillReport(_Document):
    """Result of `distill`; `document` is its `metrics.json`, and it is also a mapping of that.

    Several seeds have no best epoch in common, and their figures are spreads."""

    output: Path
    seeds: tuple[int, ...]
    objective: str
    control: str
    metric: str | None
    """The one that the best epoch was chosen by."""
    validation: Mapping[str, Figure]
    """Metrics of the best epoch; empty without a validation corpus."""
    train_losses: Mapping[str, Figure]
    """At the end of training."""
    best_epoch: int | None
    truncated: int
    skipped: tuple[str, ...]
    document: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, output: Path, metrics: Mapping[str, Any]) -> Self:
        """Make one from the content of `metrics.json`."""
        return cls(
            output=output,
            seeds=tuple(metrics["seeds"] if "seeds" in metrics else [metrics["seed"]]),
            objective=metrics["objective"],
            control=metrics["control"],
            metric=metrics["metric"],
            validation=_figures(metrics["validation"]),
            train_losses=_figures(metrics.get("train_losses")),
            best_epoch=metrics.get("best_epoch"),
            truncated=metrics["truncated_examples"],
            skipped=tuple(metrics["skipped_rows"]),
            document=metrics,
        )


@dataclass(frozen=True, slots=True, eq=False)
class EvaluateReport(_Document):
    """Metrics of a student on a corpus; `document` is what `armada evaluate --json` prints, and
    it is also a mapping of that."""

    examples: int
    unlabelled: int
    metrics: Mapping[str, Figure]
    truncated: int
    skipped: tuple[str, ...]
    document: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Self:
        """Make one from the result of `evaluate`."""
        return cls(
            examples=found["examples"],
            unlabelled=found.get("unlabelled_examples", 0),
            metrics=_figures(found["metrics"]),
            truncated=found["truncated_examples"],
            skipped=tuple(found["skipped_rows"]),
            document=found,
        )


def _figures(found: Mapping[str, Any] | None) -> dict[str, Figure]:
    return {
        name: Spread(value["mean"], value["std"], tuple(value["runs"]))
        if isinstance(value, Mapping)
        else value
        for name, value in (found or {}).items()
    }


def precompute(*, quiet: bool | None = None, **keys: Any) -> PrecomputeReport:
    """Compute a teacher's features for every text that is not cached yet.

    `keys` are those of `armada precompute --keys`, and options of the teacher; `quiet`: no
    progress; by default there is a bar in notebooks only. Raises InputError for invalid keys,
    RunError if the run fails."""
    return run_precompute(make_precompute_job(_with_tables(keys)), _is_quiet(quiet))


def distill(*, quiet: bool | None = None, **keys: Any) -> DistillReport:
    """Train a student from a cache, and upload it to the Hub if `push_to_hub` is set.

    `keys` are those of `armada distill --keys`; `quiet` as of `precompute`. Raises InputError for
    invalid keys, RunError if the run fails."""
    from ..stages.distill.processes import processes
    from .distill import push_student, run_distill

    job = make(DistillJob, _with_tables(keys))
    metrics = run_distill(job, _is_quiet(quiet))
    if processes().first:
        push_student(job)
    return DistillReport.of(job.output, metrics)


def evaluate(**keys: Any) -> EvaluateReport:
    """Evaluate a finished student on a corpus; `keys` are those of `armada evaluate --keys`.

    Raises InputError for invalid keys."""
    from .evaluate import run_evaluate

    return EvaluateReport.of(run_evaluate(make(EvaluateJob, _with_tables(keys))))


def predict(*, quiet: bool | None = None, **keys: Any) -> "PredictReport":
    """Write a finished student's predictions for each row of a corpus to a new file; `keys` are
    those of `armada predict --keys`, `quiet` as of `precompute`. For a few texts, use
    `load_student(...).predict(...)`.

    Raises InputError for invalid keys."""
    from .predict import run_predict
    from .student_jobs import PredictJob

    return run_predict(make(PredictJob, _with_tables(keys)), _is_quiet(quiet))


def _is_quiet(quiet: bool | None) -> bool:
    return not in_a_notebook() if quiet is None else quiet


def _with_tables(keys: dict[str, Any]) -> dict[str, Any]:
    """The keys with names for tables and paths, which job files could hold."""
    return {key: _named(value) if key in _TEXTS else _plain(value) for key, value in keys.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, PurePath) else value


def _named(value: Any) -> tuple[str, ...]:
    if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        return (in_memory(value),)
    several = value if isinstance(value, list | tuple) else [value]
    return tuple(str(v) if isinstance(v, str | PurePath) else in_memory(v) for v in several)
