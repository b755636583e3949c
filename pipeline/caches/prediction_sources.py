"""Files of predictions, as `cache import` reads them: once for the tokens of their texts, and once
more for what is predicted of those that are wanted.

ReplyLines       vLLM's `prompt_logprobs` as JSON lines: the reply of a server, a line of batch
                 output, or an object of `prompt_logprobs` and `prompt_token_ids`
DistillKitRows   see distillkit.py
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from ...cache_schemas.errors import CorpusError
from ...cache_schemas.teachers import SettingValue
from ...stages.precompute.remote.log_probs import Predictions, TopPredictions, read_prompt
from ...stages.precompute.remote.token_ids import Vocabulary
from ...stages.precompute.remote.wire import MalformedReplyError, a_list, an_object

Place = tuple[int, int]
"""Where in a source a text is; places are in the order of the source."""


@dataclass(frozen=True, slots=True)
class FoundText:
    """A text of a source: `number` of the line or row that has it, counted from 1; its tokens, of
    which the first may be unknown; `fewest`: tokens that are predicted at each place, if known."""

    place: Place
    number: int
    tokens: Sequence[int | None]
    fewest: int | None = None
    first_of_its_line: bool = True


class PredictionSource(ABC):
    """Predictions of texts at places. `count`: lines or rows read by `texts`; `problems`: number
    of each bad one -> problem; `settings`: of the fingerprint, beside the layout."""

    layout: ClassVar[str]
    unit: ClassVar[Literal["line", "row"]]

    def __init__(self, path: Path, top_k: int) -> None:
        self.path, self.top_k = path, top_k
        self.settings: dict[str, SettingValue] = {}
        self.count = 0
        self.problems: dict[int, str] = {}

    def check(self, vocabulary: Vocabulary) -> None:  # noqa: B027 - most have nothing to check
        """Raises CorpusError for a source that cannot hold the ids of a vocabulary."""

    @abstractmethod
    def texts(self) -> Iterator[FoundText]:
        """All texts, in order; raises CorpusError for a file that cannot be read."""

    @abstractmethod
    def take(self, places: Sequence[Place]) -> list[Predictions | TopPredictions | str]:
        """What is predicted at ascending places, or the problem. Raises CorpusError for a source
        that has changed since `texts`."""

    def where(self, number: int) -> str:
        """A line or row, for messages."""
        return f"{self.path} {self.unit} {number}"

    def changed(self) -> CorpusError:
        """The error of a source that is not what it was."""
        return CorpusError(f"{self.path}: has changed while it was read")


class ReplyLines(PredictionSource):
    """JSON lines; a place is the byte at which a line begins, and the text's number in it."""

    layout = "prompt_log_probs"
    unit = "line"

    def texts(self) -> Iterator[FoundText]:
        """See PredictionSource."""
        for number, (offset, line) in enumerate(self._lines(), 1):
            if not line.strip():
                continue
            self.count += 1
            try:
                read = _read(line)
            except (MalformedReplyError, ValueError, RecursionError) as problem:
                self.problems[number] = str(problem)
                continue
            for at, each in enumerate(read):
                fewest = int(each.counts[1:].min(initial=self.top_k))
                yield FoundText((offset, at), number, each.tokens.ids, fewest, at == 0)

    def take(self, places: Sequence[Place]) -> list[Predictions | TopPredictions | str]:
        """See PredictionSource."""
        return [self._at(place) for place in places]

    def _at(self, place: Place) -> Predictions:
        offset, at = place
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                return _read(file.readline())[at]
        except (OSError, MalformedReplyError, ValueError, IndexError) as cause:
            raise self.changed() from cause

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Each line, and the byte at which it begins."""
        try:
            with self.path.open("rb") as file:
                offset = 0
                for line in file:
                    yield offset, line
                    offset += len(line)
        except OSError as cause:
            raise CorpusError(f"{self.path}: cannot be read: {cause}") from cause


def _read(line: bytes) -> list[Predictions]:
    """The predictions of a line, those of each text once. Raises MalformedReplyError, ValueError,
    RecursionError."""
    document = an_object(json.loads(line), "the line")
    if "response" in document and document["response"] is None:
        raise MalformedReplyError(f"has no response: {json.dumps(document.get('error'))[:120]}")
    reply = an_object(document.get("response", document), "response")
    if document.get("error") or reply.get("status_code", 200) != 200:
        told = document.get("error") or reply.get("body")
        raise MalformedReplyError(f"has no response: {json.dumps(told)[:120]}")
    body = an_object(reply.get("body", reply), "body")
    choices = [an_object(each, "choices") for each in a_list(body.get("choices", []), "choices")]
    found: dict[tuple[int | None, ...], Predictions] = {}
    for fields in (body, *choices):
        read = read_prompt(
            fields.get("prompt_logprobs"), fields.get("prompt_token_ids"), "prompt_logprobs"
        )
        if read is not None:
            found.setdefault(tuple(read.tokens.ids), read)
    if not found:
        raise MalformedReplyError("has no prompt_logprobs")
    return list(found.values())
