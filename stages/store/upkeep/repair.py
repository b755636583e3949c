"""Drop what is damaged, so that a cache is whole again and `precompute` fills the gaps.

    drop        a shard: its keys are pending again
    rebuild     zarr.json, armada.json: all they hold follows from other documents
    remove      the record of a run: it has the cost of the run; no reader needs it
    set aside   teacher.json, as teacher.json.damaged, so that the cache's other teachers can be
                read; `precompute` with that teacher writes it again, and its shards are there
    leave       what only who made the cache, or a copy of it, can tell; what takes the place of a
                folder, and with it all of that teacher

Nothing is dropped of a teacher whose features another tool re-wrote: its files are not what was
committed, but may well be what somebody wants.

What dead writers left, and teachers without any shard, go too (`leftovers`). A writer removes what
lies in its own teacher's folder; this looks at all of a cache. It is called under the cache's lock.
A reservation whose owner lives, or may live on another host, stays.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ....cache_schemas.errors import CacheError, DamagedCacheError
from ....cache_schemas.layout import CACHE_MANIFEST, TEACHER_MANIFEST, numbered
from ....cache_schemas.manifest import CacheManifest
from ..files.atomic import storage_error, sync_folder
from ..files.lock import locked
from ..files.own_files import move_file, remove_file, remove_tree, write_file
from ..files.plain_files import (
    Stamp,
    check_folders,
    check_teacher_folders,
    entries,
    refuse_linked_folders,
    stamp_of,
)
from ..format.manifests import teacher_folders
from ..format.zarr_shards import group_metadata, stored_rows_per_shard
from ..writing.reservations import PATIENCE_S, Reservations
from ..writing.teacher_folder import (
    drop_shard,
    partial_documents,
    shard_paths,
    uncommitted,
    write_zarr_metadata,
)
from .survey import CacheSurvey, Damage, survey_teacher

Action = Literal["drop", "rebuild", "remove", "set aside", "leave"]

SET_ASIDE = ".damaged"


@dataclass(frozen=True, slots=True)
class Step:
    """Repair of one damage; `rows` are dropped, None if unknown; `remedy` is for the user, if
    something is left to do; `seen` are the inspected files."""

    action: Action
    damage: Damage
    rows: int | None = 0
    remedy: str = ""
    seen: Mapping[Path, Stamp | None] = field(default_factory=dict)


def plan_repair(survey: CacheSurvey, damages: Iterable[Damage]) -> list[Step]:
    """One step for each damage.

    Raises CacheError, naming the file, if a feature was re-written by another tool."""
    damages = list(damages)
    _refuse_rewritten(survey, damages)
    return [_step(survey, damage) for damage in damages]


def _refuse_rewritten(survey: CacheSurvey, damages: Sequence[Damage]) -> None:
    for teacher in survey.teachers:
        of_it = [d for d in damages if d.teacher == teacher.folder.name and d.kind == "shard"]
        if teacher.foreign and teacher.commits and len(of_it) >= len(teacher.commits):
            file = teacher.folder / teacher.foreign[0] / "zarr.json"
            raise CacheError(
                f"{file}: another tool re-wrote this feature, so no shard is as committed; nothing "
                "is dropped; to compute all of it again, remove this file and repair again"
            )


def _step(survey: CacheSurvey, damage: Damage) -> Step:
    if damage.kind == "folder":
        return Step("leave", damage, remedy="then repair again")
    try:
        _check_reach(survey.path, damage)
    except DamagedCacheError as error:
        return Step("leave", damage, remedy=f"{error}; remove the link and repair again")
    seen = {file: survey.stamps.get(file) for file in _files(survey.path, damage)}
    if damage.kind == "shard":
        return Step("drop", damage, rows=_rows(survey, damage), seen=seen)
    if damage.kind == "zarr" or (damage.kind == "cache" and _tells_its_format(survey)):
        return Step("rebuild", damage)
    if damage.kind == "run":
        return Step("remove", damage, seen=seen)
    if damage.kind == "teacher" and damage.file.name == TEACHER_MANIFEST:
        action: Action = "set aside" if os.path.lexists(damage.file) else "leave"
        return Step(action, damage, remedy=_ask_again(damage.file), seen=seen)
    return Step("leave", damage, remedy="`armada cache pull` it again")


def _files(cache: Path, damage: Damage) -> Iterator[Path]:
    """Files to drop: a document, or a shard's record and all of its files."""
    yield damage.file
    if damage.shard is not None:
        for path in shard_paths(cache / "teachers" / damage.teacher, damage.shard):
            yield from path.rglob("*") if path.is_dir() else [path]


def _check_reach(cache: Path, damage: Damage) -> None:
    """Refuse to touch what some symbolic link leads to: of a teacher, its arrays' documents are
    written too, whatever is damaged."""
    check_folders(damage.file, cache)
    if damage.teacher:
        refuse_linked_folders(cache / "teachers" / damage.teacher, cache)


def _rows(survey: CacheSurvey, damage: Damage) -> int | None:
    for teacher in survey.teachers:
        for commit in teacher.commits:
            if (teacher.folder.name, commit.shard) == (damage.teacher, damage.shard):
                return commit.rows
    return None


def _ask_again(file: Path) -> str:
    rows = stored_rows_per_shard(file.parent)
    setting = f" --set rows_per_shard={rows}" if rows else ""
    return (
        f"run `armada precompute` with the same teacher{setting}, which rewrites it, or `armada "
        "cache pull`; the shards stay as they are"
    )


def _tells_its_format(survey: CacheSurvey) -> bool:
    """Whether some teacher of the cache can be read, so that it is of the format that we write."""
    return any(teacher.manifest is not None for teacher in survey.teachers)


def carry_out(cache: Path, steps: Sequence[Step]) -> list[Step]:
    """Do what was planned, under the cache's lock; then bring the Zarr documents up to date.

    Returns what was done: what somebody else has changed since it was looked at is left. Raises
    StorageError if the disk refuses; what was done until then stays done."""
    if not steps:
        return []
    with locked(cache):
        steps = [_unless_changed(cache, step) for step in steps]
        for step in steps:
            _do(cache, step)
        changed = {step.damage.teacher for step in steps if step.action != "leave"}
        for teacher in sorted(changed - {""}):
            _count_rows(cache, cache / "teachers" / teacher)
    return steps


def _unless_changed(cache: Path, step: Step) -> Step:
    """A shard that was made again meanwhile, or filled up by a pull, is no longer the damaged
    one."""
    there = {file: stamp_of(file) for file in _files(cache, step.damage)}
    if step.action in ("leave", "rebuild") or there == step.seen:
        return step
    remedy = "another process changed it in the meantime; run `armada cache verify` again"
    return Step("leave", step.damage, remedy=remedy)


def _do(cache: Path, step: Step) -> None:
    damage = step.damage
    if step.action == "drop" and damage.shard is not None:
        drop_shard(cache, damage.teacher, damage.shard)
    elif step.action in ("drop", "remove"):
        remove_file(damage.file, cache)
    elif step.action == "rebuild" and damage.file.parent.is_dir():
        remove_tree(damage.file, cache)
        if damage.file == cache / CACHE_MANIFEST:
            write_file(damage.file, [CacheManifest().to_json()], cache)
        elif damage.file.parent in (cache, cache / "teachers", cache / "teachers" / damage.teacher):
            write_file(damage.file, [group_metadata()], cache)
    elif step.action == "set aside":
        _set_aside(damage.file, cache)


def _set_aside(file: Path, cache: Path) -> None:
    try:
        move_file(file, file.with_name(file.name + SET_ASIDE), cache)
        sync_folder(file.parent)
    except OSError as cause:
        raise storage_error(file, cause) from cause


def _count_rows(cache: Path, folder: Path) -> None:
    """Write the documents of a teacher's arrays anew."""
    teacher = survey_teacher(cache, folder)
    if teacher.manifest is not None:
        commits = {commit.shard: commit for commit in teacher.commits}
        write_zarr_metadata(folder, teacher.manifest, commits)


def leftovers(cache: Path) -> Iterator[Path]:
    """Files and folders without an owner.

    Raises DamagedCacheError where a folder is none: its files cannot be distinguished from
    leftovers."""
    yield from partial_documents(cache)
    for teacher in teacher_folders(cache):
        yield from _of_teacher(teacher)


def _of_teacher(teacher: Path) -> Iterator[Path]:
    check_teacher_folders(teacher, teacher.parent.parent)
    living, dead = Reservations(teacher, PATIENCE_S).judged()
    committed = numbered(entries(teacher / "commits", "*.json"))
    if not committed and not living:
        yield teacher
        return
    yield from dead
    yield from uncommitted(teacher, committed, numbered(living))


def remove_leftovers(found: Iterable[Path], cache: Path) -> int:
    """Remove what was found; returns how many bytes it had."""
    return sum(remove_tree(path, cache) for path in found)
