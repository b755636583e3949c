"""vLLM as a teacher beside `causal_lm` on the same weights: how far apart, and which is faster.

    python benchmarks/engine.py [MODEL PAIRS] [--engine-python PYTHON] [--dtype float32]

PAIRS is a Parquet file with columns `instruction` and `response`; without the two, a tiny model
with random weights and made-up texts. Predictions of given responses,
and greedy responses to the prompts, by either teacher in the same dtype. The two take turns, in an
order drawn anew for each round, after a round that is not counted. Times are of texts in, features
out, without the start of either and without a cache; medians, and the ratio is of the same round.
"""

import argparse
import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
from armada.cache_schemas.codings import TopKCoding
from armada.cache_schemas.keys import example_key
from armada.pipeline.environment import choose_device, hardware, library_versions, now
from armada.stages.precompute.batching import BatchCounts, BatchSizes
from armada.stages.precompute.engine.options import VLLMOptions
from armada.stages.precompute.engine.teacher import VLLMTeacher
from armada.stages.precompute.teachers.base import Answers, Example, Teacher
from armada.stages.precompute.teachers.causal_lm import CausalLMTeacher
from armada.stages.precompute.teachers.causal_options import CausalLMOptions
from armada.stages.store.codec.top_k import decode_top_k
from figures import table
from model_families.tiny import make_model, make_tokenizer, tiny_config
from precompute_ways.ways import made_up_texts

Parts = list[tuple[np.ndarray, Answers]]
"""Rows of a batch, and their features."""


def main() -> None:
    """Print the differences, and the table of times."""
    options = parse()
    device = choose_device(options.device)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        compare(options, options.model or make_tiny(folder), read_pairs(options), device)


def make_tiny(folder: str) -> str:
    """A tiny model with random weights, whose heads are as wide as engines want them."""
    config = tiny_config("llama")
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    for name, value in sizes.items():
        setattr(config, name, value)
    make_model(config, "AutoModelForCausalLM").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def read_pairs(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Prompts and responses."""
    if options.pairs is None:
        texts = made_up_texts(2 * options.count)
        return list(zip(texts[::2], texts[1::2], strict=True))
    pairs = pq.read_table(options.pairs, columns=["instruction", "response"]).to_pylist()
    return [(row["instruction"], row["response"]) for row in pairs[: options.count]]


def compare(
    options: argparse.Namespace, folder: str, texts: list[tuple[str, str]], device: torch.device
) -> None:
    """Print what both teachers make of the texts, and the table of times."""
    examples = [Example(example_key(each), each) for each in texts]
    most = options.max_length or (256 if options.model else 96)
    both = {"text_format": "plain", "dtype": options.dtype, "max_length": most}
    tasks = {
        "top_k": {"top_k": options.top_k, "top_k_bits": 16},
        "responses": {"top_k": None, "max_new_tokens": options.new_tokens},
    }
    told = {**hardware(str(device)), **library_versions()}
    print(f"{now()}; " + ", ".join(f"{name} {value}" for name, value in told.items()))
    for task in options.tasks:
        asked = tasks[task]
        run = {"engine_python": options.engine_python, "enforce_eager": options.eager}
        engine = VLLMTeacher(folder, VLLMOptions(**both, **asked, **run), device)
        model = CausalLMTeacher(folder, CausalLMOptions(**both, **asked), device)
        engine.load()
        model.load()
        found = compared(engine, model, examples)
        print(f"{engine.spec.settings['engine']}; {task}: {found}", flush=True)
        rows = timed(task, {"vllm": engine, "causal_lm": model}, examples, options.rounds)
        engine.close()
        header = ["task", "teacher", "seconds", "processor s", "tokens/s", "of causal_lm's time"]
        print(table([header, *rows], markdown=True), flush=True)


def compared(engine: Teacher, model: Teacher, examples: Sequence[Example]) -> str:
    """How far the two teachers' features are apart."""
    one, other = (by_row(computed(each, examples), len(examples)) for each in (engine, model))
    feature = engine.spec.feature("top_k")
    if feature is None:
        same = [
            np.array_equal(mine["generated_ids"], theirs["generated_ids"])
            for mine, theirs in zip(one, other, strict=True)
        ]
        begin = [
            np.array_equal(mine["generated_ids"][:8], theirs["generated_ids"][:8])
            for mine, theirs in zip(one, other, strict=True)
        ]
        return f"{np.mean(same):.1%} of the responses are equal, {np.mean(begin):.1%} in 8 tokens"
    coding = feature.coding
    assert isinstance(coding, TopKCoding)
    mine, theirs = (
        decode_top_k(coding, np.concatenate([each["top_k"] for each in rows]))
        for rows in (one, other)
    )
    alike = mine.ids_Nk == theirs.ids_Nk
    apart = np.abs(mine.log_probs_Nk - theirs.log_probs_Nk)[alike]
    sets = [len({*a} & {*b}) / len(a) for a, b in zip(mine.ids_Nk, theirs.ids_Nk, strict=True)]
    return (
        f"{len(alike):,} tokens; log-probabilities differ by {apart.max():.1e} at most, "
        f"{apart.mean():.1e} in the mean (steps of {1 / 1024:.1e} are stored); of the {coding.k} "
        f"most probable tokens {np.mean(sets):.3%} are the same, {alike.mean():.3%} in the same "
        f"place, of the first {alike[:, 0].mean():.3%}"
    )


@torch.inference_mode()
def computed(teacher: Teacher, examples: Sequence[Example]) -> Parts:
    """All features, in the batches of stage 1."""
    prepared = teacher.prepare(examples)
    sizes = BatchSizes.of(teacher, None)
    coming = [
        (rows, teacher.start(prepared.take(rows)))
        for rows in sizes.batches_of(prepared, BatchCounts())
    ]
    return [(rows, outputs()) for rows, outputs in coming]


def by_row(parts: Parts, count: int) -> list[dict[str, np.ndarray]]:
    """The features of each example."""
    found: list[dict[str, np.ndarray]] = [{} for _ in range(count)]
    for rows, answers in parts:
        for at, row in enumerate(rows.tolist()):
            found[row] = {name: values[at] for name, values in answers.features.items()}
    return found


def timed(
    task: str, teachers: dict[str, Teacher], examples: Sequence[Example], rounds: int
) -> list[list[str]]:
    """A line of the table for each teacher; processor time of all processes that it has."""
    tokens = {name: count_tokens(computed(teacher, examples)) for name, teacher in teachers.items()}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in teachers}
    for number in range(rounds):
        for name in random.Random(number).sample(sorted(teachers), len(teachers)):
            before = time.perf_counter(), processor_s()
            computed(teachers[name], examples)
            after = time.perf_counter(), processor_s()
            spent[name].append((after[0] - before[0], after[1] - before[1]))
    lines = []
    for name, each in spent.items():
        ratio = median(a / b for (a, _), (b, _) in zip(each, spent["causal_lm"], strict=True))
        seconds, processor = (median(column) for column in zip(*each, strict=True))
        figures = f"{seconds:.2f}", f"{processor:.2f}", f"{tokens[name] / seconds:,.0f}"
        lines.append([task, name, *figures, f"{ratio:.2f}x"])
    return lines


def processor_s() -> float:
    """Processor time of this process and of those that it has started."""
    this = psutil.Process()
    return sum(sum(each.cpu_times()[:2]) for each in [this, *this.children(recursive=True)])


def count_tokens(parts: Parts) -> int:
    """Generated tokens, or else those that were read."""
    name = "generated_ids" if "generated_ids" in parts[0][1].features else "token_ids"
    return sum(len(each) for _, answers in parts for each in answers.features[name])


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("pairs", nargs="?", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["top_k", "responses"])
    parser.add_argument("--engine-python", help="a Python that has vllm; default: this one")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=32)
    parser.add_argument("--max-length", type=int, help="default: 256, of a tiny model 96")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--eager", action="store_true", help="the engine compiles nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
