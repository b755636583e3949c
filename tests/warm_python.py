"""Python commands that start in milliseconds: a process that has imported the libraries forks.

    with warm_python(environment) as bin:      # a folder for the front of PATH
        subprocess.run(["armada", ...])        # also torchrun, accelerate, dask, python

Each command in `bin` hands its words, its folder, its environment and its open files to the process
of this file (`python warm_python.py SOCKET`), which forks one for it, and ends as that one ends;
where the command is killed, that one is killed too. What is saved are the nine seconds that torch,
transformers and diffusers take to import; everything else is as in a process of its own. What a
command starts by `multiprocessing`, and Dask's nannies, is forked like it. `environment` is added
to that of all commands, also where libraries read it when they are imported, such as HF_ENDPOINT.
"""

import atexit
import fcntl
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

IMPORTED = (
    *("torch", "transformers", "diffusers", "open_clip", "distributed", "zarr", "dask.array"),
    *("pyarrow.dataset", "sklearn.metrics", "scipy.stats", "tensorboard", "matplotlib.pyplot"),
    *("statsmodels.formula.api", "statsmodels.stats.anova", "statsmodels.stats.multitest"),
    *("armada.pipeline.distill", "armada.pipeline.evaluate", "armada.pipeline.precompute"),
    *("armada.stages.precompute.precompute", "armada.pipeline.ablation.ablate"),
    *("torch._dynamo", "torch.utils.tensorboard", "peft", "tenacity", "typer.main"),
)
CLASSES = {
    "transformers": ("AutoModel", "AutoTokenizer", "BertModel", "DistilBertModel", "Trainer"),
    "diffusers": ("StableDiffusionPipeline", "AutoPipelineForImage2Image"),
}
"""Classes that libraries import only when they are named."""

COMMANDS = {
    "python": [],
    "armada": ["-P", "-m", "armada.cli"],
    "torchrun": ["-m", "torch.distributed.run"],
    "accelerate": ["-m", "accelerate.commands.accelerate_cli"],
    "dask": ["-m", "dask"],
}
MOST_FILES = 64
"""That a command may hand over."""

CLIENT = Path(__file__).with_name("warm_client.py")


@contextmanager
def warm_python(environment: Mapping[str, str]) -> Iterator[Path]:
    """A folder with the commands of `COMMANDS`; all they started ends with the block."""
    with tempfile.TemporaryDirectory(prefix="warm-") as folder:
        # A short path: that of a socket has at most 107 bytes.
        socket_file, commands = Path(folder, "socket"), Path(folder, "bin")
        environment = {
            **environment,
            "PYTHON_EXEC": str(commands / "python"),  # what torchrun starts its processes with
            "CUDA_VISIBLE_DEVICES": "",  # a process that was forked cannot use a GPU
        }
        _write_commands(commands, socket_file, environment)
        process = subprocess.Popen(
            [sys.executable, __file__, str(socket_file)],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield commands
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def _write_commands(folder: Path, socket_file: Path, environment: Mapping[str, str]) -> None:
    folder.mkdir()
    client = CLIENT.read_text(encoding="utf-8")
    for name, words in COMMANDS.items():
        given = f"SOCKET, WORDS, MOST_FILES = {str(socket_file)!r}, {words!r}, {MOST_FILES}\n"
        given += f"ENVIRONMENT = {environment!r}\n"
        (folder / name).write_text(f"#!{sys.executable} -IS\n{given}{client}", encoding="utf-8")
        (folder / name).chmod(0o755)


# --- the process that has imported everything


def serve(path: str) -> Any:
    """Fork for each request that comes; returns in the forked process, with what it is to do."""
    _import_all()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            request, files = _receive(connection)
            if os.fork() == 0:
                listener.close()
                if _is_the_command(connection):
                    connection.close()
                    return request, files
            connection.close()
            for file in files:
                os.close(file)


def _import_all() -> None:
    gc.disable()  # what is imported stays: nothing in it is to be searched for
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # torch.jit, of itself
        for name in IMPORTED:
            module = importlib.import_module(name)
            for attribute in CLASSES.get(name, ()):
                getattr(module, attribute)
    gc.collect()
    gc.freeze()
    gc.enable()


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    head, files, *_ = socket.recv_fds(connection, 8, MOST_FILES)
    with connection.makefile("rb") as file:
        return json.loads(file.read(int.from_bytes(head, "little"))), files


def _is_the_command(connection: socket.socket) -> bool:
    """Fork once more: True in the child; the parent tells how that ended, and ends. It kills the
    child if the command, which never says a second word, is killed."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        return True
    with suppress(OSError):  # nobody may be there any more to be told
        connection.sendall(f"{child}\n".encode())
        if connection in select.select([os.pidfd_open(child), connection], [], [])[0]:
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        connection.sendall(f"{status}\n".encode())
    os._exit(0)


def run(request: dict[str, Any], files: list[int]) -> None:
    """Become the command: `-m MODULE`, `-c CODE` or a file, and its words; `-P`, as Python's own,
    keeps the folder out of the path."""
    apart = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 1000) for file in files]
    for file in files:
        os.close(file)
    for number, copy in zip(request["files"], apart, strict=True):
        os.dup2(copy, number)
        os.close(copy)
    # The process that forked this one may be a child of a shell's `&`, and ignore interrupts.
    heard = signal.default_int_handler if request["interruptible"] else signal.SIG_IGN
    signal.signal(signal.SIGINT, heard)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    importlib.invalidate_caches()
    words = request["words"]
    sys.path[0:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    while words[0] in ("-u", "-B", "-P"):
        request["folder"] = None if words[0] == "-P" else request["folder"]
        words = words[1:]
    multiprocessing.set_executable(os.environ["PYTHON_EXEC"])
    _start(words, request["folder"])


def _start(words: list[str], folder: str | None) -> None:
    first = str(Path(words[0]).parent.absolute()) if words[0] not in ("-m", "-c") else folder
    sys.path[0:0] = [first] if first else []
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def end(error: BaseException | None) -> None:
    """As the interpreter ends, but for the taking apart of all that was imported, half a second."""
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError):  # a server of multiprocessing has closed them
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    asked = serve(sys.argv[1])
    try:
        run(*asked)
    except BaseException as error:
        end(error)
    end(None)
