"""Indices: what opens them, what to install, what is said when they refuse, and what never is."""

from pathlib import Path

import fsspec
import pytest
from armada.cache_schemas.errors import CacheError, StorageError, shown_url
from armada.stages.store.transfer.location import is_local, local_path, open_location
from armada.stages.store.transfer.remote import LocalLocation, RemoteLocation, connect
from armada.stages.store.transfer.retries import TooLargeError
from file_server import serving


@pytest.mark.parametrize(
    ("url", "path"),
    [("cache", "cache"), ("/a/b c", "/a/b c"), ("file:///a/b%20c", "/a/b c"), ("C:x", "C:x")],
)
def test_paths_and_file_urls_are_local(url: str, path: str) -> None:
    assert is_local(url)
    assert local_path(url) == Path(path)
    assert isinstance(open_location(url), LocalLocation)


def test_other_urls_are_not() -> None:
    assert not any(map(is_local, ("s3://bucket/cache", "https://host/cache", "memory://cache")))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("gs://bucket/cache", "needs a package that is not installed: .*gcsfs"),
        ("nowhere://bucket", "fsspec knows no protocol 'nowhere'"),
        ("https://host/cache?token=secret", "https://host/cache: a folder's URL must not"),
        ("https://u:secret@host/cache#part", "https://host/cache: a folder's URL must not"),
    ],
)
def test_urls_that_nothing_opens(url: str, words: str) -> None:
    with pytest.raises(CacheError, match=words) as caught:
        open_location(url)
    assert "secret" not in str(caught.value)


def test_options_that_no_driver_takes() -> None:
    with pytest.raises(CacheError, match=r"s3://bucket: .* with the options key, username$"):
        RemoteLocation("s3://bucket", {"key": "secret", "username": "secret"})


def test_http_takes_its_time_and_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fsspec.config.conf, "http", {"client_kwargs": {"trust_env": True}})
    kwargs = connect("https://host/cache", "shown", {})[0].client_kwargs
    assert kwargs["trust_env"]
    assert kwargs["timeout"].total is None
    assert kwargs["timeout"].sock_read > 0


def test_http_is_for_pulling() -> None:
    with pytest.raises(CacheError, match="http://host/cache: cannot be pushed to over HTTP"):
        RemoteLocation("http://host/cache").require_writable()


def test_passwords_are_not_shown(tmp_path: Path) -> None:
    assert shown_url("see s3://me:p@ss@host/a@b, now") == "see s3://host/a@b, now"
    with serving(tmp_path) as server:
        url = server.url.replace("//", "//someone:secret@")
    location = RemoteLocation(url, {"headers": {"Authorization": "Bearer-of-news"}})
    with pytest.raises(StorageError, match="cannot be reached") as caught:
        location.read("armada.json", 10)
    assert "secret" not in str(caught.value)
    assert "someone" not in str(caught.value)
    assert location._cleaned("Bearer-of-news is wrong") == "*** is wrong"
    nested = RemoteLocation(server.url, {"headers": [["Authorization", ("in-a-list",)]]})
    assert nested._cleaned("in-a-list is wrong") == "*** is wrong"


def test_options_that_are_refused_at_the_first_question() -> None:
    location = RemoteLocation("s3://bucket", {"client_kwargs": 3, "anon": True})
    with pytest.raises(CacheError, match=r"s3://bucket: .* with the options client_kwargs, anon "):
        location.read("armada.json", 10)


def test_a_slash_at_the_end_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    with serving(tmp_path) as server:
        location = RemoteLocation(server.url + "/")
        assert location.read("file", 10) == b"data"
        assert location.where("file") == f"{server.url}/file"


def test_no_more_than_asked_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100))
    with serving(tmp_path) as server:
        for location in (RemoteLocation(server.url), LocalLocation(tmp_path)):
            location.download("file", tmp_path / "here", 100)
            assert (tmp_path / "here").read_bytes() == bytes(100)
            with pytest.raises(TooLargeError, match="has more than 99 bytes"):
                location.download("file", tmp_path / "here", 99)
