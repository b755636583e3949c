"""A teacher's answers to tokens as bytes: what codecs take, lose and cost, side by side.

One command, two tables:

    python benchmarks/logits.py [--text FILE] [--tokens 2048] [--repeats 7]

The first table is of made-up logits over 128,256 ids, the second of a real forward pass: a small
language model is trained here for a moment, on FILE (text, or Parquet with a column `text`) or on
made-up text. Divergences are of the decoded distribution from the teacher's, in nats: "KL" takes
the kept ids and all others together as outcomes, "KL of ids" the kept ids alone, "KL of all" every
id, the tail spread evenly; the last is what a student would learn from that does not know where
the tail lies. Above a table stands the mass outside of the kept ids and what ignoring it costs,
KL(kept ids renormalised || teacher). Draws are an unbiased sample and have no divergence of their
own. Times are medians over repeats, one thread, already chosen ids to bytes and back to 32-bit
numbers; ratios are to the fastest of other codecs with as many ids, in the same round.
"""

import os

# Before anything loads a library that starts threads of its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import tempfile
from pathlib import Path

import numpy as np
from armada.pipeline.environment import hardware, library_versions, now
from figures import ABSENT, Repeats, ratios, shown, shown_ratio, table
from logit_codecs import material
from logit_codecs.answers import Answers, make_answers
from logit_codecs.codec import Codec
from logit_codecs.judging import check_ids, losses, microseconds
from logit_codecs.ours import Samples, TopK
from logit_codecs.polynomial import ParquetLists, Polynomial
from logit_codecs.raw import Packed, Raw

SIZES = (16, 50, 128)
HEADER = (
    "codec",
    "B/token",
    "KL",
    "KL of ids",
    "KL of all",
    "mean error",
    "max error",
    "encode us",
    "ratio",
    "decode us",
    "ratio",
)


def main() -> None:
    """Print the tables."""
    options = parse()
    print(f"{now()}: {hardware('cpu')['processor']}, {os.cpu_count()} cores, one thread")
    print(", ".join(f"{name} {library_versions()[name]}" for name in ("python", "numpy", "torch")))
    for make in (zipf_answers, model_answers):
        answers = make(options)
        print(f"\n{answers.name}: {len(answers):,} tokens, {answers.vocabulary:,} ids")
        print(*(missing_mass(answers, k) for k in SIZES), sep="\n")
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(answers, options.repeats, Path(folder))
        print(table(rows, options.markdown), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="trains the small model; made up by default")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=128_256, help="of the made-up logits")
    parser.add_argument("--model-vocabulary", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=300, help="of the small model's training")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a run that shows that it works")
    options = parser.parse_args()
    if options.quick:
        options.tokens, options.vocabulary, options.model_vocabulary = 64, 70_000, 512
        options.steps, options.repeats = 3, 1
    return options


def zipf_answers(options: argparse.Namespace) -> Answers:
    logits = material.zipf_logits(options.tokens, options.vocabulary, options.seed)
    return make_answers("made-up logits", logits, options.seed)


def model_answers(options: argparse.Namespace) -> Answers:
    words = 3000 if options.quick else 200_000
    text = material.read_text(options.text) if options.text else material.made_up_text(words, 0)
    vocabulary, seed = options.model_vocabulary, options.seed
    logits, line = material.model_logits(text, vocabulary, options.tokens, options.steps, seed)
    source = options.text.name if options.text else "made-up text"
    print(f"\n{line}")
    return make_answers(f"logits of a small model of {source}", logits, seed)


def missing_mass(answers: Answers, k: int) -> str:
    """What top-k leaves out, of which no codec's divergence over k + 1 outcomes tells."""
    tail = answers.tail_beyond(k)
    return (
        f"top-{k}: {tail.mean():.4f} of the mass lies outside (median {np.median(tail):.4f}); "
        f"ignoring it costs {-np.log1p(-tail).mean():.4f} nat"
    )


def codecs(answers: Answers, folder: Path) -> list[Codec]:
    every: list[Codec] = []
    for k in SIZES:
        every += [TopK(k, bits, answers.vocabulary) for bits in (5, 6, 8, 16)]
        every += [Raw(k), Packed(k)]
        if k > 16:  # of fewer there is too little beside the exact head
            every += [Polynomial(k), ParquetLists(k, folder)]
    every += [Samples(n, bits, answers.vocabulary) for n in (12, 50) for bits in (0, 16)]
    return [codec for codec in every if not codec.refusal(answers)]


def measure(answers: Answers, repeats: int, folder: Path) -> list[tuple[str, ...]]:
    every = codecs(answers, folder)
    times = microseconds(every, answers, repeats)
    return [HEADER, *(row(codec, answers, every, times) for codec in every)]


def row(
    codec: Codec,
    answers: Answers,
    every: list[Codec],
    times: dict[str, tuple[Repeats, Repeats]],
) -> tuple[str, ...]:
    stored = codec.encode(answers)
    found = codec.decode(stored)
    check_ids(codec, answers, found)
    lost = losses(codec, answers, found)
    cells = [codec.name, f"{codec.stored_bytes(stored) / len(answers):.1f}"]
    cells += [f"{lost[name]:.1e}" if name in lost else ABSENT for name in ("kl", "ids", "full")]
    cells += [f"{lost[name]:.4f}" if name in lost else ABSENT for name in ("mean", "max")]
    for index, own in enumerate(times[codec.name]):
        peers = [
            times[peer.name][index]
            for peer in every
            if peer.peer and not codec.drawn and peer.k == codec.k
        ]
        fastest = [min(each) for each in zip(*peers, strict=True)]
        cells += [shown(own), shown_ratio(ratios(own, fastest))]
    return tuple(cells)


if __name__ == "__main__":
    main()
