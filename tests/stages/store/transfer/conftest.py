"""What the tests of sharing have in common: a cache of two teachers, and no waiting."""

from pathlib import Path

import pytest
from armada.stages.store.transfer import retries
from small_caches import numbered_texts, write_cache
from tenacity import wait_none
from transfers import MANIFEST, OTHER, serve_ready


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tries, one after the other."""
    monkeypatch.setattr(retries, "TRIES", 3)
    monkeypatch.setattr(retries, "WAIT", wait_none())


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with 5 shards of one teacher and 2 of another; not to be written to."""
    path = tmp_path_factory.mktemp("source") / "cache"
    texts = numbered_texts(0, 5 * 64 - 7)
    write_cache(path, MANIFEST, [texts[start : start + 64] for start in range(0, 320, 64)])
    write_cache(path, OTHER, [numbered_texts(0, 64), numbered_texts(64, 100)])
    return path


@pytest.fixture(scope="session")
def shared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an index, to be served; not to be written to."""
    return serve_ready(source, tmp_path_factory.mktemp("shared") / "cache")
