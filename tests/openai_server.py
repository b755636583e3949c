"""An OpenAI-compatible server on loopback: counts what it is asked, and fails as it is told.

An ASGI application under uvicorn. Its embeddings are of no model: normal numbers seeded by the
text, scores are their products, and pictures noise. Its responses are of a causal language model
that transformers loads from a folder.
"""

import asyncio
import json
import threading
from base64 import b64encode
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

Body = dict[str, Any]
Reply = tuple[int, Mapping[str, str], bytes | None]
"""Status, headers, body; no body: the connection is cut."""
Fault = Callable[[Body, Body], Reply]
"""Of a request and its proper reply."""

WIDTH = 16
HANG, DRIP = "x-hang", "x-drip"
"""Headers of a reply: seconds before it, and after each of its bytes."""


def embedding(text: str) -> np.ndarray:
    """The embedding of a text, [16]."""
    seed = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
    return np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32)


def embeddings_reply(body: Body) -> Body:
    """The reply to `POST /embeddings`."""
    texts = body["input"]
    width = body.get("dimensions", WIDTH)
    data = [
        {"object": "embedding", "index": at, "embedding": embedding(text)[:width].tolist()}
        for at, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": sum(len(text.split()) for text in texts)}
    return {"object": "list", "model": body["model"], "data": data, "usage": usage}


def score(query: str, document: str) -> float:
    """The score of a pair."""
    return float(embedding(query) @ embedding(document))


def rerank_reply(body: Body) -> Body:
    """The reply to `POST /rerank`: by descending score."""
    documents = body.get("documents", body.get("texts"))
    scores = [score(body["query"], each) for each in documents]
    order = sorted(range(len(scores)), key=lambda at: -scores[at])
    return {"results": [{"index": at, "relevance_score": scores[at]} for at in order]}


def score_reply(body: Body) -> Body:
    """The reply to `POST /score`."""
    data = [
        {"index": at, "score": score(body["text_1"], each)}
        for at, each in enumerate(body["text_2"])
    ]
    return {"model": body["model"], "data": data}


def picture(prompt: str, width: int = 32, height: int = 32) -> Image.Image:
    """The picture of a text: noise."""
    seed = int.from_bytes(blake2b(prompt.encode(), digest_size=8).digest(), "little")
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def images_reply(body: Body) -> Body:
    """The reply to `POST /images/generations`."""
    width, height = map(int, body.get("size", "32x32").split("x"))
    file = BytesIO()
    picture(body["prompt"], width, height).save(file, format="PNG")
    return {"created": 0, "data": [{"b64_json": b64encode(file.getvalue()).decode()}]}


class Model:
    """Greedy responses of a causal language model, one at a time."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self._lock = threading.Lock()

    def chat_reply(self, body: Body) -> Body:
        """The reply to `POST /chat/completions`."""
        text = self._tokenizer.apply_chat_template(
            body["messages"], tokenize=False, add_generation_prompt=True
        )
        given = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        ids, log_probs, finish = self._generate(given, body["max_tokens"])
        choice: Body = {"index": 0, "finish_reason": finish}
        choice["message"] = {"role": "assistant", "content": self._text(ids)}
        if body.get("logprobs"):
            content = [
                self._token(token, row, body["top_logprobs"])
                for token, row in zip(ids, log_probs, strict=True)
            ]
            choice["logprobs"] = {"content": content}
        return self._reply(body, choice, len(given), len(ids))

    def completion_reply(self, body: Body) -> Body:
        """The reply to `POST /completions`."""
        given = body["prompt"]
        if isinstance(given, str):
            given = self._tokenizer(given)["input_ids"]
        if isinstance(given[0], list):
            return self._several(body, given)
        ids, log_probs, finish = self._generate(given, body["max_tokens"])
        choice: Body = {"index": 0, "finish_reason": finish, "text": self._text(ids)}
        if body.get("logprobs") is not None:
            content = [
                self._token(token, row, body["logprobs"])
                for token, row in zip(ids, log_probs, strict=True)
            ]
            choice["logprobs"] = {"content": content}
        if body.get("echo"):
            choice["text"] = self._text([*given, *ids])
            choice["logprobs"] = self._echo(given, ids, log_probs)
        if body.get("prompt_logprobs") is not None:
            choice["prompt_logprobs"] = self._prompt(given, body["prompt_logprobs"])
        return self._reply(body, choice, len(given), len(ids))

    def _several(self, body: Body, texts: list[list[int]]) -> Body:
        """The replies to several texts as one, in some other order than theirs."""
        replies = [self.completion_reply({**body, "prompt": given}) for given in texts]
        whole = replies[0]
        whole["choices"] = [
            {**each["choices"][0], "index": at} for at, each in reversed([*enumerate(replies)])
        ]
        for name in whole["usage"]:
            whole["usage"][name] = sum(each["usage"][name] for each in replies)
        return whole

    def _echo(self, given: list[int], generated: list[int], log_probs: torch.Tensor) -> Body:
        """As servers echo a prompt: its tokens, and those behind it, by their strings alone."""
        places = [place or {} for place in self._prompt(given, 0)]
        own = [
            place[str(token)]["logprob"] for place, token in zip(places[1:], given[1:], strict=True)
        ]
        own += [float(row[token]) for row, token in zip(log_probs, generated, strict=True)]
        tokens = [self._tokenizer.decode([token]) for token in [*given, *generated]]
        return {"tokens": tokens, "token_logprobs": [None, *own]}

    def _prompt(self, given: list[int], most: int) -> list[Body | None]:
        """As vLLM says what is predicted at each token: the token itself, and the most probable
        ones."""
        with self._lock, torch.inference_mode():
            log_probs = self._model(torch.tensor([given])).logits[0].float().log_softmax(-1)
        found: list[Body | None] = [None]
        for row, token in zip(log_probs[:-1], given[1:], strict=True):
            ids = dict.fromkeys([token, *row.topk(most).indices.tolist()])
            found.append({str(each): {"logprob": float(row[each])} for each in ids})
        return found

    @staticmethod
    def _reply(body: Body, choice: Body, given: int, generated: int) -> Body:
        usage = {"prompt_tokens": given, "completion_tokens": generated}
        return {"model": body["model"], "choices": [choice], "usage": usage}

    def _generate(self, given: list[int], most: int) -> tuple[list[int], torch.Tensor, str]:
        end = self._tokenizer.eos_token_id
        with self._lock, torch.inference_mode():
            found = self._model.generate(
                torch.tensor([given]),
                max_new_tokens=most,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=end,
                output_logits=True,
                return_dict_in_generate=True,
            )
        ids = found.sequences[0, len(given) :].tolist()
        log_probs = torch.cat(found.logits).float().log_softmax(-1)
        return ids, log_probs, "stop" if ids[-1] == end else "length"

    def _text(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _token(self, token: int, row: torch.Tensor, most: int) -> Body:
        top = row.topk(most) if most else row[:0].topk(0)
        others = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return {
            **self._named(token, float(row[token])),
            "top_logprobs": [self._named(each, value) for each, value in others],
        }

    def _named(self, token: int, log_prob: float) -> Body:
        return {"id": token, "token": self._tokenizer.decode([token]), "logprob": log_prob}


@dataclass
class OpenAIServer:
    """What was asked, and what is to be done. `paid`: text -> how often it was answered with 200;
    `faults`: the next replies that go wrong; `fault`: chosen for each request, None: none."""

    url: str = ""
    model: Model | None = None
    pause_s: float = 0.0
    keys: set[str] | None = None
    """Keys that are taken; None: no key is needed."""
    requests: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    paid: Counter[str] = field(default_factory=Counter)
    authorizations: set[str] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
    fault: Callable[[int, Body], Fault | None] = lambda number, body: None
    changed: Mapping[str, Any] = field(default_factory=dict)
    """Fields of every reply, such as `model`."""

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        """One request (ASGI 3)."""
        assert scope["type"] == "http"
        received = b""
        while (message := await receive()).get("more_body"):
            received += message["body"]
        received += message.get("body", b"")
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.requests += 1
        number = self.requests
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.pause_s)
            target = scope["path"] + "?" + scope["query_string"].decode()
            status, more, reply = self._reply(number, scope["method"], target, headers, received)
            await asyncio.sleep(float(more.get(HANG, 0)))
        finally:
            self.in_flight -= 1
        if reply is None:
            length = [(b"content-length", b"1000")]
            await send({"type": "http.response.start", "status": status, "headers": length})
            await send({"type": "http.response.body", "body": b"{", "more_body": True})
            raise ConnectionResetError
        sent = [(name.encode(), value.encode()) for name, value in more.items()]
        sent.append((b"content-length", str(len(reply)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": sent})
        pause_s = float(more.get(DRIP, 0))
        while pause_s and reply:
            await send({"type": "http.response.body", "body": reply[:1], "more_body": True})
            reply = reply[1:]
            await asyncio.sleep(pause_s)
        await send({"type": "http.response.body", "body": reply})

    def _reply(
        self, number: int, method: str, target: str, headers: Mapping[str, str], raw: bytes
    ) -> Reply:
        authorization = headers.get("authorization", "")
        self.authorizations.add(authorization)
        if self.keys is not None and authorization.removeprefix("Bearer ") not in self.keys:
            return 401, {}, b'{"error": {"message": "Incorrect API key", "type": "auth"}}'
        path = target.partition("?")[0]
        if path not in self._apis() or method != "POST":
            return self.other(method, target, headers, raw)
        body: Body = json.loads(raw)
        reply = self._apis()[path](body) | dict(self.changed)
        fault = self.faults.pop(0) if self.faults else self.fault(number, body)
        if fault is not None:
            return fault(body, reply)
        self.paid.update(_texts(body))
        return 200, {"content-type": "application/json"}, json.dumps(reply).encode()

    def answer(self, path: str, body: Body) -> Body:
        """The proper reply to a request, which counts as paid."""
        self.paid.update(_texts(body))
        return self._apis()[path](body) | dict(self.changed)

    def other(self, method: str, target: str, headers: Mapping[str, str], raw: bytes) -> Reply:
        """The reply to what is no API of this server."""
        return 404, {}, b'{"detail": "Not Found"}'

    def _apis(self) -> dict[str, Callable[[Body], Body]]:
        replies = {
            "/v1/embeddings": embeddings_reply,
            "/v1/rerank": rerank_reply,
            "/v1/score": score_reply,
            "/v1/images/generations": images_reply,
        }
        if self.model is not None:
            replies |= {
                "/v1/chat/completions": self.model.chat_reply,
                "/v1/completions": self.model.completion_reply,
            }
        return replies


def _texts(body: Body) -> list[str]:
    """The texts of a request."""
    if (query := body.get("query", body.get("text_1"))) is not None:
        documents = body.get("documents", body.get("texts", body.get("text_2")))
        return [f"{query} | {each}" for each in documents]
    said = str(body.get("messages", [{"content": body.get("prompt")}])[-1]["content"])
    return list(body.get("input", [said]))


@contextmanager
def serving(server: OpenAIServer | None = None) -> Iterator[OpenAIServer]:
    """Serves on a free port; `server.url` is the base URL."""
    state = server or OpenAIServer()
    # No logging of its own: to configure that closes all handlers, and some close their streams.
    config = uvicorn.Config(state, port=0, log_config=None, lifespan="off", access_log=False)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive()
        threading.Event().wait(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    state.url = f"http://127.0.0.1:{port}/v1"
    try:
        yield state
    finally:
        running.should_exit = running.force_exit = True
        thread.join()
