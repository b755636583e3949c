"""What a teacher costs a student: a step with cached features against a step without a teacher.

One command, its two tables:

    python benchmarks/distill.py [--students 2x128,6x384] [--batches 8,32,256] [--device cuda]

Steps of all ways take turns in one process, in an order drawn anew for each round; figures are
medians over rounds, ratios of the same round. The second table adds the aligner's own pass, which
comes before the student's in every epoch. Features are random numbers and texts made up: what is
learned does not matter here.
"""

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from armada.pipeline.environment import choose_device, hardware, library_versions, now
from distill_loops.aligner_pass import AlignerPass
from distill_loops.loops import LOOPS, Loop
from distill_loops.loss_cost import loss_seconds
from distill_loops.material import Material, Size
from distill_loops.memory import peak_bytes
from figures import ratios, table

STEPS = (
    "student",
    "batch",
    "plain ms",
    "armada ms",
    "armada / plain",
    "of it data ms",
    "aligner ms",
    "loss ms",
    "straightforward / plain",
    "its aligner + loss ms",
    "times ours",
    "peak MiB plain",
    "armada",
    "straightforward",
)
PASSES = (
    "student",
    "batch",
    "aligner's pass, ms a batch",
    "matrix in every step",
    "cayley",
    "1024 a batch",
    "pass / plain epoch",
    "matrix in every step",
    "cayley",
    "1024 a batch",
    "epoch / plain epoch",
    "aligner + loss, straightforward / ours",
)


def main() -> None:
    """Print the table."""
    options = parse()
    device = choose_device(options.device)
    for line in describe(device, options):
        print(line)
    with tempfile.TemporaryDirectory() as folder:
        material = Material(Path(folder), options.examples, options.dim)
        steps, passes = [STEPS], [PASSES]
        for size in options.students:
            maps = [AlignerPass(material, size, name, device) for name in ("matrix_exp", "cayley")]
            for batch_size in options.batches:
                measured = measure(material, size, batch_size, device, options)
                steps.append(step_row(size, batch_size, measured, device, options))
                passes.append(pass_row(size, batch_size, measured, *maps))
                print(f"... {size}, {batch_size}", file=sys.stderr)
    for title, rows in (("Steps", steps), ("Epochs of `alternate`", passes)):
        print(f"\n{title}\n\n{table(rows, options.markdown)}")


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--students",
        type=lambda text: [size_of(part) for part in text.split(",")],
        default="2x128,6x384",
        help="LAYERSxWIDTH of a BERT, or opt:LAYERSxWIDTH",
    )
    parser.add_argument(
        "--batches", type=lambda text: [int(part) for part in text.split(",")], default="8,32,256"
    )
    parser.add_argument("--examples", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=1024, help="numbers of a feature")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a way in a round, about")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--markdown", action="store_true")
    return parser.parse_args()


def size_of(text: str) -> Size:
    """A student from LAYERSxWIDTH: heads of 64 numbers, as usual."""
    kind, _, shape = text.rpartition(":")
    layers, width = (int(part) for part in shape.split("x"))
    return Size(kind or "bert", layers, width, max(2, width // 64))


def describe(device: torch.device, options: argparse.Namespace) -> list[str]:
    """Where the figures come from."""
    versions = library_versions()
    machine = hardware(str(device))
    return [
        f"{now()}; {os.cpu_count()} cores, {machine}",
        f"torch threads {torch.get_num_threads()}; "
        + ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "transformers")),
        f"{options.examples} examples, features of {options.dim} float16; "
        f"{options.rounds} rounds of about {options.seconds} s a way",
    ]


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds a step: of each round by way, of its parts; of aligner and loss, straightforward and
    ours."""

    rounds: dict[str, list[float]]
    parts: dict[str, dict[str, float]]
    losses: tuple[float, float]

    @property
    def theirs(self) -> float:
        """Aligner and loss of the straightforward way."""
        return self.parts["straightforward"]["aligner"] + self.losses[0]

    @property
    def ours(self) -> float:
        """Those of ours."""
        return self.parts["armada"]["aligner"] + self.losses[1]


def measure(
    material: Material,
    size: Size,
    batch_size: int,
    device: torch.device,
    options: argparse.Namespace,
) -> Measured:
    """Steps of all ways, taking turns."""
    loops = [make(material, size, batch_size, device) for make in LOOPS]
    for loop in loops:
        loop.step()
        loop.step()  # warm by now
    number = max(1, min(32, round(options.seconds / loops[0].step())))
    steps = {loop.name: timed(loop, number) for loop in loops}
    rounds: dict[str, list[float]] = {loop.name: [] for loop in loops}
    for loop in loops:
        loop.seconds = dict.fromkeys(loop.seconds, 0.0)
    for _ in range(options.rounds):
        for name in random.sample(list(steps), len(steps)):
            rounds[name].append(steps[name]())
    count = options.rounds * number
    parts = {loop.name: {p: s / count for p, s in loop.seconds.items()} for loop in loops}
    return Measured(rounds, parts, loss_seconds(batch_size, options.dim, device))


def step_row(
    size: Size,
    batch_size: int,
    measured: Measured,
    device: torch.device,
    options: argparse.Namespace,
) -> tuple[str, ...]:
    """One line of the table of steps."""
    rounds, own = measured.rounds, measured.parts["armada"]
    peaks = [peak_bytes(loop.name, size, batch_size, device, options) for loop in LOOPS]
    return (
        str(size),
        str(batch_size),
        f"{1e3 * median(rounds['plain']):.2f}",
        f"{1e3 * median(rounds['armada']):.2f}",
        shown(ratios(rounds["armada"], rounds["plain"])),
        f"{1e3 * own['data']:.3f}",
        f"{1e3 * own['aligner']:.3f}",
        f"{1e3 * measured.losses[1]:.3f}",
        shown(ratios(rounds["straightforward"], rounds["plain"])),
        f"{1e3 * measured.theirs:.2f}",
        f"{measured.theirs / measured.ours:.1f}",
        *(f"{peak / 2**20:.0f}" for peak in peaks),
    )


def pass_row(
    size: Size, batch_size: int, measured: Measured, exact: AlignerPass, cayley: AlignerPass
) -> tuple[str, ...]:
    """One line of the table of epochs."""
    plain = median(measured.rounds["plain"]) / batch_size
    applied, worked_out = exact.seconds(batch_size)
    ways = [applied, worked_out, cayley.seconds(batch_size)[0], exact.seconds(1024)[0]]
    step = median(ratios(measured.rounds["armada"], measured.rounds["plain"]))
    ours = measured.ours / batch_size + applied
    theirs = measured.theirs / batch_size + worked_out
    return (
        str(size),
        str(batch_size),
        *(f"{1e3 * seconds * batch_size:.1f}" for seconds in ways[:3]),
        f"{1e3 * ways[3] * 1024:.1f}",
        *(f"{seconds / plain:.3f}" for seconds in ways),
        f"{step + applied / plain:.3f}",
        f"{theirs / ours:.1f}",
    )


def timed(loop: Loop, steps: int) -> Callable[[], float]:
    """Seconds of one of so many steps."""
    return lambda: sum(loop.step() for _ in range(steps)) / steps


def shown(values: list[float]) -> str:
    """`1.02 (0.99..1.05)`: median, and the quarters around it."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return f"{median(values):.3f} ({ordered[quarter]:.3f}..{ordered[-quarter - 1]:.3f})"


if __name__ == "__main__":
    main()
