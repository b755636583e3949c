"""The engine's process (`worker.py`) as armada sees it: requests in, answers out.

It is a new process with a session of its own, not a fork: it has none of armada's threads and
nothing of its GPU, and an interrupt from the keyboard is armada's alone. Once armada's end of their
socket is closed, or armada is killed, it ends, with all that it has started.
"""

import os
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ....cache_schemas.errors import JobError, RunError
from ....cache_schemas.keys import IntArray
from .worker import GRACE_S, Message, receive, send

WORKER = Path(__file__).with_name("worker.py")

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process more, and it would not be ours to end
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONSAFEPATH": "1",  # files beside the worker are no modules of the engine's
}
"""What the engine's process is told, whatever the user's environment says."""

DEFAULTS = {"VLLM_LOGGING_LEVEL": "WARNING"}

VERSION_TIMEOUT_S = 60.0
LOG_BYTES = 4096
"""The end of the log that is shown with `--debug`."""


class RefusedRequestError(Exception):
    """The engine refuses one request; the message says why."""


def version_of(python: str) -> str:
    """The engine that a Python has, such as 'vllm 0.33.0'. Raises JobError if it has none."""
    try:
        told = subprocess.run(
            [python, str(WORKER), "--version"],
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=VERSION_TIMEOUT_S,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError) as cause:
        lines = str(getattr(cause, "stderr", None) or cause).strip().splitlines()
        raise JobError(
            f"engine_python: {python} does not run ({lines[-1] if lines else cause}); name a "
            "Python that has vllm"
        ) from cause
    if not told:
        raise JobError(
            f"engine_python: {python} has no vllm; name a Python that has it, or: pip install "
            "'armada-kd[vllm]'"
        )
    return told


class EngineProcess:
    """A running engine. `ask` is for one thread at a time."""

    def __init__(self, python: str, settings: Mapping[str, Any], gpu: str | None = None) -> None:
        """Start it, and wait until it is ready. `settings`: what `worker.Engine` takes; `gpu`: the
        only one it may see. Raises RunError if it does not start."""
        environment = DEFAULTS | os.environ | ENVIRONMENT
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        self._socket, its = socket.socketpair()
        self._log, path = tempfile.mkstemp()
        os.unlink(path)
        with its:
            self._process = subprocess.Popen(
                [python, str(WORKER), str(its.fileno())],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[its.fileno()],
                start_new_session=True,
            )
        self._connection: Connection[Any, Any] = Connection(os.dup(self._socket.fileno()))
        self._guard = threading.Lock()
        self._waiting: dict[int, Future[Message]] = {}
        self._asked = 0
        self._over: RunError | None = None
        self._closing = False
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._read, name="engine", daemon=True)
        self._thread.start()
        try:
            with suppress(OSError):  # then the reading thread sees it as well
                send(self._connection, settings)
            self._ready.result()
        except BaseException:
            self.close()
            raise

    def ask(self, request: Mapping[str, Any], ids: IntArray) -> "Future[Message]":
        """Send a request for token ids [T]. The future raises RefusedRequestError, or RunError
        where the engine has ended."""
        future: Future[Message] = Future()
        with self._guard:
            if self._over is not None:
                future.set_exception(self._over)
                return future
            self._asked += 1
            name = self._asked
            self._waiting[name] = future
        with suppress(OSError):
            send(self._connection, {**request, "id": name}, ids=ids)
        return future

    def close(self) -> None:
        """End it, and wait for that; once."""
        if self._closing:
            return
        self._closing = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._connection.close()
        self._socket.close()
        os.close(self._log)

    def _read(self) -> None:
        reason = ""
        with suppress(EOFError, OSError):
            while True:
                document, arrays = receive(self._connection)
                if "ready" in document:
                    self._ready.set_result(None)
                elif "failed" in document:
                    reason = document["failed"]
                else:
                    self._answer(document, arrays)
        self._fail(self._ended(reason))

    def _answer(self, document: dict[str, Any], arrays: dict[str, Any]) -> None:
        with self._guard:
            future = self._waiting.pop(document["id"])
        if "refused" in document:
            future.set_exception(RefusedRequestError(document["refused"]))
        else:
            future.set_result((document, arrays))

    def _fail(self, error: RunError) -> None:
        with self._guard:
            self._over = error
            waiting, self._waiting = self._waiting, {}
        if not self._ready.done():
            self._ready.set_exception(error)
        for future in waiting.values():
            future.set_exception(error)

    def _ended(self, reason: str) -> RunError:
        """Wait for the process, and kill it if it hangs; why it has ended."""
        try:
            code = self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            code = self._process.wait()
        if self._closing:
            return RunError("vllm: the run has ended")
        error = RunError(f"vllm: {reason or f'its process has ended with code {code}'}")
        error.__cause__ = RuntimeError(f"the last lines of its log:\n{self._last_lines()}")
        return error

    def _last_lines(self) -> str:
        size = os.fstat(self._log).st_size
        start = max(size - LOG_BYTES, 0)  # the process writes at the place of the same file
        return os.pread(self._log, LOG_BYTES, start).decode(errors="replace")
