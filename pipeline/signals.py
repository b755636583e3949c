"""Ctrl-C and SIGTERM while code of a library must not be interrupted.

A signal handler raises in the middle of whatever runs. Dask, interrupted while it starts, sends or
closes, may hang or leave processes behind. So signals are recorded here and acted on later.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ..cache_schemas.errors import RunError, one_line
from .messages import LOGGER


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal that was heard, and the handler that it would have had."""

    number: int
    handler: Callable[[int, Any], Any]

    def act(self) -> None:
        """Do now what the handler does; it raises."""
        self.handler(self.number, None)


@contextmanager
def heard_by(hear: Callable[[Signal], None], patience: int) -> Iterator[None]:
    """The first `patience` signals go to `hear`, which may put them into a SimpleQueue but not do
    much more; the next one acts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: old for number, old in before.items() if callable(old)}
    heard = []

    def handle(number: int, frame: object) -> None:
        heard.append(number)
        this = Signal(number, handlers[signal.Signals(number)])
        hear(this) if len(heard) <= patience else this.act()

    for number in handlers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def telling_what_is_kept(kept: Callable[[], str]) -> Iterator[None]:
    """Ctrl-C in the block prints a line with what is kept and how to continue."""
    try:
        yield
    except KeyboardInterrupt:
        LOGGER.warning(one_line(f"interrupted; {kept()}"))
        raise


@contextmanager
def held_back() -> Iterator[None]:
    """A first signal acts when the block is done; a second one at once."""
    heard: list[Signal] = []
    with heard_by(heard.append, patience=1):
        yield
    for this in heard:
        this.act()


@contextmanager
def terminable() -> Iterator[None]:
    """A scheduler's SIGTERM ends the run like an error: computed rows are committed first."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise RunError("stopped by SIGTERM; committed shards are kept; run the command again")

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
