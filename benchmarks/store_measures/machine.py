"""Where the figures come from: date, hardware, versions, threads, and the options of the run."""

import argparse
import os
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from armada.pipeline.environment import hardware, library_versions

from .disk import cold_method, file_system

LIBRARIES = ("zarrs", "tensorstore", "datasets", "litdata", "mosaicml-streaming", "webdataset")


def describe(folder: Path, options: argparse.Namespace) -> list[str]:
    """Lines to stand above the tables."""
    machine = hardware("cpu")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = library_versions()
    shown = {name: versions[name] for name in ("python", "torch", "numpy", "pyarrow", "zarr")}
    shown |= {name: _version(name) for name in LIBRARIES}
    cold = cold_method(folder, spare_the_machine=options.quick)
    return [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"{os.cpu_count()} cores of {machine['processor']}, {memory:.0f} GiB, {machine['system']}; "
        f"data on {file_system(folder)}; made cold: {cold}",
        f"threads: torch {torch.get_num_threads()}, "
        f"OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}",
        ", ".join(f"{name} {number}" for name, number in shown.items()),
        f"{options.rows:,} rows of {options.dim} float16, seed {options.seed}, "
        f"{options.repeats} repeats, at most {options.limit} s each",
    ]


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"
