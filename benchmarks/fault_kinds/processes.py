"""Faults of processes: killed, racing, stopped, with a bad clock."""

import os
import random
import signal
import time
from typing import Any

from armada.cache_schemas.errors import StorageError
from armada.stages.store.files.lock import locked

from .bench import Bench, end_of

Outcome = tuple[bool, bool]
"""Whether committed answers were right after the fault, and the store equal after a rerun."""


def killed(bench: Bench, chance: random.Random) -> Outcome:
    """One run, killed once, run again."""
    bench.kill_at_random(bench.start(), chance)
    right = bench.answers_are_right()
    bench.run()
    return right, bench.store_is_equal()


def killed_thrice(bench: Bench, chance: random.Random) -> Outcome:
    """Killed three times, each run with another batch size."""
    right = True
    for batch_size in chance.sample([1, 7, 64, 100, 512], 3):
        bench.kill_at_random(bench.start(batch_size=batch_size), chance)
        right &= bench.answers_are_right()
    bench.run(batch_size=33)
    return right, bench.store_is_equal()


def racing(bench: Bench, chance: random.Random) -> Outcome:
    """Three writers of the same texts at once; nobody dies."""
    ends = [end_of(child) for child in [bench.start() for _ in range(3)]]
    return bench.answers_are_right(), ends == [0] * 3 and bench.store_is_equal()


def racing_and_killed(bench: Bench, chance: random.Random) -> Outcome:
    """Three writers of the same texts, two of them killed; the third finishes alone. Then another
    run: one that was killed right after its last commit left its reservation behind."""
    children = [bench.start() for _ in range(3)]
    for child in children[:2]:
        bench.kill_at_random(child, chance)
    right = end_of(children[2]) == 0 and bench.answers_are_equal()
    bench.run()
    return right, bench.store_is_equal()


def overlapping_and_killed(bench: Bench, chance: random.Random) -> Outcome:
    """Writers of the first two thirds and of the last two thirds, one killed; then all of it."""
    parts: list[dict[str, Any]] = [{"limit": bench.answers.keys.shape[0] * 2 // 3}, {"part": "2/2"}]
    chance.shuffle(parts)
    children = [bench.start(**part) for part in parts]
    bench.kill_at_random(children[0], chance)
    living = end_of(children[1]) == 0
    right = bench.answers_are_right()
    bench.run()
    return right, living and bench.answers_are_equal()


def stopped(bench: Bench, chance: random.Random) -> Outcome:
    """A writer is stopped, taken for dead after its heartbeat was silent, and goes on later."""
    child = bench.start()
    time.sleep(chance.random() * bench.seconds)
    stop_outside_of_a_turn(bench, child)
    try:
        bench.run(takeover_seconds=1)
        right = bench.answers_are_right()
        equal = bench.store_is_equal()
    finally:
        os.kill(child, signal.SIGCONT)
    return right, equal and end_of(child) in (0, 1) and bench.store_is_equal()


def stop_outside_of_a_turn(bench: Bench, child: int) -> None:
    """Who is stopped while it holds the lock keeps it; others wait minutes and then say so."""
    while True:
        os.kill(child, signal.SIGSTOP)
        try:
            if bench.cache.exists():
                with locked(bench.cache, patience_s=0.2):
                    return
        except StorageError:
            pass
        os.kill(child, signal.SIGCONT)
        time.sleep(0.003)


def bad_clock(bench: Bench, chance: random.Random) -> Outcome:
    """Three writers whose clocks go backwards, one of them killed."""

    def go_backwards() -> None:
        now = iter(range(2_000_000_000, 0, -1000))
        time.time = lambda: float(next(now))
        time.time_ns = lambda: next(now) * 10**9

    children = [bench.start(go_backwards) for _ in range(3)]
    bench.kill_at_random(children[0], chance)
    ends = [end_of(child) for child in children[1:]]
    right = ends == [0, 0] and bench.answers_are_equal()
    bench.run()
    return right, bench.store_is_equal()
