"""What all tests share: one thread for each library, and property tests that repeat."""

import gc
import os
import subprocess

# Small tensors on shared cores: threads cost more than they bring. Child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from multiprocessing import spawn
from pathlib import Path
from typing import Any

import command_line
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from docs_material import REPOSITORIES
from hub_server import hub
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
def hub_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the models of the hub that `commands` see, OWNER/NAME each; empty at first."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def commands(hub_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for PATH, of commands whose libraries are imported already."""
    with hub({name: hub_models / name for name in REPOSITORIES}, "main") as (address, _):
        environment = {
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path_factory.mktemp("home")),
            "DASK_TEMPORARY_DIRECTORY": str(tmp_path_factory.mktemp("dask")),
        }
        with warm_python(environment) as folder:
            yield folder


@pytest.fixture
def forked_workers(commands: Path) -> Iterator[None]:
    """What this process starts by multiprocessing has imported its libraries already."""
    before = spawn.get_executable()
    spawn.set_executable(str(commands / "python"))
    yield
    spawn.set_executable(before)


@pytest.fixture(scope="session")
def torchrun(commands: Path) -> tuple[str, ...]:
    """The words that start two processes."""
    return str(commands / "torchrun"), "--standalone", "--nproc-per-node=2"


@pytest.fixture
def start(commands: Path) -> Callable[..., subprocess.Popen[str]]:
    """As `command_line.start`, without the seconds of imports."""
    return partial(command_line.start, python=commands / "python")


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
