"""Files that are either whole or absent, with the permissions needed for sharing.

A file is written under a temporary name, synced, renamed, and its folder synced. A folder that its
group may write, and that hands its group down (`chmod g+ws`), is shared: files that are made in it
can be read and written by the group, folders are shared in turn, whatever the umask of who makes
them. So a team fills one cache under the usual umask of 022. Elsewhere the umask decides alone.
"""

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import xxhash

from ....cache_schemas.errors import AccessError, StorageError
from ....cache_schemas.layout import PARTIAL_SUFFIX
from ....cache_schemas.manifest import FileRecord

_SHARED = stat.S_ISGID | stat.S_IWGRP
_OF_FILES = stat.S_IRGRP | stat.S_IWGRP
_OF_FOLDERS = stat.S_ISGID | stat.S_IRWXG


def open_new(path: Path) -> BinaryIO:
    """A file to write that was not there; raises FileExistsError, also for a link."""
    return open(_opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb")


def open_to_lock(path: Path) -> BinaryIO:
    """A file that one may write, made if it is not there; its content stays. No link is followed:
    a cache may come from strangers."""
    return open(_opened(path, os.O_RDWR | os.O_CREAT), "r+b", buffering=0)


def _opened(path: Path, flags: int) -> int:
    there = os.path.lexists(path)
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    if not there and _is_shared(path.parent):
        os.fchmod(descriptor, os.fstat(descriptor).st_mode | _OF_FILES)
    return descriptor


def make_folders(folder: Path) -> None:
    """Make a folder and those above it, as far as they are not there."""
    if folder.is_dir():
        return
    if not os.path.lexists(folder.parent):
        make_folders(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():
            raise
        return  # another process has just made it
    if _is_shared(folder.parent):
        _allow(folder, _OF_FOLDERS)


def share(file: Path, folder: Path) -> None:
    """Give a file of ours the mode that it would have if it had been made in `folder`."""
    if _is_shared(folder):
        _allow(file, _OF_FILES)


def follow_umask(folder: Path) -> None:
    """Give `folder`, a folder of ours, and all in it the modes that they would have if they had
    been made here: libraries that write weights by way of a temporary file keep them from everybody
    else, and share nothing."""
    below = [each for each in folder.rglob("*") if not each.is_symlink()]
    for each in (folder, *below):
        if each.is_dir() and _is_shared(each.parent):
            _allow(each, _OF_FOLDERS)
    probe = folder / f".mode-{os.getpid()}"
    with open_new(probe) as made:
        mode = stat.S_IMODE(os.fstat(made.fileno()).st_mode)
        probe.unlink()
    for each in below:
        if each.is_file():
            _allow(each, mode)


def _allow(path: Path, bits: int) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode | bits != mode:
        with suppress(PermissionError):  # it belongs to another user
            path.chmod(mode | bits)


def access_error(path: Path | str) -> AccessError:
    """The error for missing permission to read or write `path`."""
    return AccessError(
        f"{path}: permission denied; its owner can share the folder with a group (chgrp -R GROUP; "
        "chmod -R g+rwX; chmod g+s on each folder in it); or work on a copy"
    )


def _is_shared(folder: Path) -> bool:
    return folder.stat().st_mode & _SHARED == _SHARED


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
    """The error for a failed write to `path`."""
    if isinstance(cause, PermissionError):
        return access_error(path)
    if cause.errno in _DISK_FULL:
        return StorageError(
            f"{path}: the disk is full ({cause.strerror}); committed shards are safe; "
            "free some space and run the same command again"
        )
    return StorageError(f"{path}: cannot be written: {cause.strerror or cause}")
