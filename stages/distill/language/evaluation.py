"""Metrics of a language model: on given tokens, and on its own responses.

perplexity     exp of the mean cross entropy of the predicted tokens; one tokenizer's figure, and of
               a masked language model one kind of mask's
accuracy       of a masked language model: share of masked tokens that it finds most probable
bits_per_byte  the cross entropy of all of them over the bytes of their text: comparable
               between tokenizers
rouge_l        F-measure of the longest common subsequence of words, stemmed (Lin, 2004)
exact_match    share of responses equal to the reference except for case, spaces and punctuation
               outside of numbers
"""

import math
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch

from ...pretrained import padding_id, token_limit
from ...tokenizing.padding import pad_rows
from ..batches import Batch
from .batches import PredictedRows
from .pairs import PairSums
from .token_measures import MeasureSums

METRICS = ("loss", "perplexity", "bits_per_byte")
"""Metrics of given tokens: lower is better."""

MASKED_METRICS = ("loss", "perplexity", "accuracy")
"""Metrics of masked tokens."""

_NATS_OF_A_BIT = math.log(2)
_MOST_NATS = 700.0
"""Beyond it, a perplexity overflows."""


@dataclass(slots=True)
class TokenSums:
    """Cross entropy in nats, number of tokens, and bytes of their text."""

    nats: float = 0.0
    tokens: float = 0
    bytes: int = 0
    measures: MeasureSums = field(default_factory=MeasureSums)
    """Comparison with teachers, where the texts have their predictions."""
    pairs: PairSums = field(default_factory=PairSums)
    """Preferences among two responses to each prompt, where the corpus has them."""

    @torch.no_grad()
    def add(self, model: Any, batch: Batch, texts: PredictedRows) -> None:
        """Add a batch, as a model in eval mode sees it."""
        indices = batch.pop("indices")
        count = texts.counts(indices).labelled
        found = model(**batch)
        self.nats += float(found["loss"]) * count
        if "seen" in found:
            self.measures.add(found["seen"])
        if "pairs" in found:
            reference = next(iter(batch.get("references", {}).values()), None)
            self.pairs.add(found["pairs"], reference)
        self.tokens += count
        self.bytes += texts.bytes_of(indices)

    def metrics(self) -> dict[str, float]:
        """All of `METRICS`, and the measures of each teacher of the texts, and of pairs."""
        bits = self.nats / _NATS_OF_A_BIT / max(self.bytes, 1)
        beside = {**self.measures.figures(), **self.pairs.figures()}
        return {**self._of_loss(), "bits_per_byte": bits, **beside}

    def _of_loss(self) -> dict[str, float]:
        loss = self.nats / max(self.tokens, 1)
        return {"loss": loss, "perplexity": math.exp(min(loss, _MOST_NATS))}


class MaskedTokenSums(TokenSums):
    """The same of masked tokens, whose bytes are not counted."""

    def metrics(self) -> dict[str, float]:
        """All of `MASKED_METRICS`, and the measures of the student and of each teacher."""
        seen = self.measures.calibration
        accuracy = 0.0 if seen is None else seen.accuracy
        return {**self._of_loss(), "accuracy": accuracy, **self.measures.figures()}


def response_metrics(responses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Metrics of responses against one reference each."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    pairs = list(zip(responses, references, strict=True))
    rouge = [scorer.score(reference, one)["rougeL"].fmeasure for one, reference in pairs]
    exact = [_plain(one) == _plain(reference) for one, reference in pairs]
    return {"rouge_l": sum(rouge) / len(pairs), "exact_match": sum(exact) / len(pairs)}


class _Words:
    """Stemmed words as rouge_score's own tokenizer makes them, of any script: its own knows Latin
    letters alone."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stem = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        words = re.findall(r"[^\W_]+", text.lower())
        return [self._stem(word) if len(word) > 3 else word for word in words]


def _plain(text: str) -> str:
    """Without case, and without punctuation but for that of numbers."""
    return " ".join(re.sub(r"[^\w\s](?!\d)|_", "", text.lower()).split())


@torch.inference_mode()
def respond(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    most: int,
    batch_size: int,
    ends: Collection[int],
) -> list[str]:
    """A model's greedy responses to prompts of token ids, at most so many tokens each, and no more
    than the model has positions for: none for a prompt that fills them all."""
    responses = [""] * len(prompts)
    limit = token_limit(tokenizer, model)
    room = [min(most, limit - len(each)) for each in prompts]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for tokens, group in groupby(order, key=room.__getitem__):
        indices = list(group) if tokens > 0 else []
        for start in range(0, len(indices), batch_size):
            chosen = indices[start : start + batch_size]
            with _greedy(model, tokenizer, tokens, ends):
                found = _continued(model, tokenizer, [prompts[index] for index in chosen])
            for index, text in zip(chosen, found, strict=True):
                responses[index] = text
    return responses


@contextmanager
def _greedy(model: Any, tokenizer: Any, most: int, ends: Collection[int]) -> Iterator[None]:
    """A model set to greedy generation, without the folder's sampling, beams and penalties; rows of
    logits beyond the vocabulary are never generated."""
    from transformers import GenerationConfig

    before, rows = model.generation_config, model.get_output_embeddings().weight.shape[0]
    model.generation_config = GenerationConfig(
        max_new_tokens=most,
        do_sample=False,
        num_beams=1,
        pad_token_id=padding_id(tokenizer),
        eos_token_id=sorted(ends) or None,
        suppress_tokens=list(range(len(tokenizer), rows)) or None,
    )
    try:
        yield
    finally:
        model.generation_config = before


def _continued(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]]) -> list[str]:
    batch = padded_prompts(tokenizer, prompts)
    width = batch["input_ids"].shape[1]
    output = model.generate(**{name: rows.to(model.device) for name, rows in batch.items()})
    texts: list[str] = tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
    return [text.strip() for text in texts]


def padded_prompts(tokenizer: Any, prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Prompts of token ids for generation: padded on the left."""
    rows = [{"input_ids": ids} for ids in prompts]
    return pad_rows(rows, {"input_ids": padding_id(tokenizer)}, left=True)
