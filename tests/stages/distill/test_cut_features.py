"""A shard that is cut while a student trains from it."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from armada.cache_schemas.errors import DamagedCacheError
from armada.stages.distill.training import train
from tiny_runs import Bench, make_cache


@pytest.mark.parametrize("schedule", ["alternate", "joint"])
@pytest.mark.parametrize("placement", ["mapped", "streamed"])
def test_training_ends_with_a_line_that_says_so(
    checkpoint: Callable[[str], Path], tmp_path: Path, schedule: str, placement: str
) -> None:
    cache = make_cache(tmp_path / "cache")
    run = Bench(checkpoint("bert"), cache).run(
        tmp_path / "run", epochs=3, schedule=schedule, placement=placement, validate=False
    )
    files, steps = sorted(cache.folder.glob("embedding/c/*/0")), []

    def cut(count: int) -> None:
        steps.append(count)
        if len(steps) == 2:
            for file in files:
                os.truncate(file, 0)

    with pytest.raises(DamagedCacheError, match="was truncated to 0 bytes while in use") as caught:
        train(replace(run, on_step=cut))
    assert "`armada cache verify`" in str(caught.value)
    assert len(steps) >= 2
