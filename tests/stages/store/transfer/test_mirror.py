"""A mirror: what is needed comes once, in order, within a limit, and stays a cache."""

import os
import pickle
import threading
from pathlib import Path

import armada
import numpy as np
import pytest
from armada.cache_schemas.errors import CacheError, DamagedCacheError
from armada.pipeline.caches.upkeep import run_gc
from armada.stages.store.format.manifests import read_part
from armada.stages.store.reading.reader import Cache, open_cache
from armada.stages.store.transfer.mirror import Mirror, ToCome, default_mirror, first_uses
from armada.stages.store.writing.reservations import host_id
from armada.stages.store.writing.writer import CacheWriter
from file_server import FileServer, serving
from small_caches import answer, keys_of, numbered_texts, stored_bytes, write_cache
from transfers import FOLDER, MANIFEST, OTHER, bring, serve_ready, visible

TEACHER = MANIFEST.fingerprint
POOLED, SCORE = MANIFEST.spec.features
FOURTH_THEN_FIRST = [*numbered_texts(200, 203), *numbered_texts(0, 3)]


def opened(mirror: Mirror, texts: list[str], feature: str = "pooled") -> tuple[Cache, ToCome]:
    """The answers to some texts, on their way."""
    keys = keys_of(texts)
    cache = mirror.narrowed(mirror.open(TEACHER), feature, keys)
    return cache, mirror.fetch_ahead(cache, feature, keys)


def features_asked(server: FileServer) -> list[str]:
    return [name for name in server.asked if "/c/" in name]


def test_only_what_is_needed_comes_and_only_once(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mirror"
    with serving(shared) as server:
        cache, to_come = opened(Mirror(server.url, folder), FOURTH_THEN_FIRST)
        assert to_come.shards == 2
        rows = cache.lookup(FOURTH_THEN_FIRST)
        expected = answer(POOLED, FOURTH_THEN_FIRST)
        np.testing.assert_array_equal(cache["pooled"][rows], expected)
        assert first_uses(cache, keys_of(FOURTH_THEN_FIRST)) == [1, 0]
        wanted = {f"{FOLDER}/pooled/c/3/0", f"{FOLDER}/pooled/c/0/0"}
        assert set(features_asked(server)) == wanted
        assert len(server.asked) == 1 + 5 + 2
        server.asked.clear()
        again, to_come = opened(Mirror(server.url, folder), FOURTH_THEN_FIRST)
        np.testing.assert_array_equal(again["pooled"][rows], expected)
        assert to_come == ToCome(0, 0)
        assert server.asked == ["index.json"]


def test_a_mirror_is_a_cache_of_what_has_come(shared: Path, tmp_path: Path) -> None:
    with serving(shared) as server:
        cache, _ = opened(Mirror(server.url, tmp_path), FOURTH_THEN_FIRST, "score")
        cache["score"][:]
        two, _ = opened(Mirror(server.url, tmp_path), numbered_texts(64, 66), "pooled")
        two["pooled"][:]
    local = open_cache(tmp_path, TEACHER)
    assert local.features == ("score",)
    assert [record.shard for record in local.commits] == [0, 3]
    texts = [*numbered_texts(0, 64), *numbered_texts(192, 256)]
    np.testing.assert_array_equal(local["score"][:], answer(SCORE, texts))
    part = read_part(tmp_path, TEACHER)
    assert part is not None
    assert part.next_shard == 5
    there = visible(stored_bytes(shared))
    for name, data in visible(stored_bytes(tmp_path)).items():
        assert data == there.get(name, data) or name.endswith("zarr.json")


def test_another_process_finds_or_fetches_for_itself(shared: Path, tmp_path: Path) -> None:
    with serving(shared) as server:
        mirror = Mirror(server.url, tmp_path)
        cache = mirror.narrowed(mirror.open(TEACHER), "pooled", keys_of(FOURTH_THEN_FIRST))
        travelled = pickle.loads(pickle.dumps(cache["pooled"]))
        texts = [*numbered_texts(0, 64), *numbered_texts(192, 256)]
        child = os.fork()
        if child == 0:
            whole = np.array_equal(travelled[:], answer(POOLED, texts))
            os._exit(0 if whole else 1)
        assert os.waitpid(child, 0)[1] == 0
        asked = list(server.asked)
        np.testing.assert_array_equal(cache["pooled"][:], answer(POOLED, texts))
        assert server.asked == asked


def test_processes_that_need_the_same_shard_fetch_it_once(shared: Path, tmp_path: Path) -> None:
    with serving(shared) as server:
        server.pause_s = 0.05
        mirrors = [Mirror(server.url, tmp_path) for _ in range(4)]
        threads = [
            threading.Thread(target=lambda m=mirror: opened(m, FOURTH_THEN_FIRST)[0]["pooled"][:])
            for mirror in mirrors
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        fetched = [name for name in server.asked if name != "index.json"]
        assert len(fetched) == len(set(fetched)) == 5 + 2


def test_what_was_not_used_for_longest_is_evicted(shared: Path, tmp_path: Path) -> None:
    with serving(shared) as server:
        url = server.url
        for start in (0, 64, 128):
            opened(Mirror(url, tmp_path), numbered_texts(start, start + 1))[0]["pooled"][:]
        opened(Mirror(url, tmp_path), numbered_texts(0, 1))  # used again
        now = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
        cache, _ = opened(Mirror(url, tmp_path, now), numbered_texts(192, 193))
        np.testing.assert_array_equal(cache["pooled"][:], answer(POOLED, numbered_texts(192, 256)))
        there = sorted(path.name for path in (tmp_path / FOLDER / "pooled/c").glob("*/0"))
        held = {path.parent.name for path in (tmp_path / FOLDER / "pooled/c").glob("*/0")}
        assert held == {"0", "2", "3"}, there
        assert [r.shard for r in open_cache(tmp_path, TEACHER).commits] == [0, 2, 3]
        server.asked.clear()
        opened(Mirror(url, tmp_path), numbered_texts(64, 65))[0]["pooled"][:]
        assert features_asked(server) == [f"{FOLDER}/pooled/c/1/0"]


def test_what_cannot_fit_is_refused_before_anything_comes(shared: Path, tmp_path: Path) -> None:
    with serving(shared) as server:
        mirror = Mirror(server.url, tmp_path, 1000)
        with pytest.raises(
            CacheError, match=r"this run needs \d+ bytes there, mirror_limit is 1000; raise it"
        ):
            opened(mirror, numbered_texts(0, 300))
        assert features_asked(server) == []


def test_nothing_is_evicted_while_another_run_uses_the_mirror(shared: Path, tmp_path: Path) -> None:
    with serving(shared) as server:
        first = Mirror(server.url, tmp_path)
        opened(first, numbered_texts(0, 1))[0]["pooled"][:]
        now = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
        second = Mirror(server.url, tmp_path, now)
        with pytest.raises(CacheError, match="is full, and another run uses its shards"):
            opened(second, numbered_texts(64, 65))
        del first
        opened(second, numbered_texts(64, 65))[0]["pooled"][:]
        assert not (tmp_path / FOLDER / "pooled/c/0/0").exists()


def test_folders_that_are_something_else_are_refused(
    shared: Path, source: Path, tmp_path: Path
) -> None:
    with serving(shared) as server, serving(shared) as other:
        Mirror(server.url, tmp_path / "mirror")
        with pytest.raises(CacheError, match=f"is that of {server.url}; name an empty folder"):
            Mirror(other.url, tmp_path / "mirror")
        write_cache(tmp_path / "own", OTHER, [numbered_texts(0, 1)])
        with pytest.raises(CacheError, match="is a cache of its own; name an empty folder"):
            Mirror(server.url, tmp_path / "own")
        with pytest.raises(CacheError, match=f"{server.url}: its digest is"):
            Mirror(server.url, tmp_path / "new", digest="0" * 64)
        assert not (tmp_path / "new").exists()


def test_what_is_not_there_any_more_is_not_used(tmp_path: Path) -> None:
    served = tmp_path / "served"
    for number, texts in enumerate((numbered_texts(0, 64), numbered_texts(500, 564))):
        cache = tmp_path / str(number)
        write_cache(cache, MANIFEST, [texts])
        serve_ready(cache, tmp_path / f"served-{number}")
    (tmp_path / "served-0").rename(served)
    with serving(served) as server:
        opened(Mirror(server.url, tmp_path / "mirror"), numbered_texts(0, 1))[0]["pooled"][:]
        served.rename(tmp_path / "old")
        (tmp_path / "served-1").rename(served)
        with pytest.raises(
            CacheError, match=r"shard 0 of teacher .* differs from the one now at http"
        ):
            Mirror(server.url, tmp_path / "mirror")


def test_what_a_killed_run_left_is_removed(shared: Path, tmp_path: Path) -> None:
    dead = tmp_path / FOLDER / "reservations" / "arriving-dead"
    with serving(shared) as server:
        opened(Mirror(server.url, tmp_path), numbered_texts(0, 1))[0]["pooled"][:]
        dead.mkdir(parents=True)
        (dead / "heartbeat").write_text(f"{host_id()} somebody 1\n")
        (dead / "0").write_bytes(b"half a file")
        opened(Mirror(server.url, tmp_path), numbered_texts(0, 1))
    assert not dead.exists()


def test_damage_on_the_way_stops_who_waits(shared: Path, tmp_path: Path) -> None:
    with serving(shared) as server:
        server.faults = {f"{FOLDER}/pooled/c/0/0": "flip"}
        cache, _ = opened(Mirror(server.url, tmp_path), numbered_texts(0, 1))
        with pytest.raises(DamagedCacheError, match=r"pooled/c/0/0: arrived damaged 3 times"):
            cache["pooled"][:]


def test_nobody_else_works_in_a_mirror(shared: Path, tmp_path: Path) -> None:
    with serving(shared) as server:
        cache, _ = opened(Mirror(server.url, tmp_path), numbered_texts(0, 1))
        assert not list((tmp_path / FOLDER / "commits").glob("*"))
        for work in (
            lambda: bring(server.url, tmp_path),
            lambda: run_gc(tmp_path, dry_run=False),
            lambda: CacheWriter(tmp_path, MANIFEST),
        ):
            with pytest.raises(CacheError, match="is a mirror of a remote cache"):
                work()
        np.testing.assert_array_equal(
            cache["pooled"][:1], open_cache(shared, MANIFEST.fingerprint)["pooled"][:1]
        )


def test_open_cache_takes_a_url(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving(shared) as server:
        cache = armada.open_cache(server.url, TEACHER[:8])
        assert features_asked(server) == []
        np.testing.assert_array_equal(
            cache["pooled"][cache.lookup(FOURTH_THEN_FIRST)], answer(POOLED, FOURTH_THEN_FIRST)
        )
        assert set(features_asked(server)) <= {f"{FOLDER}/pooled/c/{n}/0" for n in range(5)}
        again = pickle.loads(pickle.dumps(cache))
        rows = again.lookup(numbered_texts(70, 72))
        np.testing.assert_array_equal(again["pooled"][rows], answer(POOLED, numbered_texts(70, 72)))
        elsewhere = armada.open_cache(server.url, TEACHER, mirror="~/mirror")
        assert elsewhere.path == tmp_path / "mirror"
        assert default_mirror(server.url) == cache.path
        with pytest.raises(CacheError, match="not an armada cache"):
            armada.open_cache(f"{server.url}/teachers")
    local = armada.open_cache(f"file://{shared}", TEACHER)
    assert local.path == shared
    assert len(local) == len(armada.open_cache(shared, TEACHER)) == len(cache)
