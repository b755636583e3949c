"""New files and folders: whole, or not there.

new_file      rows that come bit by bit, as Parquet or JSON lines
new_folder    whatever is written into it
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..cache_schemas.errors import OutputError, StorageError
from ..cache_schemas.layout import PARTIAL_SUFFIX
from ..stages.store.files.atomic import follow_umask, make_folders, open_new, sync_file, sync_folder
from ..stages.store.files.lock import try_lock
from .run_folder import make_folder

Write = Callable[[pa.Table], object]


@contextmanager
def _parquet(file: Path) -> Iterator[Write]:
    """Takes its columns from the first rows; without any, there is nothing to write."""
    writer: pq.ParquetWriter | None = None

    def write(table: pa.Table) -> None:
        nonlocal writer
        writer = writer or pq.ParquetWriter(file, table.schema)
        writer.write_table(table)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


@contextmanager
def _json_lines(file: Path) -> Iterator[Write]:
    with file.open("w", encoding="utf-8") as lines:
        yield lambda table: lines.writelines(
            json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()
        )


_WRITERS: dict[str, Callable[[Path], AbstractContextManager[Write]]] = {
    ".parquet": _parquet,
    ".jsonl": _json_lines,
}


def check_new_file(path: Path) -> None:
    """Raise OutputError unless a file of a known kind may be written there."""
    if path.suffix not in _WRITERS:
        raise OutputError(f"output {path}: name a {' or '.join(_WRITERS)} file")
    if path.exists() or path.is_symlink():
        raise OutputError(f"output {path}: already exists; choose another name")


@contextmanager
def new_file(path: Path) -> Iterator[Write]:
    """Writes tables of the same columns; the file gets its name when all are written.

    A failed or stopped write leaves nothing; a killed one leaves a file with the suffix `.partial`,
    which the next one of this name removes. Raises OutputError and StorageError."""
    make_folder(path.parent)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    try:
        _remove_left(path)
        with open_new(partial) as held:
            _locked(held, path)
            with _WRITERS[path.suffix](partial) as write:
                yield write
        sync_file(partial)
        check_new_file(path)
        partial.replace(path)
    except OSError as cause:
        raise StorageError(
            f"output {path}: cannot be written: {cause}; nothing was written; free some space and "
            "run the command again"
        ) from cause
    finally:
        partial.unlink(missing_ok=True)


def _remove_left(path: Path) -> None:
    """Remove files left by killed processes, whose locks are free."""
    for left in path.parent.iterdir():
        if left.name.startswith(f"{path.name}.") and left.name.endswith(PARTIAL_SUFFIX):
            with left.open("rb") as file:
                if _locked(file, path):
                    left.unlink(missing_ok=True)


def _locked(file: BinaryIO, path: Path) -> bool:
    """Take the lock of an open file, False if another process has it; on file systems without locks
    no process gets it, and leftovers stay."""
    try:
        return try_lock(file.fileno(), path)
    except StorageError:
        return False


def check_new_folder(folder: Path) -> None:
    """Raise OutputError if something is there that could be overwritten."""
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise OutputError(f"output {folder}: is not empty; choose another folder")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, beside `folder`, that takes its name when all is written.

    When something fails it is removed; when the process is killed it stays under its own name."""
    check_new_folder(folder)
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
        sync_folder(path)
    try:
        os.rename(partial, target)  # over an empty folder, too
        sync_folder(target.parent)
    except OSError as cause:
        raise OutputError(
            f"output {target}: cannot take its name ({cause.strerror}); choose another"
        ) from cause


def file_digest(path: Path) -> str:
    """128 bits of the BLAKE2b hash of a file, in hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()
