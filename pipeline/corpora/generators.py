"""Responses to blocks of prompts: those of a teacher in a cache, or the predictions of a student.

prompts = Prompts.of(block, ...)
responses = generator.read(prompts)        # of each prompt none, one or several

Shapes: P prompts of a block, R responses to them, those of a prompt one after another.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq

from ...cache_schemas.chats import asking_turns, chat_segment, turns_of
from ...cache_schemas.errors import CorpusError, JobError
from ...cache_schemas.features import (
    GENERATED_IDS,
    GENERATED_LENGTHS,
    GENERATED_TEXT,
    GENERATED_TEXT_LENGTHS,
)
from ...cache_schemas.keys import IntArray, KeyArray, example_key, keys_to_array
from ...cache_schemas.teachers import TeacherSpec
from ...stages.corpus.corpus import Corpus
from ...stages.store.format.rows import Rows
from ...stages.store.reading.reader import open_cache
from ..outputs import file_digest
from .rules import CachedTeacher

Float64 = npt.NDArray[np.float64]

LOG_PROBS = "generated_log_probs"

FINISHES = ("", "stop", "length", "other", "")
"""By the codes of the feature `finish`; the first is of no response, the last is not known."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """P prompts of a corpus: their text segments, of which the last may be a given response."""

    corpus: Corpus
    segments: Sequence[tuple[str, ...]]
    given_response: bool

    def __len__(self) -> int:
        return len(self.segments)

    def asked(self, with_response: bool) -> list[tuple[str, ...]]:
        """The segments of each, with the given response or without."""
        if with_response or not self.given_response:
            return list(self.segments)
        if self.corpus.chats:
            return [(_prompt_of_chat(chat),) for (chat,) in self.segments]
        return [segments[:-1] for segments in self.segments]

    def keys(self, with_response: bool) -> KeyArray:
        """Their keys [P, 16]."""
        return keys_to_array(example_key(each) for each in self.asked(with_response))

    @property
    def labels(self) -> list[Any]:
        """The label of each; None without one."""
        labels = self.corpus.labels
        return [None] * len(self) if labels is None else labels.to_pylist()


def _prompt_of_chat(segment: str) -> str:
    turns = turns_of(segment)
    assert turns is not None
    return chat_segment(asking_turns(turns))


@dataclass(frozen=True, slots=True)
class Responses:
    """R responses: the prompt of each in its block [R], its generator [R], and its number among
    those of both [R]. What is not known: finish is empty, log_probs [R], in nats, NaN, tokens [R]
    -1."""

    prompts: IntArray
    generators: IntArray
    samples: IntArray
    texts: list[str]
    finish: list[str]
    log_probs: Float64
    tokens: IntArray

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def together(cls, parts: Sequence["Responses"]) -> "Responses":
        """All responses, those of a prompt one after another, in the order of their generators."""
        prompts = np.concatenate([part.prompts for part in parts])
        texts = [text for part in parts for text in part.texts]
        finish = [each for part in parts for each in part.finish]
        order = np.argsort(prompts, kind="stable")
        return cls(
            prompts=prompts[order],
            generators=np.repeat(np.arange(len(parts)), [len(part) for part in parts])[order],
            samples=np.concatenate([part.samples for part in parts])[order],
            texts=[texts[at] for at in order.tolist()],
            finish=[finish[at] for at in order.tolist()],
            log_probs=np.concatenate([part.log_probs for part in parts])[order],
            tokens=np.concatenate([part.tokens for part in parts])[order],
        )

    def take(self, rows: IntArray) -> "Responses":
        """Some of them, in the order given."""
        chosen = rows.tolist()
        return Responses(
            prompts=self.prompts[rows],
            generators=self.generators[rows],
            samples=self.samples[rows],
            texts=[self.texts[at] for at in chosen],
            finish=[self.finish[at] for at in chosen],
            log_probs=self.log_probs[rows],
            tokens=self.tokens[rows],
        )

    def of_prompts(self) -> Iterator[IntArray]:
        """The responses to each prompt that has any."""
        if len(self):
            yield from np.split(np.arange(len(self)), np.flatnonzero(np.diff(self.prompts)) + 1)


class Generator(Protocol):
    """Something that has responses to prompts."""

    name: str
    gives_response: bool
    """Whether it read a given response, the last text column, beside the prompt."""

    def read(self, prompts: Prompts) -> tuple[Responses, Rows]:
        """The responses to a block of prompts, and the prompts that it has none to."""

    def document(self) -> dict[str, Any]:
        """Where its responses come from, without paths of this machine."""


def gives_response(spec: TeacherSpec) -> bool:
    """Whether a teacher's examples have a given response beside the prompt."""
    has_prompt = spec.settings.get("text_format") in ("plain", "chat")
    return has_prompt and spec.settings.get("response_column", True) is not False


class CachedResponses:
    """See Generator: the responses that a teacher generated."""

    def __init__(self, name: str, keys: CachedTeacher, tokenizer: str | None = None) -> None:
        """Raises CacheError, JobError for a teacher without responses or text."""
        self.name = name
        self._cache = cache = open_cache(keys.cache, keys.teacher)
        self._folder = keys.cache.absolute().name
        self.spec = cache.teacher.spec
        features = cache.features
        if GENERATED_TEXT not in features and GENERATED_IDS not in features:
            raise JobError(
                f"cache {keys.cache}: teacher {cache.teacher.fingerprint[:12]} has no responses; "
                "precompute with max_new_tokens, and response_column=false for prompts alone"
            )
        self._decode: Callable[[Sequence[Any]], list[str]] | None = None
        if GENERATED_TEXT not in features:
            from ..caches.export import tokenizer_of  # and with it torch

            made = tokenizer_of(tokenizer, cache.holder(GENERATED_IDS).teacher.spec)
            self._decode = lambda ids: list(made.batch_decode(ids, skip_special_tokens=True))
        self.gives_response = gives_response(self.spec)

    def document(self) -> dict[str, Any]:
        """See Generator."""
        return {
            "cache": self._folder,
            "fingerprint": self._cache.teacher.fingerprint,
            "teacher": f"{self.spec.kind}:{self.spec.name}",
        }

    def read(self, prompts: Prompts) -> tuple[Responses, Rows]:
        """See Generator."""
        found = self._cache.find(prompts.keys(self.gives_response), *self._read_features())
        known = np.flatnonzero(found >= 0)
        rows = found[known]
        text_lengths_BN = self._lengths(rows, GENERATED_TEXT, GENERATED_TEXT_LENGTHS)
        of_tokens = GENERATED_IDS if GENERATED_IDS in self._cache.features else LOG_PROBS
        id_lengths_BN = self._lengths(rows, of_tokens, GENERATED_LENGTHS)
        lengths_BN = text_lengths_BN if self._decode is None else id_lengths_BN
        assert lengths_BN is not None
        finish = self._finish(rows, lengths_BN)
        there = np.flatnonzero(finish.ravel() > 0)
        count = lengths_BN.shape[1]
        tokens = np.full(len(there), -1)
        log_probs = np.full(len(there), np.nan)
        if id_lengths_BN is not None:
            tokens = id_lengths_BN.ravel()[there].astype(np.int64)
        if LOG_PROBS in self._cache.features and id_lengths_BN is not None:
            log_probs = self._sums(rows, id_lengths_BN)[there]
        texts = self._texts(rows, lengths_BN)
        responses = Responses(
            prompts=known[there // count],
            generators=np.zeros(len(there), dtype=np.int64),
            samples=there % count,
            texts=[texts[at] for at in there.tolist()],
            finish=[FINISHES[code] for code in finish.ravel()[there].tolist()],
            log_probs=log_probs,
            tokens=tokens,
        )
        return responses, np.flatnonzero(found < 0)

    def _read_features(self) -> list[str]:
        wanted = (GENERATED_TEXT, GENERATED_IDS, "finish", LOG_PROBS)
        return [name for name in wanted if name in self._cache.features]

    def _lengths(self, rows: Rows, feature: str, of_each: str) -> IntArray | None:
        """How long each response is along a feature's axis [B, N]; None without the feature."""
        if feature not in self._cache.features:
            return None
        if of_each in self._cache.features:
            lengths: IntArray = self._cache[of_each].gather(rows).astype(np.int64)
            return lengths
        return self._cache.ragged(feature).lengths(rows)[:, None]

    def _finish(self, rows: Rows, lengths_BN: IntArray) -> IntArray:
        """Codes [B, N] of how responses finished; without that feature a response of no tokens is
        none, and of others it is not known."""
        if "finish" in self._cache.features:
            codes: IntArray = self._cache["finish"].gather(rows).astype(np.int64)
            return codes
        return np.where(lengths_BN > 0, len(FINISHES) - 1, 0)

    def _texts(self, rows: Rows, lengths_BN: IntArray) -> list[str]:
        name = GENERATED_TEXT if self._decode is None else GENERATED_IDS
        values = self._cache.ragged(name).gather(rows).values
        parts = np.split(values, np.cumsum(lengths_BN)[:-1]) if lengths_BN.size else []
        if self._decode is not None:
            return self._decode(parts)
        return [bytes(part).decode(errors="replace") for part in parts]

    def _sums(self, rows: Rows, lengths_BN: IntArray) -> Float64:
        values = self._cache.ragged(LOG_PROBS).gather(rows).values
        owners = np.repeat(np.arange(lengths_BN.size), lengths_BN.ravel())
        # Not by differences of a running sum, whose rounding is of those before.
        sums: Float64 = np.zeros(lengths_BN.size)
        np.add.at(sums, owners, values)
        return sums


class Predictions:
    """See Generator: what `predict` wrote about the rows of a corpus, in memory. The prediction of
    a class is its name, and its log-probability the student's."""

    gives_response = False

    def __init__(self, path: Path) -> None:
        """Raises CorpusError."""
        self.name, self._path = "predictions", path
        table = _read_predictions(path)
        columns = table.column_names
        self._by = next((name for name in ("row", "id") if name in columns), columns[0])
        of_text = next((name for name in ("generated_text", "class") if name in columns), None)
        if of_text is None:
            raise CorpusError(
                f"{path}: has neither generated_text nor class; name a file that `predict` wrote "
                f"for a language model or a classifier (it has {', '.join(columns)})"
            )
        if lacking := table[of_text].null_count:
            raise CorpusError(f"{path}: {lacking} of {len(table)} rows have no {of_text}")
        self._texts = [str(text) for text in table[of_text].to_pylist()]
        self._log_probs = np.full(len(table), np.nan)
        if "probabilities" in columns:
            highest = [_highest(each, path) for each in table["probabilities"].to_pylist()]
            self._log_probs = np.log(np.maximum(highest, np.finfo(np.float64).tiny))
        self._places = {str(each): at for at, each in enumerate(table[self._by].to_pylist())}
        if len(self._places) < len(table):
            raise CorpusError(f"{path}: repeats a {self._by}; name the predictions of one corpus")

    @property
    def by_row(self) -> bool:
        """Whether they are of rows by number, not by id."""
        return self._by == "row"

    def document(self) -> dict[str, Any]:
        """See Generator."""
        return {"predictions": self._path.name, "digest": file_digest(self._path)}

    def read(self, prompts: Prompts) -> tuple[Responses, Rows]:
        """See Generator."""
        corpus = prompts.corpus
        if self.by_row:
            names = [str(number + 1) for number in corpus.number_of_row.tolist()]
        elif corpus.ids is None:
            raise JobError(
                f"job key 'id_column' is missing: {self._path} has predictions by the column "
                f"{self._by!r}"
            )
        else:
            names = corpus.ids.to_pylist()
        places = np.array([self._places.get(name, -1) for name in names], dtype=np.int64)
        known = np.flatnonzero(places >= 0)
        responses = Responses(
            prompts=known,
            generators=np.zeros_like(known),
            samples=np.zeros_like(known),
            texts=[self._texts[at] for at in places[known].tolist()],
            finish=[""] * len(known),
            log_probs=self._log_probs[places[known]],
            tokens=np.full(len(known), -1),
        )
        return responses, np.flatnonzero(places < 0)


def _highest(probabilities: Any, path: Path) -> float:
    try:
        return max(map(float, probabilities))
    except (TypeError, ValueError):
        raise CorpusError(
            f"{path}: {probabilities!r:.60} in the column probabilities are none"
        ) from None


def _read_predictions(path: Path) -> pa.Table:
    try:
        table = pj.read_json(path) if path.suffix == ".jsonl" else pq.read_table(path.absolute())
    except (OSError, pa.ArrowException) as cause:
        raise CorpusError(f"{path}: cannot be read: {str(cause).partition(chr(10))[0]}") from cause
    if not len(table):
        raise CorpusError(f"{path}: has no rows")
    return table
