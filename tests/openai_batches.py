"""An OpenAI-compatible server with a batch service, on loopback: files, batches and their states.

A batch is completed after so many looks at it. Its requests are answered by the same server that
answers requests one by one, and count as paid there.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.parser import BytesParser
from typing import Any
from urllib.parse import parse_qs, urlsplit

from openai_server import Body, OpenAIServer, Reply

STATES = ("validating", "in_progress", "finalizing", "completed")


@dataclass
class BatchServer(OpenAIServer):
    """`line_fault`: the status and document of a request in a batch that fails; `answers_most`: so
    many requests of a batch are answered before it expires; `lose_created`: so many batches are
    made without a reply."""

    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, Body] = field(default_factory=dict)
    line_fault: Callable[[Body], tuple[int, Body] | None] = lambda body: None
    answers_most: list[int] = field(default_factory=list)
    lose_created: int = 0
    problem: str | None = None
    looks: int = 0

    def other(self, method: str, target: str, headers: Mapping[str, str], raw: bytes) -> Reply:
        """See OpenAIServer."""
        path = urlsplit(target).path.removeprefix("/v1")
        if (method, path) == ("POST", "/files"):
            return self._uploaded(headers["content-type"], raw)
        if (method, path) == ("POST", "/batches"):
            return self._created(json.loads(raw))
        if (method, path) == ("GET", "/batches"):
            return self._listed(parse_qs(urlsplit(target).query))
        if method == "GET" and path.startswith("/batches/"):
            return self._looked_at(self.batches[path.removeprefix("/batches/")])
        if method == "GET" and path.endswith("/content"):
            return 200, {}, self.files[path.split("/")[2]]
        return super().other(method, target, headers, raw)

    def _new_file(self, content: bytes) -> str:
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return name

    def _uploaded(self, kind: str, raw: bytes) -> Reply:
        message = BytesParser().parsebytes(b"content-type: " + kind.encode() + b"\r\n\r\n" + raw)
        parts = {
            part.get_param("name", header="content-disposition"): part
            for part in message.get_payload()
        }
        assert parts["purpose"].get_payload() == "batch"
        return _document({"id": self._new_file(parts["file"].get_payload(decode=True))})

    def _created(self, asked: Body) -> Reply:
        lines = self.files[asked["input_file_id"]].splitlines()
        name = f"batch-{len(self.batches)}"
        self.batches[name] = {
            "id": name,
            "status": STATES[0],
            "metadata": asked["metadata"],
            "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
            "input_file_id": asked["input_file_id"],
            "endpoint": asked["endpoint"],
        }
        if self.lose_created:
            self.lose_created -= 1
            return 200, {}, None
        return _document(self.batches[name])

    def _listed(self, query: Mapping[str, list[str]]) -> Reply:
        names = list(self.batches)[::-1]
        if "after" in query:
            names = names[names.index(query["after"][0]) + 1 :]
        page = [self.batches[name] for name in names[:2]]
        return _document({"data": page, "has_more": len(names) > 2})

    def _looked_at(self, batch: Body) -> Reply:
        self.looks += 1
        if self.problem is not None:
            batch |= {"status": "failed", "errors": {"data": [{"message": self.problem}]}}
        elif batch["status"] in STATES[:-1]:
            batch["status"] = STATES[STATES.index(batch["status"]) + 1]
            if batch["status"] == STATES[-1]:
                self._complete(batch)
        return _document(batch)

    def _complete(self, batch: Body) -> None:
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        most = self.answers_most.pop(0) if self.answers_most else len(lines)
        answered = [self._line(line, batch["endpoint"]) for line in lines[:most]]
        if most < len(lines):
            batch["status"] = "expired"
        if answered:
            text = "".join(json.dumps(line) + "\n" for line in answered[::-1])
            batch["output_file_id"] = self._new_file(text.encode())
        batch["request_counts"]["completed"] = len(answered)

    def _line(self, line: Body, endpoint: str) -> Body:
        assert line["url"] == endpoint
        fault = self.line_fault(line["body"])
        status, reply = fault or (200, self.answer(endpoint, line["body"]))
        return {
            "id": "some",
            "custom_id": line["custom_id"],
            "response": {"status_code": status, "body": reply},
            "error": None,
        }


def _document(reply: Any) -> Reply:
    return 200, {"content-type": "application/json"}, json.dumps(reply).encode()
