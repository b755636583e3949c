"""Responses of a model as features: their text, why they ended, and their tokens where these are
known by id.

Shapes: B examples, N responses of each, T tokens of a response, K entries, W bytes of a row.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ....cache_schemas.codings import TopKCoding
from ....cache_schemas.features import (
    GENERATED_IDS,
    GENERATED_LENGTHS,
    GENERATED_TEXT,
    GENERATED_TEXT_LENGTHS,
    MAX_LENGTH,
    FeatureSpec,
)
from ....cache_schemas.keys import IntArray
from ...store.codec.top_k import encode_top_k
from .causal_options import GENERATED

BYTES_PER_TOKEN = 16
"""More than the tokens of a whole response have on average, in any script."""

FINISHED = {"stop": 1, "length": 2}
"""Codes of the feature `finish`; 0: there is no response, 3: for another reason."""
OTHERWISE = 3

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Response:
    """One response: its text in UTF-8, a code of `finish`, and its tokens' ids [T],
    log-probabilities [T] and coded most probable tokens [T, W]."""

    text: bytes
    finish: int
    ids: IntArray | None = None
    log_probs: Float32 | None = None
    top_k: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class ResponseFeatures:
    """Features `generated_text`, `finish`, and with tokens `generated_ids`,
    `generated_log_probs`, `generated_top_k`, of `count` responses to each prompt, of at most
    `max_new_tokens` each.

    log_probs_are: a description; None: tokens are not known. coding: of `generated_top_k`."""

    count: int
    max_new_tokens: int
    log_probs_are: str | None = None
    coding: TopKCoding | None = None

    @property
    def most_bytes(self) -> int:
        """Bytes of one response, at most."""
        return self.max_new_tokens * BYTES_PER_TOKEN

    def specs(self) -> list[FeatureSpec]:
        """The features, which the options tell alone."""
        count, tokens = self.count, self.max_new_tokens * self.count
        of_each: dict[str, Any] = {"shape": (count,), "dtype": "uint32"}
        found = [
            FeatureSpec(
                name=GENERATED_TEXT,
                shape=(),
                dtype="uint8",
                axis="generated_bytes",
                max_length=min(tokens * BYTES_PER_TOKEN, MAX_LENGTH),
                description=f"{'responses' if count > 1 else 'response'} in UTF-8"
                + (", one after another" if count > 1 else ""),
            ),
            FeatureSpec(
                name="finish",
                shape=(count,),
                dtype="uint8",
                description="1: stopped, 2: cut at max_new_tokens, 3: otherwise",
            ),
        ]
        if count > 1:
            found.append(
                FeatureSpec(
                    name=GENERATED_TEXT_LENGTHS, description="bytes of each response", **of_each
                )
            )
        return found if self.log_probs_are is None else [*found, *self._of_tokens(tokens, of_each)]

    def _of_tokens(self, tokens: int, of_each: Mapping[str, Any]) -> Iterator[FeatureSpec]:
        """The features of at most so many tokens."""
        along: dict[str, Any] = {"axis": GENERATED, "max_length": tokens}
        yield FeatureSpec(
            name=GENERATED_IDS,
            shape=(),
            dtype="uint32",
            description="tokens of the responses",
            **along,
        )
        if self.count > 1:
            yield FeatureSpec(
                name=GENERATED_LENGTHS, description="tokens of each response", **of_each
            )
        yield FeatureSpec(
            name="generated_log_probs",
            shape=(),
            dtype="float32",
            description=f"log-probabilities of its tokens, {self.log_probs_are}",
            **along,
        )
        if self.coding is not None:
            yield FeatureSpec(
                name="generated_top_k",
                shape=(self.coding.row_bytes,),
                dtype="uint8",
                coding=self.coding,
                description=f"the {self.coding.k} most probable tokens in the place of each",
                **along,
            )

    def values(self, rows: Sequence[Sequence[Response]]) -> dict[str, Any]:
        """The features of B examples; of one without responses they are empty, or 0."""
        features = self._texts(rows)
        return features if self.log_probs_are is None else features | self._tokens(rows)

    def _texts(self, rows: Sequence[Sequence[Response]]) -> dict[str, Any]:
        joined = [b"".join(each.text for each in row) for row in rows]
        none = [0] * self.count
        features: dict[str, Any] = {
            GENERATED_TEXT: [np.frombuffer(text, dtype=np.uint8) for text in joined],
            "finish": np.array([[each.finish for each in row] or none for row in rows], dtype="u1"),
        }
        if self.count > 1:
            lengths = [[len(each.text) for each in row] or none for row in rows]
            features[GENERATED_TEXT_LENGTHS] = np.array(lengths, dtype=np.uint32)
        return features

    def _tokens(self, rows: Sequence[Sequence[Response]]) -> dict[str, Any]:
        none_u4, none_f4 = np.empty(0, np.uint32), np.empty(0, np.float32)
        ids = [np.concatenate([none_u4, *(_known(e.ids) for e in row)]) for row in rows]
        log_probs = [np.concatenate([none_f4, *(_known(e.log_probs) for e in row)]) for row in rows]
        features: dict[str, Any] = {GENERATED_IDS: ids, "generated_log_probs": log_probs}
        if self.count > 1:
            lengths = [[len(_known(each.ids)) for each in row] or [0] * self.count for row in rows]
            features[GENERATED_LENGTHS] = np.array(lengths, dtype=np.uint32)
        if self.coding is not None:
            empty = np.empty((0, self.coding.row_bytes), np.uint8)
            features["generated_top_k"] = [
                np.concatenate([empty, *(_known(each.top_k) for each in row)]) for row in rows
            ]
        return features


def coded(coding: TopKCoding, ids_TK: IntArray, log_probs_TK: Float32) -> npt.NDArray[np.uint8]:
    """Rows of top_k [T, W] of entries alone; absent ones have id 0 and -inf."""
    return encode_top_k(coding, ids_TK, log_probs_TK, log_tails(log_probs_TK))


def log_tails(log_probs_TK: Float32) -> npt.NDArray[np.float64]:
    """Log-masses of all other tokens [T, 1]: whatever the entries lack of 1, which is no more exact
    than their sum."""
    mass_T = np.exp(log_probs_TK.astype(np.float64)).sum(axis=1)
    with np.errstate(divide="ignore"):
        tails_T1: npt.NDArray[np.float64] = np.log(np.maximum(1 - mass_T, 0))[:, None]
    return tails_T1


def _known(values: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    assert values is not None
    return values
