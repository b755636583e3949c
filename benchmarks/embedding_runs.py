"""Runs of benchmarks of students that embed: each a process of its own, by armada or by the
trainers of sentence-transformers, with the same settings for both."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any


def in_a_process(script: str, *arguments: Any) -> dict[str, Any]:
    """What a script prints last, a JSON object; ends with its errors where it fails."""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def spread(values: Sequence[float]) -> str:
    """`0.8123 ± 0.0003`: mean and standard deviation."""
    shown = f"{mean(values):.4f}"
    return f"{shown} ± {stdev(values):.4f}" if len(values) > 1 else shown


def most_memory() -> float:
    """MiB of this process, at its most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def train_by_sentence_transformers(
    options: Any, output: Path, trainer: Any, arguments: Any, **more: Any
) -> float:
    """Seconds of training by a trainer of sentence-transformers and its class of arguments, with
    the rate, batches and epochs of a benchmark; the model is left in `output`."""
    made = trainer(
        args=arguments(
            output_dir=str(output),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            lr_scheduler_type=options.lr_scheduler,
            warmup_steps=options.warmup_ratio,
            seed=options.seed,
            report_to="none",
            save_strategy="no",
            logging_steps=10,
            use_cpu=True,
            disable_tqdm=True,
        ),
        **more,
    )
    started = time.perf_counter()
    made.train()
    seconds = time.perf_counter() - started
    made.model.save(str(output / "student"))
    return seconds


def add_training_options(parser: Any, rate: float) -> None:
    """The settings that both have."""
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=rate)
    parser.add_argument("--lr-scheduler", default="constant")
    parser.add_argument("--warmup-ratio", type=float, default=0.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])


_SETTINGS = ("epochs", "batch_size", "learning_rate", "lr_scheduler", "warmup_ratio")


def training_options(options: Any) -> list[str]:
    """The same for a process of its own, but for seeds."""
    given = ((f"--{name.replace('_', '-')}", str(getattr(options, name))) for name in _SETTINGS)
    return [word for pair in given for word in pair]


def training_keys(options: Any) -> dict[str, Any]:
    """The same as keys of a job of one seed, on the CPU."""
    settings = {name: getattr(options, name) for name in _SETTINGS}
    return {**settings, "seed": options.seed, "device": "cpu", "report_to": "none", "quiet": True}
