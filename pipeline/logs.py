"""What is said while something runs: by `armada`, a logger of Python's `logging`.

The command line shows it on standard error, from `--log-level` on: standard output is for results.
In a program that calls armada, its own handlers and levels decide, as for every library.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from ..cache_schemas.errors import shown_url

LOGGER = logging.getLogger("armada")


class LogLevel(StrEnum):
    """The least that is shown."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@contextmanager
def shown(level: LogLevel = LogLevel.INFO) -> Iterator[None]:
    """Shows what is said on standard error, a line each, and nowhere else."""
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
    """Says nothing less important from now on."""
    LOGGER.setLevel(level.upper())


def shows_progress() -> bool:
    """Whether nobody asked for warnings alone; a program that set no level has not."""
    return LOGGER.level <= logging.INFO


class _StandardError(logging.Handler):
    """Looks for the stream each time: while a bar is live, standard error is the bar's."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
            print(f"{level}{shown_url(self.format(record))}", file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)
