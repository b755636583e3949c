"""Runs of `precompute` in processes of their own, and what their store is compared with."""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from armada.cache_schemas.errors import ArmadaError
from armada.cache_schemas.manifest import CommitRecord
from armada.pipeline.precompute import run_precompute
from armada.pipeline.precompute_job import make_precompute_job
from armada.stages.store.format.manifests import list_teachers
from armada.stages.store.reading.reader import Cache, open_cache

ROWS_PER_SHARD = 512
WIDTH = 64


class Bench:
    """A corpus, the store that one undisturbed run makes of it, and runs to disturb."""

    def __init__(self, folder: Path, corpus: str, column: str) -> None:
        self.folder, self.corpus, self.column = folder, corpus, column
        self.cache = folder / "cache"
        self.whole = folder / "undisturbed"
        started = time.monotonic()
        self.run(self.whole)
        self.seconds = time.monotonic() - started
        self.files = stored_bytes(self.whole)
        self.answers = open_cache(self.whole)

    def run(self, cache: Path | None = None, **keys: Any) -> None:
        """One run of `precompute`."""
        job = {
            "corpus": self.corpus,
            "text_column": self.column,
            "teacher": f"hash:{WIDTH}",
            "cache": cache or self.cache,
            "rows_per_shard": ROWS_PER_SHARD,
            "device": "cpu",
        }
        run_precompute(make_precompute_job(job | keys), quiet=True)

    def start(self, before: Callable[[], None] | None = None, **keys: Any) -> int:
        """The same in a process of its own; returns its number."""
        child = os.fork()
        if child:
            return child
        try:
            if before is not None:
                before()
            self.run(**keys)
        except ArmadaError as error:
            print(f"run {os.getpid()} ended: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        except BaseException as error:
            print(f"child: {error!r}", file=sys.stderr)
            os._exit(3)
        os._exit(0)

    def kill_at_random(self, child: int, chance: random.Random) -> int:
        """Kill -9 at some moment of the time a run takes; returns how the process ended."""
        time.sleep(chance.random() * self.seconds * 1.1)
        os.kill(child, signal.SIGKILL)
        return end_of(child)

    def answers_are_right(self) -> bool:
        """Every answer that can be read, of the shards that are committed, is the right one."""
        if not self.cache.exists() or not list(self.cache.glob("teachers/*/teacher.json")):
            return True
        teacher = list_teachers(self.cache)[0]
        cache = Cache(self.cache, teacher)
        return all(self._is_right(cache, record) for record in cache.commits)

    def _is_right(self, cache: Cache, record: CommitRecord) -> bool:
        start = sum(c.rows for c in cache.commits if c.shard < record.shard)
        rows = np.arange(start, start + record.rows)
        expected = self.answers["embedding"][self.answers.find(cache.keys[rows])]
        return bool(np.array_equal(cache["embedding"][rows], expected))

    def store_is_equal(self) -> bool:
        """The store has the very files of the undisturbed one."""
        return stored_bytes(self.cache) == self.files

    def answers_are_equal(self) -> bool:
        """The store has the same answers to the same texts, each once."""
        cache = open_cache(self.cache)
        if len(cache) != len(self.answers):
            print(f"{len(cache)} answers, not {len(self.answers)}", file=sys.stderr)
        return len(cache) == len(self.answers) and self.answers_are_right()

    def clear(self) -> None:
        """Ready for the next trial."""
        shutil.rmtree(self.cache, ignore_errors=True)


def end_of(child: int) -> int:
    """How a process ended: its exit code, or minus the signal."""
    end = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if end not in (0, 1, -signal.SIGKILL):
        raise RuntimeError(f"a run ended with {end}, which is none of our errors")
    return end


def stored_bytes(cache: Path, without: Sequence[str] = ("runs",)) -> dict[str, bytes]:
    """Every file but the provenance of runs, which holds dates and times."""
    return {
        file.relative_to(cache).as_posix(): file.read_bytes()
        for file in sorted(cache.rglob("*"))
        if file.is_file() and not set(without) & set(file.relative_to(cache).parts)
    }
