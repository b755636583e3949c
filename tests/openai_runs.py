"""Runs of `precompute` with an `openai` teacher and the server of `openai_server.py`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from armada.cache_schemas.keys import example_key, keys_to_array
from armada.stages.store.reading.reader import open_cache
from openai_server import OpenAIServer, embedding


def write_corpus(folder: Path, texts: Sequence[str]) -> Path:
    """A corpus of one text column."""
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def words(
    server: OpenAIServer, corpus: Path, columns: Sequence[str] = ("text",), **options: Any
) -> list[str]:
    """The command that computes a cache beside the corpus: by default of embeddings."""
    more = {"base_url": server.url, "texts_per_request": 8, "rows_per_shard": 64} | options
    given = [word for name, value in more.items() for word in ("--set", f"{name}={value}")]
    cache = str(corpus.parent / "cache")
    return [
        *("precompute", "--corpus", str(corpus), "--quiet"),
        *(word for column in columns for word in ("--text-column", column)),
        *("--teacher", "openai:toy", "--cache", cache, *given),
    ]


def check_whole(corpus: Path, texts: Sequence[str]) -> None:
    """The cache has the embedding of each text."""
    cache = open_cache(corpus.parent / "cache")
    rows = cache.find(keys_to_array([example_key(text) for text in texts]))
    expected = np.stack([embedding(text) for text in texts])
    np.testing.assert_array_equal(cache["embedding"].gather(rows), expected)
