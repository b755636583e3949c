"""`ablate --dry-run`: which runs there would be, and whether their data are in order."""

from dataclasses import dataclass

from ...cache_schemas.errors import StudentSourceError
from ...stages.distill.student_source import check_student
from ..distill import objective_class
from ..distill_job import CacheKeys, CorpusKeys, DistillJob
from ..run_folder import read_metrics
from ..show import counted, show_json
from ..student_data import read_student_data
from .job import Ablation

_DATA = frozenset({*CorpusKeys.model_fields, *CacheKeys.model_fields, "objective"})


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
    examples: dict[str, int] = {}
    planned = []
    for name in dict.fromkeys(run.name for run in ablation.runs):
        runs = [run for run in ablation.runs if run.name == name]
        job = runs[0].job
        _check_student(job, name)
        data = f"{job.distilled} {job.model_dump_json(include=set(_DATA))}"
        if data not in examples:
            examples[data] = len(read_student_data(job, objective_class(job)).train.labels)
        planned.append(
            PlannedCell(
                name=name,
                folder=str(job.output.parent),
                seeds=tuple(run.seed for run in runs),
                finished=sum(read_metrics(run.job.output) is not None for run in runs),
                train_examples=examples[data],
                steps=_steps(job, examples[data]),
            )
        )
    return planned


def _check_student(job: DistillJob, name: str) -> None:
    try:
        check_student(job)
    except StudentSourceError as error:
        raise StudentSourceError(f"grid, {name}: {error}") from error


def _steps(job: DistillJob, examples: int) -> int:
    batches = -(-examples // job.batch_size)
    return job.epochs * -(-batches // job.gradient_accumulation)


def show_plan(cells: list[PlannedCell], as_json: bool) -> None:
    """One line for each cell, or a document."""
    if as_json:
        show_json(cells)
        return
    runs = sum(len(cell.seeds) for cell in cells)
    finished = sum(cell.finished for cell in cells)
    print(f"{counted(runs, 'run')}, {finished} finished, {_steps_left(cells)} steps to make")
    for cell in cells:
        seeds = ", ".join(map(str, cell.seeds))
        print(
            f"{cell.name}: seeds {seeds}, {cell.train_examples} examples, {cell.steps} steps each"
        )


def _steps_left(cells: list[PlannedCell]) -> int:
    return sum(cell.steps * (len(cell.seeds) - cell.finished) for cell in cells)
