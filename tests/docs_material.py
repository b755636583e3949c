"""What the commands in the docs name, in small: models of a hub, and tables of texts.

`python docs_material.py FOLDER` makes the models, FOLDER/OWNER/NAME for each hub id: the classes
and files of the published ones, with a few thousand seeded weights.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

STUDENT = "google-bert/bert-base-uncased"
ENCODER = "BAAI/bge-base-en-v1.5"
CLASSIFIER = "distilbert/distilbert-base-uncased-finetuned-sst-2-english"
CLIP = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
DIFFUSION = "CompVis/stable-diffusion-v1-4"
WORDS_TEACHER = "Qwen/Qwen2.5-7B-Instruct"
WORDS_STUDENT = "Qwen/Qwen2.5-0.5B-Instruct"
WORDS_OTHER = "meta-llama/Llama-3.2-1B-Instruct"
REPOSITORIES = (
    *(STUDENT, ENCODER, CLASSIFIER, CLIP, DIFFUSION),
    *(WORDS_TEACHER, WORDS_STUDENT, WORDS_OTHER),
)

_NAMED = ["a red bird", "two dogs"]  # by the README
_MADE = [
    f"{who} {what}"
    for who in ("a blue boat", "the old cook", "two grey geese", "my aunt", "nobody")
    for what in ("waits", "is late", "crosses the lake", "sings")
]
TEXTS = [*_NAMED, *_MADE]


def table(first: int, rows: int) -> pa.Table:
    """Columns id, text, text_a, text_b, label: `rows` examples, those from `first` on."""
    places = [(first + row) % len(TEXTS) for row in range(rows)]
    texts = [TEXTS[place] for place in places]
    columns: dict[str, Any] = {
        "id": [f"example-{place}" for place in places],
        "text": texts,
        "text_a": texts,
        "text_b": [TEXTS[(7 * place + 3) % len(TEXTS)] for place in places],
        "label": [place % 2 for place in places],
    }
    return pa.table(columns)


def write_table(file: Path, first: int = 0, rows: int = 10) -> None:
    """A corpus as a Parquet file."""
    pq.write_table(table(first, rows), file)


LONG = " ".join(TEXTS)
"""More tokens than the tiny language models take."""


def instructions(first: int, rows: int) -> pa.Table:
    """Columns id, instruction, context (some are blank), response; one prompt is too long."""
    examples = table(first, rows)
    texts = examples["text"].to_pylist()
    contexts = [
        [text, "", LONG if first == 0 else ""][place % 3] for place, text in enumerate(texts)
    ]
    columns: dict[str, Any] = {
        "id": examples["id"],
        "instruction": [f"Say it with other words: {text}" for text in texts],
        "context": contexts,
        "response": examples["text_b"],
    }
    return pa.table(columns)


def write_instructions(folder: Path, rows: int = 10) -> None:
    """FOLDER/train.parquet, validation.parquet and test.parquet."""
    folder.mkdir()
    for number, split in enumerate(("train", "validation", "test")):
        pq.write_table(instructions(number * rows, rows), folder / f"{split}.parquet")


def write_chats(file: Path, rows: int = 4) -> None:
    """Column messages: two questions and answers a row."""
    said = [(TEXTS + TEXTS)[row : row + 4] for row in range(rows)]
    roles = ("user", "assistant") * 2
    chats = [
        [{"role": role, "content": text} for role, text in zip(roles, four, strict=True)]
        for four in said
    ]
    pq.write_table(pa.table({"messages": chats}), file)


def write_features(folder: Path, corpus: pa.Table) -> None:
    """One array for each id, as the paper's code leaves them."""
    folder.mkdir()
    for number, name in enumerate(corpus["id"].to_pylist()):
        row = np.random.default_rng(number).standard_normal(6).astype(np.float32)
        np.save(folder / f"{name}.npy", row)


def make_models(folder: Path) -> None:
    """A checkpoint for each of `REPOSITORIES`."""
    import tiny_checkpoints
    import tiny_diffusion
    from tiny_language_models import make_causal_lm, make_chat_tokenizer

    tokenizer = make_chat_tokenizer(TEXTS)
    make_causal_lm(folder / WORDS_TEACHER, tokenizer=tokenizer)
    make_causal_lm(folder / WORDS_STUDENT, tokenizer=tokenizer, seed=1)
    other = make_chat_tokenizer([text.replace("a", "o") for text in TEXTS])
    make_causal_lm(folder / WORDS_OTHER, tokenizer=other, seed=2)
    tiny_checkpoints.make_bert(folder / STUDENT, TEXTS)
    tiny_checkpoints.make_bert(folder / ENCODER, TEXTS, hidden=16)
    tiny_checkpoints.make_open_clip(folder / CLIP)
    tiny_diffusion.make_stable_diffusion(folder / DIFFUSION)
    _make_distilbert_classifier(folder / CLASSIFIER)


def _make_distilbert_classifier(folder: Path) -> None:
    import torch
    from tiny_checkpoints import POSITIONS, SPREAD, make_tokenizer
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    torch.manual_seed(0)
    tokenizer = make_tokenizer(TEXTS, model_input_names=["input_ids", "attention_mask"])
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        dim=16,
        n_layers=2,
        n_heads=2,
        hidden_dim=32,
        max_position_embeddings=POSITIONS,
        initializer_range=SPREAD,
        pad_token_id=tokenizer.pad_token_id,
        id2label={0: "NEGATIVE", 1: "POSITIVE"},
        label2id={"NEGATIVE": 0, "POSITIVE": 1},
    )
    DistilBertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    make_models(Path(sys.argv[1]))
