"""A model behind an OpenAI-compatible endpoint: text in, answer out, perhaps with a bill.

The settings in the fingerprint are those of the answers; the server's place, pace and price are the
run's. The model that the server names, and its system fingerprint, are in the run's record, and a
teacher that is frozen stays the same: another one ends the run.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ....cache_schemas.errors import RunError
from ....cache_schemas.keys import KeyArray
from ....cache_schemas.manifest import RequestFigures, RunRecord
from ....cache_schemas.teachers import TeacherSpec
from ...language.prompt_templates import TEXT, columns_of
from ...store.writing.replies import KeptReplies
from ..teachers.base import Answers, Example, Outputs, Prepared, Teacher, make_spec
from .apis import make_api
from .batches import Batches
from .endpoint import Endpoint, TextRefusedError
from .feature_api import FeatureApi
from .options import OpenAIOptions
from .pacing import Level, PerMinute
from .requester import Requester
from .requests import Query, RequestCounts, Requests
from .wire import Served

APART = 0.01
"""Distance of two answers to one text above which two servers are two teachers: rounding, in half
precision and in batches of other sizes, is a hundred times less."""


@dataclass(frozen=True, slots=True)
class _Coming:
    """The coming answers to some examples, and the content of their queries."""

    futures: Sequence["Future[Any]"]
    contents: Sequence[Any]

    def take(self, rows: Any) -> "_Coming":
        chosen = rows.tolist()
        return _Coming([self.futures[row] for row in chosen], [self.contents[r] for r in chosen])


class OpenAITeacher(Teacher):
    """`openai:MODEL` at `base_url`."""

    Options = OpenAIOptions
    kind = "openai"
    computes_elsewhere = asks_a_server = True
    default_rows_per_shard = 1024
    probe_rows = 4

    def __init__(self, source: str, options: OpenAIOptions, device: torch.device) -> None:
        self._source, self._options = source, options
        self._api: FeatureApi = make_api(source, options, device)
        self._counts = RequestCounts()
        self.notes = self._api.notes
        self._served: Served | None = None
        self._probed: Any = None
        """An answer to the probe, once there is one."""
        self._sent, self._at_load = 0, replace(self._counts)
        self._requester = self._make_requester(None)
        if options.dimensions is not None or options.api != "embeddings":
            self.spec = self._make_spec(None)

    def _make_spec(self, answer: Any) -> TeacherSpec:
        features = self._api.features(answer)
        settings = {"model": self._source, **self._api.settings}
        weights = dict(self._api.weights)
        spec = make_spec(self.kind, self._source, weights, self._options, features, **settings)
        return spec.model_copy(update={"vocab_digest": self._api.vocab_digest})

    def settle(self, cached: Sequence[TeacherSpec]) -> None:
        """See Teacher: the width of embeddings is that of a cached teacher, or of a probe."""
        if hasattr(self, "spec"):
            return
        settings = self._options.settings() | {"model": self._source, **self._api.settings}
        for spec in cached:
            if spec.kind == self.kind and spec.settings == settings:
                self.spec = spec
                return
        self.spec = self._make_spec(self._probe())

    def check(self, examples: Sequence[Example]) -> None:
        """Raises JobError for examples of which no query can be made."""
        for each in examples:
            self._api.content(each)

    def load(self) -> None:
        """Send a probe, several times, and what every example's features need."""
        self._api.load()
        answer = self._probe()
        for wanted, found in zip(self.spec.features, self._api.features(answer), strict=True):
            if wanted.shape != found.shape:
                raise RunError(
                    f"{self._options.base_url}: {found.name} is of shape {list(found.shape)}, the "
                    f"cached teacher's of {list(wanted.shape)}; use the same model, or another "
                    "cache"
                )
        if contents := self._api.beforehand():
            self._api.learn(self._ask_apart(contents))
        self._sent, self._at_load = 0, replace(self._counts)

    def begin(
        self, replies: KeptReplies, earlier: Sequence[RunRecord], pending: Sequence[Example]
    ) -> None:
        """See Teacher. Where batches are to answer, waits for them."""
        replies.see()
        self._requester.close()
        self._requester = self._make_requester(replies)
        for record in earlier:
            if record.requests is not None and self._served is not None:
                self._compare(Served(record.requests.model, record.requests.system_fingerprint))
        if self._options.batch:
            self._have_answered(replies, pending)

    def _have_answered(self, replies: KeptReplies, pending: Sequence[Example]) -> None:
        if not replies.claim():
            raise RunError(
                "batch: another process waits for batches of this teacher; wait for it, and run "
                "the same command again"
            )
        batches = Batches(
            api=self._api,
            endpoint=self._make_endpoint(),
            limits=self._options.limits,
            counts=self._counts,
            replies=replies,
            served=self._compare,
        )
        asyncio.run(
            batches.run(lambda: (Query(each.key, self._api.content(each)) for each in pending))
        )

    def committed(self, keys: KeyArray) -> None:
        """See Teacher: their replies need not be kept."""
        if (replies := self._requester.requests.replies) is not None:
            replies.forget(keys)

    def prepare(self, examples: Sequence[Example]) -> Prepared:
        """Send the queries: the next shard's answers come in while this one's are taken."""
        buckets = np.zeros(len(examples), dtype=np.int64)
        return Prepared(examples, buckets, self._ask(examples))

    def start(self, batch: Prepared) -> Outputs:
        """See Teacher."""
        coming: _Coming = batch.inputs
        return lambda: self._answers(coming)

    def encode(self, examples: Sequence[Example]) -> Answers:
        """Send the queries, and wait."""
        return self._answers(self._ask(examples))

    def requests(self) -> RequestFigures:
        """See Teacher."""
        return self._counts.figures(self._served or Served("", None))

    def forecast(self, rows: int) -> RequestFigures | None:
        """See Teacher: by the tokens that an example took so far."""
        share = rows / max(self._sent, 1)
        before, now = self._at_load, self._counts
        tokens = (
            round((now.input_tokens - before.input_tokens) * share),
            round((now.output_tokens - before.output_tokens) * share),
        )
        requests, limits = self._api.requests(rows), self._options.limits
        cost = limits.cost_of(*tokens) + limits.request_price * (requests - 1)
        served = self._served or Served("", None)
        return RequestFigures(
            requests=requests,
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            cost=cost,
            model=served.model,
            system_fingerprint=served.system_fingerprint,
        )

    def close(self) -> None:
        """See Teacher."""
        self._requester.close()
        if (replies := self._requester.requests.replies) is not None:
            replies.close()

    def _make_requester(self, replies: KeptReplies | None) -> Requester:
        options = self._options
        most = options.most_in_flight
        return Requester(
            Requests(
                api=self._api,
                endpoint=self._make_endpoint(),
                level=Level(most, None if options.concurrency == "auto" else most),
                requests_per_minute=PerMinute(options.requests_per_minute),
                tokens_per_minute=PerMinute(options.tokens_per_minute),
                limits=options.limits,
                counts=self._counts,
                replies=replies,
                served=self._compare,
            )
        )

    def _make_endpoint(self) -> Endpoint:
        options = self._options
        return Endpoint(options.base_url, options.key_variable, options.timeout)

    def _ask(self, examples: Sequence[Example]) -> _Coming:
        self._sent += len(examples)
        contents = [self._api.content(each) for each in examples]
        keys = [each.key for each in examples]
        return _Coming(self._requester.send([*map(Query, keys, contents)]), contents)

    def _answers(self, coming: _Coming) -> Answers:
        found: list[Any] = []
        refused: dict[int, str] = {}
        for row, future in enumerate(coming.futures):
            try:
                found.append(future.result())
            except TextRefusedError as refusal:
                found.append(None)
                refused[row] = f"the server refuses it ({refusal})"
        answers = self._api.answers(found, coming.contents)
        return replace(answers, refused={**answers.refused, **refused})

    def _probe(self) -> Any:
        """An answer to a text of our own; raises RunError if others to it are not alike."""
        if self._probed is not None:
            return self._probed
        content = self._api.content(Example(b"", self._own_segments()))
        count = min(self._options.probes, self._api.most_probes)
        answers = self._ask_apart([content] * count)
        apart = max(self._api.distance(answers[0], other) for other in answers)
        if apart > APART:
            raise RunError(
                f"{self._make_endpoint().host}: answers one text in different ways (distance "
                f"{apart:.3f} of {len(answers)} answers): its replicas are not one model; name one "
                "of them"
            )
        self._probed = answers[0]
        return self._probed

    def _own_segments(self) -> tuple[str, ...]:
        """The segments of an example of our own, as many as the templates name."""
        options, (first, *rest) = self._options, self._api.probe
        templates = [getattr(options, name) or TEXT for name in options.templates]
        response = [first] if options.response_column else []
        return (*[first] * max(map(columns_of, templates)), *rest, *response)

    def _ask_apart(self, contents: Sequence[Any]) -> list[Any]:
        """Answers that are of no example, each by a request of its own; they are not kept."""
        queries = [Query(b"%d" % number, content) for number, content in enumerate(contents)]
        requester = self._make_requester(None)
        try:
            futures = [future for query in queries for future in requester.send([query])]
            return [future.result() for future in futures]
        except TextRefusedError as refusal:
            raise RunError(f"{requester.requests.endpoint.host}: {refusal}") from refusal
        finally:
            requester.close()

    def _compare(self, served: Served) -> None:
        """The model that answers must be the one that answered before."""
        before, self._served = self._served, served
        if before is None or before == served or self._options.accept_change:
            return
        self._served = before
        raise RunError(
            f"{self._options.base_url}: was served by {_shown(before)}, is now by "
            f"{_shown(served)}: no frozen teacher; use another cache, or accept_change=true to go "
            "on with it"
        )


def _shown(served: Served) -> str:
    of_system = f" ({served.system_fingerprint})" if served.system_fingerprint else ""
    return f"{served.model or 'a model without a name'}{of_system}"
