"""`openai` teachers and a server that fails: nothing is wrong, nothing lost, nothing paid twice."""

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai_runs
import pytest
from armada.cache_schemas.keys import example_key, keys_to_array
from armada.stages.precompute.remote import requests
from armada.stages.store.reading.reader import open_cache
from armada.stages.store.writing.replies import KeptReplies
from command_line import CommandLine, start
from openai_faults import ENDING, PASSING, SLOW, changed, status
from openai_runs import check_whole, write_corpus
from openai_server import Body, Fault, OpenAIServer, serving

pytestmark = pytest.mark.long

COUNT = 400
TEXTS = [f"text number {number}" for number in range(COUNT)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path, TEXTS)


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of a hundredth of what they are."""
    monkeypatch.setattr(requests, "FIRST_WAIT_S", requests.FIRST_WAIT_S / 100)


def words(server: OpenAIServer, corpus: Path, **options: Any) -> list[str]:
    """Small requests, one probe, and failures for half a minute at most."""
    given = {"texts_per_request": 4, "probes": 1, "patience": 30} | options
    return openai_runs.words(server, corpus, **given)


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_sent_again(
    armada: CommandLine, corpus: Path, server: OpenAIServer, fault: str
) -> None:
    server.fault = lambda number, body: PASSING[fault] if number in (3, 9, 11) else None
    armada.done(*words(server, corpus))
    check_whole(corpus, TEXTS)
    assert {server.paid[text] for text in TEXTS} == {1}
    assert server.requests == 1 + COUNT // 4 + 3


def test_items_in_another_order_are_put_in_order(
    armada: CommandLine, corpus: Path, server: OpenAIServer
) -> None:
    server.fault = lambda number, body: changed(lambda items: items[::-1])
    armada.done(*words(server, corpus))
    check_whole(corpus, TEXTS)


def test_a_mixture_of_failures(armada: CommandLine, corpus: Path, server: OpenAIServer) -> None:
    generator = random.Random(0)

    def some(number: int, body: Body) -> Fault | None:
        chosen = generator.random() < 0.2 and number > 1
        return PASSING[generator.choice(sorted(PASSING))] if chosen else None

    server.fault = some
    armada.done(*words(server, corpus))
    check_whole(corpus, TEXTS)
    assert {server.paid[text] for text in TEXTS} == {1}


@pytest.mark.parametrize("fault", SLOW)
def test_what_takes_too_long_is_sent_again(
    armada: CommandLine, corpus: Path, server: OpenAIServer, fault: str
) -> None:
    server.fault = lambda number, body: SLOW[fault] if number == 6 else None
    armada.done(*words(server, corpus, timeout=2.0, concurrency=2))
    check_whole(corpus, TEXTS)
    assert server.requests >= 1 + COUNT // 4 + 1


@pytest.mark.parametrize("fault", ENDING)
def test_what_does_not_pass_ends_the_run_and_it_continues_later(
    armada: CommandLine, corpus: Path, server: OpenAIServer, fault: str
) -> None:
    failing, message = ENDING[fault]
    server.fault = lambda number, body: failing if number > 30 else None
    ended = armada(*words(server, corpus))
    assert ended.code in (1, 2)
    assert message in ended.err
    assert "Traceback" not in ended.err
    paid = dict(server.paid)
    assert sum(paid[text] for text in paid) >= 29 * 4
    server.fault = lambda number, body: None
    armada.done(*words(server, corpus))
    check_whole(corpus, TEXTS)
    assert {server.paid[text] for text in TEXTS} == {1}


def test_a_server_that_stays_down_ends_the_run(
    armada: CommandLine, corpus: Path, server: OpenAIServer
) -> None:
    server.fault = lambda number, body: status(503, "loading model") if number > 1 else None
    ended = armada(*words(server, corpus, patience=0.5))
    assert ended.code == 1
    assert "503: loading model" in ended.err
    assert "run the same command again" in ended.err


def known(corpus: Path) -> set[bytes]:
    """The keys of all texts whose replies are on the disk."""
    found: set[bytes] = set()
    for folder in (corpus.parent / "cache").glob("teachers/*/"):
        if not (folder / "teacher.json").exists():
            continue
        kept = KeptReplies(corpus.parent / "cache", folder.name, lambda keys: range(len(keys)))
        kept.see()
        found |= {key for key in map(example_key, TEXTS) if kept.get(key) is not None}
        kept.close()
        cache = open_cache(corpus.parent / "cache")
        keys = keys_to_array([example_key(text) for text in TEXTS])
        found |= {bytes(keys[at]) for at in np.flatnonzero(cache.find(keys) >= 0)}
    return found


def test_a_kill_at_any_moment_pays_nothing_twice(corpus: Path, server: OpenAIServer) -> None:
    generator = random.Random(1)
    server.pause_s = 0.02
    given = words(server, corpus, texts_per_request=1, concurrency=8)
    kills, on_disk = 0, set[bytes]()
    while len(on_disk) < COUNT and kills < 30:
        with start(*given) as process:
            target = sum(server.paid.values()) + generator.randrange(20, 90)
            while sum(server.paid.values()) < target and process.poll() is None:
                time.sleep(0.002)
            process.kill()
            process.communicate()
        kills += 1
        time.sleep(0.1)  # the server is done with what it was sent
        before, on_disk = on_disk, known(corpus)
        assert before <= on_disk, "lost"
    assert kills > 3
    with start(*given) as process:
        process.communicate()
        assert process.returncode == 0
    check_whole(corpus, TEXTS)
    twice = sum(server.paid[text] - 1 for text in TEXTS)
    assert 0 <= twice <= kills * 8, "more than were in flight"
