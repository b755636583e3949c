"""`armada cache repair`: drop what is damaged, so that the next `precompute` makes it again."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...cache_schemas.errors import one_line
from ...stages.store.upkeep.repair import Action, Step, carry_out, plan_repair
from ...stages.store.upkeep.survey import CacheSurvey, survey_cache
from ...stages.store.upkeep.verify import shards_of, verify
from ..messages import CountProgress, counted
from ..show import show_json

DONE: dict[Action, str] = {
    "drop": "dropped",
    "rebuild": "written anew",
    "remove": "removed",
    "set aside": "set aside",
    "leave": "left as it is",
}


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What was done, or would be; `recompute` says how dropped answers come back."""

    path: Path
    steps: tuple[Step, ...]
    recompute: tuple[str, ...]
    dry_run: bool

    @property
    def repaired(self) -> bool:
        """Whether nothing but computing dropped rows is left to people."""
        return not any(step.remedy for step in self.steps)

    @property
    def dropped_rows(self) -> int:
        """Rows of the dropped shards, as far as their records could be read."""
        return sum(step.rows or 0 for step in self.steps if step.action == "drop")


def run_repair(
    path: Path, teacher: str | None = None, dry_run: bool = False, quiet: bool = False
) -> RepairReport:
    """Verify a cache, or one teacher of it, and drop or rebuild what is damaged.

    Raises CacheError if another tool re-wrote a feature, StorageError if the disk refuses."""
    survey = survey_cache(path)
    total = len(shards_of(survey, teacher))
    with CountProgress("verify", "shards", total, quiet) as progress:
        damages = verify(survey, teacher, advance=progress.advance).damages
    steps = plan_repair(survey, damages)
    if not dry_run:
        steps = carry_out(path, steps)
    return RepairReport(path, tuple(steps), tuple(_recompute(survey, steps)), dry_run)


def _recompute(survey: CacheSurvey, steps: Sequence[Step]) -> Iterator[str]:
    """For each teacher that loses shards, what it was asked with and about."""
    losing = {step.damage.teacher for step in steps if step.action == "drop"}
    for teacher in survey.teachers:
        if teacher.folder.name in losing and teacher.manifest is not None:
            spec = teacher.manifest.spec
            corpora = sorted({corpus.name for run in teacher.runs for corpus in run.corpora})
            asked = f" (it was asked about {', '.join(corpora)})" if corpora else ""
            yield one_line(f"{spec.kind}:{spec.name}{asked}")


def show_repair(report: RepairReport, as_json: bool) -> None:
    """One line for each damage and what was done about it, then what to run."""
    if as_json:
        show_json(_as_document(report))
        return
    for step in report.steps:
        done = f"would be {DONE[step.action]}" if report.dry_run else DONE[step.action]
        remedy = f"; {step.remedy}" if step.remedy else ""
        print(f"{done}: {step.damage}{remedy}")
    for line in _summary(report):
        print(line)


def _summary(report: RepairReport) -> Iterator[str]:
    if not report.steps:
        yield "whole; there is nothing to repair"
        return
    dropped = [step for step in report.steps if step.action == "drop"]
    if dropped:
        unknown = " and those of unreadable records" if any(s.rows is None for s in dropped) else ""
        yield f"{counted(len(dropped), 'shard')}, {counted(report.dropped_rows, 'row')}{unknown}"
    if report.dry_run:
        yield "nothing was changed"
    elif dropped:
        yield "run `armada precompute` as before, or `armada cache pull`, to have them back:"
        yield from (f"  teacher {teacher}" for teacher in report.recompute)


def _as_document(report: RepairReport) -> dict[str, Any]:
    return {
        "repaired": report.repaired,
        "dry_run": report.dry_run,
        "dropped_rows": report.dropped_rows,
        "recompute": report.recompute,
        "steps": [_step_as_document(step, report.path) for step in report.steps],
    }


def _step_as_document(step: Step, path: Path) -> dict[str, Any]:
    damage = asdict(step.damage)
    damage.pop("file")
    return {
        "action": step.action,
        "damage": damage,
        "rows": step.rows,
        "remedy": step.remedy,
        "file": step.damage.file.relative_to(path).as_posix(),
    }
