"""A server of the S3 protocol on loopback, with its buckets in memory; one for all tests."""

import atexit
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest

_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@cache
def _address() -> str:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    atexit.register(server.stop)
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"


def new_bucket(name: str, environment: pytest.MonkeyPatch) -> str:
    """A new, empty bucket; returns its URL. To this process, and to those that it starts, the
    server is the only S3 there is."""
    import fsspec

    for variable, value in (_ENVIRONMENT | {"AWS_ENDPOINT_URL": _address()}).items():
        environment.setenv(variable, value)
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(name)
    return f"s3://{name}"


@contextmanager
def strict() -> Iterator[None]:
    """The server lets only users in that it knows: nobody."""
    import requests

    requests.post(f"{_address()}/moto-api/reset-auth", data=b"0", timeout=60)
    try:
        yield
    finally:
        requests.post(f"{_address()}/moto-api/reset-auth", data=b"inf", timeout=60)


def names(bucket: str) -> set[str]:
    """Names of everything in a bucket."""
    return set(_find(bucket)[1])


def objects(bucket: str) -> dict[str, bytes]:
    """Everything in a bucket."""
    files, paths = _find(bucket)
    return {name: files.cat_file(path) for name, path in paths.items()}


def _find(bucket: str) -> tuple[Any, dict[str, str]]:
    import fsspec

    files = fsspec.filesystem("s3", skip_instance_cache=True)
    paths = files.find(bucket.removeprefix("s3://"))
    return files, {path.partition("/")[2]: path for path in paths}
