"""Files that are either whole or absent: temporary name, fsync, rename, fsync of the folder."""

import errno
import os
from collections.abc import Iterable
from pathlib import Path

import xxhash

from ....cache_schemas.errors import AccessError, StorageError
from ....cache_schemas.layout import PARTIAL_SUFFIX
from ....cache_schemas.manifest import FileRecord
from .modes import access_error, make_folders, open_new

Buffer = bytes | memoryview

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_atomic(path: Path, parts: Iterable[Buffer]) -> FileRecord:
    """Write `parts` one after another as the file `path`, replacing it in one step.

    One process at a time may write a path. Returns size and checksum of what was written. Raises
    StorageError, and leaves no partial file, when the disk refuses."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        make_folders(path.parent)
        record = _write_and_sync(partial, parts)
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as cause:
        _remove_quietly(partial)
        raise storage_error(path, cause) from cause
    return record


def _write_and_sync(path: Path, parts: Iterable[Buffer]) -> FileRecord:
    whole = list(parts)
    # What was left there may be a link, or another name of a file elsewhere.
    path.unlink(missing_ok=True)
    with open_new(path) as file:
        file.writelines(whole)
    sync_file(path)
    return file_record(whole)


def file_record(parts: Iterable[Buffer]) -> FileRecord:
    """Size and checksum of a file made of `parts`."""
    hasher, size = xxhash.xxh3_128(), 0
    for part in parts:
        hasher.update(part)
        size += len(part)
    return FileRecord(bytes=size, xxh3_128=hasher.hexdigest())


def sync_file(path: Path) -> None:
    """Wait until the bytes of a file are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    sync_file(folder)


def _remove_quietly(partial: Path) -> None:
    # The first error is the one to report; a partial file left behind is removed by the next run.
    try:
        partial.unlink(missing_ok=True)
    except OSError:
        return


def storage_error(path: Path, cause: OSError) -> StorageError | AccessError:
    """What to tell people when the disk refuses `path`."""
    if isinstance(cause, PermissionError):
        return access_error(path)
    if cause.errno in _DISK_FULL:
        return StorageError(
            f"{path}: the disk is full ({cause.strerror}); committed shards are safe; "
            "free some space and run the same command again"
        )
    return StorageError(f"{path}: cannot be written: {cause.strerror or cause}")
