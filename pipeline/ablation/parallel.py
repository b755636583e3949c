"""Parallel runs, each in a fresh process.

    run_all(runs) -> _WorkerPool.start -> _work -> run_distill

Processes come from a server that has imported all that a run needs (`imported.py`), where the
system can fork: a run starts in a tenth of a second, not in six. A process that is killed, such as
for lack of memory, is one failed run; the others continue. When this process ends, for whatever
reason, the runs end.
"""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

from ...cache_schemas.errors import ArmadaError, shown_url
from ...stages.store.files.atomic import make_folders, open_new
from ...stages.store.reading.memory import available_memory
from ..distill import run_distill
from ..distill_job import DistillJob
from ..environment import environments, visible_gpus
from ..messages import LOGGER, LogLevel, shown
from ..run_folder import JOB, read_metrics
from .job import PlannedRun

_ROOM = 1.25
"""A run counts as this much larger than the first one was."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that did not come to its end, and why, in one line."""

    run: PlannedRun
    reason: str


def run_all(
    runs: Sequence[PlannedRun],
    workers: int | Literal["auto"],
    logs: Path,
    finished: Callable[[], None],
) -> list[Failure]:
    """Make all runs, `workers` at a time; `finished` is called after each. The messages of a run go
    to its own file in `logs`. Returns the failed ones."""
    waiting = deque(runs)
    pool = _WorkerPool(logs, finished)
    if workers == "auto" and waiting:
        workers = _workers(waiting, pool)
    if waiting:
        pool.work_off(waiting, min(int(workers), len(waiting)))
    return pool.failures


def _workers(waiting: deque[PlannedRun], pool: "_WorkerPool") -> int:
    """One for each GPU; or, after the first run, as many as there is room for."""
    first = waiting[0].job
    gpus = visible_gpus(first.device)
    if gpus:
        return len(gpus)
    pool.work_off(deque([waiting.popleft()]), 1)
    metrics = read_metrics(first.output)
    return room(metrics["peak_rss_bytes"], available_memory(), _processors()) if metrics else 1


def room(peak_bytes: int, memory_bytes: int, processors: int) -> int:
    """Number of runs that fit side by side, given the memory of one."""
    return max(1, min(processors, int(memory_bytes / (_ROOM * peak_bytes))))


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class _WorkerPool:
    """Some processes at a time, and what became of their runs."""

    def __init__(self, logs: Path, finished: Callable[[], None]) -> None:
        self._logs, self._finished = logs, finished
        self._context = _processes()
        self.failures: list[Failure] = []

    def work_off(self, waiting: deque[PlannedRun], workers: int) -> None:
        """All waiting runs."""
        gpus = visible_gpus(waiting[0].job.device)
        free = list(environments(workers, gpus))
        running: dict[Any, tuple[BaseProcess, PlannedRun, dict[str, str]]] = {}
        try:
            while waiting or running:
                while waiting and free:
                    run, environment = waiting.popleft(), free.pop(0)
                    process = self._start(run, environment)
                    running[process.sentinel] = (process, run, environment)
                for sentinel in wait(list(running)):
                    process, run, environment = running.pop(sentinel)
                    free.append(environment)
                    self._ended(process, run)
        finally:
            for process, *_ in running.values():
                process.terminate()
                process.join()

    def _start(self, run: PlannedRun, environment: dict[str, str]) -> BaseProcess:
        make_folders(self._logs)
        process: BaseProcess = self._context.Process(
            target=_work, args=(run.job, environment, self._log(run))
        )
        process.start()
        return process

    def _ended(self, process: BaseProcess, run: PlannedRun) -> None:
        process.join()
        log = self._log(run)
        output = log.read_text(encoding="utf-8", errors="replace").strip() if log.exists() else ""
        if process.exitcode:
            reason = _reason(process.exitcode, output)
            log.write_text(output or reason, encoding="utf-8")
            self.failures.append(Failure(run, reason))
        elif not output:
            log.unlink(missing_ok=True)
        self._finished()

    def _log(self, run: PlannedRun) -> Path:
        return self._logs / f"{run.job.output.parent.name}-seed-{run.seed}.txt"


def _processes() -> Any:
    """The multiprocessing context."""
    if sys.platform != "linux":  # forking after Apple's libraries have started threads is not safe
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.imported"])
    return context


def _work(job: DistillJob, environment: dict[str, str], log: Path) -> None:
    """Body of a process: one run, whose messages go to a file."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever hears it ends the runs
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(environment)
    log.unlink(missing_ok=True)  # an earlier one may be somebody else's of the group
    with open_new(log) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    _limit_threads(int(environment["OMP_NUM_THREADS"]))
    goes_on = (job.output / JOB).exists()
    with shown(LogLevel.WARNING):
        _run(job.model_copy(update={"resume": goes_on}))


def _run(job: DistillJob) -> None:
    try:
        run_distill(job, quiet=True)
    except ArmadaError as error:
        LOGGER.error(error)
        sys.exit(error.exit_code)
    except Exception:
        print(shown_url(traceback.format_exc()), file=sys.stderr)
        sys.exit(ArmadaError.exit_code)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(ArmadaError.exit_code)


def _limit_threads(threads: int) -> None:
    """Environment variables would come too late for modules imported already."""
    import torch

    torch.set_num_threads(threads)


def _reason(code: int, output: str) -> str:
    if code < 0:
        killed = " (out of memory? try fewer workers)" if code == -signal.SIGKILL else ""
        return f"was killed by signal {-code}{killed}"
    return output.splitlines()[-1].removeprefix("error: ") if output else f"exited with code {code}"
