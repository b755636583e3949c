"""Retries: errors of every library that may pass are tried again, waits that servers ask for are
kept, and whatever will not pass is reported at once."""

import email.utils
import errno
import re
import ssl
import time
from collections.abc import Iterator

import aiohttp
import botocore.exceptions
import httpx
import pytest
import requests
import urllib3
from armada.stages.store.transfer import retries
from armada.stages.store.transfer.retries import asked_wait_s, may_pass, persistently, status_of
from hub_server import hub
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session, hf_raise_for_status
from tenacity import RetryCallState, Retrying

REQUEST = httpx.Request("GET", "http://host/file")


def with_aiohttp(code: int, **headers: str) -> Exception:
    return aiohttp.ClientResponseError(None, (), status=code, headers=headers)  # type: ignore[arg-type]


def with_requests(code: int, **headers: str) -> Exception:
    response = requests.Response()
    response.status_code = code
    response.headers.update(headers)
    return requests.HTTPError(response=response)


def with_httpx(code: int, **headers: str) -> Exception:
    response = httpx.Response(code, headers=headers, request=REQUEST)
    return httpx.HTTPStatusError("", request=REQUEST, response=response)


def with_botocore(code: int, **headers: str) -> Exception:
    about = {"HTTPStatusCode": code, "HTTPHeaders": headers}
    error = botocore.exceptions.ClientError({"ResponseMetadata": about}, "GetObject")  # type: ignore[typeddict-item]
    outer = OSError(errno.EIO, "as s3fs raises it")
    outer.__cause__ = error
    return outer


def untrusted() -> Exception:
    """As httpx raises it: an error that passes, of one that doesn't."""
    outer = httpx.ConnectError("certificate verify failed")
    outer.__cause__ = ssl.SSLCertVerificationError("self-signed certificate")
    return outer


MAKERS = (with_aiohttp, with_requests, with_httpx, with_botocore)


def hf_error() -> HfHubHTTPError:
    """An error as huggingface_hub itself raises it, with the HTTP library it brings."""
    with hub({}) as (address, _):
        response = get_session().get(f"{address}/api/models/team/none")
        with pytest.raises(HfHubHTTPError) as caught:
            hf_raise_for_status(response)
    return caught.value


def cut() -> Exception:
    """A file that ended early, as aiohttp says it: caused by an error that has a status."""
    error = aiohttp.ClientPayloadError("cut")
    error.__cause__ = aiohttp.http_exceptions.ContentLengthError("not enough")
    return error


def not_there() -> Iterator[Exception]:
    """What the HTTP library of huggingface_hub raises where nobody listens."""
    with hub({}) as (address, _):
        pass
    try:
        get_session().get(address)
    except Exception as error:
        yield error


def wrapped(cause: Exception) -> Exception:
    """As a library puts its own error around another."""
    error = RuntimeError("while uploading")
    error.__cause__ = cause
    return error


def named(cause: BaseException) -> str:
    """An id that is the same in every process: some messages name a port."""
    return re.sub(r":\d{4,}", "", repr(cause))


@pytest.mark.parametrize(
    "cause",
    [
        *(make(code) for make in MAKERS for code in (408, 425, 429, 500, 502, 503, 504)),
        *(OSError("reset"), ConnectionResetError(), TimeoutError()),
        *(aiohttp.ClientPayloadError("cut"), cut(), aiohttp.ServerDisconnectedError()),
        *(requests.ConnectionError(), requests.exceptions.ChunkedEncodingError()),
        *(httpx.ReadTimeout("slow"), httpx.RemoteProtocolError("cut"), httpx.ConnectError("no")),
        botocore.exceptions.EndpointConnectionError(endpoint_url="http://host"),
        urllib3.exceptions.ProtocolError("cut"),
        wrapped(httpx.ReadError("cut")),
        *not_there(),
    ],
    ids=named,
)
def test_what_may_pass_is_tried_again(cause: Exception) -> None:
    assert may_pass(cause)
    calls: list[Exception] = [cause, cause]

    def call() -> str:
        if calls:
            raise calls.pop()
        return "done"

    assert persistently(call) == "done"


@pytest.mark.parametrize(
    "cause",
    [
        *(make(code) for make in MAKERS for code in (400, 401, 403, 404, 409, 412, 416)),
        *(FileNotFoundError(), PermissionError(), OSError(errno.ENOSPC, "full")),
        *(ValueError(), RuntimeError("a bug"), httpx.InvalidURL("no URL")),
        *(requests.exceptions.InvalidURL(), ssl.SSLCertVerificationError("self-signed")),
        *(OfflineModeIsEnabled(), httpx.UnsupportedProtocol("ftp"), KeyboardInterrupt()),
        wrapped(with_httpx(403)),
        untrusted(),
        hf_error(),
    ],
    ids=named,
)
def test_what_will_not_pass_is_not(cause: BaseException) -> None:
    calls = []

    def call() -> None:
        calls.append(1)
        raise cause

    with pytest.raises(type(cause)):
        persistently(call)
    assert len(calls) == 1


def test_the_status_of_an_error_of_the_hub() -> None:
    assert status_of(hf_error()) == 404
    assert status_of(wrapped(with_botocore(403))) == 403
    assert status_of(OSError(errno.EIO, "no status")) is None


@pytest.mark.parametrize("make", MAKERS)
def test_waits_that_servers_ask_for(make: type[Exception]) -> None:
    assert asked_wait_s(make(503, **{"Retry-After": "7"})) == 7  # type: ignore[call-arg]
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert asked_wait_s(make(503, **{"retry-after": date})) == pytest.approx(100, abs=60)  # type: ignore[call-arg]
    past = email.utils.formatdate(time.time() - 100, usegmt=True)
    assert asked_wait_s(make(503, **{"Retry-After": past})) == 0  # type: ignore[call-arg]
    assert asked_wait_s(make(503, **{"Retry-After": "soon"})) is None  # type: ignore[call-arg]
    assert asked_wait_s(make(429, ratelimit='"api";r=0;t=55')) == 55  # type: ignore[call-arg]
    assert asked_wait_s(make(429, ratelimit='"api";r=3;t=55')) is None  # type: ignore[call-arg]
    assert asked_wait_s(make(503)) is None


def test_such_a_wait_is_kept_and_one_too_long_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[float] = []

    def call(wait: str) -> None:
        times.append(time.monotonic())
        if len(times) < 2:
            raise with_aiohttp(429, **{"Retry-After": wait})

    persistently(lambda: call("1"))
    assert times[1] - times[0] >= 1
    times.clear()
    monkeypatch.setattr(retries, "PATIENCE_S", 0.5)
    with pytest.raises(aiohttp.ClientResponseError):
        persistently(lambda: call("1"))
    assert len(times) == 1


def test_waits_grow_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the fixture that does without waits
    state = RetryCallState(Retrying(), None, (), {})

    def waits(attempt: int) -> list[float]:
        state.attempt_number = attempt
        return [retries.WAIT(state) for _ in range(20)]

    assert max(waits(1)) < min(waits(3))
    assert max(waits(20)) <= 8.5
    assert len(set(waits(2))) > 1
