"""`armada cache push` and `pull` with the Hub, as people call them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from armada.stages.store.reading.reader import read_digest
from armada.stages.store.transfer import retries
from command_line import CommandLine
from hub_repository import WRITER, Answer, LoopbackHub, error, hub_of_repositories
from small_caches import numbered_texts, stored_bytes, write_cache
from tenacity import wait_none
from transfers import MANIFEST, visible

URL = "hf://datasets/team/cache"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    monkeypatch.setattr(retries, "WAIT", wait_none())
    with hub_of_repositories(monkeypatch) as state:
        yield state


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write_cache(tmp_path / "cache", MANIFEST, [numbered_texts(9 * n, 9 * n + 9) for n in range(3)])
    return tmp_path / "cache"


def test_push_and_pull(hub: LoopbackHub, cache: Path, armada: CommandLine, tmp_path: Path) -> None:
    planned = json.loads(armada.done("cache", "push", cache, URL, "--dry-run", "--json"))
    assert planned["teachers"][0]["shards"] == 3
    assert not hub.repositories
    result = armada("cache", "push", cache, URL)
    assert result.code == 0
    assert f"{URL} has digest {read_digest(cache)}" in result.out
    assert f"{URL}: created a private dataset repository" in result.err
    again = armada("cache", "push", cache, URL)
    assert "3 already there" in again.out
    assert "made a" not in again.err
    assert hub.commits_made == 1
    assert json.loads(armada.done("cache", "ls", URL, "--json"))[0]["rows"] == 27
    armada.done("cache", "pull", URL, tmp_path / "pulled")
    assert visible(stored_bytes(tmp_path / "pulled")) == visible(stored_bytes(cache))
    written = b"".join(stored_bytes(tmp_path / "pulled").values())
    assert WRITER.encode() not in written


def test_public(hub: LoopbackHub, cache: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    line = refused("cache", "push", cache, tmp_path / "folder", "--public")
    assert "--public is for repositories on the Hub" in line


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (error(403, "no write access"), 2, "the Hub refuses this (no write access)"),
        (error(401, "Invalid credentials"), 2, "the Hub does not accept the token"),
        (error(503, "busy"), 1, "cannot be reached (busy); run the same command again to continue"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    answer: Answer, code: int, words: str, hub: LoopbackHub, cache: Path, armada: CommandLine
) -> None:
    hub.make("team/cache")
    hub.faults = [("POST .*/commit/", [answer] * 5)]
    result = armada("cache", "push", cache, URL, "--quiet")
    assert (result.code, result.err.count("\n")) == (code, 1), result
    assert words in result.error
    assert len(hub.faults[0][1]) == (0 if code == 1 else 4)


def test_options_of_the_hub(
    hub: LoopbackHub, cache: Path, armada: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("HF_HOME", "/nonexistent")
    words = ("cache", "push", cache, URL, "--quiet")
    assert "needs a token that may write" in armada(*words).error
    armada.done(*words, "--storage-option", f"token={WRITER}")
    assert "with the options anon" in armada(*words, "--storage-option", "anon=true").error
