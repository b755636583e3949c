"""A folder that is there when it is complete, and not before."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...cache_schemas.errors import OutputError
from ...cache_schemas.layout import PARTIAL_SUFFIX
from ...stages.store.files.atomic import sync_folder as sync
from ...stages.store.files.modes import follow_umask, make_folders


def check_new(folder: Path) -> None:
    """Raise OutputError if something is there that could be overwritten."""
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise OutputError(f"output {folder}: is not an empty folder; choose another")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, beside `folder`, that takes its name when all is written.

    When something fails it is removed; when the process is killed it stays under its own name."""
    check_new(folder)
    target = folder.resolve()
    partial = target.with_name(f".{target.name}-{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    try:
        make_folders(partial)
    except OSError as cause:
        raise OutputError(f"output {folder}: cannot be made: {cause.strerror}") from cause
    try:
        yield partial
        follow_umask(partial)
        _publish(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _publish(partial: Path, target: Path) -> None:
    # First the bytes, then the name: a machine that stops in between leaves no half folder.
    for path in sorted(partial.rglob("*"), reverse=True):
        sync(path)
    try:
        os.rename(partial, target)  # over an empty folder, too
        sync(target.parent)
    except OSError as cause:
        raise OutputError(
            f"output {target}: cannot take its name ({cause.strerror}); choose another"
        ) from cause
