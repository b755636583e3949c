"""The base class of an endpoint's APIs whose answers are features: what is sent for an example, and
what a reply means."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.teachers import SettingValue
from ..teachers.base import Answers, Example
from .requests import Query
from .wire import Usage


class FeatureApi(ABC):
    """An `Api` of `requests.py`. By default each query is a request of its own."""

    path: str
    together: int = 1
    """The most queries of one request."""
    probe: tuple[str, ...] = ("The quick brown fox jumps over the lazy dog.",)
    """Segments of an example of our own."""
    most_probes: int = 64
    """How often it is worth asking for them at most."""

    @property
    def settings(self) -> Mapping[str, SettingValue]:
        """Settings of the fingerprint beside the options."""
        return {}

    @property
    def weights(self) -> Mapping[str, str]:
        """Digests of weights that answers go through here."""
        return {}

    @property
    def vocab_digest(self) -> str | None:
        """Digest of the tokens of a tokenizer that features are in."""
        return None

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings before anything is sent."""
        return ()

    def load(self) -> None:  # noqa: B027 (most have nothing to do)
        """Build what answers go through here."""

    def beforehand(self) -> Sequence[Any]:
        """Contents of queries whose answers every example's features need."""
        return ()

    def learn(self, answers: Sequence[Any]) -> None:  # noqa: B027
        """Take their answers; called once, before any features are made."""

    def fit(self, one: Query, other: Query) -> bool:
        """Whether one request may have both."""
        return self.together > 1

    def requests(self, queries: int) -> int:
        """How many requests so many queries are, at most."""
        return -(-queries // self.together)

    @abstractmethod
    def content(self, example: Example) -> Any:
        """The content of an example's query."""

    @abstractmethod
    def body(self, queries: Sequence[Query]) -> dict[str, Any]:
        """The document that is sent."""

    @abstractmethod
    def read(self, document: Any, count: int) -> Sequence[Any]:
        """The answers to `count` queries in a reply. Raises MalformedReplyError."""

    @abstractmethod
    def expected(self, queries: Sequence[Query]) -> Usage:
        """About how many tokens a request takes."""

    @abstractmethod
    def features(self, answer: Any) -> list[FeatureSpec]:
        """The features, whose shape may be known from an answer alone."""

    @abstractmethod
    def answers(self, found: Sequence[Any], contents: Sequence[Any]) -> Answers:
        """The features of some examples, from their answers and the content of their queries;
        None: there is no answer, and whatever stands for it is not kept."""

    @abstractmethod
    def distance(self, one: Any, other: Any) -> float:
        """Distance of two answers to one text: 0 alike, 1 nothing in common."""
