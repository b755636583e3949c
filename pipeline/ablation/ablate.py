"""`ablate`: every cell of a grid with every seed is a run of `distill`, against one cache.

OUTPUT/
    ablation.yaml       the job                CELL/seed-N/    a run, as `distill` leaves it
    plan.json           folders of all runs    logs/           warnings of runs, if there are any
    ablation.json       the table, last

An interrupted ablation continues run by run, and within a run from its last checkpoint. Its grid
may grow: finished runs are not repeated. `--dry-run` lists the runs, and checks their data.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from ...cache_schemas.errors import InputError, JobError, OutputError, RunError
from ...cache_schemas.extras import require_extra
from ...cache_schemas.locations import shown
from ...stages.distill.student_source import check_student
from ...stages.store.files.atomic import write_atomic
from ...stages.store.files.lock import open_lock, try_lock
from ..distill_job import CorpusKeys, DistillJob
from ..embedding.keys import EmbeddingKeys
from ..findings.findings import Findings, find
from ..findings.measures import names_of, require_measures
from ..findings.runs import PLAN, read_run
from ..language.keys import LanguageKeys, MaskKeys
from ..messages import CountProgress, counted, warn
from ..objective_keys import CacheKeys
from ..run_data import check_inputs, figure_names, read_data
from ..run_folder import check_free, make_folder, read_metrics, require_free, write_json
from ..seed_run import resolved
from ..signals import telling_what_is_kept
from ..terms import terms_of
from .job import ABLATION, LOCK, LOGS, TABLE, Ablation, PlannedRun
from .parallel import Failure, run_all

_DATA = frozenset(
    {
        *(*CorpusKeys.model_fields, *CacheKeys.model_fields),
        *(*LanguageKeys.model_fields, *MaskKeys.model_fields),
        *("objective", "objectives", "teachers", "control", "select", "measure_teacher"),
    }
)
"""Keys that say what data are read, and how they are checked."""

_OF_EMBEDDINGS = frozenset({*EmbeddingKeys.model_fields, "options", "batch_size"})
"""More of them, of a student that embeds: widths, texts to validate by, how many negatives."""


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
    are students, as far as their configurations allow."""
    examples = check(ablation.runs, ablation.job.measures)
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


def check(
    runs: Sequence[PlannedRun], measures: Sequence[str] | None, known: Sequence[str] = ()
) -> dict[str, int]:
    """The number of training examples of each cell; raises InputError for what can be refused
    before a run starts, such as measures that neither these runs will have nor are `known`."""
    of_data: dict[str, int] = {}
    of_cell: dict[str, int] = {}
    figures = [*known]
    for run in runs:
        if run.name in of_cell:
            continue
        keys = {*_DATA, *(_OF_EMBEDDINGS if run.job.task == "embedding" else ())}
        data = f"{run.job.distilled} {run.job.model_dump_json(include=keys)}"
        try:
            check_student(run.job)
            if data not in of_data:
                terms = terms_of(run.job)
                read = read_data(run.job, terms)
                check_inputs(run.job, terms, read)
                of_data[data] = len(read.train.labels) * run.job.masks.masks_per_text
                figures += figure_names(run.job, read)
        except InputError as error:
            raise JobError(f"grid, {run.name}: {error}") from error
        of_cell[run.name] = of_data[data]
    require_measures(measures, figures)
    return of_cell


def _steps(job: DistillJob, examples: int) -> int:
    batches = -(-examples // job.batch_size)
    return job.epochs * -(-batches // job.gradient_accumulation)


def run_ablate(ablation: Ablation, quiet: bool = False) -> Findings:
    """Make all runs that are not made yet; returns what all of them show.

    Raises OutputError if the output is taken, another InputError for what can be refused before a
    run starts, RunError when the rest is done if a run failed."""
    require_extra("armada ablate", "report", "statsmodels")  # now, not when all runs are done
    output = ablation.job.output
    _refuse_taken(output, ablation.job.resume)
    done = [read_run(run.job.output) for run in ablation.runs if _is_done(run)]
    left = [run for run in ablation.runs if not _is_done(run)]
    check(left, ablation.job.measures, [name for run in done for name in names_of(run)])
    with _claimed(ablation):
        failures = _run_what_is_left(ablation, quiet)
        done = [read_run(run.job.output) for run in ablation.runs if _is_done(run)]
        findings = find(done, from_afar=True, measures=ablation.job.measures)
        write_json(output / TABLE, findings.document())
    if failures:
        raise RunError(_told(failures, len(ablation.runs), output))
    return findings


def _run_what_is_left(ablation: Ablation, quiet: bool) -> list[Failure]:
    logs = ablation.job.output / LOGS
    left = [run for run in ablation.runs if not _is_done(run)]
    if ablation.repeated and not quiet:
        warn(f"{counted(ablation.repeated, 'cell')} in several grids, run once")
    with CountProgress("ablate", "runs", len(ablation.runs), quiet) as progress:
        progress.advance(len(ablation.runs) - len(left))
        with telling_what_is_kept(
            lambda: "finished runs are kept; --resume continues with the rest"
        ):
            failures = run_all(left, ablation.job.workers, logs, lambda: progress.advance(1))
    _tidy(logs)
    return failures


def _is_done(run: PlannedRun) -> bool:
    return read_metrics(run.job.output) is not None


@contextmanager
def _claimed(ablation: Ablation) -> Iterator[None]:
    """The output folder, for this process alone."""
    job = ablation.job
    make_folder(job.output)
    with open_lock(job.output, LOCK) as file:
        if not try_lock(file.fileno(), job.output):
            raise OutputError(
                f"output {job.output}: another `ablate` is running in it; wait until it ends"
            )
        for run in ablation.runs:
            check_free(run.job.output, resolved(run.job), resume=True)
        folders = [str(run.job.output.relative_to(job.output)) for run in ablation.runs]
        write_json(job.output / PLAN, folders)
        write_atomic(job.output / ABLATION, [yaml.safe_dump(shown(ablation.keys)).encode()])
        yield


def _refuse_taken(output: Path, resume: bool) -> None:
    if (output / ABLATION).is_file():
        if not resume:
            raise OutputError(
                f"output {output}: holds an ablation; continue with --resume, or choose another "
                "folder"
            )
    else:
        require_free(output, {LOCK, PLAN})


def _tidy(logs: Path) -> None:
    kept = sorted(logs.glob("*.txt"))
    if kept:
        warn(f"{counted(len(kept), 'run')} wrote warnings: {logs}")
    elif logs.is_dir():
        logs.rmdir()


def _told(failures: list[Failure], runs: int, output: Path) -> str:
    first = failures[0]
    return (
        f"{len(failures)} of {counted(runs, 'run')} failed, first {first.run.name}, seed "
        f"{first.run.seed}: {first.reason}; the others are finished; see {output / LOGS}, fix the "
        "cause, and continue with --resume"
    )
