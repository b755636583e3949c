"""A line of the table: one reader, the files it reads, and its figures, repeat by repeat."""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from figures import Repeats
from store_formats import missing
from store_formats.reader import Format, Reader

T = TypeVar("T")

_CONTEXT = get_context("forkserver")


@dataclass(frozen=True, slots=True)
class Protocol:
    """How everything is measured: each measure ends after `limit_s` seconds or after all rows."""

    repeats: int
    limit_s: float
    seed: int


@dataclass(slots=True)
class Line:
    """One reader of one format's files in `folder`, which hold [rows, dim] numbers."""

    format: str
    reader: type[Reader]
    folder: Path
    rows: int
    dim: int
    figures: dict[str, Repeats] = field(default_factory=dict)

    def open(self) -> Reader:
        """The reader, opened anew."""
        return self.reader(self.folder, self.rows, self.dim)

    def run(self, measure: Callable[..., T], *options: Any) -> T:
        """`measure(line, *options)`; in a process of its own for a reader that leaves threads or
        mappings behind: those would slow others, and keep files in memory."""
        if not self.reader.apart:
            return measure(self, *options)
        with ProcessPoolExecutor(max_workers=1, mp_context=_CONTEXT) as process:
            return process.submit(_import_and_run, measure, self, *options).result()

    def add(self, figures: Mapping[str, float]) -> None:
        """One more repeat of each."""
        for name, figure in figures.items():
            self.figures.setdefault(name, []).append(figure)

    def of(self, name: str) -> Repeats:
        """The repeats so far."""
        return self.figures.get(name, [])


def _import_and_run(measure: Callable[..., T], line: Line, *options: Any) -> T:
    """Importing is no part of what is measured; temporary files go where ours do."""
    missing(line.reader.modules)
    tempfile.tempdir = str(line.folder.parent)
    return measure(line, *options)


def preload(formats: Iterable[Format]) -> None:
    """To be called once: processes that are started later begin with these formats' modules."""
    # mosaicml-streaming leaves shared memory behind, which Python removes with a warning.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    modules = {module for each in formats for module in each.modules}
    _CONTEXT.set_forkserver_preload(["torch", "pyarrow", *sorted(modules)])


def rows_per_second(batches: Iterable[Any], limit_s: float, started: float | None = None) -> float:
    """Rows a second of batches that come by themselves, counted from `started` or from now."""
    started = time.perf_counter() if started is None else started
    done = 0
    for batch in batches:
        done += len(batch)
        if time.perf_counter() - started > limit_s:
            break
    return done / (time.perf_counter() - started)
