"""Logits to measure on: made up after Zipf's law, and of a small language model trained here."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional

CONTEXT = 64
HIDDEN = 128
BATCH = 32


def zipf_logits(tokens: int, vocabulary: int, seed: int) -> Iterator[np.ndarray]:
    """Logits [n, V] that fall with the log of the rank, by 1 to 2.4 times, with normal noise of
    0.5 to 1; ranks are another permutation of the ids for each token."""
    draw = np.random.default_rng(seed)
    logs = np.log(np.arange(1, vocabulary + 1, dtype=np.float32))
    for start in range(0, tokens, 32):
        rows = min(32, tokens - start)
        slopes, noise = draw.uniform(1, 2.4, (rows, 1)), draw.uniform(0.5, 1, (rows, 1))
        logits = noise * draw.standard_normal((rows, vocabulary), np.float32) - slopes * logs
        yield draw.permuted(logits, axis=1)


def made_up_text(words: int, seed: int) -> str:
    """Sentences of made-up words, each word followed by some more often than by others."""
    draw = random.Random(seed)
    syllables = [c + v for c in "bdfgklmnprst" for v in "aeiou"]
    known = ["".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(1500)]
    weights = [1 / rank for rank in range(1, len(known) + 1)]
    followers = {word: draw.choices(known, weights, k=12) for word in set(known)}
    text, word = [], known[0]
    for _ in range(words):
        text.append(word + draw.choices(["", ",", "."], [12, 1, 1])[0])
        word = draw.choice(followers[word]) if draw.random() < 0.7 else draw.choice(known)
    return " ".join(text)


def read_text(file: Path) -> str:
    """A text file, or the column `text` of a Parquet file."""
    if file.suffix == ".parquet":
        return "\n".join(pq.read_table(file, columns=["text"])["text"].to_pylist())
    return file.read_text(encoding="utf-8")


class TinyModel(nn.Module):
    """A causal transformer of two layers."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, HIDDEN)
        self.positions = nn.Embedding(CONTEXT, HIDDEN)
        layer = nn.TransformerEncoderLayer(
            HIDDEN, 4, 4 * HIDDEN, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(HIDDEN, vocabulary)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.words(ids) + self.positions.weight
        return self.head(self.layers(hidden, mask=self.mask, is_causal=True))


def model_logits(
    text: str, vocabulary: int, tokens: int, steps: int, seed: int
) -> tuple[Iterator[np.ndarray], str]:
    """Logits [CONTEXT, V] on the last tenth of the text, of a model trained on the rest for some
    steps, and a line about it."""
    ids = _tokenized(text, vocabulary)
    split = len(ids) * 9 // 10
    torch.manual_seed(seed)
    model = TinyModel(vocabulary)
    loss = _train(model, ids[:split], steps)
    line = f"model: {len(ids):,} tokens of text, {steps} steps, training loss {loss:.2f}"
    return _held_out(model, ids[split:], tokens), line


def _tokenized(text: str, vocabulary: int) -> torch.Tensor:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, show_progress=False)
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    return torch.tensor(tokenizer.encode(text).ids)


def _train(model: TinyModel, ids: torch.Tensor, steps: int) -> float:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loss = torch.tensor(0.0)
    for _ in range(steps):
        starts = torch.randint(len(ids) - CONTEXT - 1, (BATCH, 1))
        windows = ids[starts + torch.arange(CONTEXT + 1)]
        logits = model(windows[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def _held_out(model: TinyModel, ids: torch.Tensor, tokens: int) -> Iterator[np.ndarray]:
    with torch.inference_mode():
        for start in range(0, min(tokens, len(ids) - CONTEXT), CONTEXT):
            yield model(ids[None, start : start + CONTEXT])[0].numpy()
