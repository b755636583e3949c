"""What the tests of the docs share: a hub with tiny models, and folders to run pages in."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_pages import Workplace

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def _models(commands: Path, hub_models: Path) -> None:
    """The hub has the models that the docs name."""
    material = TESTS / "docs_material.py"
    subprocess.run([commands / "python", material, hub_models], env=os.environ, check=True)


@pytest.fixture
def place(commands: Path, _models: None, tmp_path: Path) -> Iterator[Workplace]:
    """An empty folder to run a page in."""
    workplace = Workplace(tmp_path, commands)
    yield workplace
    workplace.close()
