"""A plain HTTP file server on loopback: counts what is asked for, and fails as it is told."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

Fault = Literal["cut", "flip", "longer", "busy", "denied", "gone"]
"""How one answer goes wrong: half of the bytes and then nothing; one bit of another value; more
bytes than there are; 503; 403; 404."""

_STATUS = {"busy": 503, "denied": 403, "gone": 404}


@dataclass
class FileServer:
    """What a server was asked for, file names without the leading slash, and what it is to do.

    `faults`: file -> how the next answers go wrong, one each, or for ever if it is one word.
    `endless`: a file without an end. `pause_s`: before each answer."""

    url: str
    asked: list[str] = field(default_factory=list)
    faults: dict[str, list[Fault] | Fault] = field(default_factory=dict)
    listing: bool = False
    endless: str | None = None
    sent_bytes: int = 0
    pause_s: float = 0.0

    def next_fault(self, name: str) -> Fault | None:
        """How the answer for a file is to go wrong."""
        faults = self.faults.get(name, [])
        if isinstance(faults, str):
            return faults
        return faults.pop(0) if faults else None


@contextmanager
def serving(folder: Path) -> Iterator[FileServer]:
    """Serves the files of `folder`."""
    state = FileServer("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, state, folder))
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, state: FileServer, folder: Path, *given: Any) -> None:
        self.state = state
        super().__init__(*given, directory=str(folder))

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.state.asked.append(name)
        time.sleep(self.state.pause_s)
        fault = self.state.next_fault(name)
        if name == self.state.endless:
            self._send_without_end()
        elif fault in _STATUS:
            self.send_error(_STATUS[fault])
        elif fault is not None:
            self._send_wrongly(fault, Path(self.translate_path(self.path)).read_bytes())
        else:
            with suppress(ConnectionError):  # a client that was killed
                super().do_GET()

    def list_directory(self, path: Any) -> Any:
        if self.state.listing:
            return super().list_directory(path)
        self.send_error(404)
        return None

    def _send_wrongly(self, fault: Fault, data: bytes) -> None:
        if fault == "flip":
            data = data[:7] + bytes([data[7] ^ 1]) + data[8:]
        if fault == "longer":
            data *= 2
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)

    def _send_without_end(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(bytes(2**20))
                self.state.sent_bytes += 2**20
        except OSError:
            self.close_connection = True
