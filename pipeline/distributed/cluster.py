"""Dask clusters to run on: a local one for a run, or an existing one.

    own_cluster(workers, gpus)  a scheduler in this process, a process for each worker
    connected(address)          somebody else's scheduler

Both give a `distributed.Client`. A local cluster writes only into a temporary folder, which is
removed with it; a worker that dies is started again. Dask's own log is turned off: errors are
reported in one line.
"""

import asyncio
import json
import logging
import re
import signal
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...cache_schemas.errors import JobError, RunError, without_user
from ..environment import choose_device, environments
from ..signals import held_back

if TYPE_CHECKING:
    import torch
    from distributed import Client

CONNECT_S = 6.0
"""Timeout for the scheduler to respond and to have workers."""

_SETTINGS: dict[str, Any] = {
    # A worker that is started again may take long on a busy machine.
    "distributed.deploy.lost-worker-timeout": "1 hour",
    "distributed.comm.timeouts.connect": "60 s",
    # A teacher that loads may keep its process from answering; that a process died shows at once.
    "distributed.scheduler.worker-ttl": None,
    # Otherwise they would be set in this process too.
    "distributed.nanny.pre-spawn-environ": {},
    "distributed.admin.large-graph-warning-threshold": "1 TiB",
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}


def device_of(device: str, gpus: Sequence[str]) -> "torch.device":
    """Device of the workers of a local cluster."""
    import torch

    return torch.device("cuda") if gpus else choose_device(device)


def number_of_workers(requested: int | Literal["auto"], gpus: Sequence[str]) -> int:
    """`auto` is one for each GPU, or one."""
    return max(1, len(gpus)) if requested == "auto" else requested


@contextmanager
def own_cluster(workers: int, gpus: Sequence[str]) -> Iterator["Client"]:
    """So many processes on this machine, each with a GPU if there are some (in turns if there are
    fewer), else with its part of the processor's threads."""
    stack = ExitStack()
    try:
        with held_back():
            client = _open(stack, workers, gpus)
        yield client
    finally:
        with held_back():
            stack.close()


def _open(stack: ExitStack, workers: int, gpus: Sequence[str]) -> "Client":
    import dask.config
    from distributed import Client
    from distributed.utils import LoopRunner

    folder = stack.enter_context(
        tempfile.TemporaryDirectory(prefix="armada-", ignore_cleanup_errors=True)
    )
    stack.enter_context(dask.config.set({**_SETTINGS, "temporary-directory": folder}))
    stack.enter_context(_quiet())
    runner = LoopRunner()
    with _signals_kept_from_threads():
        runner.start()
    stack.callback(runner.stop)
    cluster = stack.enter_context(_started(workers, gpus, folder, runner.loop))
    return stack.enter_context(Client(cluster, set_as_default=False))


def _started(workers: int, gpus: Sequence[str], folder: str, loop: Any) -> Any:
    from distributed import Nanny, Scheduler, SpecCluster

    local = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    options = local | {
        "nthreads": 1,
        "memory_limit": 0,  # no limit of Dask's own
        "local_directory": folder,
        "silence_logs": logging.CRITICAL,
    }
    try:
        return SpecCluster(
            scheduler={"cls": Scheduler, "options": local | {"port": 0}},
            workers={
                number: {"cls": Nanny, "options": options | {"env": env}}
                for number, env in enumerate(environments(workers, gpus))
            },
            loop=loop,
            silence_logs=logging.CRITICAL,
        )
    except (OSError, RuntimeError) as cause:
        raise RunError(f"workers: {workers} could not be started: {cause}") from cause


@contextmanager
def connected(address: str) -> Iterator["Client"]:
    """A scheduler at tcp://HOST:PORT, or of a scheduler file; raises JobError if it does not
    respond, or has no workers."""
    from distributed import Client

    where = _in_file(Path(address)) if Path(address).is_file() else address
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        try:
            # A client that cannot connect takes as long again to give up. In a thread: here an
            # event loop of somebody else's may run, as in a notebook.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, asyncio.wait_for(_look_at(where), CONNECT_S)).result()
            client = stack.enter_context(Client(where, set_as_default=False))
        except TimeoutError as cause:
            raise _refusal(address, f"no response within {CONNECT_S:.0f} s") from cause
        except (OSError, ValueError) as cause:
            reason = without_user(" ".join(str(cause).split()), where)
            raise _refusal(address, reason) from None  # which quotes a password
        try:
            client.wait_for_workers(1, timeout=CONNECT_S)
        except TimeoutError as cause:
            raise _refusal(address, "the scheduler has no workers; start some") from cause
        yield client


def _refusal(address: str, reason: str) -> JobError:
    return JobError(f"job key 'dask': {address}: {reason}")


def _in_file(file: Path) -> str:
    """The address in a file that a scheduler wrote."""
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["address"])
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise _refusal(str(file), "is not the file of a scheduler") from cause


async def _look_at(address: str) -> None:
    """Raises OSError or ValueError unless a scheduler responds."""
    from distributed.comm import connect
    from distributed.security import Security

    if "://" not in address and not re.search(r":\d+$", address):
        raise ValueError("is neither tcp://HOST:PORT nor an existing scheduler file")
    arguments = Security().get_connection_args("client")
    comm = await connect(address, timeout=2 * CONNECT_S, **arguments)
    try:
        await comm.write({"op": "identity", "reply": True})
        kind = (await comm.read()).get("type")
    finally:
        await comm.close()
    if kind != "Scheduler":
        raise ValueError(f"is a {kind} of Dask, not its scheduler")


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of Dask's log on standard error."""
    from distributed.utils import silence_logging_cmgr

    names = [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(silence_logging_cmgr(logging.CRITICAL + 1, name))
        yield


@contextmanager
def _signals_kept_from_threads() -> Iterator[None]:
    """Threads started here, and processes they start, do not hear Ctrl-C or SIGTERM, which may go
    to a whole group of processes: this process hears it and ends the workers' work in order."""
    resource_tracker.ensure_running()  # a thread that starts it would hear signals afterwards
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
