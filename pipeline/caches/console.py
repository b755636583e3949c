"""Results of `armada cache`, on standard output: lines or a table for people, JSON for programs.

Commands are not imported here: listing a cache needs no code for exports.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...cache_schemas.errors import one_line
from ..console import show_json
from ..messages import counted, duration, size, warn, warn_skipped

if TYPE_CHECKING:
    from ...stages.store.upkeep.merge import Merged
    from ...stages.store.upkeep.repair import Action, Step
    from ...stages.store.upkeep.survey import Damage
    from ...stages.store.upkeep.verify import Verification
    from .derive import DerivedTeacher
    from .export import Exported
    from .imports import Imported
    from .sharing import Shared, SharedTeacher
    from .summary import TeacherSummary
    from .upkeep import Collected, RepairReport, VerifyReport


def show_teachers(teachers: "Sequence[TeacherSummary]", as_json: bool) -> None:
    """The teachers of a cache."""
    if as_json:
        show_json(list(teachers))
        return
    table = Table("teacher", "kind", "source", "features", "rows", "shards", "size", "cost")
    for teacher in teachers:
        features = ", ".join(f"{name} {kind}" for name, kind in teacher.features.items())
        if teacher.missing:
            features = f"{features} (not here: {', '.join(teacher.missing)})".lstrip()
        added = f", added to {teacher.extends[:12]}" if teacher.extends else ""
        table.add_row(
            teacher.fingerprint[:12],
            escape(one_line(teacher.kind)) + added,
            escape(one_line(", ".join(filter(None, (teacher.name, teacher.apart))))),
            escape(features),
            str(teacher.rows),
            str(teacher.shards),
            size(teacher.bytes),
            duration(teacher.teacher_seconds)
            + (f", {teacher.request_cost:.4g} paid" if teacher.request_cost else ""),
        )
    # A pipe has no width: a fingerprint must never be truncated.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def show_merge(merged: "Sequence[Merged]", as_json: bool) -> None:
    """Print the result of a merge, a line per teacher."""
    if as_json:
        show_json(list(merged))
        return
    for teacher in merged:
        print(
            f"teacher {teacher.fingerprint[:12]} ({teacher.kind}:{teacher.name}): {teacher.copied} "
            f"of {teacher.rows} rows copied into {counted(teacher.shards, 'shard')}, "
            f"{teacher.already_there} already there; {duration(teacher.teacher_seconds)} of "
            "teacher time recorded"
        )


def show_export(exported: "Exported", as_json: bool) -> None:
    """Print the result of an export."""
    warn_skipped(exported.skipped)
    if as_json:
        show_json(exported)
        return
    print(
        f"{exported.rows} rows of {', '.join(exported.features)} (teacher {exported.teacher[:12]}) "
        f"in {exported.files} files, {size(exported.bytes)}"
    )
    print(f"written to {exported.output}")


def show_import(imported: "Imported", as_json: bool) -> None:
    """Print the result of an import."""
    warn_skipped(imported.skipped)
    if imported.repeated:
        warn(f"{imported.repeated} rows repeat the text of another row and share its features")
    if imported.unused:
        warn(f"{imported.unused} of the features match no row of the corpus")
    if as_json:
        show_json(imported)
        return
    print(
        f"{imported.rows} rows; {imported.already_cached} already cached, {imported.imported} "
        f"imported as {imported.feature}"
    )
    print(f"teacher {imported.fingerprint}")


def show_derived(derived: "DerivedTeacher", as_json: bool) -> None:
    """Print a derived teacher, with figures about its statistics."""
    warn_skipped(derived.skipped)
    if derived.unlabelled:
        warn(f"{derived.unlabelled} texts have no label, and so no row")
    if as_json:
        show_json(derived)
        return
    of_table = f" and {derived.table} of statistics" if derived.table else ""
    print(
        f"{derived.texts} rows of texts{of_table}; {derived.already_cached} already cached, "
        f"{derived.written} written: {', '.join(derived.features)}"
    )
    for name, value in derived.found.items():
        print(f"{name.replace('_', ' ')}: {value}")
    print(f"teacher {derived.fingerprint}")


def show_verify(report: "VerifyReport", as_json: bool) -> None:
    """One line for each damage, then a summary."""
    if as_json:
        show_json(_verify_document(report))
        return
    for damage in report.found.damages:
        print(f"damaged: {damage}")
    for line in _verified(report):
        print(line)


def _verified(report: "VerifyReport") -> Iterator[str]:
    found = report.found
    parts = [counted(found.teachers, "teacher"), counted(found.shards, "shard")]
    parts += [counted(found.rows, "row"), counted(found.files, "file"), size(found.bytes)]
    yield ", ".join(parts)
    yield _how_much(found)
    if found.leftovers or found.in_the_making:
        yield (
            f"{counted(found.leftovers, 'file')} without a commit, "
            f"{counted(found.in_the_making, 'shard')} in the making: no damage; `armada cache gc` "
            "removes files left by dead writers"
        )
    yield from _verdict(report)


def _how_much(found: "Verification") -> str:
    rate = f"{duration(found.seconds)}, {size(found.read_bytes / max(found.seconds, 1e-9))}/s"
    if found.read_shards == found.shards:
        return f"all files read and checked ({rate})"
    if found.read_shards == 0:
        return f"file sizes checked, contents not read ({duration(found.seconds)})"
    read = f"{counted(found.read_shards, 'shard')} read and compared"
    return f"{read} ({size(found.read_bytes)}, {rate}), of the others the sizes"


def _verdict(report: "VerifyReport") -> Iterator[str]:
    digest = report.found.digest
    yield f"digest {digest or 'unknown: not all documents can be read'}"
    if report.expected not in (None, digest):
        yield f"digest mismatch: expected {report.expected}"
    damages = report.found.damages
    if damages:
        shards = sum(damage.kind == "shard" for damage in damages)
        yield (
            f"damaged: {counted(shards, 'shard')}, {counted(len(damages) - shards, 'document')}; "
            "`armada cache repair` drops damaged shards, so that they can be computed again"
        )
    elif report.whole:
        yield "whole"


def _verify_document(report: "VerifyReport") -> dict[str, Any]:
    """The report as plain data."""
    return {
        "whole": report.whole,
        "expected_digest": report.expected,
        **asdict(report.found),
        "damages": [_damage_document(damage, report.path) for damage in report.found.damages],
    }


def _damage_document(damage: "Damage", path: Path) -> dict[str, Any]:
    return asdict(damage) | {"file": damage.file.relative_to(path).as_posix()}


def show_repair(report: "RepairReport", as_json: bool) -> None:
    """One line for each damage and what was done about it, then what to run."""
    if as_json:
        show_json(_repair_document(report))
        return
    for step in report.steps:
        done = f"would be {_DONE[step.action]}" if report.dry_run else _DONE[step.action]
        remedy = f"; {step.remedy}" if step.remedy else ""
        print(f"{done}: {step.damage}{remedy}")
    for line in _repaired(report):
        print(line)


def _repaired(report: "RepairReport") -> Iterator[str]:
    if not report.steps:
        yield "whole; nothing to repair"
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


def _repair_document(report: "RepairReport") -> dict[str, Any]:
    return {
        "repaired": report.repaired,
        "dry_run": report.dry_run,
        "dropped_rows": report.dropped_rows,
        "recompute": report.recompute,
        "steps": [_step_document(step, report.path) for step in report.steps],
    }


def _step_document(step: "Step", path: Path) -> dict[str, Any]:
    damage = asdict(step.damage)
    damage.pop("file")
    return {
        "action": step.action,
        "damage": damage,
        "rows": step.rows,
        "remedy": step.remedy,
        "file": step.damage.file.relative_to(path).as_posix(),
    }


def show_gc(collected: "Collected", as_json: bool) -> None:
    """One line for people, or all paths for programs."""
    if as_json:
        show_json(collected)
        return
    verb = "would remove" if collected.dry_run else "removed"
    print(f"{verb} {len(collected.paths)} files left by dead writers, {size(collected.bytes)}")


def show_shared(shared: "Shared", verb: str, as_json: bool) -> None:
    """Print the result of a transfer; `verb` is 'pushed' or 'pulled'."""
    warn_skipped(shared.skipped)
    for teacher in shared.teachers:
        _warn_missing(shared, teacher)
    if as_json:
        show_json(shared)
        return
    for teacher in shared.teachers:
        print(
            f"teacher {teacher.fingerprint[:12]} ({teacher.kind}:{teacher.name}): "
            f"{counted(teacher.shards, 'shard')} ({counted(teacher.files, 'file')}, "
            f"{size(teacher.bytes)}) {'to be ' if shared.dry_run else ''}{verb}, "
            f"{teacher.already_there} already there; features: "
            f"{', '.join(teacher.features) or 'none'}"
        )
    total = sum(teacher.bytes for teacher in shared.teachers)
    if total and not shared.dry_run:
        rate = f"{size(total / max(shared.seconds, 1e-9))}/s"
        print(f"{size(total)} in {duration(shared.seconds)}, {rate}")
    if shared.digest:
        print(f"{shared.location} has digest {shared.digest}")


def _warn_missing(shared: "Shared", teacher: "SharedTeacher") -> None:
    if teacher.texts is not None and shared.texts is not None and teacher.texts < shared.texts:
        warn(
            f"teacher {teacher.fingerprint[:12]} has features of {teacher.texts} of the "
            f"{shared.texts} texts of the corpus at {shared.location}"
        )


_DONE: "dict[Action, str]" = {
    "drop": "dropped",
    "rebuild": "written anew",
    "remove": "removed",
    "set aside": "set aside",
    "leave": "left as it is",
}
