"""What the token-level loss takes beside other ways to it: time, memory, and errors of gradients.

One command, one table:

    python benchmarks/fused_loss.py [--words 32000,128256] [--tokens 1024,4096] [--device cuda]

All ways of a size take turns, in an order drawn anew for each round; times are medians over rounds,
ratios to plain torch on all logits are of the same round. On a processor they are processor time of
one thread. Memory is the most that a step takes beside its inputs, gradients included, in a process
of its own. Errors are of a small size, against plain torch in
float64 from the same numbers. Other packages are optional; see fused_losses/peers.py.
"""

import argparse
import os
import random
import sys
from statistics import median

import torch
from armada.pipeline.environment import choose_device, hardware, library_versions, now
from figures import shown_ratio, table
from fused_losses.material import Material, Size
from fused_losses.measures import WAYS, errors, extra_bytes, seconds
from fused_losses.peers import installed
from fused_losses.ways import Way

HEADER = (
    "loss",
    "ms",
    "of plain",
    "extra MiB",
    "of plain",
    "gradient error fp32",
    "bf16",
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NOT_INSTALLED = "not installed"


def main() -> None:
    """Print the table."""
    options = parse()
    device = choose_device(options.device)
    torch.set_num_threads(options.threads)
    for line in describe(device, options):
        print(line)
    accuracy = {name: error_cells(WAYS[name], device) for name in options.only if installed(name)}
    for words in options.words:
        for tokens in options.tokens:
            size = Size(tokens, options.width, words, options.listed)
            print(f"... {size}", file=sys.stderr)
            rows = [HEADER, *measured(size, device, options, accuracy)]
            print(f"\n{size}, {options.dtype}\n\n{table(rows, options.markdown)}")


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--words", type=numbers, default="32000,128256", help="of the vocabulary")
    parser.add_argument("--tokens", type=numbers, default=None, help="1024,4096; CUDA: also 8192")
    parser.add_argument("--width", type=int, default=None, help="of the student: 256; CUDA: 2048")
    parser.add_argument("--listed", type=int, default=64, help="words that sparse answers list")
    parser.add_argument("--dtype", choices=DTYPES, default=None, help="float32; CUDA: bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a processor")
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS), metavar="LOSS")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to see that everything runs"
    )
    options = parser.parse_args()
    cuda = choose_device(options.device).type == "cuda"
    if options.quick:
        options.words, options.tokens, options.width = [1000], [64], 16
    options.tokens = options.tokens or ([1024, 4096, 8192] if cuda else [1024, 4096])
    options.width = options.width or (2048 if cuda else 256)
    options.dtype = options.dtype or ("bfloat16" if cuda else "float32")
    compared = {name for only in options.only for name in (only, WAYS[only].reference)}
    options.only = [name for name in WAYS if name in compared]
    return options


def numbers(text: str) -> list[int]:
    """From `1024,4096`."""
    return [int(part) for part in text.split(",")]


def describe(device: torch.device, options: argparse.Namespace) -> list[str]:
    """Where the figures come from."""
    versions = library_versions()
    said = [
        f"{now()}; {os.cpu_count()} cores, {hardware(str(device))}",
        f"torch threads {torch.get_num_threads()}; python {versions['python']}, "
        f"torch {versions['torch']}",
        f"{options.listed} listed words; {options.rounds} rounds",
    ]
    if options.quick:
        said.append("--quick: so small sizes show that everything runs, not how fast")
    return said


def error_cells(way: Way, device: torch.device) -> list[str]:
    """The greater error of both gradients, in float32 and in bfloat16."""
    size = Size(tokens=256, width=64, words=2000, listed=32)
    float32, bfloat16 = (max(errors(way, size, dtype, device)) for dtype in DTYPES.values())
    return [f"{float32:.1e}", f"{100 * bfloat16:.2f} %"]


def measured(
    size: Size, device: torch.device, options: argparse.Namespace, accuracy: dict[str, list[str]]
) -> list[tuple[str, ...]]:
    """Rows of the table."""
    dtype = DTYPES[options.dtype]
    ways = [WAYS[name] for name in options.only if installed(name)]
    memory = {way.name: extra_bytes(way, size, dtype, device) for way in ways}
    rounds = timed(ways, Material(size, dtype, device, dense=True), options.rounds)
    rows = []
    for name in options.only:
        way = WAYS[name]
        if name not in rounds:
            rows.append((name, NOT_INSTALLED, *[""] * (len(HEADER) - 2)))
            continue
        pairs = zip(rounds[name], rounds[way.reference], strict=True)
        rows.append(
            (
                name,
                f"{1e3 * median(rounds[name]):.1f}",
                shown_ratio([ours / plain for ours, plain in pairs]),
                f"{memory[name] / 2**20:.0f}",
                shown_ratio([memory[name] / memory[way.reference]]),
                *accuracy[name],
            )
        )
    return rows


def timed(ways: list[Way], material: Material, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round by way."""
    for way in ways:
        seconds(way, material)  # warm by now
    found: dict[str, list[float]] = {way.name: [] for way in ways}
    for _ in range(rounds):
        for way in random.sample(ways, len(ways)):
            found[way.name].append(seconds(way, material))
    return found


if __name__ == "__main__":
    main()
