"""Locations by path or URL: a local folder, one on a server, or one on the Hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ....cache_schemas.locations import expand_home
from .remote import LocalLocation, Location, RemoteLocation


def is_local(url: str) -> bool:
    """Whether a path or URL names a folder of this machine."""
    return "://" not in url or url.startswith(("file://", "local://"))


def local_path(url: str) -> Path:
    """The folder of a path or a file: URL."""
    _, colon, path = url.partition("://")
    return Path(expand_home(unquote(path) if colon else url))


def open_location(url: str, options: Mapping[str, Any] | None = None) -> Location:
    """The folder at a path or URL. `options` are for fsspec."""
    return LocalLocation(local_path(url)) if is_local(url) else open_remote(url, options)


def is_hub(url: str) -> bool:
    """Whether a URL is of a repository on the Hub; buckets there are as those anywhere else."""
    return url.startswith("hf://") and not url.startswith("hf://buckets/")


def open_remote(url: str, options: Mapping[str, Any] | None = None) -> RemoteLocation:
    """The folder at a URL. `options` are for fsspec, or for the Hub."""
    if is_hub(url):
        from .hub import HubLocation  # only where it is needed: it waits for huggingface_hub

        return HubLocation(url, options)
    return RemoteLocation(url, options)
