"""Modes of what is made: what the umask leaves, and what a shared folder's group needs.

A folder that its group may write, and that hands its group down (`chmod g+ws`), is shared: files
that are made in it can be read and written by the group, folders are shared in turn, whatever the
umask of who makes them. So a team fills one cache under the usual umask of 022. Elsewhere the umask
decides alone.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ....cache_schemas.errors import AccessError

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
        with suppress(PermissionError):  # it is another user's, who knows why
            path.chmod(mode | bits)


def access_error(path: Path | str) -> AccessError:
    """What to tell people who may not read or write `path`."""
    return AccessError(
        f"{path}: permission denied; its owner can share the folder with a group (chgrp -R GROUP; "
        "chmod -R g+rwX; chmod g+s on each folder in it); or work on a copy"
    )


def _is_shared(folder: Path) -> bool:
    return folder.stat().st_mode & _SHARED == _SHARED
