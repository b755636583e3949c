"""What all tests share: one thread for each library, and property tests that repeat."""

import gc
import os

# Small tensors on shared cores: threads cost more than they bring. Child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from warm_python import warm_python

settings.register_profile("armada", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("armada")


def pytest_configure(config: pytest.Config) -> None:
    """Hides GPUs, whose last digits differ, from all tests but those of `pytest -m gpu`."""
    asked = str(config.option.markexpr)
    if Path("/proc/driver/nvidia").exists() and ("gpu" not in asked or "not gpu" in asked):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("there is no GPU")


def pytest_collection_finish() -> None:
    """Keeps what was imported so far out of garbage collections: the trainer asks for one whenever
    it starts, and a search through torch and transformers takes 0.3 s."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture
def write_parquet(tmp_path: Path) -> Callable[[str, Mapping[str, Any]], str]:
    """Writes columns as a Parquet file and returns its path."""

    def write(name: str, columns: Mapping[str, Any]) -> str:
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table(dict(columns)), path)
        return str(path)

    return write


@pytest.fixture(scope="session")
def torchrun() -> Iterator[tuple[str, ...]]:
    """The words that start two processes, whose libraries are imported already."""
    with warm_python({}) as commands:
        yield str(commands / "torchrun"), "--standalone", "--nproc-per-node=2"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint, `bert` for that of `make_bert`; made when first asked for.

    Its vocabulary is that of the texts in tiny_runs; it is shared, so not to be written to."""
    import tiny_checkpoints
    from tiny_runs import TEXTS, VALIDATION_TEXTS

    root = tmp_path_factory.mktemp("checkpoints")

    def make(kind: str) -> Path:
        if not (root / kind).exists():
            getattr(tiny_checkpoints, f"make_{kind}")(root / kind, [*TEXTS, *VALIDATION_TEXTS])
        return root / kind

    return make
