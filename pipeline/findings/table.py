"""Findings as tables on a terminal of any width."""

import sys
from statistics import mean
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...cache_schemas.errors import one_line
from ..messages import counted, duration, size
from .documents import TeacherConflicts
from .findings import Findings, Row, Study, TeacherCost
from .hacking import by_measure, hacking_told
from .measures import Compared, Conflicts
from .significance import Anova

CONFLICT_COLUMNS = ("teachers", "same class", "KL", "reverse KL", "total variation", "accuracy")
"""KL is from the first teacher to the second, in nats; accuracy is by the labels, of each."""

_NARROW = 72
_WIDE = 200
"""Width of output that is not a terminal: a name must never be truncated there."""


def show_findings(findings: Findings, console: Console | None = None) -> None:
    """Print all studies and costs to a console; default standard output."""
    console = console or Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False)
    for study in findings.studies:
        if console.width < _NARROW:
            _print_lines(console, study)
        else:
            console.print(_conditions(study))
            if study.measures:
                console.print(_measures(study))
        if (told := compared_with(study)) is not None:
            console.print(escape(told))
        _print_conflicts(console, study)
        for line in hacking_lines(study):
            console.print(escape(line))
        if isinstance(study.anova, Anova):
            console.print(_effects(study.anova))
        elif len(study.sweep) > 1:
            console.print(f"no analysis of variance: {study.anova}")
    for line in [*map(cost_line, findings.costs), *findings.unknown_costs]:
        console.print(escape(one_line(line)))


def _print_conflicts(console: Console, study: Study) -> None:
    for conflicts in study.conflicts:
        for title, columns, rows in conflict_tables(conflicts):
            table = _table(title, *columns)
            for row in rows:
                table.add_row(*map(escape, row))
            console.print(table)


def _print_lines(console: Console, study: Study) -> None:
    """Two lines for each condition, where a table would be letters below letters; and one for each
    measure beside the metric."""
    console.print(escape(one_line(study.title)))
    for row in study.rows:
        name, value, better, p, runs = map(escape, cells(row))
        console.print(f"{name}\n  {value}, {counted(int(runs), 'run')}", end="")
        console.print(f", {better}, p {p}" if row.improvement else "")
        for measure, cell in zip(study.measures, measured(study, row), strict=True):
            console.print(escape(f"  {measure} {cell}"))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def _conditions(study: Study) -> Table:
    table = _table(
        escape(one_line(study.title)), "student", study.metric, "improvement", "p", "runs"
    )
    for row in study.rows:
        table.add_row(*map(escape, cells(row)))
    return table


def cells(row: Row) -> tuple[str, str, str, str, str]:
    """Name, metric, improvement, p and number of runs, as text."""
    condition = row.condition
    value = figure(condition.figure(condition.first.metric))
    gain = "-" if row.gain is None else f"{row.gain:+.3f}"
    return condition.name, value, gain, p_value(row.p), str(len(condition.runs))


def compared_with(study: Study) -> str | None:
    """What improvements are over, where that is no student without a teacher."""
    if study.reference is None or len(study.rows) == 1:
        return None
    return f"improvement: over {study.reference.name}, on the seeds that both have"


def _measures(study: Study) -> Table:
    table = _table("beside it: mean ± deviation (improvement, p)", "student", *study.measures)
    for row in study.rows:
        table.add_row(*map(escape, (row.condition.name, *measured(study, row))))
    return table


def measured(study: Study, row: Row) -> list[str]:
    """Each measure of a row as text, in brackets its improvement and p."""
    return [_compared(row.measures[name]) for name in study.measures]


def _compared(found: Compared) -> str:
    gain = change(found)
    return f"{figure(found.value)} ({gain})" if gain else figure(found.value)


def change(found: Compared) -> str:
    """Improvement of a measure, and p; empty without an undistilled student to compare with."""
    if not found.improvement:
        return ""
    p = "" if found.p is None else f", p {p_value(found.p)}"
    return f"{mean(found.improvement.values()):+.3f}{p}"


def hacking_lines(study: Study) -> list[str]:
    """A sentence for each teacher that some run comes nearer to while it goes away from the
    truth."""
    told = map(hacking_told, by_measure(study.conditions).values())
    return [line for line in told if line is not None]


ConflictTable = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
"""Title, columns and rows of a table, as text."""


def conflict_tables(found: Conflicts) -> list[ConflictTable]:
    """Tables of pairs of teachers: of their classes, and of their features."""
    tables: list[ConflictTable] = []
    classes, features = found.figures, found.figures.features
    if classes.pairs:
        title = f"conflicts between teachers on {classes.rows:,} training texts"
        tables.append((title, CONFLICT_COLUMNS, _class_pairs(classes)))
    if features is not None:
        rows = [(_named(each.teachers), f"{each.cka:.3f}") for each in features.pairs]
        title = f"likeness of teachers' features on {features.rows:,} training texts"
        tables.append((title, ("teachers", "CKA"), list(rows)))
    return tables


def _named(teachers: tuple[str, str]) -> str:
    return one_line(" / ".join(teachers))


def _class_pairs(found: TeacherConflicts) -> list[tuple[str, ...]]:
    return [
        (
            _named(pair.teachers),
            f"{pair.agreement:.1%}",
            f"{pair.kl:.3f}",
            f"{pair.reverse_kl:.3f}",
            f"{pair.total_variation:.3f}",
            " / ".join(_share(found.accuracy.get(name)) for name in pair.teachers),
        )
        for pair in found.pairs
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def figure(value: dict[str, Any] | None) -> str:
    """Mean and standard deviation, if there are several runs; a dash for nothing."""
    if not value:
        return "-"
    spread = f" ± {value['std']:.3f}" if len(value["runs"]) > 1 else ""
    return f"{value['mean']:.3f}{spread}"


def p_value(p: float | None) -> str:
    """Three digits, or that it is smaller."""
    if p is None:
        return "-"
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _effects(found: Anova) -> Table:
    title = f"two-way ANOVA of {counted(found.runs, 'run')}"
    table = _table(title, "weight", "df", "F", "p", "partial η²")
    for effect in found.effects:
        row = (f"{effect.f:.2f}", p_value(effect.p), f"{effect.partial_eta2:.3f}")
        table.add_row(effect.term, str(effect.df), *row)
    return table


def cost_line(cost: TeacherCost) -> str:
    """One line about the cost of a teacher."""
    return (
        f"teacher {cost.teacher} ({cost.fingerprint[:12]}): {duration(cost.seconds)} paid once for "
        f"{cost.rows} texts, {size(cost.bytes)}; without the cache, {counted(cost.runs, 'run')} "
        f"would have cost {duration(cost.seconds_without)}"
    )
