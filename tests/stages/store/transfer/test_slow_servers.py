"""Servers that drip or hang: ended by a floor under the rate, tried again, and said in a line."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from armada.cache_schemas.errors import StorageError
from armada.stages.store.transfer import retries
from armada.stages.store.transfer.remote import RemoteLocation

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"


@pytest.fixture(autouse=True)
def _short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "WINDOW_S", 0.3)


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[int]]]:
    """A server on loopback that does with each connection as it is told; gives its address, and
    the number of connections that ended from the other side."""
    ended: list[int] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            connection.recv(2**16)
            try:
                answer(connection)
            except OSError:
                ended.append(1)

    def accept() -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", ended
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def drip(connection: socket.socket, data: bytes) -> None:
    for byte in data:
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


def drip_the_file(connection: socket.socket) -> None:
    connection.sendall(HEAD)
    drip(connection, bytes(5000))


def drip_the_headers(connection: socket.socket) -> None:
    drip(connection, HEAD * 100)


def burst_then_drip(connection: socket.socket) -> None:
    connection.sendall(HEAD + bytes(4000))
    drip(connection, bytes(1000))


def hang(connection: socket.socket) -> None:
    if connection.recv(1) == b"":
        raise ConnectionResetError


@pytest.mark.parametrize("answer", [drip_the_file, drip_the_headers, burst_then_drip, hang])
def test_a_server_that_drips_is_left(
    answer: Callable[[socket.socket], None], tmp_path: Path
) -> None:
    with answering(answer) as (url, ended):
        with pytest.raises(
            StorageError, match=rf"{url}/file: cannot be reached \(\d+ bytes came in 0.3 s, less"
        ):
            RemoteLocation(url).download("file", tmp_path / "here", 5000)
        deadline = time.monotonic() + 60
        while len(ended) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(ended) == 3  # tries, each of which was given up on this side


def test_a_server_above_the_floor_may_take_its_time(tmp_path: Path) -> None:
    def slowly(connection: socket.socket) -> None:
        connection.sendall(HEAD)
        for _ in range(5):
            connection.sendall(bytes(1000))
            time.sleep(0.15)

    with answering(slowly) as (url, _):
        RemoteLocation(url).download("file", tmp_path / "here", 5000)
    assert (tmp_path / "here").read_bytes() == bytes(5000)


def test_a_next_try_may_be_faster(tmp_path: Path) -> None:
    tries = iter([drip_the_file, drip_the_file])

    def answer(connection: socket.socket) -> None:
        slow = next(tries, None)
        if slow is not None:
            slow(connection)
        connection.sendall(HEAD + b"x" * 5000)

    with answering(answer) as (url, _):
        RemoteLocation(url).download("file", tmp_path / "here", 5000)
    assert (tmp_path / "here").read_bytes() == b"x" * 5000
