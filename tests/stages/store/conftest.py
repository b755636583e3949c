"""What many tests of the store damage or look at: a copy of a cache that was written once."""

import shutil
from pathlib import Path

import pytest
from small_caches import THREE_SHARDS, make_manifest, write_cache


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of two teachers with three shards each; not to be written to."""
    path = tmp_path_factory.mktemp("written") / "cache"
    for manifest in (make_manifest(), make_manifest(other=True)):
        write_cache(path, manifest, THREE_SHARDS)
    return path


@pytest.fixture
def cache(written: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(written, tmp_path / "cache"))


@pytest.fixture
def folder(cache: Path) -> Path:
    """The folder of its first teacher."""
    return cache / "teachers" / make_manifest().fingerprint
