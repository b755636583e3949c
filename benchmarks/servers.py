"""Teachers behind a server: requests a second beside a plain loop, memory with thousands in
flight, and what is paid when the server fails or the run is killed.

One command, three tables (or those that are named: `--tables pace memory faults`):

    python benchmarks/servers.py

The server is the one of this repository's tests, in a process of its own on loopback: an ASGI
application that waits `--pause` seconds for each request and answers with an embedding. The plain
loop is asyncio and one `httpx.AsyncClient` with as many tasks as requests are in flight; the other
one spreads them over clients of eight connections, since the pool of a client takes time that grows
with its connections. Both keep nothing. Ways take turns; ratios are of the same round.

Faults: texts that the server answered more than once, that the cache lacks in the end, and whose
embedding is wrong. What was in flight when a process was killed may be sent again: its reply never
came.
"""

import argparse
import asyncio
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx
import numpy as np
from armada.cache_schemas.keys import example_key, keys_to_array
from armada.pipeline.environment import hardware, library_versions, now
from armada.pipeline.precompute import run_precompute
from armada.pipeline.precompute_job import make_precompute_job
from armada.stages.store.reading.reader import open_cache
from figures import shown_ratio, table

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from openai_faults import ENDING, PASSING, SLOW
from openai_server import Body, Fault, OpenAIServer, embedding, serving

TABLES = ("pace", "memory", "faults")
POOL = 8

_SERVER = """
import sys
sys.path.append(sys.argv[1])
from openai_server import OpenAIServer, serving
with serving(OpenAIServer(pause_s=float(sys.argv[2]))) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""
_MEMORY = """
import json, resource, sys
from armada.pipeline.precompute import run_precompute
from armada.pipeline.precompute_job import make_precompute_job
run_precompute(make_precompute_job(json.loads(sys.argv[1])), quiet=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[8, 64, 256, 1024])
    parser.add_argument("--thousands", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--count", type=int, default=2000, help="requests")
    parser.add_argument("--pause", type=float, default=0.05, help="seconds of a reply")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    told = {**hardware("cpu"), **library_versions()}
    print(f"{now()}; " + ", ".join(f"{name} {value}" for name, value in told.items()))
    tables = {
        "pace": lambda: pace(options.in_flight, options.count, options.pause, options.rounds),
        "memory": lambda: memory(options.thousands, options.count),
        "faults": lambda: faults(options.count, options.kills),
    }
    for name in options.tables:
        print(f"... {name}", file=sys.stderr)
        print(f"\n{table(tables[name](), options.markdown)}")


def pace(
    in_flight: Sequence[int], count: int, pause_s: float, rounds: int
) -> list[tuple[str, ...]]:
    """Rows: seconds of each way with so many requests in flight."""
    texts = [f"text number {number}" for number in range(count)]
    rows: list[tuple[str, ...]] = [
        ("in flight", "way", f"seconds for {count} requests", "its requests a second")
    ]
    with server_process(pause_s) as url:
        ways: dict[str, Callable[[int], None]] = {
            "plain loop": lambda many: asyncio.run(plain(url, texts, many, many)),
            f"clients of {POOL}": lambda many: asyncio.run(plain(url, texts, many, POOL)),
            "armada": lambda many: precompute_all(url, texts, many),
        }
        for many in in_flight:
            times: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(rounds):
                for name, way in ways.items():
                    started = time.perf_counter()
                    way(many)
                    times[name].append(time.perf_counter() - started)
            first = times["plain loop"]
            for name, found in times.items():
                rate = [theirs / own for own, theirs in zip(found, first, strict=True)]
                rows.append((str(many), name, f"{median(found):.2f}", shown_ratio(rate)))
    return rows


async def plain(url: str, texts: Sequence[str], many: int, connections: int) -> list[list[float]]:
    """All embeddings, with so many requests in flight and connections a client."""
    waiting, found = list(texts), []
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)

    async def work(client: httpx.AsyncClient) -> None:
        while waiting:
            asked = {"model": "toy", "input": [waiting.pop()], "encoding_format": "float"}
            reply = await client.post(f"{url}/embeddings", json=asked)
            found.append(reply.json()["data"][0]["embedding"])

    context = httpx.create_ssl_context()
    clients = [
        httpx.AsyncClient(timeout=None, limits=limits, verify=context)
        for _ in range(-(-many // connections))
    ]
    await asyncio.gather(*(work(clients[task % len(clients)]) for task in range(many)))
    for client in clients:
        await client.aclose()
    return found


def precompute_all(url: str, texts: Sequence[str], many: int) -> None:
    """A whole run into a new cache: corpus, keys, shards and all."""
    with tempfile.TemporaryDirectory() as folder:
        run_precompute(make_precompute_job(job(Path(folder), url, texts, many)), quiet=True)


def job(folder: Path, url: str, texts: Sequence[str], many: int) -> dict[str, object]:
    """The keys of a job that sends each text alone."""
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return {
        "corpus": str(corpus),
        "text_column": "text",
        "teacher": "openai:toy",
        "cache": str(folder / "cache"),
        "base_url": url,
        "texts_per_request": 1,
        "concurrency": many,
        "rows_per_shard": max(many, 1024),
        "probes": 1,
    }


def memory(thousands: Sequence[int], count: int) -> list[tuple[str, ...]]:
    """Rows: the most memory of a run with so many requests in flight, each of two seconds."""
    rows: list[tuple[str, ...]] = [("in flight", "requests", "seconds", "most memory, MiB")]
    with server_process(2.0) as url, tempfile.TemporaryDirectory() as folder:
        for many in (1, *thousands):
            requests = 1 if many == 1 else max(count, 2 * many)
            texts = [f"text number {number}" for number in range(requests)]
            place = Path(folder) / str(many)
            place.mkdir()
            command = [sys.executable, "-c", _MEMORY, json.dumps(job(place, url, texts, many))]
            started = time.perf_counter()
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            took = f"{time.perf_counter() - started:.1f}"
            rows.append((str(many), str(requests), took, f"{int(printed) / 1024:.0f}"))
    return rows


@contextmanager
def server_process(pause_s: float) -> Iterator[str]:
    """The server in a process of its own; its base URL."""
    command = [sys.executable, "-c", _SERVER, sys.path[-1], str(pause_s)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


def faults(count: int, kills: int) -> list[tuple[str, ...]]:
    """Rows: each fault in one of ten replies, or from the middle of the run on; and kills."""
    title = ("fault", "runs", "requests", "texts paid twice", "texts lost", "answers wrong")
    rows: list[tuple[str, ...]] = [title]
    texts = [f"text number {number}" for number in range(count)]
    for name, fault in {**PASSING, **SLOW}.items():
        rows.append((name, *_served(texts, _tenth(fault))))
    for name, (fault, _) in ENDING.items():
        rows.append((f"{name}, later mended", *_served(texts, _from_the_middle(fault, count))))
    rows.append((f"kill -9 at {kills} random moments", *_killed(texts, kills)))
    return rows


Choice = Callable[[int, Body], Fault | None]


def _tenth(fault: Fault) -> Choice:
    generator = random.Random(0)
    return lambda number, body: fault if number > 1 and generator.random() < 0.1 else None


def _from_the_middle(fault: Fault, count: int) -> Choice:
    return lambda number, body: fault if number > count // 16 else None


def _served(texts: Sequence[str], fault: Choice) -> tuple[str, ...]:
    """Run until all is there; the fault is gone once it has ended a run."""
    with serving(OpenAIServer(fault=fault)) as server, tempfile.TemporaryDirectory() as folder:
        keys = job(Path(folder), server.url, texts, 16)
        keys |= {"texts_per_request": 8, "timeout": 5.0}
        runs = 0
        while runs < 2:
            runs += 1
            if _run(keys) == 0:
                break
            server.fault = lambda number, body: None
        return (str(runs), *_counts(server, Path(folder), texts))


def _killed(texts: Sequence[str], kills: int) -> tuple[str, ...]:
    generator = random.Random(0)
    with serving(OpenAIServer(pause_s=0.02)) as server, tempfile.TemporaryDirectory() as folder:
        keys = job(Path(folder), server.url, texts, 8)
        for _ in range(kills):
            target = sum(server.paid.values()) + generator.randrange(len(texts) // kills)
            with _started(keys) as process:
                while sum(server.paid.values()) <= target and process.poll() is None:
                    time.sleep(0.001)
                process.kill()
        _run(keys)
        return (str(kills + 1), *_counts(server, Path(folder), texts))


def _started(keys: dict[str, object]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", _MEMORY, json.dumps(keys)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _run(keys: dict[str, object]) -> int:
    with _started(keys) as process:
        process.communicate()
        return process.returncode


def _counts(server: OpenAIServer, folder: Path, texts: Sequence[str]) -> tuple[str, ...]:
    cache = open_cache(folder / "cache")
    rows = cache.find(keys_to_array([example_key(text) for text in texts]))
    found = cache["embedding"].gather(rows[rows >= 0])
    expected = np.stack(
        [embedding(text) for text, row in zip(texts, rows, strict=True) if row >= 0]
    )
    wrong = int((found != expected).any(axis=1).sum())
    twice = sum(server.paid[text] > 1 for text in texts)
    return (str(server.requests), str(twice), str(int((rows < 0).sum())), str(wrong))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("uvicorn.error").disabled = True  # replies are cut on purpose
    main()
