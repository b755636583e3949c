"""`cache merge`: which teachers of which caches go where. `stages/store/upkeep/merge.py` copies."""

from collections.abc import Sequence
from pathlib import Path

from ...cache_schemas.errors import CacheError
from ...cache_schemas.manifest import TeacherManifest
from ...stages.store.format.manifests import choose_teacher, list_teachers, read_commits
from ...stages.store.transfer.connection import is_local, local_path
from ...stages.store.upkeep.merge import Merged, merge_teacher
from ...stages.store.writing.admission import is_new
from ..jobs import refuse_url
from ..messages import CountProgress, say_that_it_waits
from ..signals import telling_what_is_kept

Teachers = dict[str, TeacherManifest]
"""By fingerprint."""


@telling_what_is_kept(lambda: "shards that were copied are kept; the same command goes on")
def merge_caches(
    path: Path, sources: Sequence[str | Path], teacher: str | None = None, quiet: bool = False
) -> list[Merged]:
    """Copy the answers that the cache at `path` lacks from `sources`, in their order.

    `teacher` is a fingerprint, or a prefix, of the one to copy, along with features that were added
    to it; all are copied if it is left out. `path` is made if it is not there.
    Raises JobError for a source that is a URL, CacheError for one that is no cache, holds nothing,
    or is the destination."""
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
        raise CacheError(f"source {sources[0]}: no teacher has answered yet; nothing to merge")
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
