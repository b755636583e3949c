"""A Hub on loopback that takes pushes: repositories with commits, over real HTTP.

It answers what huggingface_hub asks when it makes a repository, lists and reads one, uploads large
files and commits, and refuses as the Hub does: missing and wrong tokens, missing rights, a moved
parent, too many commits. Faults are switched on by test. Xet is not spoken.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

WRITER, READER = "hf_writer", "hf_reader"
LARGE = 200
"""Bytes from which on a file is a large one (LFS)."""
PART = 1000
"""Bytes of one part of an upload of more than that."""
PAGE = 20
"""Entries of one page of a listing."""

Tree = dict[str, bytes]


@dataclass
class Answer:
    """A status, headers and a body; with `reset`, a connection that ends without any."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    reset: bool = False


def error(status: int, message: str, code: str = "", **headers: str) -> Answer:
    """A refusal as the Hub words it."""
    about = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return Answer(status, json.dumps({"error": message}).encode(), about | headers)


def document(value: Any, **headers: str) -> Answer:
    return Answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"} | headers)


@dataclass
class Repository:
    """All commits of one repository, and what its branches point to."""

    private: bool
    commits: dict[str, Tree] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, tree: Tree) -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {id(self)}".encode()).hexdigest()
        self.commits[sha] = tree
        self.branches[branch] = sha
        return sha

    def sha(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)


@dataclass
class LoopbackHub:
    """What the Hub holds, what it was asked, and how it is to fail.

    `faults`: (method and path as a regular expression, answers that requests get instead, one
    each). `in_between`: done before the next commits are looked at, one each. `commits_allowed`:
    further ones get 429."""

    url: str = ""
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    commits_made: int = 0
    faults: list[tuple[str, list[Answer]]] = field(default_factory=list)
    in_between: list[Callable[[], object]] = field(default_factory=list)
    commits_allowed: int | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)

    def make(self, name: str, kind: str = "dataset", private: bool = True, **files: bytes) -> None:
        """A repository as the Hub makes one: with a `.gitattributes` of its own."""
        repository = Repository(private)
        repository.commit("main", {".gitattributes": b"*.parquet filter=lfs\n"} | files)
        self.repositories[kind, name] = repository

    def files(self, name: str, kind: str = "dataset", revision: str = "main") -> Tree:
        """All files of the newest commit of a branch."""
        repository = self.repositories[kind, name]
        return repository.commits[repository.branches[revision]]

    def put(self, name: str, file: str, data: bytes, kind: str = "dataset") -> None:
        """A commit of somebody else."""
        repository = self.repositories[kind, name]
        repository.commit("main", self.files(name, kind) | {file: data})

    def count(self, pattern: str) -> int:
        """Requests whose method and path match."""
        return sum(re.search(pattern, request) is not None for request in self.asked)


@contextmanager
def hub_of_repositories(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """The only Hub there is, to this process and to those that it starts; its user may write."""
    import huggingface_hub

    state = LoopbackHub()
    handler = type("Handler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", state.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_ENDPOINT", state.url)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_TOKEN", WRITER)
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: LoopbackHub

    def log_message(self, *_: object) -> None:
        pass

    def _respond(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = _dechunked(self.rfile)
        if "/commit/" in request and self.state.in_between:
            self.state.in_between.pop(0)()
        with self.state.lock:
            self.state.asked.append(request)
            answer = self._fault(request) or self._answer(self.command, path, body)
        if answer.reset:
            self.close_connection = True
            self.connection.close()
            return
        self.send_response(answer.status)
        for name, value in ({"Content-Length": str(len(answer.body))} | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = do_PUT = _respond

    def _fault(self, request: str) -> Answer | None:
        for pattern, answers in self.state.faults:
            if answers and re.search(pattern, request):
                return answers.pop(0)
        return None

    @property
    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _answer(self, method: str, path: str, body: bytes) -> Answer:
        for pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, f"{method} {path}")
            if match:
                return answer(self, body, **match.groupdict())
        return error(404, f"no such route: {method} {path}")

    # What follows answers one route each; names in the pattern are its arguments.

    def whoami(self, body: bytes) -> Answer:
        if self.token not in (WRITER, READER):
            return error(401, "Invalid credentials in Authorization header")
        return document({"type": "user", "name": "team", "orgs": [], "auth": {}})

    def validate(self, body: bytes) -> Answer:
        text = json.loads(body)["content"]
        if "license: nonsense" in text:
            return Answer(400, json.dumps({"errors": [{"message": '"license" is wrong'}]}).encode())
        return document({"errors": [], "warnings": []})

    def create(self, body: bytes) -> Answer:
        about = json.loads(body)
        kind = about.get("type") or "model"
        name = f"{about.get('organization') or 'team'}/{about['name']}"
        if self.token not in (WRITER, READER):
            return error(401, "Invalid credentials in Authorization header")
        if self.token == READER or not name.startswith("team/"):
            return error(403, f"You don't have the rights to create a {kind} under this namespace")
        if (kind, name) in self.state.repositories:
            return error(409, f"You already created this {kind} repo")
        private = about.get("visibility") == "private" or about.get("private") is True
        self.state.make(name, kind, private)
        return document({"url": f"{self.state.url}/{kind}s/{name}", "name": name, "id": name})

    def branch(self, body: bytes, kind: str, name: str, revision: str) -> Answer:
        repository = self._writable(kind, name)
        if isinstance(repository, Answer):
            return repository
        if revision in repository.branches:
            return error(409, "Reference already exists")
        repository.branches[revision] = repository.branches["main"]
        return document({})

    def info(self, body: bytes, kind: str, name: str, revision: str = "main") -> Answer:
        found = self._at(kind, name, revision)
        if isinstance(found, Answer):
            return found
        repository, sha = found
        siblings = [{"rfilename": path} for path in repository.commits[sha]]
        about = {"id": name, "sha": sha, "private": repository.private, "siblings": siblings}
        return document(about | {"downloads": 0, "likes": 0, "tags": [], "gated": False})

    def tree(
        self, body: bytes, kind: str, name: str, revision: str, folder: str | None = None
    ) -> Answer:
        found = self._at(kind, name, revision)
        if isinstance(found, Answer):
            return found
        repository, sha = found
        asked = parse_qs(urlsplit(self.path).query)
        entries = _entries(repository.commits[sha], (folder or "").strip("/"))
        if folder and not entries:
            return error(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        if asked.get("recursive", ["False"])[0].lower() != "true":
            depth = folder.strip("/").count("/") + 1 if folder else 0
            entries = [entry for entry in entries if entry["path"].count("/") == depth]
        start = int(asked.get("cursor", ["0"])[0])
        headers = {}
        if start + PAGE < len(entries):
            here = self.path.partition("&cursor")[0]
            headers["Link"] = f'<{self.state.url}{here}&cursor={start + PAGE}>; rel="next"'
        return document(entries[start : start + PAGE], **headers)

    def resolve(self, body: bytes, name: str, revision: str, path: str, kind: str = "") -> Answer:
        found = self._at(kind.rstrip("s/") or "model", name, revision)
        if isinstance(found, Answer):
            return found
        repository, sha = found
        data = repository.commits[sha].get(path)
        if data is None:
            return error(404, "Entry not found", "EntryNotFound")
        about = {"X-Repo-Commit": sha, "ETag": f'"{_oid(data)}"', "Accept-Ranges": "bytes"}
        if len(data) >= LARGE:
            about |= {"Location": f"{self.state.url}/lfs/{_oid(data)}", "X-Linked-Etag": _oid(data)}
            return Answer(302, b"", about | {"X-Linked-Size": str(len(data))})
        return self._part_of(data, about)

    def stored(self, body: bytes, oid: str) -> Answer:
        assert self.token is None or "127.0.0.1" in self.state.url
        return self._part_of(self.state.large[oid], {})

    def _part_of(self, data: bytes, headers: dict[str, str]) -> Answer:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            return Answer(200, data, headers)
        first, last = int(asked[1]), int(asked[2] or len(data) - 1)
        if first >= len(data):
            return error(416, "Range Not Satisfiable")
        where = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        return Answer(206, data[first : last + 1], headers | where)

    def preupload(self, body: bytes, kind: str, name: str, revision: str) -> Answer:
        repository = self._writable(kind, name)
        if isinstance(repository, Answer):
            return repository
        sha = repository.sha(revision)
        if sha is None:
            return error(404, "Invalid rev id", "RevisionNotFound")
        tree = repository.commits[sha]
        ignored = tree.get(".gitignore", b"").decode().split()
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
                "shouldIgnore": any(file["path"].endswith(ending) for ending in ignored),
                "oid": _oid(tree[file["path"]]) if file["path"] in tree else None,
            }
            for file in json.loads(body)["files"]
        ]
        return document({"files": files})

    def batch(self, body: bytes, name: str, kind: str = "") -> Answer:
        repository = self._writable(kind.rstrip("s/") or "model", name)
        if isinstance(repository, Answer):
            return repository
        objects = [self._upload(wanted) for wanted in json.loads(body)["objects"]]
        return document({"transfer": "basic", "objects": objects})

    def _upload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        oid, size = wanted["oid"], wanted["size"]
        if oid in self.state.large:
            return {"oid": oid, "size": size}
        upload: dict[str, Any] = {"href": f"{self.state.url}/upload/{oid}?signature=secret"}
        if size > PART:
            numbers = range(1, -(-size // PART) + 1)
            urls = {f"{n:05d}": f"{self.state.url}/part/{oid}/{n}?signature=s" for n in numbers}
            upload = {"href": f"{self.state.url}/complete/{oid}"}
            upload["header"] = {"chunk_size": str(PART), **urls}
        verify = {"href": f"{self.state.url}/verify/{oid}"}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    def store(self, body: bytes, oid: str) -> Answer:
        if hashlib.sha256(body).hexdigest() != oid:
            return error(400, "The content is not that of its checksum")
        self.state.large[oid] = body
        return Answer()

    def store_part(self, body: bytes, oid: str, number: str) -> Answer:
        self.state.parts.setdefault(oid, {})[int(number)] = body
        return Answer(200, b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    def complete(self, body: bytes, oid: str) -> Answer:
        parts = self.state.parts[oid]  # kept: two threads may send files of the same content
        return self.store(b"".join(parts[number] for number in sorted(parts)), oid)

    def verify(self, body: bytes, oid: str) -> Answer:
        return document({}) if oid in self.state.large else error(404, "no such object")

    def commit(self, body: bytes, kind: str, name: str, revision: str) -> Answer:
        repository = self._writable(kind, name)
        if isinstance(repository, Answer):
            return repository
        head = repository.branches.get(revision)
        if head is None:
            return error(404, "Invalid rev id", "RevisionNotFound")
        if self.state.commits_allowed is not None and self.state.commits_made >= (
            self.state.commits_allowed
        ):
            return error(429, "you have exceeded our hourly quotas for action: commit")
        tree = dict(repository.commits[head])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit", head) != head:
                return error(412, "A commit has happened since. Please refresh and try again.")
            if line["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                tree[value["path"]] = self.state.large[value["oid"]]
        self.state.commits_made += 1
        sha = repository.commit(revision, tree)
        url = f"{self.state.url}/{kind}s/{name}/commit/{sha}"
        return document({"success": True, "commitOid": sha, "commitUrl": url})

    def _at(self, kind: str, name: str, revision: str) -> tuple[Repository, str] | Answer:
        repository = self.state.repositories.get((kind, name))
        if self.token not in (None, WRITER, READER):
            return error(401, "Invalid credentials in Authorization header")
        if repository is None or (repository.private and self.token is None):
            if self.token is None:
                return error(401, "Invalid username or password.")
            return error(404, "Repository not found", "RepoNotFound")
        sha = repository.sha(revision)
        if sha is None:
            return error(404, "Invalid rev id", "RevisionNotFound")
        return repository, sha

    def _writable(self, kind: str, name: str) -> Repository | Answer:
        found = self._at(kind, name, "main")
        if isinstance(found, Answer):
            return found
        if self.token != WRITER:
            return error(403, "your token has no write access to this repository")
        return found[0]


def _entries(tree: Tree, folder: str) -> list[dict[str, Any]]:
    start = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, data in sorted(tree.items()):
        if not path.startswith(start):
            continue
        about: dict[str, Any] = {"type": "file", "oid": _git_oid(data), "size": len(data)}
        if len(data) >= LARGE:
            about["lfs"] = {"oid": _oid(data), "size": len(data), "pointerSize": 130}
        entries[path] = about | {"path": path}
        for parent in [path[:n] for n in range(len(start), len(path)) if path[n] == "/"]:
            about = {"type": "directory", "oid": "0" * 40, "size": 0, "path": parent}
            entries.setdefault(parent, about)
    return list(entries.values())


def _oid(data: bytes) -> str:
    """What the Hub compares: SHA-256 of large files, of others what git names them by."""
    return hashlib.sha256(data).hexdigest() if len(data) >= LARGE else _git_oid(data)


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def _dechunked(stream: Any) -> bytes:
    body = b""
    while size := int(stream.readline().strip(), 16):
        body += stream.read(size)
        stream.readline()
    stream.readline()
    return body


_KIND, _NAME = r"(?P<kind>model|dataset|space)s", r"(?P<name>[^/]+/[^/]+)"
_REVISION = r"(?P<revision>refs/[^/]+/[^/]+|[^/]+)"
_ROUTES: list[tuple[str, Callable[..., Answer]]] = [
    (r"GET /api/whoami-v2", _Handler.whoami),
    (r"POST /api/validate-yaml", _Handler.validate),
    (r"POST /api/repos/create", _Handler.create),
    (rf"POST /api/{_KIND}/{_NAME}/branch/(?P<revision>.+)", _Handler.branch),
    (rf"POST /api/{_KIND}/{_NAME}/preupload/{_REVISION}", _Handler.preupload),
    (rf"POST /api/{_KIND}/{_NAME}/commit/{_REVISION}", _Handler.commit),
    (rf"GET /api/{_KIND}/{_NAME}/revision/{_REVISION}", _Handler.info),
    (rf"GET /api/{_KIND}/{_NAME}/tree/{_REVISION}(?P<folder>/.*)?", _Handler.tree),
    (rf"GET /api/{_KIND}/{_NAME}", _Handler.info),
    (
        rf"POST /(?P<kind>datasets/|spaces/)?{_NAME}\.git/info/lfs/objects/batch",
        lambda handler, body, name, kind: handler.batch(body, name, kind or ""),
    ),
    (r"PUT /upload/(?P<oid>\w+)", _Handler.store),
    (r"PUT /part/(?P<oid>\w+)/(?P<number>\d+)", _Handler.store_part),
    (r"POST /complete/(?P<oid>\w+)", _Handler.complete),
    (r"POST /verify/(?P<oid>\w+)", _Handler.verify),
    (r"(?:GET|HEAD) /lfs/(?P<oid>\w+)", _Handler.stored),
    (
        rf"(?:GET|HEAD) /(?P<kind>datasets/|spaces/)?{_NAME}/resolve/{_REVISION}/(?P<path>.+)",
        lambda handler, body, name, revision, path, kind: handler.resolve(
            body, name, revision, path, kind or ""
        ),
    ),
]
