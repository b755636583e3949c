"""Looking after a cache: `armada cache verify`, `repair`, `merge`, `rm` and `gc`.

Each decides which teachers and folders are meant; `stages/store/upkeep` does the work.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...cache_schemas.errors import CacheError, JobError, OutputError, one_line
from ...cache_schemas.layout import numbered
from ...cache_schemas.manifest import TeacherManifest
from ...stages.store.files.lock import locked
from ...stages.store.files.own_files import size_of
from ...stages.store.files.plain_files import check_way, refuse_linked_folders
from ...stages.store.format.manifests import (
    check_cache,
    choose_teacher,
    list_teachers,
    read_commits,
)
from ...stages.store.transfer.location import is_local, local_path
from ...stages.store.upkeep.merge import Merged, merge_teacher
from ...stages.store.upkeep.repair import Step, carry_out, leftovers, plan_repair, remove_leftovers
from ...stages.store.upkeep.survey import CacheSurvey, TeacherSurvey, survey_cache
from ...stages.store.upkeep.verify import Verification, shards_of, verify
from ...stages.store.writing.reservations import PATIENCE_S, Reservations
from ...stages.store.writing.teacher_folder import drop_teacher, is_new, refuse_mirror
from ..jobs import refuse_url
from ..messages import CountProgress, counted, say_that_it_waits, size
from ..signals import telling_what_is_kept

Teachers = dict[str, TeacherManifest]
"""Teachers by fingerprint."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Result of a check; `expected` is the expected digest, if one was given."""

    path: Path
    found: Verification
    expected: str | None

    @property
    def whole(self) -> bool:
        """Whether nothing is damaged and the cache is the expected one."""
        return not self.found.damages and self.expected in (None, self.found.digest)


def run_verify(
    path: Path,
    teacher: str | None = None,
    *,
    sample: int | None = None,
    quick: bool = False,
    seed: int | None = None,
    expect_digest: str | None = None,
    quiet: bool = False,
) -> VerifyReport:
    """Check a cache, or one teacher of it: all shards in full, a sample of them, or sizes only."""
    if quick and sample is not None:
        raise JobError("--quick and --sample: --quick reads no shard; give only one of them")
    if expect_digest is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", expect_digest):
        raise JobError(f"--expect-digest {expect_digest}: is not 64 hexadecimal digits")
    survey = survey_cache(path)
    total = len(shards_of(survey, teacher))
    with CountProgress("verify", "shards", total, quiet) as progress:
        found = verify(survey, teacher, 0 if quick else sample, seed, progress.advance)
    return VerifyReport(path, found, expect_digest and expect_digest.lower())


@dataclass(frozen=True, slots=True)
class RepairReport:
    """Result of a repair, or of its dry run; `recompute` describes how to restore dropped
    features."""

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
    """Verify a cache, or one teacher of it, and drop or rebuild damaged parts.

    Raises CacheError if another tool re-wrote a feature, StorageError if the disk fails."""
    survey = survey_cache(path)
    total = len(shards_of(survey, teacher))
    with CountProgress("verify", "shards", total, quiet) as progress:
        damages = verify(survey, teacher, advance=progress.advance).damages
    steps = plan_repair(survey, damages)
    if not dry_run:
        steps = carry_out(path, steps)
    return RepairReport(path, tuple(steps), tuple(_recompute(survey, steps)), dry_run)


def _recompute(survey: CacheSurvey, steps: Sequence[Step]) -> Iterator[str]:
    """Teacher and corpora to recompute, for each teacher that loses shards."""
    losing = {step.damage.teacher for step in steps if step.action == "drop"}
    for teacher in survey.teachers:
        if teacher.folder.name in losing and teacher.manifest is not None:
            spec = teacher.manifest.spec
            corpora = sorted({corpus.name for run in teacher.runs for corpus in run.corpora})
            corpora_of = f" (computed for {', '.join(corpora)})" if corpora else ""
            yield one_line(f"{spec.kind}:{spec.name}{corpora_of}")


@telling_what_is_kept(lambda: "copied shards are kept; run the same command to continue")
def merge_caches(
    path: Path, sources: Sequence[str | Path], teacher: str | None = None, quiet: bool = False
) -> list[Merged]:
    """Copy the rows that the cache at `path` lacks from `sources`, in their order.

    `teacher` is a fingerprint, or a prefix, of the one to copy, along with features that were added
    to it; all are copied if it is left out. `path` is created if missing. Raises JobError for a
    source that is a URL, CacheError for one that is not a cache, is empty, or is the
    destination."""
    folders = [_local(str(source)) for source in sources]
    for folder in folders:
        _refuse_itself(path, folder)
    here = {} if is_new(path) else _teachers(path)
    held = [(folder, _teachers(folder)) for folder in folders]
    offered: Teachers = {}
    for _, teachers in held:
        offered |= {name: of for name, of in teachers.items() if name not in offered}
    return [
        _merge(
            path,
            here.get(fingerprint, manifest),
            [(source, its[fingerprint]) for source, its in held if fingerprint in its],
            quiet,
        )
        for fingerprint, manifest in _wanted(folders, offered, teacher).items()
    ]


def _local(source: str) -> Path:
    return refuse_url(local_path(source) if is_local(source) else Path(source), "source")


def _refuse_itself(path: Path, source: Path) -> None:
    if path.resolve() == source.resolve():
        raise CacheError(f"source {source}: is the destination itself; name another cache")


def _teachers(path: Path) -> Teachers:
    return {manifest.fingerprint: manifest for manifest in list_teachers(path)}


def _wanted(sources: Sequence[Path], offered: Teachers, prefix: str | None) -> Teachers:
    if not offered:
        raise CacheError(f"source {sources[0]}: no shard is committed yet; nothing to merge")
    if prefix is None:
        return offered
    chosen = choose_teacher(sources[0], list(offered.values()), prefix).fingerprint
    return {name: of for name, of in offered.items() if chosen in (name, of.extends)}


def _merge(
    path: Path,
    manifest: TeacherManifest,
    sources: Sequence[tuple[Path, TeacherManifest]],
    quiet: bool,
) -> Merged:
    rows = sum(commit.rows for source in sources for commit in read_commits(*source))
    with CountProgress(f"merge {manifest.fingerprint[:12]}", "rows", rows, quiet) as progress:
        waiting = say_that_it_waits(quiet)
        return merge_teacher(path, manifest, sources, progress.advance, waiting)


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
    """Confirm on a terminal; raises JobError without a terminal, or if the answer is no."""
    what = (
        f"teacher {removal.fingerprint[:12]} ({removal.name}), {removal.rows} rows, "
        f"{size(removal.bytes)}"
    )
    if not sys.stdin.isatty():
        raise JobError(f"{what}: no terminal to confirm on; pass --yes to remove it")
    print(f"remove {what}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise JobError(f"{what}: kept")


def remove_teacher(removal: Removal, force: bool = False) -> None:
    """Remove the teacher; raises OutputError if a writer is running, unless forced."""
    folder = removal.path / "teachers" / removal.fingerprint
    refuse_linked_folders(folder, removal.path)
    with locked(removal.path):
        living, _ = Reservations(folder, PATIENCE_S).judged()
        if living and not force:
            shards = len(numbered(living))
            what = f"{counted(shards, 'shard')} in the making" if shards else "shards are arriving"
            raise OutputError(
                f"teacher {removal.fingerprint[:12]}: {what}; wait until those processes end, or "
                "pass --force if their machine is gone"
            )
        drop_teacher(removal.path, removal.fingerprint)


@dataclass(frozen=True, slots=True)
class Collected:
    """Files removed, or to be removed."""

    paths: tuple[str, ...]
    bytes: int
    dry_run: bool


def run_gc(cache: Path, dry_run: bool) -> Collected:
    """Remove leftovers; raises CacheError if there is no cache, OutputError if it is read-only."""
    check_cache(cache)
    refuse_mirror(cache)
    with locked(cache):
        found = list(leftovers(cache))
        total = sum(map(size_of, found)) if dry_run else remove_leftovers(found, cache)
    names = tuple(path.relative_to(cache).as_posix() for path in found)
    return Collected(names, total, dry_run)
