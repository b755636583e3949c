"""What stage 1 takes beside a plain loop and beside other tools, and beside the model at all.

One command, four tables (or those that are named: `--tables teachers generation beside caches`):

    python benchmarks/precompute.py [--encoder FOLDER] [--causal-lm FOLDER] [--texts FILE]

Teachers: each way computes the same features of the same texts, sorted by length, in batches of
as many padded tokens, or of as many rows where all are equally long; ways take turns, in an order
drawn anew for each round. Times are medians, ratios to the plain loop are of the same round.
Without folders, tiny models are made; those of open_clip and diffusers have random weights.

Generation: greedy responses to the same prompts, of at most so many tokens, beside
`transformers.generate` in batches sorted by length and vLLM (`--vllm PYTHON`: that of an
environment which has it).

Beside the model: a real tokenizer and a device that is only pretended, which takes a set time a
text. Processor time a text, of that the tokenizer's own, and the share of time in which the device
had work, with texts tokenized in the run and with a tokenizer of no cost; medians, of the share the
least and the most as well. Each text is taken as often as `--many` texts need, with a number.

Caches: one commit with so many shards there, and the first look-up of 1,000 keys.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from armada.cache_schemas.features import FeatureSpec
from armada.cache_schemas.keys import example_key, keys_to_array
from armada.cache_schemas.manifest import TeacherManifest
from armada.cache_schemas.teachers import TeacherSpec
from armada.pipeline.environment import choose_device, hardware, library_versions, now
from armada.stages.store.format.rows import KeyIndex
from armada.stages.store.writing.writer import CacheWriter
from figures import ABSENT, shown_ratio, table
from model_families.tiny import make_model, make_tokenizer, tiny_config
from precompute_ways.generation import VLLM, ArmadaResponses, Prompts, TransformersGenerate
from precompute_ways.other_teachers import classifier_ways, clip_ways, diffusion_ways
from precompute_ways.stub import cost
from precompute_ways.ways import (
    Armada,
    BareEncoder,
    BareTopK,
    SentenceTransformers,
    Way,
    made_up_texts,
    seconds,
)

GPU_RATE_S = 4e-6
"""A text of MiniLM on a large GPU, reckoned."""

TABLES = ("teachers", "generation", "beside", "caches")


def main() -> None:
    """Print the tables."""
    options = parse()
    device = choose_device(options.device)
    torch.set_num_threads(options.threads)
    told = {**hardware(str(device)), **library_versions()}
    print(f"{now()}; " + ", ".join(f"{name} {value}" for name, value in told.items()))
    with tempfile.TemporaryDirectory() as folder:
        encoder = options.encoder or tiny(Path(folder) / "encoder", "bert", "AutoModel")
        causal_lm = options.causal_lm or tiny(
            Path(folder) / "causal_lm", "llama", "AutoModelForCausalLM"
        )
        texts = read_texts(options)
        tables = {
            "teachers": lambda: teachers(encoder, causal_lm, Path(folder), texts, device, options),
            "generation": lambda: generation(causal_lm, texts, device, options),
            "beside": lambda: beside_the_model(encoder, texts, options),
            "caches": lambda: caches(options.shards, options.keys),
        }
        for name in options.tables or tables:
            print(f"... {name}", file=sys.stderr)
            print(f"\n{table(tables[name](), options.markdown)}")


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", nargs="+", choices=TABLES, help="by default all")
    parser.add_argument("--encoder", help="folder of a sentence encoder (mean pooling)")
    parser.add_argument("--causal-lm", help="folder of a causal language model")
    parser.add_argument("--texts", help="Parquet file with a column 'text'; default made-up texts")
    parser.add_argument("--count", type=int, default=2048, help="texts")
    parser.add_argument("--many", type=int, default=100_000, help="texts beside the model")
    parser.add_argument("--few", type=int, default=128, help="texts of the language model")
    parser.add_argument("--prompts", type=int, default=32, help="texts that are responded to")
    parser.add_argument("--new-tokens", type=int, default=32, help="of each response, at most")
    parser.add_argument("--without-exact", action="store_true", help="generation=exact is slow")
    parser.add_argument("--vllm", metavar="PYTHON", help="that of an environment with vLLM")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shards", type=int, nargs="+", default=[100, 1000, 2500])
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a processor")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that all runs")
    options = parser.parse_args()
    if options.quick:
        options.count, options.many, options.few, options.rounds = 64, 128, 8, 1
        options.prompts, options.new_tokens = 8, 4
        options.shards, options.keys = [3], 10_000
    return options


def tiny(folder: Path, family: str, auto_class: str) -> str:
    """A tiny model with random weights."""
    make_model(tiny_config(family), auto_class).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def read_texts(options: argparse.Namespace) -> list[str]:
    """So many texts, each another."""
    if options.texts is None:
        return made_up_texts(options.count)
    import pyarrow.parquet as pq

    read = pq.read_table(options.texts, columns=["text"])["text"].to_pylist()
    return list(dict.fromkeys(read))[: options.count]


def encoder_ways(folder: str, device: torch.device) -> dict[str, Way]:
    """The mean of the last states, without what a folder declares beside."""
    ways: dict[str, Way] = {"plain loop": BareEncoder(folder, device, 128)}
    settings = {"pooling": "mean", "normalize": False, "max_length": 128}
    ways["armada"] = Armada(f"encoder:{folder}", device, **settings)
    if find_spec("sentence_transformers"):
        ways["sentence-transformers"] = SentenceTransformers(folder, device, 128)
    return ways


def causal_lm_ways(folder: str, device: torch.device) -> dict[str, Way]:
    """The 64 most probable tokens at each position."""
    return {
        "plain loop": BareTopK(folder, device, 128),
        "armada": Armada(f"causal_lm:{folder}", device, max_length=128, top_k=64),
    }


def teachers(
    encoder: str,
    causal_lm: str,
    folder: Path,
    texts: list[str],
    device: torch.device,
    options: argparse.Namespace,
) -> list[tuple[str, ...]]:
    """Rows of the first table."""
    few = texts[: options.few]
    kinds = {
        f"encoder, {len(texts)} texts": (encoder_ways(encoder, device), texts),
        f"causal_lm top_k, {len(few)} texts": (causal_lm_ways(causal_lm, device), few),
        f"classifier, {len(texts)} texts": (
            classifier_ways(encoder, folder / "classifier", device),
            texts,
        ),
        f"open_clip, {len(few)} texts": (clip_ways(folder / "clip", device, options.quick), few),
        f"diffusers latents, {len(few)} texts": (diffusion_ways(folder / "diffusion", device), few),
    }
    rows: list[tuple[str, ...]] = [("teacher", "way", "seconds", "of the plain loop")]
    for name, (ways, read) in kinds.items():
        print(f"... {name}", file=sys.stderr)
        rows += [(name, *cells) for cells in compared(ways, read, options.rounds)]
    return rows


def generation(
    folder: str, texts: list[str], device: torch.device, options: argparse.Namespace
) -> list[tuple[str, ...]]:
    """Rows of the second table."""
    prompts = Prompts(folder, options.new_tokens)
    texts = prompts.fitting(texts)[: options.prompts]
    modes = ("batched",) if options.without_exact else ("batched", "exact")
    ways: dict[str, Any] = {"transformers.generate": TransformersGenerate(prompts, device)}
    for mode in modes:
        ways[f"armada, {mode}"] = ArmadaResponses(folder, device, options.new_tokens, mode)
    if options.vllm:
        ways["vLLM"] = VLLM(options.vllm, folder, prompts, options.threads)
    found = compared(ways, texts, options.rounds)
    if options.vllm:
        ways["vLLM"].close()
    title = f"{len(texts)} prompts, at most {options.new_tokens} tokens"
    rows = [(*cells, str(ways[cells[0]].tokens)) for cells in found]
    return [(title, "seconds", "of transformers.generate", "tokens"), *rows]


def compared(ways: dict[str, Way], texts: list[str], rounds: int) -> list[tuple[str, str, str]]:
    """Name, median seconds, and ratio to the first, of each way."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        seconds(way, texts[:8])
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample([*ways], len(ways)):
            times[name].append(seconds(ways[name], texts))
    plain = times[next(iter(ways))]
    return [
        (
            name,
            f"{median(found):.2f}",
            shown_ratio([a / b for a, b in zip(found, plain, strict=True)]),
        )
        for name, found in times.items()
    ]


def beside_the_model(
    folder: str, texts: list[str], options: argparse.Namespace
) -> list[tuple[str, ...]]:
    """Rows of the third table."""
    times = -(-options.many // len(texts))
    many = [f"{text} {time}" for time in range(times) for text in texts][: options.many]
    title = ("a text takes the device", "tokenized", "CPU us a text", "of that, tokenizer")
    rows: list[tuple[str, ...]] = [(*title, "feeding thread", "busy", "least to most")]
    for text_s in (0.0, GPU_RATE_S, 100e-6):
        for before in (False, True):
            costs = [cost(folder, many, text_s, before) for _ in range(options.rounds)]
            cpu, tokenizing, feeding = (
                f"{median(parts) * 1e6 / len(many):.1f}"
                for parts in zip(
                    *((each.cpu_s, each.tokenizing_s, each.feeding_s) for each in costs),
                    strict=True,
                )
            )
            busy = [each.busy for each in costs]
            shares = (f"{median(busy):.0%}", f"{min(busy):.0%} to {max(busy):.0%}")
            how = "before" if before else "in the run"
            tokenizing = ABSENT if before else tokenizing
            shares = shares if text_s else (ABSENT, ABSENT)
            rows.append((f"{text_s * 1e6:.0f} us", how, cpu, tokenizing, feeding, *shares))
    return rows


def caches(shard_counts: list[int], keys: int) -> list[tuple[str, ...]]:
    """Rows of the fourth table."""
    rows: list[tuple[str, ...]] = [("cache", "ms", "CPU ms")]
    with tempfile.TemporaryDirectory() as folder:
        feature = FeatureSpec(name="pooled", shape=(4,), dtype="float32")
        spec = TeacherSpec(kind="made_up", name="b", weights={}, settings={}, features=(feature,))
        manifest = TeacherManifest(fingerprint=spec.fingerprint, rows_per_shard=64, spec=spec)
        with CacheWriter(Path(folder) / "cache", manifest) as writer:
            for count in range(max(shard_counts) + 5):
                wall, cpu = time.perf_counter(), time.process_time()
                key = keys_to_array([example_key((str(count),))])
                writer.commit(key, {"pooled": np.zeros((1, 4), "f4")}, np.zeros(1, dtype=bool))
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                if count in shard_counts:
                    cells = (f"{wall * 1e3:.1f}", f"{cpu * 1e3:.1f}")
                    rows.append((f"commit, {count:,} shards there", *cells))
    there = np.random.default_rng(0).integers(0, 256, (keys, 16), dtype=np.uint8)
    wall, cpu = time.perf_counter(), time.process_time()
    KeyIndex(there).find(there[:1000])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    name = f"first look-up of 1,000 of {keys:,} keys"
    rows.append((name, f"{wall * 1e3:.1f}", f"{cpu * 1e3:.1f}"))
    return rows


if __name__ == "__main__":
    main()
