"""The commands as functions: `armada.precompute(...)`, `distill`, `evaluate`, `predict`.

Keys are those of a job file. Where a job names files of texts, a table may stand: a
`datasets.Dataset`, an Arrow table, a data frame of pandas or polars, or a list of dictionaries, one
a row.
"""

from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from ..stages.corpus.hub_datasets import in_memory
from .distill_job import DistillJob
from .evaluate_job import EvaluateJob
from .jobs import make
from .precompute import run_precompute
from .precompute_job import make_precompute_job
from .precompute_plan import PrecomputeReport

if TYPE_CHECKING:
    from .predict import Predicted

_TEXTS = ("corpus", "train", "validation")


def precompute(*, quiet: bool = True, **keys: Any) -> PrecomputeReport:
    """Ask a teacher about every text that the cache does not hold yet.

    `keys` are those of `armada precompute --keys`, and options of the teacher.
    Raises InputError for what is wrong with them, RunError for what fails."""
    return run_precompute(make_precompute_job(_with_tables(keys)), quiet)


def distill(*, quiet: bool = True, **keys: Any) -> dict[str, Any]:
    """Train a student from a cache; returns what `metrics.json` of its output holds.

    `keys` are those of `armada distill --keys`.
    Raises InputError for what is wrong with them, RunError for what fails."""
    from .distill import run_distill

    return run_distill(make(DistillJob, _with_tables(keys)), quiet)


def evaluate(**keys: Any) -> dict[str, Any]:
    """Measure a finished student on a corpus; `keys` are those of `armada evaluate --keys`.

    Raises InputError for what is wrong with them."""
    from .evaluate import run_evaluate

    return run_evaluate(make(EvaluateJob, _with_tables(keys)))


def predict(*, quiet: bool = True, **keys: Any) -> "Predicted":
    """Write what a finished student says of each row of a corpus to a new file; `keys` are those
    of `armada predict --keys`. Of a few texts, `load_student(...).predict(...)` says it at once.

    Raises InputError for what is wrong with them."""
    from .predict import PredictJob, run_predict

    return run_predict(make(PredictJob, _with_tables(keys)), quiet)


def _with_tables(keys: dict[str, Any]) -> dict[str, Any]:
    """The keys with names for tables and paths, which job files could hold."""
    return {key: _named(value) if key in _TEXTS else _plain(value) for key, value in keys.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, PurePath) else value


def _named(value: Any) -> tuple[str, ...]:
    if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        return (in_memory(value),)
    several = value if isinstance(value, list | tuple) else [value]
    return tuple(str(v) if isinstance(v, str | PurePath) else in_memory(v) for v in several)
