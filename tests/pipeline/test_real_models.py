"""Real weights and real texts, from the command line to other people's libraries.

ARMADA_REAL_MODELS names a folder with minilm/ (all-MiniLM-L6-v2 as its authors published it) and
smollm2/ (SmolLM2-135M, a Llama),
ARMADA_CORPORA one with rotten_tomatoes/{train,validation}.parquet (text, label)."""

import json
import os
from pathlib import Path
from typing import Any

import armada
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import CommandLine

MODELS, CORPORA = os.environ.get("ARMADA_REAL_MODELS"), os.environ.get("ARMADA_CORPORA")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MODELS is None, reason="ARMADA_REAL_MODELS names no folder of models"),
    pytest.mark.skipif(CORPORA is None, reason="ARMADA_CORPORA names no folder of corpora"),
]


def some_rows(name: str, count: int, folder: Path) -> Path:
    """Rows of a real corpus, whose classes do not stand one after the other."""
    table = pq.read_table(Path(CORPORA or "", "rotten_tomatoes", f"{name}.parquet"))
    rows = np.random.default_rng(0).permutation(len(table))[:count]
    pq.write_table(table.take(rows), folder / f"{name}.parquet")
    return folder / f"{name}.parquet"


def piped(folder: Path, file: Path) -> float:
    """The accuracy of a student in transformers' pipeline."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, pipeline

    rows = pq.read_table(file).to_pydict()
    model: Any = str(folder)
    if (folder / "task").is_dir():
        config = AutoConfig.from_pretrained(folder, subfolder="task")
        model = AutoModelForSequenceClassification.from_pretrained(folder, config=config)
    classify = pipeline("text-classification", model, tokenizer=str(folder), truncation=True)
    said = [answer["label"] for answer in classify(rows["text"], batch_size=32)]
    predicted = [classify.model.config.label2id[label] for label in said]
    return float(np.mean(np.array(predicted) == rows["label"]))


def test_a_classifier_is_in_pipelines_what_it_is_here_and_teaches_the_next(
    armada: CommandLine, tmp_path: Path
) -> None:
    train, validation = some_rows("train", 1200, tmp_path), some_rows("validation", 400, tmp_path)

    def distill(output: Path, *settings: str) -> float:
        """Train; the accuracy that `evaluate` finds, which is that of the pipeline."""
        files = ("--train", train, "--validation", validation, "--student", f"{MODELS}/minilm")
        columns = ("--text-column", "text", "--label-column", "label")
        given = [word for each in ("device=cpu", *settings) for word in ("--set", each)]
        armada.done("distill", *files, *columns, "--output", output, "--quiet", *given)
        out = armada.done("evaluate", output, "--corpus", validation, "--json")
        accuracy: float = json.loads(out)["metrics"]["accuracy"]
        assert piped(output / "student", validation) == pytest.approx(accuracy, abs=1e-9)
        return accuracy

    first, cache = tmp_path / "first", tmp_path / "cache"
    brief = ("epochs=2", "learning_rate=1e-4", "max_length=64")
    assert distill(first, "student_layers=3", "control=undistilled", *brief) > 0.65
    words = ("--corpus", train, "--text-column", "text", "--cache", cache, "--quiet")
    armada.done("precompute", *words, "--teacher", f"classifier:{first}")
    kd = (f"cache={cache}", "objective=kd", "temperature=2", "student_layers=1")
    longer = ("epochs=4", "learning_rate=1e-3", "max_length=48")
    assert distill(tmp_path / "second", *kd, *longer) > 0.65


def test_a_llama_with_adapters_is_in_pipelines_what_it_is_here(
    armada: CommandLine, tmp_path: Path
) -> None:
    """Takes five minutes of a processor."""
    train, validation = some_rows("train", 144, tmp_path), some_rows("validation", 80, tmp_path)
    cache, output = tmp_path / "cache", tmp_path / "run"
    words = ("--corpus", train, "--text-column", "text", "--cache", cache, "--quiet")
    armada.done("precompute", *words, "--teacher", f"encoder:{MODELS}/minilm")
    files = ("--train", train, "--validation", validation, "--student", f"{MODELS}/smollm2")
    columns = ("--text-column", "text", "--label-column", "label", "--cache", cache)
    settings = ("device=cpu", "lora_rank=8", "lora_alpha=16", "learning_rate=1e-3", "epochs=2")
    settings += ("batch_size=16", "max_length=24", "keep=last")
    given = [word for each in settings for word in ("--set", each)]
    armada.done("distill", *files, *columns, "--output", output, "--quiet", *given)
    out = armada.done("evaluate", output, "--corpus", validation, "--json")
    accuracy = json.loads(out)["metrics"]["accuracy"]
    assert accuracy > 0.5
    assert piped(output / "student", validation) == pytest.approx(accuracy, abs=1e-9)
    sizes = [file.stat().st_size for file in (output / "student").glob("*.safetensors")]
    base = (Path(MODELS or "") / "smollm2" / "model.safetensors").stat().st_size
    assert sum(sizes) < base / 20


def test_an_earlier_cache_goes_on_with_its_responses_and_new_ones_differ_by_rounding(
    tmp_path: Path,
) -> None:
    """Releases before the option `padding` read all of a text again for each token of this model,
    as continuing from keys and values differs by 2e-5 of the largest number."""
    prompts = ["What is the capital of France?", "Name three colours of the rainbow."]
    found = {}
    for padding in ("multiples_of_16", "growing_steps"):
        armada.precompute(
            corpus=pa.table({"prompt": prompts, "response": ["x", "x"]}),
            text_column=["prompt", "response"],
            teacher=f"causal_lm:{MODELS}/smollm2",
            cache=tmp_path / padding,
            text_format="plain",
            top_k=None,
            max_new_tokens=12,
            padding=padding,
            device="cpu",
        )
        cache = armada.open_cache(tmp_path / padding)
        found[padding] = [
            cache.ragged(name).gather(np.arange(2)).values
            for name in ("generated_ids", "generated_log_probs")
        ]
    (ids, log_probs), (new_ids, new_log_probs) = found.values()
    np.testing.assert_array_equal(ids, new_ids)
    np.testing.assert_allclose(log_probs, new_log_probs, atol=1e-4)
    assert (log_probs != new_log_probs).any()
