"""`openai` teachers whose requests go through a provider's batch service."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai_runs
import pytest
from armada.stages.precompute.remote import batches, requests
from armada.stages.store.writing.replies import FOLDER, NOTE
from command_line import CommandLine, start
from openai_batches import BatchServer
from openai_runs import check_whole, write_corpus
from openai_server import Body, serving

pytestmark = pytest.mark.long

COUNT = 60
TEXTS = [f"text number {number}" for number in range(COUNT)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path, TEXTS)


@pytest.fixture
def server() -> Iterator[BatchServer]:
    with serving(BatchServer()) as server:
        assert isinstance(server, BatchServer)
        yield server


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of a hundredth of what they are."""
    monkeypatch.setattr(batches, "FIRST_POLL_S", 0.01)
    monkeypatch.setattr(batches, "FIRST_WAIT_S", requests.FIRST_WAIT_S / 100)


def words(server: BatchServer, corpus: Path, **options: Any) -> list[str]:
    given = {"texts_per_request": 4, "probes": 1, "batch": "true", "patience": 30} | options
    return openai_runs.words(server, corpus, **given)


def notes(corpus: Path) -> list[Path]:
    return list(corpus.parent.glob(f"cache/teachers/*/{FOLDER}/{NOTE}"))


def record(corpus: Path) -> Body:
    runs = sorted(corpus.parent.glob("cache/teachers/*/runs/*.json"))
    found: Body = json.loads(runs[-1].read_text())["requests"]
    return found


def check_paid_once(server: BatchServer, corpus: Path) -> None:
    check_whole(corpus, TEXTS)
    assert {server.paid[text] for text in TEXTS} == {1}
    assert notes(corpus) == []


def test_a_batch_answers_all(armada: CommandLine, corpus: Path, server: BatchServer) -> None:
    armada.done(*words(server, corpus, input_price=1))
    check_paid_once(server, corpus)
    (batch,) = server.batches.values()
    assert batch["request_counts"]["total"] == COUNT // 4
    assert record(corpus)["requests"] == COUNT // 4 + 1
    assert record(corpus)["input_tokens"] == 3 * COUNT + 9  # and the probe
    asked = server.requests
    armada.done(*words(server, corpus))
    assert server.requests == asked


def test_large_runs_are_several_batches(
    armada: CommandLine, corpus: Path, server: BatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MOST_REQUESTS", 4)
    armada.done(*words(server, corpus))
    check_paid_once(server, corpus)
    assert [b["request_counts"]["total"] for b in server.batches.values()] == [4, 4, 4, 3]


def test_what_expired_goes_into_another_batch(
    armada: CommandLine, corpus: Path, server: BatchServer
) -> None:
    server.answers_most = [5, 6]
    armada.done(*words(server, corpus))
    check_paid_once(server, corpus)
    assert [b["request_counts"]["total"] for b in server.batches.values()] == [15, 10, 4]


def test_a_batch_that_expires_without_a_reply_ends_the_run(
    armada: CommandLine, corpus: Path, server: BatchServer
) -> None:
    server.answers_most = [0]
    ended = armada(*words(server, corpus))
    assert ended.code == 1
    assert "ended without a reply (expired)" in ended.err
    armada.done(*words(server, corpus))
    check_paid_once(server, corpus)


def test_a_batch_that_fails_ends_the_run(
    armada: CommandLine, corpus: Path, server: BatchServer
) -> None:
    server.problem = "the quota of queued tokens is used up"
    ended = armada(*words(server, corpus))
    assert ended.code == 1
    assert "batch-0 failed: the quota of queued tokens is used up" in ended.err
    server.problem = None
    armada.done(*words(server, corpus))
    check_paid_once(server, corpus)


def test_what_failed_in_a_batch_is_sent_alone(
    armada: CommandLine, corpus: Path, server: BatchServer
) -> None:
    server.line_fault = lambda body: (500, {}) if TEXTS[9] in body["input"] else None
    done = armada(*words(server, corpus))
    assert done.code == 0
    assert "batch-0: has no reply for 4 of 60 texts; they are sent one by one" in done.err
    check_paid_once(server, corpus)
    assert len(server.batches) == 1


def test_a_batch_whose_number_never_came_is_found(
    armada: CommandLine, corpus: Path, server: BatchServer
) -> None:
    server.lose_created = 1
    armada.done(*words(server, corpus))
    check_paid_once(server, corpus)
    assert len(server.batches) == 1


def test_a_kill_at_any_moment_makes_no_second_batch(corpus: Path, server: BatchServer) -> None:
    """Killed after so many requests: before and after the file, the batch, and each look."""
    for kill_after in (2, 3, 4, 5):
        with start(*words(server, corpus)) as process:
            before = server.requests
            while server.requests - before < kill_after and process.poll() is None:
                time.sleep(0.001)
            process.kill()
            process.communicate()
    with start(*words(server, corpus)) as process:
        process.communicate()
        assert process.returncode == 0
    check_paid_once(server, corpus)


def test_a_budget_is_looked_at_before_a_batch_is_made(
    armada: CommandLine, corpus: Path, server: BatchServer
) -> None:
    ended = armada(*words(server, corpus, max_requests=10))
    assert ended.code == 1
    assert "max_requests=10: 1 were made, and the next batch has 15" in ended.err
    ended = armada(*words(server, corpus, request_price=1, max_cost=12))
    assert ended.code == 1
    assert "max_cost=12: 1 are spent or under way, and the next batch costs about 15" in ended.err
    assert not server.batches
    armada.done(*words(server, corpus, request_price=1, max_cost=17))
    check_paid_once(server, corpus)


def test_apis_without_a_batch_service(
    armada: CommandLine, corpus: Path, server: BatchServer
) -> None:
    refused = armada(*words(server, corpus, api="score"))
    assert refused.code == 2
    assert "batch: api=score has no batch service" in refused.err
