"""The keys of an `ablate` job, the cells of its grid, and the runs it means.

    grid: {alpha: [0, 0.5, 1], beta: [0, 1]}          six cells

    grid:                                             the cells of three grids
      - {control: [undistilled, none, shuffled]}
      - {name: BERT-6L, student: google-bert/bert-base-uncased, student_layers: 6}
      - {alpha: [0, 1]}

A list holds the values of one key; anything else is the only one. `name` is what a grid's cells are
called, followed by the keys that have several values.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import Field

from ...cache_schemas.errors import JobError
from ..distill_job import DistillJob
from ..findings.runs import PLAN, student_settings
from ..jobs import MEASURES, Job, Names, make, unknown_key, with_key
from ..objective_keys import options_class

ABLATION = "ablation.yaml"
TABLE = "ablation.json"
LOGS = "logs"
LOCK = "ablation.lock"
NAME = "name"
"""The key that names a grid."""

_TAKEN = frozenset({ABLATION, TABLE, LOGS, LOCK, PLAN})
"""Names in the folder of an ablation that are no cell's."""

_NOT_SWEPT = {
    "output": "every run has its own folder below it",
    "resume": "it applies to the whole ablation",
    "seed": "a list of seeds beside the grid is run for every cell",
}

_DISTILL_KEYS = frozenset(DistillJob.model_fields)
_LONGEST_FOLDER_BYTES = 200

Values = Mapping[str, Any]


class AblateJob(Job):
    """Running the grid. All other keys are those of its `distill` jobs."""

    output: Path = Field(description="folder of all runs")
    grid: Any = Field(description="keys with lists of values, or a list of such grids")
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto",
        description="runs at a time; auto is one for each GPU, or as many as processors and memory "
        "allow, measured by the first run",
    )
    measures: Names | None = Field(default=None, description=MEASURES)
    resume: bool = Field(default=False, description="continue in `output`; the grid may have grown")


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One student with one seed."""

    name: str
    seed: int
    job: DistillJob


@dataclass(frozen=True, slots=True)
class Ablation:
    """A job, its keys as they were given, all runs, and how many cells stood in the grids twice."""

    job: AblateJob
    keys: Mapping[str, Any]
    runs: tuple[PlannedRun, ...]
    repeated: int


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of a grid: its name and the keys that it sets."""

    name: str
    values: Values


def make_ablation(keys: Mapping[str, Any]) -> Ablation:
    """Check everything that can be refused before a run starts; raises JobError."""
    own = {key: value for key, value in keys.items() if key in AblateJob.model_fields}
    beside = {key: value for key, value in keys.items() if key not in AblateJob.model_fields}
    job = make(AblateJob, own)
    swept = cells(job.grid, beside)
    options = [_options(beside, cell) for cell in swept]
    for key in beside:
        if key not in _DISTILL_KEYS and not any(key in each for each in options):
            known = _DISTILL_KEYS | AblateJob.model_fields.keys() | set().union(*options)
            raise JobError(unknown_key("job", key, known))
    jobs = [_job(job, beside, *each) for each in zip(swept, options, strict=True)]
    chosen, repeated = _without_repeats(swept, jobs)
    return Ablation(job, keys, tuple(_planned(chosen)), repeated)


def _options(beside: Mapping[str, Any], cell: Cell) -> Collection[str]:
    """Names of the options of a cell's objective, which are keys of its job."""
    keys = {**beside, **cell.values}
    default = DistillJob.model_fields["objective"].default
    if keys.get("objectives") is not None:
        return ()
    options = options_class(str(keys.get("objective", default)))
    return () if options is None else options.model_fields.keys()


def _job(
    job: AblateJob, beside: Mapping[str, Any], cell: Cell, options: Collection[str]
) -> DistillJob:
    from ...stages.distill.reporting import check_reporters
    from ..terms import terms_of

    # What stands beside the grid may be for the objectives of other cells.
    known = {key: value for key, value in beside.items() if key in _DISTILL_KEYS or key in options}
    keys = {**known, NAME: cell.name, "output": job.output / _folder(cell.name)}
    try:
        for key, value in cell.values.items():
            if key.partition(".")[0] not in _DISTILL_KEYS and key not in options:
                raise JobError(unknown_key("grid", key, _DISTILL_KEYS | set(options)))
            keys = with_key(keys, key, value)
        made = make(DistillJob, keys)
        if made.push_to_hub:
            raise JobError(
                "job key 'push_to_hub': one repository cannot hold the students of many runs; "
                "upload the best with `hf upload`"
            )
        terms_of(made)
        check_reporters(made)
    except JobError as error:
        raise JobError(f"grid, {cell.name}: {error}") from error
    return made


def _planned(jobs: Sequence[DistillJob]) -> Iterator[PlannedRun]:
    for seed in dict.fromkeys(seed for job in jobs for seed in job.seeds):
        for job in jobs:
            if seed in job.seeds:
                output = job.output / f"seed-{seed}"
                single = job.model_copy(update={"seed": seed, "output": output})
                yield PlannedRun(str(job.name), seed, single)


def _folder(name: str) -> str:
    folder = re.sub(r"[^\w.=+-]+", "-", name).strip("-.")
    if not folder or len(folder.encode()) > _LONGEST_FOLDER_BYTES or folder.casefold() in _TAKEN:
        raise JobError(
            f"grid: no folder can be named after {name!r}; give its grid a 'name' of letters, at "
            f"most {_LONGEST_FOLDER_BYTES} bytes, and not {', '.join(sorted(_TAKEN))}"
        )
    return folder


def _without_repeats(
    swept: Sequence[Cell], jobs: Sequence[DistillJob]
) -> tuple[list[DistillJob], int]:
    """The cells that are runs of their own. What two grids have in common is run once; two cells
    that differ in what their student never reads are a mistake."""
    chosen: dict[str, tuple[Cell, DistillJob]] = {}
    for cell, job in zip(swept, jobs, strict=True):
        other, its_job = chosen.setdefault(str(student_settings(job)), (cell, job))
        if _all_but_place(job) != _all_but_place(its_job):
            raise JobError(_same_student(other, cell, job, its_job))
    folders = [str(job.output).casefold() for _, job in chosen.values()]
    if len(set(folders)) < len(folders):
        raise JobError("grid: two cells would share a folder; give each of their grids a 'name'")
    return [job for _, job in chosen.values()], len(swept) - len(chosen)


def _same_student(first: Cell, second: Cell, job: DistillJob, other: DistillJob) -> str:
    here, there = _all_but_place(job), _all_but_place(other)
    key = next(key for key in here if here[key] != there[key])
    return (
        f"grid: {first.name!r} and {second.name!r} are the same student, which reads no {key!r} "
        f"({shown(key, there[key])} and {shown(key, here[key])}); put it into a grid of its own"
    )


def _all_but_place(job: DistillJob) -> dict[str, Any]:
    return job.model_dump(mode="json", exclude={"output", NAME})


def cells(grid: Any, beside: Values) -> list[Cell]:
    """All cells of a grid, or of a list of grids, given the other keys of the job.

    Raises JobError for invalid grids and contradictions."""
    grids = grid if isinstance(grid, list | tuple) else [grid]
    if not grids:
        raise JobError("job key 'grid': is empty; give keys with lists of values")
    for one in grids:
        _check_grid(one)
    _check_beside(grids, beside)
    found = [cell for one in grids for cell in _cells(one)]
    _check_names(found)
    return found


def _check_grid(grid: Any) -> None:
    if not isinstance(grid, Mapping):
        raise JobError(f"job key 'grid': {grid!r}: is not a mapping of keys to lists of values")
    if not grid:
        raise JobError("job key 'grid': is empty; give keys with lists of values")
    for key, values in grid.items():
        if key in _NOT_SWEPT:
            raise JobError(f"grid key {key!r}: cannot be swept; {_NOT_SWEPT[key]}")
        if values == []:
            raise JobError(f"grid key {key!r}: has no values; name some, or leave it out")
        twice = [value for i, value in enumerate(_axis(values)) if value in _axis(values)[:i]]
        if twice:
            raise JobError(f"grid key {key!r}: {twice[0]!r} is given twice; name it once")
    if isinstance(grid.get(NAME), list):
        raise JobError("grid key 'name': a grid has one name; make several grids")


def _check_beside(grids: Sequence[Values], beside: Values) -> None:
    """A value that every grid replaces was meant for something."""
    for key, value in beside.items():
        if all(key in grid for grid in grids):
            raise JobError(
                f"job key {key!r}: {value!r} is set beside the grid, which also sets "
                f"{grids[0][key]!r}; leave one of them out"
            )


def _cells(grid: Values) -> Iterator[Cell]:
    axes = {str(key): _axis(values) for key, values in grid.items() if key != NAME}
    title = grid.get(NAME)
    varied = [key for key, values in axes.items() if title is None or len(values) > 1]
    for point in product(*axes.values()):
        values = dict(zip(axes, point, strict=True))
        parts = [str(title)] if title is not None else []
        yield Cell(", ".join([*parts, *(shown(key, values[key]) for key in varied)]), values)


def _axis(values: Any) -> list[Any]:
    return list(values) if isinstance(values, list | tuple) else [values]


def shown(key: str, value: Any) -> str:
    """A key with its value in few words: 'alpha=0.5'; controls and students speak for themselves,
    and the control `none` is distillation."""
    if key == "control":
        return "distilled" if value == "none" else str(value)
    if key == "student":
        return PurePath(str(value)).name
    if key == "objectives" and isinstance(value, list | tuple):
        return "+".join(str(each.get("name")) for each in value if isinstance(each, Mapping))
    return f"{key}={value}"


def _check_names(found: Sequence[Cell]) -> None:
    seen: dict[str, Cell] = {}
    for cell in found:
        other = seen.setdefault(cell.name, cell)
        if other is not cell and other.values != cell.values:
            raise JobError(
                f"grid: two cells are called {cell.name!r}; give each of their grids a 'name'"
            )
