"""Students that learn from the caches of a server that nobody here wrote: llama.cpp's own.

ARMADA_REAL_GGUF names the GGUF file of a small language model with a byte-level tokenizer, and
ARMADA_REAL_TOKENIZER the folder of that tokenizer and of the same weights, dequantised."""

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from armada.stages.store.reading.reader import open_cache
from command_line import CommandLine
from llama_cpp_server import serving
from tiny_checkpoints import make_bert
from tiny_language_models import TEXTS

FILE, FOLDER = os.environ.get("ARMADA_REAL_GGUF"), os.environ.get("ARMADA_REAL_TOKENIZER")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FILE is None or FOLDER is None, reason="names no file and no tokenizer"),
    pytest.mark.skipif(find_spec("xllamacpp") is None, reason="xllamacpp is not installed"),
]

QUESTIONS = [f"Name a colour that goes with {colour}." for colour in ("red", "blue", "green")]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def words(**options: Any) -> list[str]:
    return [word for name, value in options.items() for word in ("--set", f"{name}={value}")]


def loss(run: Path) -> float:
    found: float = json.loads((run / "metrics.json").read_bytes())["train_losses"]["loss"]
    return found


def test_a_classifier_learns_from_embeddings(armada: CommandLine, tmp_path: Path) -> None:
    make_bert(tmp_path / "bert", TEXTS)
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(TEXTS)]
    corpus, cache = write(tmp_path / "corpus.jsonl", rows), tmp_path / "cache"
    given = ("--text-column", "text", "--cache", cache)
    with serving(Path(FILE or ""), "MEAN") as address:
        armada.done(
            *("precompute", "--corpus", corpus, *given, "--teacher", "openai:SmolLM2"),
            *words(base_url=f"{address}/v1"),
        )
    assert open_cache(cache)["embedding"].shape[1:] == (576,)
    armada.done(
        *("distill", "--train", corpus, *given, "--label-column", "label"),
        *("--student", tmp_path / "bert", "--output", tmp_path / "run"),
        *words(objective="feature", feature="embedding", epochs=1),
    )
    assert 0 < loss(tmp_path / "run") < 10


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_language_model_learns_from_responses(
    armada: CommandLine, tmp_path: Path, api: str
) -> None:
    corpus = write(tmp_path / "corpus.jsonl", [{"prompt": question} for question in QUESTIONS])
    given = ("--text-column", "prompt", "--cache", tmp_path / "cache")
    with serving(Path(FILE or "")) as address:
        armada.done(
            *("precompute", "--corpus", corpus, *given, "--teacher", "openai:SmolLM2"),
            *words(base_url=f"{address}/v1", api=api, max_new_tokens=8, tokenizer=FOLDER, top_k=4),
        )
    cache = open_cache(tmp_path / "cache")
    assert {"generated_text", "generated_ids", "generated_top_k"} <= set(cache.features)
    armada.done(
        *("distill", "--train", corpus, *given, "--student", FOLDER, "--output", tmp_path / "run"),
        *words(task="language", objective="tokens", responses="generated", epochs=1, lora_rank=4),
    )
    assert 0 < loss(tmp_path / "run") < 10
