"""A new file of rows that come bit by bit: Parquet, or JSON lines; it is whole, or not there."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..cache_schemas.errors import OutputError, StorageError
from ..cache_schemas.layout import PARTIAL_SUFFIX
from ..stages.store.files.atomic import sync_file
from ..stages.store.files.lock import try_lock
from ..stages.store.files.modes import open_new
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
        raise OutputError(f"output {path}: is there already; choose another name")


@contextmanager
def new_file(path: Path) -> Iterator[Write]:
    """Writes tables of the same columns; the file gets its name when all are written.

    What fails, or is stopped, leaves nothing; what is killed, a file with the suffix `.partial`,
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
            f"output {path}: cannot be written: {cause}; nothing is left of it; run the command "
            "again where there is room"
        ) from cause
    finally:
        partial.unlink(missing_ok=True)


def _remove_left(path: Path) -> None:
    """Remove what killed processes have left of a file: nobody holds its lock any more."""
    for left in path.parent.iterdir():
        if left.name.startswith(f"{path.name}.") and left.name.endswith(PARTIAL_SUFFIX):
            with left.open("rb") as file:
                if _locked(file, path):
                    left.unlink(missing_ok=True)


def _locked(file: BinaryIO, path: Path) -> bool:
    """Take the lock of an open file, False if another process has it; on file systems without
    locks nobody gets it, and what is left stays."""
    try:
        return try_lock(file.fileno(), path)
    except StorageError:
        return False
