"""One self-contained HTML page of findings and plots: no script, no link, nothing that is
fetched."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...cache_schemas.errors import one_line
from ..findings.conditions import Condition
from ..findings.findings import Findings, Row, Study
from ..findings.hacking import TRUTH
from ..findings.runs import FinishedRun, Found
from ..findings.significance import Anova
from ..findings.table import (
    cells,
    change,
    conflict_tables,
    figure,
    hacking_lines,
    p_value,
)
from ..messages import counted, duration, size
from ..run_folder import spread
from .drawing import Picture
from .gallery import Gallery
from .job import MARK
from .looks import Agreement, Looks, StudentLook
from .tradeoff import Costs


@dataclass(frozen=True, slots=True)
class Section:
    """One study with its plots; `notes` name students without plots, and why."""

    study: Study
    pictures: tuple[Picture, ...]
    looks: Looks | None
    notes: tuple[str, ...]
    costs: Costs | None = None

    @property
    def is_anova(self) -> bool:
        """Whether there is a table of effects."""
        return isinstance(self.study.anova, Anova)

    @property
    def headline(self) -> str | None:
        """Distilled against undistilled, in one sentence."""
        row = self.study.distilled
        if row is None or row.base is None or not row.improvement:
            return None
        return _headline(self.study, row, row.base)

    @property
    def has_baseline(self) -> bool:
        """Whether any student is measured by another."""
        return any(row.base for row in self.study.rows)

    @property
    def epochs(self) -> dict[str, list[tuple[str, list[str]]]]:
        """For each measure after each epoch: epochs, and the mean of each condition, as text."""
        names = (self.study.metric, TRUTH, *self.study.measures)
        tables = {name: _by_epoch(self.study, name) for name in dict.fromkeys(names)}
        return {name: rows for name, rows in tables.items() if len(rows) > 1}

    @property
    def has_validation(self) -> bool:
        """Whether any student was measured."""
        return any(run.value is not None for row in self.study.rows for run in row.condition.runs)

    def look_of(self, condition: Condition) -> StudentLook | None:
        """Plots of the student of a condition."""
        students = self.looks.students if self.looks else ()
        return next((each for each in students if each.condition is condition), None)


def _headline(study: Study, row: Row, base: Condition) -> str:
    """On the seeds that both have."""
    gain = row.gain or 0.0
    with_teacher, without = (
        figure(spread([condition.by_seed[seed] for seed in row.improvement]))
        for condition in (row.condition, base)
    )
    return (
        f"{study.metric} {with_teacher} with the teacher ({row.condition.name}), {without} without "
        f"({base.name}): {'better' if gain > 0 else 'worse' if gain < 0 else 'no different'} by "
        f"{abs(gain):.3f} ({counted(len(row.improvement), 'seed')})"
    )


def _by_epoch(study: Study, name: str) -> list[tuple[str, list[str]]]:
    curves = [{each.epoch: each.mean for each in c.curve(name)} for c in study.conditions]
    epochs = sorted(set().union(*curves))
    return [
        (f"{epoch:g}", [f"{curve[epoch]:.3f}" if epoch in curve else "-" for curve in curves])
        for epoch in epochs
    ]


def render(
    title: str,
    findings: Findings,
    sections: list[Section],
    found: Found,
    gallery: Gallery | None,
    left_out: Sequence[str],
) -> str:
    """The page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_on_one_line,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "base64": lambda data: Markup(base64.b64encode(data).decode("ascii")),
        "agreement": _agreement,
        "duration": duration,
        "size": size,
        "p": p_value,
        "figure": figure,
    }
    return environment.get_template("page.html").render(
        title=title,
        mark=MARK,
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        counts=f"{counted(len(found.runs), 'run')}",
        findings=findings,
        sections=sections,
        left_out=left_out,
        gallery=gallery,
        cells=cells,
        change=change,
        conflict_tables=conflict_tables,
        hacking_lines=hacking_lines,
        jobs=_jobs,
        runs=found.runs,
        environment=_environment_of(found.runs),
    )


def _on_one_line(value: object) -> object:
    """Names and paths may come from strangers; only our own markup is marked as safe."""
    return one_line(str(value)) if type(value) is str or isinstance(value, Path) else value


def _agreement(look: StudentLook | None, kind: Agreement) -> str:
    if look is None or look.agreement is None:
        return "-"
    return f"r = {look.agreement:.2f}" if kind == "correlation" else f"{look.agreement:.1%}"


def _jobs(study: Study) -> dict[str, Any]:
    """Keys that all runs of a study have in common, but for empty ones."""
    settings = [run.job.model_dump(mode="json") for row in study.rows for run in row.condition.runs]
    first = settings[0]
    return {
        key: value
        for key, value in first.items()
        if value not in (None, [], False) and all(each.get(key) == value for each in settings)
    }


def _environment_of(runs: Sequence[FinishedRun]) -> dict[str, str]:
    """Versions and hardware, with all that there were."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, value in (run.provenance.hardware | run.provenance.versions).items():
            found.setdefault(name, {})[value] = None
    return {name: ", ".join(values) for name, values in found.items()}
