"""What the tests of the docs share: commands that start quickly, and a hub with tiny models."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_material import REPOSITORIES
from docs_pages import Workplace
from hub_server import hub
from warm_python import warm_python

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for PATH, whose commands see the tiny models' hub, and no other."""
    models = tmp_path_factory.mktemp("models")
    with hub({name: models / name for name in REPOSITORIES}, "main") as (address, _):
        environment = {
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path_factory.mktemp("home")),
            "DASK_TEMPORARY_DIRECTORY": str(tmp_path_factory.mktemp("dask")),
        }
        with warm_python(environment) as folder:
            material = TESTS / "docs_material.py"
            subprocess.run([folder / "python", material, models], env=os.environ, check=True)
            yield folder


@pytest.fixture
def place(commands: Path, tmp_path: Path) -> Iterator[Workplace]:
    """An empty folder to run a page in."""
    workplace = Workplace(tmp_path, commands)
    yield workplace
    workplace.close()
