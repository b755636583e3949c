"""A hub on loopback: repositories of models, or data sets (`datasets/team/name`), each a folder,
served as the hub's clients ask."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any

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

        def do_POST(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, *, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            asked.append(path)
            form = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = _document(folders, revision, path, json.loads(form or "{}"))
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha1(body or b"").hexdigest()}"')
            if body is None:
                self.send_header("X-Error-Code", _missing(folders, revision, path))
            self.end_headers()
            if with_body and body:
                self.wfile.write(body)

    return Handler


def _document(
    folders: Mapping[str, Path], revision: str, path: str, form: dict[str, Any]
) -> bytes | None:
    for repository, folder in folders.items():
        kind = "" if repository.startswith("datasets/") else "models/"
        address = path.removeprefix("/api/").removeprefix(kind).removeprefix("/")
        if f"{address}/".startswith(f"{repository}/"):
            about = address.removeprefix(repository).lstrip("/")
            return _of_repository(repository, folder, revision, about, form)
    return None


def _missing(folders: Mapping[str, Path], revision: str, path: str) -> str:
    """What the hub says is not there."""
    if not any(f"/{repository}/" in f"{path}/" for repository in folders):
        return "RepoNotFound"
    known = any(f"/{each}/" in f"{path}/" for each in (revision, COMMIT))
    return "EntryNotFound" if known else "RevisionNotFound"


def _of_repository(
    repository: str, folder: Path, revision: str, about: str, form: dict[str, Any]
) -> bytes | None:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    known = {file.relative_to(folder).as_posix(): _told(file, folder) for file in files}
    above = {parent for path in known for parent in PurePosixPath(path).parents}
    folders = [
        {"type": "directory", "path": str(each), "size": 0, "oid": hashlib.sha1().hexdigest()}
        for each in sorted(above - {PurePosixPath()})
    ]
    what, _, rest = about.partition("/")
    commit, _, name = rest.partition("/")
    if what in ("", "revision") and commit in ("", revision, COMMIT):
        siblings = [{"rfilename": name} for name in known]
        return json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode()
    if commit not in (COMMIT, revision):
        return None
    if what == "tree":
        below = f"{name}/" if name else ""
        listed = [*folders, *known.values()]
        return json.dumps([told for told in listed if told["path"].startswith(below)]).encode()
    if what == "paths-info":
        return json.dumps([known[path] for path in form["paths"] if path in known]).encode()
    return (folder / name).read_bytes() if what == "resolve" and name in known else None


def _told(file: Path, folder: Path) -> dict[str, Any]:
    return {
        "type": "file",
        "path": file.relative_to(folder).as_posix(),
        "size": file.stat().st_size,
        "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
    }
