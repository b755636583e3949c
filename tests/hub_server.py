"""A model hub on loopback: repositories, each a folder, served as the hub's client asks."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPOSITORY = "team/tiny"
REVISION = "v1"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(folders: Mapping[str, Path], revision: str = REVISION) -> Iterator[tuple[str, list[str]]]:
    """Serves folders, by the names of their repositories, as their only revision; gives the address
    and the paths asked for."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(folders, revision, asked))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(
    folders: Mapping[str, Path], revision: str, asked: list[str]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, *, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            asked.append(path)
            body = _document(folders, revision, path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha1(body or b"").hexdigest()}"')
            if body is None:
                self.send_header("X-Error-Code", "RevisionNotFound")
            self.end_headers()
            if with_body and body:
                self.wfile.write(body)

    return Handler


def _document(folders: Mapping[str, Path], revision: str, path: str) -> bytes | None:
    for repository, folder in folders.items():
        if path.removeprefix("/api/models").startswith(f"/{repository}/"):
            return _of_repository(repository, folder, revision, path)
    return None


def _of_repository(repository: str, folder: Path, revision: str, path: str) -> bytes | None:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    names = [file.relative_to(folder).as_posix() for file in files]
    if path == f"/api/models/{repository}/revision/{revision}":
        return json.dumps(
            {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
        ).encode()
    if path == f"/api/models/{repository}/tree/{COMMIT}":
        return json.dumps(
            [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": _oid(file)}
                for name, file in zip(names, files, strict=True)
            ]
        ).encode()
    name = path.removeprefix(f"/{repository}/resolve/{COMMIT}/")
    return (folder / name).read_bytes() if name in names else None


def _oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
