"""vLLM in a process of its own: `PYTHON worker.py DESCRIPTOR`, where PYTHON has vLLM.

It is run as a file, by a Python that need not have armada: so nothing of armada's is imported here.
`DESCRIPTOR` is a connected socket. Messages are a line of JSON and the bytes of the arrays that it
lists. In: what the engine is started with, and then requests. Out: `ready`, and then each answer as
soon as there is one, in any order; or why there can be none.

The engine takes requests while others are running, which is its own continuous batching. When the
other end of the socket is closed, for whatever reason, this process and all that it has started
end: a teacher that is killed leaves nothing behind.

Shapes: T tokens of a text, K most probable ones, N responses.
"""

import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Message = tuple[dict[str, Any], dict[str, Array]]

CPU_CACHE_BYTES = 4 * 2**30
"""For keys and values on a CPU."""
GRACE_S = 10.0
"""After which an engine that was told to end is killed."""


def send(connection: "Connection[Any, Any]", document: Mapping[str, Any], **arrays: Array) -> None:
    """Send a message. Raises OSError where the other end is closed."""
    listed = [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
    connection.send_bytes(json.dumps({**document, "arrays": listed}).encode())
    for array in arrays.values():
        connection.send_bytes(np.ascontiguousarray(array).tobytes())


def receive(connection: "Connection[Any, Any]") -> Message:
    """Wait for a message. Raises EOFError or OSError where the other end is closed."""
    document = json.loads(connection.recv_bytes())
    arrays = {
        name: np.frombuffer(connection.recv_bytes(), dtype).reshape(shape)
        for name, dtype, shape in document.pop("arrays")
    }
    return document, arrays


def engine_version() -> str:
    """The engine and its version, such as 'vllm 0.33.0'; empty where there is none."""
    try:
        return f"vllm {version('vllm')}"
    except PackageNotFoundError:  # a build of another name
        names = packages_distributions().get("vllm", ())
        return next((f"vllm {version(name)}" for name in names), "")


class Engine:
    """vLLM's own engine; requests are token ids, for it has no tokenizer."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Start it with arguments of `vllm.LLM`."""
        from vllm import LLM

        self._engine = LLM(**(settings | _memory(settings))).llm_engine
        self._requests: dict[str, dict[str, Any]] = {}

    def add(self, request: dict[str, Any], ids: Array) -> None:
        """Take a request. Raises ValueError for one that the engine refuses."""
        from vllm.exceptions import VLLMValidationError

        name = str(request["id"])
        prompt = {"type": "token", "prompt_token_ids": ids.tolist()}
        try:
            self._engine.add_request(name, prompt, self._parameters(request))
        except VLLMValidationError as refusal:
            raise ValueError(str(refusal)) from refusal
        self._requests[name] = request

    @property
    def busy(self) -> bool:
        """Whether requests are not answered yet."""
        return bool(self._requests)

    def step(self) -> Iterator[Message]:
        """Compute a little more; the answers that are complete."""
        for output in self._engine.step():
            if output.finished:
                request = self._requests.pop(output.request_id)
                arrays = _ANSWERS[request["task"]](output, request)
                yield {"id": request["id"], **_finish(output)}, arrays

    def close(self) -> None:
        """End the processes that the engine has started."""
        self._engine.engine_core.shutdown()

    def _parameters(self, request: Mapping[str, Any]) -> Any:
        from vllm import PoolingParams, SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if request["task"] == "embed":
            return PoolingParams(task="embed")
        return SamplingParams(
            **request["sampling"],
            flat_logprobs=True,
            detokenize=bool(request["sampling"].get("stop")),
            ignore_eos=True,  # a request lists what ends its response
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


def _memory(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for the memory that the engine takes, where no share is asked for: of a CPU's
    memory, which is everybody's, not most."""
    from vllm.platforms import current_platform

    if settings["gpu_memory_utilization"] is not None:
        return {}
    small = {"kv_cache_memory_bytes": CPU_CACHE_BYTES} if current_platform.is_cpu() else {}
    return {"gpu_memory_utilization": 0.9, **small}


def prompt_arrays(output: Any, request: Mapping[str, Any]) -> dict[str, Array]:
    """Ids and log-probabilities [P, 1 + K] in the place of each token from `first` on: its own, and
    those of the K most probable ones, from a vLLM `RequestOutput`."""
    rows = request["sampling"]["prompt_logprobs"] + 1
    found = _table(output.prompt_logprobs, rows)
    return {name: values[request["first"] - 1 :] for name, values in found.items()}


def response_arrays(output: Any, request: Mapping[str, Any]) -> dict[str, Array]:
    """Tokens of each response [N]; ids and log-probabilities of all their tokens, one response
    after another, as `prompt_arrays` has them."""
    rows = request["sampling"]["logprobs"] + 1
    responses = sorted(output.outputs, key=lambda each: each.index)
    tables = [_table(each.logprobs, rows) for each in responses]
    return {
        "counts": np.array([len(each.token_ids) for each in responses], np.int64),
        **{name: np.concatenate([table[name] for table in tables]) for name in tables[0]},
    }


def embedding_arrays(output: Any, request: Mapping[str, Any]) -> dict[str, Array]:
    """The embedding [D], from a vLLM `PoolingRequestOutput`."""
    return {"embedding": output.outputs.data.float().cpu().numpy()}


_ANSWERS = {"read": prompt_arrays, "continue": response_arrays, "embed": embedding_arrays}


def _table(found: Any, columns: int) -> dict[str, Array]:
    """`FlatLogprobs` as rows: a token has its own log-probability first, which may be among the
    others once more."""
    return {
        "ids": np.array(found.token_ids, np.int32).reshape(-1, columns),
        "log_probs": np.array(found.logprobs, np.float32).reshape(-1, columns),
    }


def _finish(output: Any) -> dict[str, Any]:
    responses = getattr(output, "outputs", None)
    if not isinstance(responses, list):
        return {}
    ordered = sorted(responses, key=lambda each: each.index)
    return {"finish": [each.finish_reason for each in ordered]}


def _serve(connection: "Connection[Any, Any]") -> None:
    """Answer until the other end is closed."""
    coming: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, coming), daemon=True).start()
    started = coming.get()
    if started is None:
        return
    try:
        engine = Engine(started[0])
    except Exception as error:
        send(connection, {"failed": _told(error)})
        raise
    send(connection, {"ready": True})
    try:
        while (message := _next(coming, wait=not engine.busy)) is not None:
            if message:
                _add(engine, message, connection)
                continue
            for answer, arrays in engine.step():
                send(connection, answer, **arrays)
    except Exception as error:
        send(connection, {"failed": _told(error)})
        raise
    engine.close()


def _add(engine: Engine, message: Message, connection: "Connection[Any, Any]") -> None:
    request, arrays = message
    try:
        engine.add(request, arrays["ids"])
    except ValueError as refusal:
        send(connection, {"id": request["id"], "refused": " ".join(str(refusal).split())[:300]})


def _next(coming: "queue.SimpleQueue[Message | None]", wait: bool) -> Message | tuple[()] | None:
    """The next message, None at the end; without waiting an empty tuple where there is none."""
    try:
        return coming.get(block=wait)
    except queue.Empty:
        return ()


def _read(connection: "Connection[Any, Any]", coming: "queue.SimpleQueue[Message | None]") -> None:
    """Take messages; kill this process and its own, should they not end after the last one."""
    try:
        while True:
            coming.put(receive(connection))
    except (EOFError, OSError):
        coming.put(None)
        time.sleep(GRACE_S)
        os.killpg(0, signal.SIGKILL)


def _told(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:600]


def main() -> None:
    """See above; `--version` names the engine."""
    if sys.argv[1:] == ["--version"]:
        print(engine_version())
        return
    os.dup2(2, 1)  # what libraries print is for the log
    _serve(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
