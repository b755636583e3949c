"""llama.cpp's own HTTP server in a process of its own: `python llama_cpp_server.py FILE [POOLING]`.

It prints its address and serves until its standard input ends. POOLING: `MEAN` for embeddings,
`RANK` for scores."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen

CONTEXT_TOKENS = 512


@contextmanager
def serving(file: Path, pooling: str = "") -> Iterator[str]:
    """The address of a server of a GGUF file."""
    command = [sys.executable, __file__, str(file), pooling]
    with Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield next(line for line in process.stdout if line.startswith("http://")).strip()
        finally:
            process.kill()


def _serve(file: str, pooling: str) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx, params.n_parallel, params.port = CONTEXT_TOKENS, 1, 0
    params.hostnames = ["127.0.0.1"]
    if pooling:
        params.embedding = True
        params.pooling_type = getattr(xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{pooling}")
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2])
