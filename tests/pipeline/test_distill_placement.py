"""`placement`: where features lie, and how an epoch goes through those that do not fit."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from armada.pipeline import seed_run
from armada.stages.distill import batches, placement
from armada.stages.store.reading import memory
from armada.stages.store.reading.prefetch import BlockOrder
from armada.stages.store.reading.reader import open_cache
from tiny_runs import TEXTS


@pytest.fixture
def no_memory(monkeypatch):
    """Every feature is larger than what is left."""
    monkeypatch.setattr(memory, "COLD_SHARE", 0.0)


def about_memory(err: str) -> list[str]:
    """Warnings of a run, but for that of a student that has learned next to nothing."""
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    return [line for line in warnings if "the student predicts the same" not in line]


@pytest.mark.usefixtures("no_memory")
def test_random_reads_from_disk_are_warned_of(armada, distill_bench, tmp_path):
    result = armada(*distill_bench.words(tmp_path / "auto"))
    assert result.code == 0
    warnings = about_memory(result.err)
    assert len(warnings) == 1
    assert "'embedding'" in warnings[0]
    assert "placement=streamed" in warnings[0]
    result = armada(*distill_bench.words(tmp_path / "block", "--set", "placement=streamed"))
    assert (result.code, about_memory(result.err)) == (0, [])


def test_features_in_memory_need_no_warning(armada, distill_bench, tmp_path):
    result = armada(*distill_bench.words(tmp_path / "auto"))
    assert (result.code, about_memory(result.err)) == (0, [])


def test_other_words_are_refused(distill_bench, tmp_path, refused):
    line = refused(*distill_bench.words(tmp_path / "run", "--set", "placement=some"))
    assert "placement" in line
    assert "'auto', 'resident', 'mapped' or 'streamed'" in line


def test_features_that_do_not_fit_are_refused_with_sizes(
    distill_bench, tmp_path, refused, monkeypatch
):
    monkeypatch.setattr(placement, "available_memory", lambda: 100)
    line = refused(
        *distill_bench.words(tmp_path / "run", "--set", "placement=resident", "--set", "device=cpu")
    )
    assert line.startswith("placement resident: the features of the training set take 0.00 GiB and")
    assert "cpu has 0.00 GiB free; use mapped, or streamed" in line


def test_the_figures_say_where_features_lay(distill_bench, tmp_path, armada):
    for asked, found in (("auto", "mapped"), ("resident", "resident"), ("streamed", "streamed")):
        output = tmp_path / asked
        words = ("--set", f"placement={asked}", "--set", "device=cpu")
        armada.done(*distill_bench.words(output, *words))
        metrics = json.loads((output / "metrics.json").read_bytes())
        assert (metrics["placement"], metrics["processes"]) == (found, 1)


def test_a_run_may_go_on_with_features_elsewhere_but_not_in_another_order(
    distill_bench, tmp_path, armada, monkeypatch
):
    def stop(metrics: Any, *_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(seed_run, "model_card", stop)
        armada(*distill_bench.words(tmp_path / "run", "--set", "placement=mapped"))
    streamed = ("--resume", "--set", "placement=streamed")
    line = armada(*distill_bench.words(tmp_path / "run", *streamed)).error
    assert "placement: was 'mapped', now 'streamed'" in line
    resident = ("--resume", "--set", "placement=resident")
    armada.done(*distill_bench.words(tmp_path / "run", *resident))


@pytest.fixture
def late(distill_bench, monkeypatch) -> tuple[int, Path]:
    """With blocks of four examples: a seed of which the first blocks lie in one shard, and the file
    of the other shard."""
    monkeypatch.setattr(batches, "BLOCK_ROWS", 4)
    monkeypatch.setattr(batches, "BLOCKS_PER_WINDOW", 1)
    cache = open_cache(distill_bench.cache, distill_bench.made_up)
    rows = cache.lookup(TEXTS)
    order = BlockOrder(cache["embedding"].in_file_order(rows), 4, 1)
    for seed in range(100):
        first = np.concatenate(list(islice(order.windows(seed, 0), 5)))
        if (rows[first] >= 20).all():
            return seed, next(cache.folder.glob("**/embedding/c/0*"))
    raise AssertionError("there is no such seed")


def test_a_shard_that_vanishes_in_mid_epoch(distill_bench, tmp_path, armada, monkeypatch, late):
    """One line names it; what was trained is kept, and the run goes on when the shard is back."""
    seed, shard = late
    options = {"teacher": distill_bench.made_up, "objective": "feature"}
    sets = ("placement=streamed", "logging_steps=1", "save_steps=1", "batch_size=4", f"seed={seed}")
    words = [word for setting in (*sets, "feature=embedding") for word in ("--set", setting)]
    armada.done(*distill_bench.words(tmp_path / "whole", *words, **options))
    away, log = tmp_path / "away", seed_run.append_log

    def vanish(folder: Path, row: Any) -> None:
        log(folder, row)
        if shard.exists():
            shard.rename(away)

    with monkeypatch.context() as patched:
        patched.setattr(seed_run, "append_log", vanish)
        result = armada(*distill_bench.words(tmp_path / "run", *words, **options))
    away.rename(shard)
    assert result.code == 1
    assert str(shard) in result.error
    assert 1 <= len(logged(tmp_path / "run")) < 14
    armada.done(*distill_bench.words(tmp_path / "run", *words, "--resume", **options))
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")
    student = "student/model.safetensors"
    assert (tmp_path / "run" / student).read_bytes() == (tmp_path / "whole" / student).read_bytes()


def logged(output: Path) -> list[tuple[int, float]]:
    rows = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]
