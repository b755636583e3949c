"""What was merged, exported or imported: a line or two for people, or JSON for programs."""

from collections.abc import Sequence

from ...stages.store.upkeep.merge import Merged
from ..messages import counted, duration, size, warn, warn_skipped
from ..show import show_json
from .export import Exported
from .imports import Imported


def show_merge(merged: Sequence[Merged], as_json: bool) -> None:
    """What became of each teacher."""
    if as_json:
        show_json(list(merged))
        return
    for teacher in merged:
        print(
            f"teacher {teacher.fingerprint[:12]} ({teacher.kind}:{teacher.name}): {teacher.copied} "
            f"of {teacher.rows} rows copied into {counted(teacher.shards, 'shard')}, "
            f"{teacher.already_there} "
            f"were there; {duration(teacher.teacher_seconds)} of teacher time came along"
        )


def show_export(exported: Exported, as_json: bool) -> None:
    """What was written."""
    warn_skipped(exported.skipped)
    if as_json:
        show_json(exported)
        return
    print(
        f"{exported.rows} rows of {', '.join(exported.features)} (teacher {exported.teacher[:12]}) "
        f"in {exported.files} files, {size(exported.bytes)}"
    )
    print(f"written to {exported.output}")


def show_import(imported: Imported, as_json: bool) -> None:
    """What was taken in."""
    warn_skipped(imported.skipped)
    if imported.repeated:
        warn(f"{imported.repeated} rows repeat the text of another, whose features they get")
    if imported.unused:
        warn(f"{imported.unused} of the features belong to no row of the corpus")
    if as_json:
        show_json(imported)
        return
    print(
        f"{imported.rows} rows; {imported.already_cached} were cached, "
        f"{imported.imported} imported as {imported.feature}"
    )
    print(f"teacher {imported.fingerprint}")
