"""Rows of fixed width, as armada's cache stores them."""

import numpy as np
from armada.cache_schemas.codings import SamplesCoding, TopKCoding
from armada.stages.store.codec.samples import decode_samples, encode_samples
from armada.stages.store.codec.top_k import decode_top_k, encode_top_k

from .answers import Answers
from .codec import Decoded


class TopK:
    """The k most probable ids, their log-probabilities, and the tail."""

    peer = drawn = False

    def __init__(self, k: int, bits: int, vocabulary: int) -> None:
        self.name = f"armada top-{k}, {bits} bits"
        self.k = k
        self.coding = TopKCoding(k=k, vocab_size=vocabulary, bits=bits)

    def refusal(self, answers: Answers) -> str:
        return ""

    def encode(self, answers: Answers) -> np.ndarray:
        return encode_top_k(self.coding, *answers.top(self.k))

    def stored_bytes(self, stored: np.ndarray) -> int:
        return stored.nbytes

    def decode(self, stored: np.ndarray) -> Decoded:
        found = decode_top_k(self.coding, stored)
        return Decoded(found.ids_Nk, found.log_probs_Nk, found.log_tail_N)


class Samples:
    """Ids drawn with replacement, with or without their log-probabilities."""

    peer, drawn = False, True

    def __init__(self, samples: int, log_prob_bits: int, vocabulary: int) -> None:
        self.name = f"armada {samples} samples{' + log-probs' if log_prob_bits else ''}"
        self.k = samples
        self.coding = SamplesCoding(
            samples=samples, vocab_size=vocabulary, log_prob_bits=log_prob_bits
        )

    def refusal(self, answers: Answers) -> str:
        return ""

    def encode(self, answers: Answers) -> np.ndarray:
        log_probs = answers.sample_log_probs[:, : self.k] if self.coding.log_prob_bits else None
        return encode_samples(self.coding, answers.samples[:, : self.k], log_probs)

    def stored_bytes(self, stored: np.ndarray) -> int:
        return stored.nbytes

    def decode(self, stored: np.ndarray) -> Decoded:
        found = decode_samples(self.coding, stored)
        return Decoded(found.ids_NK, found.log_probs_NK, None)
