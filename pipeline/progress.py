"""Progress: a live bar with rate and time left on a terminal, a line now and then in a log."""

import threading
import time

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from .logs import LOGGER, shows_progress

LOG_EVERY_S = 30.0


class CountProgress:
    """Counts rows, steps or `bytes` up to a total, on standard error; standard output is for
    results."""

    def __init__(self, label: str, unit: str, total: int, quiet: bool = False) -> None:
        self._label, self._unit, self._total, self._quiet = label, unit, total, quiet
        self._done, self._guard = 0, threading.Lock()
        self._started = self._logged = time.monotonic()
        self._console = Console(stderr=True)
        live = self._console.is_terminal and shows_progress() and not quiet
        self._bar = self._make_bar() if live else None

    def _make_bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            DownloadColumn() if self._unit == "bytes" else MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self._console,
        )

    def __enter__(self) -> "CountProgress":
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=self._total, rate="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
        elif not self._quiet and self._done:
            self._log()

    def advance(self, count: int) -> None:
        """`count` more are done; may be called from several threads."""
        with self._guard:
            self._done += count
        if self._bar:
            self._bar.update(self._task, advance=count, rate=f"{self._amount(self._rate())}/s")
        elif not self._quiet and time.monotonic() - self._logged > LOG_EVERY_S:
            self._log()

    def _rate(self) -> float:
        return self._done / max(time.monotonic() - self._started, 1e-9)

    def _log(self) -> None:
        self._logged = time.monotonic()
        left = (self._total - self._done) / max(self._rate(), 1e-9)
        done = f"{self._done}/{self._total} {self._unit}"
        if self._unit == "bytes":
            done = f"{decimal(self._done)} of {decimal(self._total)}"
        rate = f"{self._amount(self._rate())}/s"
        line = f"{self._label}: {done}, {rate}, {left:.0f} s left"
        LOGGER.info(line)

    def _amount(self, number: float) -> str:
        return decimal(int(number)) if self._unit == "bytes" else f"{number:.1f} {self._unit}"
