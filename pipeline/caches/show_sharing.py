"""What was pushed or pulled: a line a teacher for people, or JSON for programs."""

from ..messages import counted, duration, size, warn, warn_skipped
from ..show import show_json
from .sharing import Shared, SharedTeacher


def show_shared(shared: Shared, verb: str, as_json: bool) -> None:
    """What went over; `verb` is 'pushed' or 'pulled'."""
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
            f"{size(teacher.bytes)}) "
            f"{'to be ' if shared.dry_run else ''}{verb}, {teacher.already_there} were there; "
            f"features: {', '.join(teacher.features) or 'none'}"
        )
    total = sum(teacher.bytes for teacher in shared.teachers)
    if total and not shared.dry_run:
        rate = f"{size(total / max(shared.seconds, 1e-9))}/s"
        print(f"{size(total)} in {duration(shared.seconds)}, {rate}")
    if shared.digest:
        print(f"{shared.place} has digest {shared.digest}")


def _warn_missing(shared: Shared, teacher: SharedTeacher) -> None:
    if teacher.texts is not None and shared.texts is not None and teacher.texts < shared.texts:
        warn(
            f"teacher {teacher.fingerprint[:12]} has answers to {teacher.texts} of the "
            f"{shared.texts} texts of the corpus at {shared.place}"
        )
