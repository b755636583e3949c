"""Messages of running commands: warnings, progress, and formatted numbers.

All of it goes to `armada`, a logger of Python's `logging`. The command line shows it on standard
error, from `--log-level` on; standard output is for results. In a program that calls armada, its
own handlers and levels decide, as for every library. Progress is a live bar with rate and time left
on a terminal, and a line now and then in a log.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING

from ..cache_schemas.errors import one_line, shown_url

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..cache_schemas.codings import Fidelity
    from ..cache_schemas.manifest import BatchFigures, BudgetRecord, RequestFigures

LOGGER = logging.getLogger("armada")

SHOWN_PROBLEMS = 5
LOG_EVERY_S = 30.0


class LogLevel(StrEnum):
    """Lowest level that is shown."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@contextmanager
def shown(level: LogLevel = LogLevel.INFO) -> Iterator[None]:
    """Show messages on standard error, a line each, and nowhere else."""
    handler = _StandardError()
    before = LOGGER.level, LOGGER.propagate
    LOGGER.addHandler(handler)
    LOGGER.propagate = False
    set_level(level)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(before[0])
        LOGGER.propagate = before[1]


def set_level(level: LogLevel) -> None:
    """Set the lowest level that is shown."""
    LOGGER.setLevel(level.upper())


def _shows_progress() -> bool:
    """Whether progress is shown: unless the level is above INFO."""
    return LOGGER.level <= logging.INFO


class _StandardError(logging.Handler):
    """Looks up the stream each time: while a bar is live, it owns standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
            print(f"{level}{shown_url(self.format(record))}", file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


def warn(message: str) -> None:
    """Log a warning, in one line."""
    LOGGER.warning(one_line(message))


def warn_skipped(problems: Sequence[str]) -> None:
    """Warn of skipped rows: their count, and the first few."""
    if problems:
        warn(f"{len(problems)} rows were skipped")
    for problem in problems[:SHOWN_PROBLEMS]:
        warn(f"  {problem}")


def counted(number: int, what: str) -> str:
    """'1 shard', '2 shards'."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def size(number: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def batches_in_words(figures: "BatchFigures") -> str:
    """One line of a run's batches."""
    each = figures.rows / max(figures.batches, 1)
    parts = [f"{figures.batches:,} of {each:.1f} rows"]
    if figures.tokens:
        parts.append(f"{figures.padded_tokens / figures.tokens:.2f} padded tokens a token")
    if figures.refused:
        parts.append(f"{figures.refused:,} more did not fit into memory")
    if figures.auto_limit:
        parts.append(f"batch_size=auto found {figures.auto_limit:,}")
    return ", ".join([*parts, device_in_words(figures)])


def device_in_words(figures: "BatchFigures") -> str:
    """The seconds of a run's devices, and the share in which they were running."""
    busy = f", {figures.busy_seconds / figures.seconds:.0%} busy" if figures.busy_seconds else ""
    return f"{duration(figures.seconds)} of the device{busy}"


def budget_in_words(record: "BudgetRecord") -> str:
    """How many texts of a corpus were chosen, and how."""
    by = f" by {record.based_on}" if record.based_on else ""
    chosen = f"{record.chosen:,} of {record.of:,} distinct texts"
    return f"{chosen}, {record.rule}{by}, seed {record.seed}"


def requests_in_words(*figures: "RequestFigures") -> str:
    """How many requests, and what they took."""
    requests, paid = (sum(each.requests for each in figures), sum(each.cost for each in figures))
    given = sum(each.input_tokens for each in figures)
    generated = sum(each.output_tokens for each in figures)
    parts = [counted(requests, "request")]
    if given or generated:
        parts.append(f"{given:,} tokens in, {generated:,} out")
    if paid:
        parts.append(f"cost {paid:.4g}")
    return ", ".join(parts)


def fidelity_in_words(fidelity: "Fidelity") -> str:
    """One line of fidelity; divergences and errors are in nats."""
    parts = [f"{fidelity.bytes_per_token:g} bytes per token"]
    if fidelity.divergence is not None:
        parts.append(f"KL {fidelity.divergence:.1e}")
    if fidelity.mean_error is not None and fidelity.max_error is not None:
        parts.append(f"mean log-prob error {fidelity.mean_error:.4f} nats")
        parts.append(f"max {fidelity.max_error:.4f}")
    if fidelity.mean_tail is not None:
        parts.append(f"{fidelity.mean_tail:.1%} of the mass in the tail")
    return f"{', '.join(parts)} ({fidelity.tokens:,} tokens measured)"


def say_that_it_waits(quiet: bool) -> Callable[[int], None]:
    """Log once that all remaining rows are being computed by other processes."""
    logged = quiet

    def say(rows: int) -> None:
        nonlocal logged
        if not logged:
            logged = True
            LOGGER.info(f"waiting: other processes are computing the last {rows} rows")

    return say


def say_that_a_pull_waits(quiet: bool) -> Callable[[], None]:
    """Log that another process is pulling into the same cache."""

    def say() -> None:
        if not quiet:
            LOGGER.info("waiting for another pull into the same cache")

    return say


class CountProgress:
    """Counts rows, steps or `bytes` up to a total, on standard error; standard output is for
    results. `details` gives further words for a moment, or none."""

    def __init__(
        self,
        label: str,
        unit: str,
        total: int,
        quiet: bool = False,
        details: Callable[[], str] = lambda: "",
    ) -> None:
        self._label, self._unit, self._total, self._quiet = label, unit, total, quiet
        self._details = details
        self._done, self._guard = 0, threading.Lock()
        self._started = self._logged = time.monotonic()
        self._bar = _live_bar(unit) if _shows_progress() and not quiet else None

    def __enter__(self) -> "CountProgress":
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=self._total, rate="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.refresh()  # in a notebook, stopping leaves it as it last looked
            self._bar.stop()
        elif not self._quiet and self._done:
            self._log()

    def advance(self, count: int) -> None:
        """`count` more are done; may be called from several threads."""
        with self._guard:
            self._done += count
        if self._bar:
            self._bar.update(self._task, advance=count, rate=self._rate_and_details())
        elif not self._quiet and time.monotonic() - self._logged > LOG_EVERY_S:
            self._log()

    def _rate(self) -> float:
        return self._done / max(time.monotonic() - self._started, 1e-9)

    def _log(self) -> None:
        self._logged = time.monotonic()
        left = (self._total - self._done) / max(self._rate(), 1e-9)
        done = f"{self._done}/{self._total} {self._unit}"
        if self._unit == "bytes":
            done = f"{_decimal(self._done)} of {_decimal(self._total)}"
        until = f", until {_clock(left)}" if left > LOG_EVERY_S else ""
        LOGGER.info(
            f"{self._label}: {done}, {self._rate_and_details()}, {duration(left)} left{until}"
        )

    def _rate_and_details(self) -> str:
        rate = f"{self._amount(self._rate())}/s"
        return ", ".join(filter(None, (rate, self._details())))

    def _amount(self, number: float) -> str:
        return _decimal(int(number)) if self._unit == "bytes" else f"{number:.1f} {self._unit}"


def _clock(seconds: float) -> str:
    """Local time so many seconds from now, with its day if that is not today."""
    now, then = time.localtime(), time.localtime(time.time() + seconds)
    today = now[:3] == then[:3]
    return time.strftime("%H:%M" if today else "%a %d %b, %H:%M", then)


def in_a_notebook() -> bool:
    """Whether cells of a notebook can show a bar: there is a kernel, and there are widgets."""
    from importlib.util import find_spec

    from rich.console import Console

    return Console().is_jupyter and find_spec("ipywidgets") is not None


def _live_bar(unit: str) -> "Progress | None":
    """A bar on standard error, if that is a terminal; or in a notebook."""
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal and not in_a_notebook():
        return None
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.DownloadColumn() if unit == "bytes" else progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[rate]}"),
        progress.TimeRemainingColumn(),
        console=console,
    )


def _decimal(count: int) -> str:
    from rich.filesize import decimal

    return decimal(count)
