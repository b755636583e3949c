"""`openai` teachers, from the command line to the cache, by a server on loopback."""

import json
from pathlib import Path
from typing import Any

import pytest
from armada.stages.store.reading.reader import open_cache
from command_line import CommandLine
from openai_runs import check_whole, words, write_corpus
from openai_server import OpenAIServer, serving

COUNT = 300
TEXTS = [f"text number {number} of a corpus" for number in range(COUNT)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path, TEXTS)


def record(corpus: Path) -> dict[str, Any]:
    """The requests of the last run."""
    runs = sorted(corpus.parent.glob("cache/teachers/*/runs/*.json"))
    found: dict[str, Any] = json.loads(runs[-1].read_text())["requests"]
    return found


def test_how_long_a_servers_device_is_busy_is_not_known(armada: CommandLine, corpus: Path) -> None:
    with serving() as server:
        armada.done(*words(server, corpus))
    (run,) = open_cache(corpus.parent / "cache").runs()
    assert run.batches is not None
    assert (run.batches.rows, run.batches.busy_seconds) == (len(TEXTS), 0)


def test_each_text_is_paid_once(armada: CommandLine, corpus: Path) -> None:
    with serving() as server:
        armada.done(*words(server, corpus, input_price=2.0, probes=2))
        check_whole(corpus, TEXTS)
        assert {server.paid[text] for text in TEXTS} == {1}
        tokens = sum(len(text.split()) for text in [*TEXTS, *[PROBE] * 2])
        found = record(corpus)
        assert found["requests"] == server.requests
        assert found["input_tokens"] == tokens
        assert found["cost"] == pytest.approx(tokens * 2 / 1e6)
        assert found["model"] == "toy"
        made = server.requests
        armada.done(*words(server, corpus))
        assert server.requests == made
    armada.done(*words(server, corpus))  # there is no server any more


PROBE = "The quick brown fox jumps over the lazy dog."


def test_the_key_is_sent_and_written_nowhere(
    armada: CommandLine, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-very-secret")
    with serving(OpenAIServer(keys={"sk-very-secret"})) as server:
        result = armada(*words(server, corpus, key_variable="SOME_KEY"))
        assert result.code == 0
        assert server.authorizations == {"Bearer sk-very-secret"}
        server.keys = {"another"}
        refused = armada(
            *words(
                server,
                corpus,
                texts_per_request=8,
                key_variable="SOME_KEY",
                dimensions=4,
                add_teacher=1,
            )
        )
    assert "401" in refused.error
    assert "SOME_KEY" in refused.error
    for said in (result.out, result.err, refused.out, refused.err):
        assert "very-secret" not in said
    files = [path for path in corpus.parent.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"very-secret" in path.read_bytes()]


def test_a_run_ends_at_its_budget_and_goes_on(armada: CommandLine, corpus: Path) -> None:
    with serving() as server:
        stopped = armada(*words(server, corpus, max_requests=12, probes=1))
        assert "max_requests=12" in stopped.err
        assert stopped.code == 1
        assert server.requests == 12
        armada.done(*words(server, corpus, probes=1))
        check_whole(corpus, TEXTS)
        assert {server.paid[text] for text in TEXTS} == {1}


def test_costs_end_a_run(armada: CommandLine, corpus: Path) -> None:
    with serving() as server:
        stopped = armada(*words(server, corpus, max_cost=0.5, request_price=0.1, probes=1))
        assert "max_cost=0.5" in stopped.err
        assert server.requests == 5
        no_prices = armada(*words(server, corpus, max_cost=0.5))
        assert "max_cost: there are no prices" in no_prices.error


def test_a_changed_model_ends_the_run(armada: CommandLine, corpus: Path) -> None:
    with serving() as server:
        changes: dict[int, str] = {}

        def change(number: int, body: dict[str, Any]) -> None:
            if number > 10:
                server.changed = {"model": "toy-2"}
            changes[number] = body["model"]

        server.fault = change  # type: ignore[assignment]
        stopped = armada(*words(server, corpus))
        assert "was served by toy, is now by toy-2" in stopped.err
        assert stopped.code == 1
        again = armada(*words(server, corpus))
        assert "was served by toy" in again.err
        armada.done(*words(server, corpus, accept_change=True))
        check_whole(corpus, TEXTS)


def test_replicas_that_differ_are_found_before_a_run(armada: CommandLine, corpus: Path) -> None:
    with serving() as server:

        def other(body: dict[str, Any], reply: dict[str, Any]) -> Any:
            reply["data"][0]["embedding"] = [1.0] * 16
            return 200, {}, json.dumps(reply).encode()

        server.fault = lambda number, body: other if number == 2 else None
        refused = armada(*words(server, corpus))
        assert "its replicas are not one model" in refused.err
        assert not list(corpus.parent.glob("cache/teachers/*/commits/*"))


def test_a_refused_text_is_named_or_left_out(armada: CommandLine, corpus: Path) -> None:
    with serving() as server:

        def refuse(body: dict[str, Any], reply: dict[str, Any]) -> Any:
            return 400, {}, b'{"error": {"message": "maximum context length is 8 tokens"}}'

        def chosen(number: int, body: dict[str, Any]) -> Any:
            return refuse if TEXTS[17] in body["input"] else None

        server.fault = chosen
        refused = armada(*words(server, corpus))
        assert "corpus.jsonl, row 17" in refused.err or "row 18" in refused.err
        assert "maximum context length is 8 tokens" in refused.err
        output = armada(*words(server, corpus, skip_bad_rows=True))
        assert output.code == 0
        check_whole(corpus, TEXTS[:17] + TEXTS[18:])
        assert {server.paid[text] for text in TEXTS[:17] + TEXTS[18:]} == {1}
        assert server.paid[TEXTS[17]] == 0


def test_many_processes_are_refused(armada: CommandLine, corpus: Path) -> None:
    with serving() as server:
        refused = armada(*words(server, corpus, workers=2))
    assert "workers" in refused.error


def test_a_dry_run_pays_for_a_few_texts_once(armada: CommandLine, corpus: Path) -> None:
    with serving() as server:
        armada.done(*words(server, corpus), "--dry-run")
        assert sum(server.paid[text] for text in TEXTS) == 4
        assert set(server.paid.values()) <= {1, 3}
    assert not list(corpus.parent.glob("cache/teachers/*/commits/*"))


def test_a_dry_run_says_what_the_run_will_cost(armada: CommandLine, corpus: Path) -> None:
    prices = {"input_price": 3.0, "request_price": 0.01, "probes": 1}
    with serving() as server:
        planned = json.loads(armada.done(*words(server, corpus, **prices), "--dry-run", "--json"))
        shown = armada.done(*words(server, corpus, **prices), "--dry-run")
        done = json.loads(armada.done(*words(server, corpus, **prices), "--json"))
        again = json.loads(armada.done(*words(server, corpus, **prices), "--json"))
    expected, made = planned["requests"], done["requests"]
    assert expected["requests"] == made["requests"] - 1 == -(-COUNT // 8)  # and the probe
    # All texts but the probe are of six words.
    assert expected["input_tokens"] == made["input_tokens"] - len(PROBE.split()) == 6 * COUNT
    cost = expected["requests"] * 0.01 + 6 * COUNT * 3 / 1e6
    assert expected["cost"] == pytest.approx(cost)
    assert made["cost"] == pytest.approx(cost + 0.01 + len(PROBE.split()) * 3 / 1e6)
    assert f"about 38 requests, 1,800 tokens in, 0 out, cost {cost:.4g}" in shown
    assert again["requests"]["requests"] == 0


def test_what_was_paid_is_in_the_list_and_on_the_card(armada: CommandLine, corpus: Path) -> None:
    with serving() as server:
        armada.done(*words(server, corpus, request_price=0.5, probes=1))
    cache = corpus.parent / "cache"
    listed = json.loads(armada.done("cache", "ls", cache, "--json"))
    assert listed[0]["request_cost"] == 0.5 * 39
    assert "19.5 paid" in armada.done("cache", "ls", cache)
    armada.done("cache", "card", cache)
    card = (cache / "README.md").read_text()
    assert "39 requests" in card
    assert "cost 19.5" in card


def test_budgets_are_options_of_the_command(armada: CommandLine, corpus: Path) -> None:
    with serving() as server:
        stopped = armada(*words(server, corpus, probes=1), "--max-requests", 12)
        assert stopped.code == 1
        assert "max_requests=12" in stopped.err
        assert server.requests == 12
        stopped = armada(*words(server, corpus, probes=1, request_price=1), "--max-cost", 5)
        assert stopped.code == 1
        assert "max_cost=5" in stopped.err
        assert server.requests == 17
        armada.done(*words(server, corpus))
    check_whole(corpus, TEXTS)
    other = ("--teacher", "hash:16", "--cache", corpus.parent / "other")
    given = ("--corpus", corpus, "--text-column", "text", "--max-cost", 5)
    refused = armada("precompute", *given, *other)
    assert refused.code == 2
    assert "max_cost" in refused.err
