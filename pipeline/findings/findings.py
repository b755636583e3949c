"""Findings of some runs: for each task, conditions compared, effects of weights, cost of the
teacher.

find(runs) -> Findings
  studies: runs on the same data, judged by the same metric
    rows: a condition, its improvement over the same student without a teacher, and p
      measures: the same for other figures, such as agreement with the teacher
    conflicts: between several teachers of a run
    anova: alpha, beta, gamma, where they were swept
  costs: each teacher's, paid once
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from ...cache_schemas.errors import ArmadaError, CacheError
from ..caches.summary import TeacherSummary, summarise
from ..distill_job import DistillJob
from ..run_folder import spread
from .conditions import Condition, baseline, conditions, improvements, reference
from .hacking import distances
from .measures import Compared, Conflicts, compared, conflicts_of, measured_by, measures_of
from .runs import FinishedRun
from .significance import Anova, anova, holm, welch


@dataclass(frozen=True, slots=True)
class TeacherCost:
    """One teacher of some runs. `seconds` is the time for all `rows` of its cache; without a cache,
    every run would have computed its own texts: `seconds_without` in all."""

    fingerprint: str
    teacher: str
    runs: int
    rows: int
    bytes: int
    seconds: float
    seconds_without: float
    training_seconds: float

    @property
    def seconds_saved(self) -> float:
        """Seconds saved by computing once; not below zero if the cache holds more than the runs
        read."""
        return max(0.0, self.seconds_without - self.seconds)


@dataclass(frozen=True, slots=True)
class Row:
    """A condition beside the one that it is measured by, if there is one: the undistilled one, or
    the reference of its study; improvements by seed. `p` is Welch's, corrected by Holm for all rows
    of a study. `measures` are other figures by name."""

    condition: Condition
    base: Condition | None
    improvement: Mapping[int, float]
    p: float | None
    measures: Mapping[str, Compared] = field(default_factory=dict)

    @property
    def gain(self) -> float | None:
        """The mean improvement over the seeds that both have."""
        return mean(self.improvement.values()) if self.improvement else None


@dataclass(frozen=True, slots=True)
class Study:
    """Conditions on the same data, judged by the same metric; `sweep` are those that differ in
    weights of the objective only; `anova` may be the reason why there is none. `measures` name
    figures that its rows have beside the metric. `reference` is what all are measured by, where
    that is no student without a teacher."""

    title: str
    metric: str
    rows: tuple[Row, ...]
    sweep: tuple[Row, ...]
    anova: Anova | str
    measures: tuple[str, ...] = ()
    conflicts: tuple[Conflicts, ...] = ()
    reference: Condition | None = None

    @property
    def conditions(self) -> list[Condition]:
        """Conditions of all rows."""
        return [row.condition for row in self.rows]

    @property
    def distilled(self) -> Row | None:
        """The most usual student with a teacher and without a control, if there is one."""
        return next((row for row in self.rows if row.condition.control == "none"), None)


@dataclass(frozen=True, slots=True)
class Findings:
    """All studies and all teachers; `unknown_costs` lists missing caches, `repeats` are runs that
    have the settings and the seed of another one, and are left out."""

    studies: tuple[Study, ...]
    costs: tuple[TeacherCost, ...]
    unknown_costs: tuple[str, ...]
    repeats: tuple[FinishedRun, ...]

    def document(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "studies": [_document(study) for study in self.studies],
            "repeats": [str(run.folder) for run in self.repeats],
            "costs": [asdict(cost) | {"seconds_saved": cost.seconds_saved} for cost in self.costs],
        }


def find(
    runs: Sequence[FinishedRun],
    cache: Path | None = None,
    from_afar: bool = False,
    measures: Sequence[str] | None = None,
) -> Findings:
    """Group and compare finished runs, and compute the cost of teachers: `cache` replaces the one
    that runs name; one at a URL is opened only if `from_afar`. `measures` are compared beside the
    metric; default those that all runs of a study have."""
    first: dict[str, FinishedRun] = {}
    for run in runs:
        first.setdefault(f"{run.seed} {run.metric} {run.settings}", run)
    counted = list(first.values())
    studies: dict[tuple[str, ...], list[FinishedRun]] = defaultdict(list)
    for run in counted:
        studies[_measured_by(run)].append(run)
    repeats = tuple(run for run in runs if run not in counted)
    costs, unknown = _teacher_costs(counted, cache, from_afar)
    found = tuple(_study(each, measures) for each in studies.values())
    return Findings(found, tuple(costs), tuple(unknown), repeats)


def _measured_by(run: FinishedRun) -> tuple[str, ...]:
    """Data and metric; the loss of another objective, or by another distance, is another metric,
    but for language models, which are judged by the cross entropy of words whatever they learn
    by; and so is a measure by another teacher, or of tokens under other masks."""
    masked = run.job.task == "masked_language"
    masks = [run.job.masks.model_dump_json(exclude={"masks_per_text"})] if masked else []
    data = (str(run.settings["train"]), str(run.settings["validation"]), run.metric, *masks)
    if (teacher := measured_by(run, run.metric)) is not None:
        return (*data, *map(str, teacher))
    if run.metric != "loss" or run.job.of_tokens:
        return data
    return (
        *data,
        *(f"{keys.name} {keys.options.get('distance')}" for keys in run.job.all_objectives),
    )


def _study(runs: Sequence[FinishedRun], chosen: Sequence[str] | None) -> Study:
    found = conditions(runs)
    common = reference(found)
    bases = [
        baseline(each, found) if common is None else common if each is not common else None
        for each in found
    ]
    ps = holm([_p(*pair) for pair in zip(found, bases, strict=True)])
    first = runs[0]
    names = measures_of(found, first.metric, chosen)
    by_name = {name: compared(name, found, bases) for name in names}
    rows = [
        Row(
            each,
            base,
            improvements(each, base) if base else {},
            p,
            {name: by_name[name][number] for name in names},
        )
        for number, (each, base, p) in enumerate(zip(found, bases, ps, strict=True))
    ]
    sweep = _sweep(rows)
    runs_of_sweep = [run for row in sweep for run in row.condition.runs if run.value is not None]
    values = [run.value or 0.0 for run in runs_of_sweep]
    effects = anova(values, [run.weights for run in runs_of_sweep])
    return Study(
        title=_title(first.job),
        metric=first.metric,
        rows=tuple(rows),
        sweep=sweep,
        anova=effects,
        measures=names,
        conflicts=conflicts_of(found),
        reference=common,
    )


def _title(job: DistillJob) -> str:
    train, validation = (
        " + ".join("/".join(Path(source.partition("?")[0]).parts[-2:]) for source in sources)
        for sources in (job.train, job.validation)
    )
    return f"{train}, validated on {validation}" if validation else train


def _p(condition: Condition, base: Condition | None) -> float | None:
    return None if base is None else welch(condition.values, base.values)


def _sweep(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The distilled students that differ in alpha, beta and gamma only: the most there are."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.condition.control == "none" and row.condition.first.weights:
            groups[str(row.condition.first.other_settings)].append(row)
    largest: list[Row] = max(groups.values(), key=len, default=[])
    return tuple(largest)


def _document(study: Study) -> dict[str, Any]:
    return {
        "title": study.title,
        "metric": study.metric,
        "reference": study.reference.name if study.reference else None,
        "conditions": [_line(row) for row in study.rows],
        "anova": asdict(study.anova) if isinstance(study.anova, Anova) else study.anova,
        "teacher_conflicts": [
            {"conditions": list(each.conditions), **each.figures.model_dump()}
            for each in study.conflicts
        ],
    }


def _line(row: Row) -> dict[str, Any]:
    return {
        "name": row.condition.name,
        "control": row.condition.control,
        "seeds": [run.seed for run in row.condition.runs],
        "value": row.condition.figure(row.condition.first.metric),
        "undistilled": row.base.name if row.base and not row.base.first.distilled else None,
        "improvement": _spread(row.improvement),
        "p": row.p,
        "measures": {
            name: {"value": each.value, "improvement": _spread(each.improvement), "p": each.p}
            for name, each in row.measures.items()
        },
        "hacking": {each.measure: each.document() for each in distances(row.condition)},
    }


def _spread(improvement: Mapping[int, float]) -> dict[str, Any] | None:
    return spread(list(improvement.values())) if improvement else None


def _teacher_costs(
    runs: Sequence[FinishedRun], cache: Path | None, from_afar: bool
) -> tuple[list[TeacherCost], list[str]]:
    """Costs of every teacher whose cache is available, and messages about the others."""
    groups: dict[str, list[FinishedRun]] = defaultdict(list)
    for run in runs:
        for fingerprint in run.provenance.fingerprints if run.distilled else ():
            groups[fingerprint].append(run)
    costs, missing = [], []
    for fingerprint, group in groups.items():
        try:
            costs.append(_cost(_teacher_summary(fingerprint, group[0], cache, from_afar), group))
        except (ArmadaError, OSError) as error:
            missing.append(f"teacher {fingerprint[:12]}: its cost is not known: {error}")
    return costs, missing


def _cost(teacher: TeacherSummary, runs: Sequence[FinishedRun]) -> TeacherCost:
    a_text = teacher.teacher_seconds / max(teacher.rows, 1)
    texts = sum(min(run.metrics.train_examples, teacher.rows) for run in runs)
    return TeacherCost(
        fingerprint=teacher.fingerprint,
        teacher=f"{teacher.kind}:{Path(teacher.name).name}",
        runs=len(runs),
        rows=teacher.rows,
        bytes=teacher.bytes,
        seconds=teacher.teacher_seconds,
        seconds_without=a_text * texts,
        training_seconds=sum(run.metrics.train_seconds for run in runs),
    )


def _teacher_summary(
    fingerprint: str, run: FinishedRun, cache: Path | None, from_afar: bool
) -> TeacherSummary:
    locations = {
        str(keys.cache) for keys in run.readable_job(cache, from_afar).all_teachers.values()
    }
    for location in sorted(locations):
        for teacher in summarise(location):
            if teacher.fingerprint == fingerprint:
                return teacher
    raise CacheError(f"cache {', '.join(sorted(locations))}: does not hold it")
