"""`ablate --dry-run`: which runs there would be, and whether their data are in order."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...cache_schemas.errors import InputError, JobError
from ...stages.distill.student_source import check_student
from ..distill import read_data
from ..distill_job import CorpusKeys, DistillJob
from ..language.keys import LanguageKeys
from ..objective_keys import CacheKeys
from ..run_folder import read_metrics
from ..terms import terms_of
from .job import Ablation, PlannedRun

_DATA = frozenset(
    {
        *(*CorpusKeys.model_fields, *CacheKeys.model_fields, *LanguageKeys.model_fields),
        *("objective", "objectives", "teachers", "control"),
    }
)


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """One cell of the grid: what it sets its students to, how many examples and steps they have,
    and how many of its runs are made already."""

    name: str
    folder: str
    seeds: tuple[int, ...]
    finished: int
    train_examples: int
    steps: int


def plan(ablation: Ablation) -> list[PlannedCell]:
    """Every cell; corpora and caches are opened and joined, and refused as `distill` would, and so
    are students, as far as their configurations tell."""
    examples = check(ablation.runs)
    planned = []
    for name in dict.fromkeys(run.name for run in ablation.runs):
        runs = [run for run in ablation.runs if run.name == name]
        planned.append(
            PlannedCell(
                name=name,
                folder=str(runs[0].job.output.parent),
                seeds=tuple(run.seed for run in runs),
                finished=sum(read_metrics(run.job.output) is not None for run in runs),
                train_examples=examples[name],
                steps=_steps(runs[0].job, examples[name]),
            )
        )
    return planned


def check(runs: Sequence[PlannedRun]) -> dict[str, int]:
    """The number of training examples of each cell; raises InputError for what can be refused
    before a run starts."""
    of_data: dict[str, int] = {}
    of_cell: dict[str, int] = {}
    for run in runs:
        if run.name in of_cell:
            continue
        data = f"{run.job.distilled} {run.job.model_dump_json(include=set(_DATA))}"
        try:
            check_student(run.job)
            if data not in of_data:
                read = read_data(run.job, terms_of(run.job))
                of_data[data] = len(read.train.labels)
        except InputError as error:
            raise JobError(f"grid, {run.name}: {error}") from error
        of_cell[run.name] = of_data[data]
    return of_cell


def _steps(job: DistillJob, examples: int) -> int:
    batches = -(-examples // job.batch_size)
    return job.epochs * -(-batches // job.gradient_accumulation)
