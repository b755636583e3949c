"""Pushing to the Hub: a repository of its own in few commits, whole for readers at every commit,
with others pushing in between, limits, faults and refusals."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import armada
import pytest
from armada.cache_schemas.errors import CacheError, DamagedCacheError, StorageError
from armada.cache_schemas.layout import CACHE_INDEX, CACHE_MANIFEST
from armada.cache_schemas.manifest import CacheIndex
from armada.stages.store.reading.reader import read_contents, read_digest
from armada.stages.store.transfer import hub_push
from armada.stages.store.transfer.hub import HubLocation
from armada.stages.store.transfer.index import read_origin
from armada.stages.store.transfer.location import open_location
from armada.stages.store.transfer.push import plan_push
from hub_repository import READER, Answer, LoopbackHub, error, hub_of_repositories
from small_caches import numbered_texts, stored_bytes, write_cache
from transfers import FOLDER, MANIFEST, OTHER, bring, visible

pytestmark = pytest.mark.long

URL = "hf://datasets/team/cache"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with hub_of_repositories(monkeypatch) as state:
        yield state


def send(cache: Path, url: str = URL, public: bool = False) -> CacheIndex:
    location = HubLocation(url)
    location.require_writable()
    plans = plan_push(cache, read_contents(cache).teachers, location)
    return hub_push.push_to_hub(cache, plans, location, "mark", public, 4, lambda count: None)


def below(files: dict[str, bytes], folder: str = "") -> dict[str, bytes]:
    """Of a repository's files, those of the cache in a folder of it."""
    inside = {n.removeprefix(folder): data for n, data in files.items() if n.startswith(folder)}
    return visible({n: data for n, data in inside.items() if n != ".gitattributes"})


@pytest.mark.parametrize(
    ("url", "kind", "folder"),
    [
        (URL, "dataset", ""),
        ("hf://team/cache", "model", ""),
        ("hf://models/team/cache/", "model", ""),
        (f"{URL}/in/a folder", "dataset", "in/a folder/"),
        (f"{URL}@v1/deep", "dataset", "deep/"),
        (f"{URL}@refs%2Fpr%2F1", "dataset", ""),
    ],
)
def test_a_new_repository_and_back(
    url: str, kind: str, folder: str, hub: LoopbackHub, source: Path, tmp_path: Path
) -> None:
    revision = "v1" if "@v1" in url else "refs/pr/1" if "@refs" in url else "main"
    assert send(source, url).digest == read_digest(source)
    assert hub.commits_made == 1
    assert hub.repositories[kind, "team/cache"].private
    assert below(hub.files("team/cache", kind, revision), folder) == visible(stored_bytes(source))
    bring(url, tmp_path / "cache")
    assert visible(stored_bytes(tmp_path / "cache")) == visible(stored_bytes(source))


def test_a_repository_that_is_there_already(hub: LoopbackHub, source: Path) -> None:
    hub.make("team/cache", private=False, **{"README.md": b"mine", "LICENSE": b"any"})
    send(source)
    assert hub.files("team/cache")["README.md"] == b"mine"
    assert not hub.repositories["dataset", "team/cache"].private
    hub.make("team/else", **{"train.csv": b"a,b"})
    with pytest.raises(CacheError, match=r"is neither empty nor .* \(it holds train.csv\); name"):
        send(source, "hf://datasets/team/else")
    send(source, "hf://datasets/team/else/cache")


def test_public_only_if_asked(hub: LoopbackHub, source: Path) -> None:
    send(source, public=True)
    assert not hub.repositories["dataset", "team/cache"].private


def test_few_commits_and_none_for_nothing(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    write_cache(cache, MANIFEST, [numbered_texts(4 * n, 4 * n + 4) for n in range(10)])
    send(cache)
    assert hub.commits_made == 1  # 38 files
    uploads = hub.count("PUT /(upload|part)")
    send(cache)
    assert hub.commits_made == 1
    assert hub.count("PUT /(upload|part)") == uploads
    monkeypatch.setattr(hub_push, "BATCH_FILES", 12)  # three shards of three files and a record
    send(cache, "hf://datasets/team/again")
    assert hub.commits_made == 1 + 4
    assert hub.files("team/again") == hub.files("team/cache")
    monkeypatch.setattr(hub_push, "BATCH_FILES", 400)
    monkeypatch.setattr(hub_push, "BATCH_BYTES", 1)
    send(cache, "hf://datasets/team/bytes")
    assert hub.commits_made == 5 + 10


def test_readers_of_every_commit_see_a_whole_cache_or_none(
    hub: LoopbackHub, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tmp_path / "first"
    write_cache(first, MANIFEST, [numbered_texts(0, 64)])
    monkeypatch.setattr(hub_push, "BATCH_FILES", 4)
    hub.make("team/cache")
    send(first)
    send(source)
    seen = []
    for sha in hub.repositories["dataset", "team/cache"].commits:
        if CACHE_MANIFEST not in hub.repositories["dataset", "team/cache"].commits[sha]:
            with pytest.raises(CacheError, match="not an armada cache"):
                bring(f"{URL}@{sha}", tmp_path / sha)
            seen.append("none")
            continue
        bring(f"{URL}@{sha}", tmp_path / sha)
        seen.append(read_digest(tmp_path / sha))
    assert seen[:2] == ["none", read_digest(first)]
    assert set(seen[1:-1]) == {read_digest(first)}
    assert seen[-1] == read_digest(source)


def test_a_reader_stays_at_the_commit_it_began_with(
    hub: LoopbackHub, source: Path, tmp_path: Path
) -> None:
    send(source)
    location = open_location(URL)
    index = read_origin(location)
    for name in (*hub.files("team/cache"),):
        hub.put("team/cache", name, b"replaced")
    assert read_origin_again(location) == index
    with pytest.raises(DamagedCacheError):
        read_origin(location)


def read_origin_again(location: object) -> CacheIndex:
    from armada.stages.store.transfer.index import read_index
    from armada.stages.store.transfer.remote import RemoteLocation

    assert isinstance(location, RemoteLocation)
    index = read_index(location)
    assert index is not None
    return index


def test_a_cut_push_goes_on(
    hub: LoopbackHub, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(source, cut)
    (cut / FOLDER / "score/c/3").unlink()
    monkeypatch.setattr(hub_push, "BATCH_FILES", 4)
    with pytest.raises(DamagedCacheError, match="is missing"):
        send(cut)
    there = hub.files("team/cache")
    assert CACHE_MANIFEST not in there
    assert CACHE_INDEX not in there
    sent = hub.count("PUT /(upload|part)")
    assert sent
    plans = plan_push(source, read_contents(source).teachers, HubLocation(URL))
    assert 0 < sum(len(plan.shards) for plan in plans) < 7
    send(source)
    assert below(hub.files("team/cache")) == visible(stored_bytes(source))
    large = [d for d in stored_bytes(source).values() if len(d) >= 200]
    assert hub.count("PUT /upload") <= len(large)  # nothing went twice


def test_pushes_that_come_in_between(
    hub: LoopbackHub, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    write_cache(one, MANIFEST, [numbered_texts(64 * n, 64 * n + 64) for n in range(4)])
    write_cache(other, OTHER, [numbered_texts(0, 64), numbered_texts(64, 100)])
    monkeypatch.setattr(hub_push, "BATCH_FILES", 8)
    # Another's whole push before the first commit of ours, and a commit of a file before the last.
    hub.in_between = [lambda: send(other), lambda: None, lambda: hub.put("team/cache", "a", b"b")]
    send(one)
    assert {t.manifest.fingerprint for t in read_origin(open_location(URL)).teachers} == {
        MANIFEST.fingerprint,
        OTHER.fingerprint,
    }
    assert hub.files("team/cache")["a"] == b"b"
    bring(URL, tmp_path / "both")
    assert read_digest(tmp_path / "both") == read_origin(open_location(URL)).digest


def test_others_shards_in_between_are_not_replaced(
    hub: LoopbackHub, source: Path, tmp_path: Path
) -> None:
    rival = tmp_path / "rival"
    write_cache(rival, MANIFEST, [numbered_texts(500, 564)])
    hub.in_between = [lambda: send(rival)]
    with pytest.raises(CacheError, match=r"is not shard 0 of .*; merge the two with `armada cache"):
        send(source)
    assert read_origin(open_location(URL)).digest == read_digest(rival)


def test_conflicts_without_an_end_are_said(hub: LoopbackHub, source: Path) -> None:
    hub.make("team/cache")
    hub.in_between = [lambda: hub.put("team/cache", "README.md", b"more")] * 99
    with pytest.raises(StorageError, match=f"{URL}: others push at the same time"):
        send(source)
    assert hub.count("POST .*/commit/") == hub_push.CONFLICTS


def reset() -> Answer:
    return Answer(reset=True)


@pytest.mark.parametrize(
    ("request_", "fault"),
    [
        ("POST .*/commit/", lambda: error(500, "Internal Error")),
        ("POST .*/commit/", reset),
        ("POST .*/commit/", lambda: error(429, "too many", **{"Retry-After": "1"})),
        ("GET .*/revision/", lambda: error(503, "busy")),
        ("GET .*/api/datasets/team/cache$", reset),
        ("POST .*/repos/create", lambda: error(502, "bad gateway")),
        ("GET .*/tree/", lambda: error(504, "late")),
        ("GET .*/resolve/.*index.json", lambda: error(503, "busy")),
    ],
)
def test_what_passes_is_tried_again(
    request_: str, fault: Callable[[], Answer], hub: LoopbackHub, source: Path, tmp_path: Path
) -> None:
    hub.faults = [(request_, [fault()])]
    send(source)
    bring(URL, tmp_path / "cache")
    assert visible(stored_bytes(tmp_path / "cache")) == visible(stored_bytes(source))
    assert hub.commits_made == 1


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub: LoopbackHub, source: Path) -> None:
    hub.make("team/cache")

    def commits_but_answers_nothing() -> None:
        hub.faults = [("POST .*/commit/", [Answer(reset=True)])]
        send(source)

    # The same push as ours goes through, and ours is told of a conflict.
    hub.in_between = [commits_but_answers_nothing]
    send(source)
    assert below(hub.files("team/cache")) == visible(stored_bytes(source))
    assert hub.commits_made == 1


@pytest.mark.parametrize(
    ("request_", "answer", "kind", "words"),
    [
        ("POST .*/commit/", error(403, "storage limit"), CacheError, "refuses this .*storage"),
        ("POST .*/preupload/", error(402, "pay first"), CacheError, "refuses this .*pay first"),
        ("POST .*/commit/", error(413, "too large"), CacheError, "refuses this .*too large"),
        ("GET .*/revision/|GET .*cache$", error(403, "no", "GatedRepo"), CacheError, "is gated; a"),
        ("POST .*/commit/", error(500, "ill"), StorageError, "cannot be reached .*ill.* again to"),
        (
            "POST .*/commit/",
            error(429, "quota", **{"Retry-After": "1800"}),
            StorageError,
            "cannot be reached .*quota.*; the server asks for a pause of 30 minutes; run the",
        ),
    ],
)
def test_what_stays_is_one_line(
    request_: str,
    answer: Answer,
    kind: type[Exception],
    words: str,
    hub: LoopbackHub,
    source: Path,
) -> None:
    hub.faults = [(request_, [answer] * 3)]
    with pytest.raises(kind, match=f"^{URL}: .*{words}") as caught:
        send(source)
    assert "\n" not in str(caught.value)
    assert "hf_writer" not in str(caught.value)
    tries = 3 if answer.status == 500 else 1
    assert len(hub.faults[0][1]) == 3 - tries


def test_a_limit_of_commits_is_said_and_the_next_push_goes_on(
    hub: LoopbackHub, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_push, "BATCH_FILES", 4)
    hub.commits_allowed = 3
    with pytest.raises(StorageError, match="hourly quotas for action: commit"):
        send(source)
    hub.commits_allowed = None
    send(source)
    assert hub.commits_made == 7
    assert below(hub.files("team/cache")) == visible(stored_bytes(source))


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("", "needs a token that may write; run `hf auth login`, or set HF_TOKEN"),
        ("hf_expired", "the Hub does not accept the token"),
        (READER, "the Hub refuses this .*You don't have the rights to create a dataset"),
    ],
)
def test_tokens(
    token: str, words: str, hub: LoopbackHub, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("HF_HOME", "/nonexistent")
    with pytest.raises(CacheError, match=words) as caught:
        send(source)
    assert not token or token not in str(caught.value)
    assert not hub.repositories


def test_names_that_are_not_ours(hub: LoopbackHub, source: Path) -> None:
    with pytest.raises(CacheError, match=r"refuses this .*rights to create a dataset under"):
        send(source, "hf://datasets/others/cache")
    with pytest.raises(CacheError, match="make it on the Hub first"):
        send(source, "hf://spaces/team/cache")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("hf://datasets/team", "names no repository; write hf://datasets/USER/NAME"),
        ("hf://gpt2", "names no repository"),
        ("hf://datasets/team/ca--che", "ca--che"),
        ("hf://datasets/team/.git", ".git"),
    ],
)
def test_urls_that_name_nothing(url: str, words: str) -> None:
    with pytest.raises(CacheError, match=words):
        HubLocation(url)


def test_pulls_that_find_nothing(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.make("team/cache")
    with pytest.raises(CacheError, match=f"{URL}: holds neither index.json nor armada.json"):
        bring(URL, tmp_path / "cache")
    with pytest.raises(CacheError, match="none: no such repository is visible"):
        bring("hf://datasets/team/none", tmp_path / "cache")
    with pytest.raises(CacheError, match=f"{URL}@v9: has no revision v9"):
        bring(f"{URL}@v9", tmp_path / "cache")
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("HF_HOME", "/nonexistent")
    with pytest.raises(CacheError, match="no such public repository; for a private one `hf auth"):
        bring(URL, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_files_that_the_repository_ignores_are_not_lost_silently(
    hub: LoopbackHub, source: Path
) -> None:
    for ignored in (b".parquet", b"index.json"):
        hub.make("team/cache", **{".gitignore": ignored})
        with pytest.raises(StorageError, match=r"was sent but is missing: a .gitignore"):
            send(source)
        assert CACHE_INDEX not in hub.files("team/cache")


def test_the_page_goes_along(hub: LoopbackHub, source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(source, cache)
    (cache / "README.md").write_text("---\nlicense: mit\n---\nmark: a page")
    (cache / "features-1.png").write_bytes(b"picture")
    send(cache)
    assert hub.commits_made == 1
    assert hub.files("team/cache")["features-1.png"] == b"picture"
    (cache / "README.md").write_text("---\nlicense: nonsense\n---\nmark: a page")
    with pytest.raises(CacheError, match=r'refuses this .*README.md.*"license" is wrong'):
        send(cache)


def test_a_cache_on_the_hub_is_opened_from_python(
    hub: LoopbackHub, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    send(source)
    texts = numbered_texts(100, 120)
    cache, local = (armada.open_cache(at, MANIFEST.fingerprint) for at in (URL, source))
    assert (cache["pooled"][cache.lookup(texts)] == local["pooled"][local.lookup(texts)]).all()
