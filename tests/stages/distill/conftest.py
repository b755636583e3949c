"""What the tests of training share: a tiny BERT and a cache."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import Bench, make_cache


@pytest.fixture(scope="session")
def bench(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(checkpoint("bert"), make_cache(tmp_path_factory.mktemp("cache")))
