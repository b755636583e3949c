"""`armada cache rm`: take a teacher and all its answers out of a cache."""

import sys
from dataclasses import dataclass
from pathlib import Path

from ...cache_schemas.errors import CacheError, JobError, OutputError, one_line
from ...cache_schemas.layout import numbered
from ...stages.store.files.lock import locked
from ...stages.store.files.own_files import size_of
from ...stages.store.files.plain_files import check_way, refuse_linked_folders
from ...stages.store.upkeep.survey import TeacherSurvey, survey_cache
from ...stages.store.writing.removal import drop_teacher
from ...stages.store.writing.reservations import Reservations
from ...stages.store.writing.staging import PATIENCE_S
from ..messages import counted, size


@dataclass(frozen=True, slots=True)
class Removal:
    """A teacher that is to go; `name` is for people."""

    path: Path
    fingerprint: str
    name: str
    rows: int
    bytes: int


def plan_removal(path: Path, teacher: str) -> Removal:
    """The teacher that a prefix means; one whose documents are damaged can be named, too.

    Raises CacheError if there is none or several of that name."""
    check_way(path / "teachers", path)
    matches = survey_cache(path).chosen(teacher)
    if len(matches) > 1:
        known = ", ".join(match.folder.name[:12] for match in matches)
        raise CacheError(f"teacher {teacher!r}: is the prefix of several teachers: {known}")
    return _removal(path, matches[0])


def _removal(path: Path, teacher: TeacherSurvey) -> Removal:
    spec = teacher.manifest.spec if teacher.manifest else None
    return Removal(
        path=path,
        fingerprint=teacher.folder.name,
        name=one_line(f"{spec.kind}:{spec.name}") if spec else "unknown",
        rows=sum(commit.rows for commit in teacher.commits),
        bytes=size_of(teacher.folder),
    )


def confirm(removal: Removal) -> None:
    """Ask on a terminal; raises JobError if nobody is there to answer, or the answer is no."""
    what = (
        f"teacher {removal.fingerprint[:12]} ({removal.name}), {removal.rows} rows, "
        f"{size(removal.bytes)}"
    )
    if not sys.stdin.isatty():
        raise JobError(f"{what}: nobody is there to be asked; say --yes to remove it")
    print(f"remove {what}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise JobError(f"{what}: kept")


def carry_out(removal: Removal, force: bool = False) -> None:
    """Remove the teacher; raises OutputError if a writer is at work on it, unless forced."""
    folder = removal.path / "teachers" / removal.fingerprint
    refuse_linked_folders(folder, removal.path)
    with locked(removal.path):
        living, _ = Reservations(folder, PATIENCE_S).judged()
        if living and not force:
            shards = len(numbered(living))
            what = f"{counted(shards, 'shard')} in the making" if shards else "shards are arriving"
            raise OutputError(
                f"teacher {removal.fingerprint[:12]}: {what}; wait for the processes that are at "
                "it, or say --force if their machine is gone"
            )
        drop_teacher(removal.path, removal.fingerprint)
