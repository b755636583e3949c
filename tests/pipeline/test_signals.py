"""Signals that are heard at once and acted on when it is safe."""

import os
import signal
from collections.abc import Iterator
from queue import SimpleQueue

import pytest
from armada.pipeline.signals import Signal, heard_by, held_back


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A shell that starts the tests in the background makes them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def interrupted(times: int, said: list[str]) -> None:
    """A block that is held back, with so many signals in it."""
    with held_back():
        for _ in range(times):
            interrupt()
        said.append("done")


def test_a_signal_waits_until_the_block_is_done() -> None:
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(1, said)
    assert said == ["done"]
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_a_second_signal_does_not_wait() -> None:
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(2, said)
    assert said == []


def broken() -> None:
    with held_back():
        interrupt()
        raise ValueError("broken")


def test_an_error_of_the_block_goes_before_the_signal() -> None:
    with pytest.raises(ValueError, match="broken"):
        broken()


def test_signals_are_heard_in_order() -> None:
    heard: SimpleQueue[Signal] = SimpleQueue()
    before = signal.signal(signal.SIGTERM, lambda number, frame: print("terminated"))
    try:
        with heard_by(heard.put, patience=2):
            os.kill(os.getpid(), signal.SIGTERM)
            interrupt()
            with pytest.raises(KeyboardInterrupt):
                interrupt()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [heard.get().number, heard.get().number] == [signal.SIGTERM, signal.SIGINT]


def test_a_signal_without_a_handler_keeps_its_meaning() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with held_back():
            os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
