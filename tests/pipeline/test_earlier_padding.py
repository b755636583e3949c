"""A cache that was begun by a release with other padded lengths is gone on with, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from armada import open_cache
from armada.stages.store.format.manifests import list_teachers
from command_line import CommandLine
from small_caches import stored_bytes
from tiny_checkpoints import make_bert_classifier
from tiny_runs import TEXTS, class_labels

EARLIER = ("--set", "padding=multiples_of_16")


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


@pytest.fixture
def words(write_parquet: Callable[..., str], tmp_path: Path) -> Callable[..., list[Any]]:
    """A command that asks a model about some texts."""
    model = make_bert_classifier(tmp_path / "model", TEXTS, ["no", "yes"])

    def make(texts: list[str], *more: object, cache: str = "cache") -> list[Any]:
        columns = {"text": texts, "label": class_labels(len(texts))}
        return [
            *("precompute", "--corpus", write_parquet(f"corpus{len(texts)}", columns)),
            *("--text-column", "text", "--teacher", f"classifier:{model}"),
            *("--cache", tmp_path / cache, "--set", "device=cpu", *more),
        ]

    return make


@pytest.fixture
def begun(words: Callable[..., list[Any]], armada: CommandLine, tmp_path: Path) -> Path:
    """A cache of half of the texts; its teacher has no such setting, as none had then."""
    armada.done(*words(TEXTS[::2], *EARLIER))
    assert "padding" not in open_cache(tmp_path / "cache").teacher.spec.settings
    return tmp_path / "cache"


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("more", [(), ("--workers", 1)], ids=["one process", "workers"])
def test_it_is_gone_on_with(
    more: tuple[object, ...],
    begun: Path,
    words: Callable[..., list[Any]],
    armada: CommandLine,
    tmp_path: Path,
) -> None:
    ended = armada(*words(TEXTS, *more))
    assert ended.code == 0, ended.err
    told = f"cache {begun}: was begun with padding=multiples_of_16 by an earlier release; goes on"
    assert ended.err.count(told) == 1
    assert len(list_teachers(begun)) == 1
    armada.done(*words(TEXTS, *EARLIER, cache="at-once"))
    both = [open_cache(path) for path in (begun, tmp_path / "at-once")]
    now, then = (cache["logits"][cache.lookup(TEXTS)] for cache in both)
    np.testing.assert_array_equal(now, then)


def test_features_are_added_to_it(
    begun: Path, words: Callable[..., list[Any]], armada: CommandLine
) -> None:
    armada.done(*words(TEXTS[::2], "--set", "add_features=true", "--set", "pooled=true"))
    added = [each for each in list_teachers(begun) if each.extends]
    assert ["padding" in each.spec.settings for each in added] == [False]


def test_a_job_that_names_the_setting_gets_what_it_names(
    begun: Path, words: Callable[..., list[Any]], armada: CommandLine
) -> None:
    named = words(TEXTS, "--set", "padding=growing_steps")
    refused = armada(*named).error
    assert "padding: cached (absent), requested growing_steps" in refused
    armada.done(*named, "--set", "add_teacher=true")
    assert f"{len(TEXTS)} already cached, 0 computed" in armada.done(*words(TEXTS))
    assert len(list_teachers(begun)) == 2


def test_a_new_cache_has_the_steps_of_today(
    words: Callable[..., list[Any]], armada: CommandLine, tmp_path: Path
) -> None:
    assert "padding" not in armada(*words(TEXTS)).err
    assert open_cache(tmp_path / "cache").teacher.spec.settings["padding"] == "growing_steps"
    for size in ("3", "auto"):
        armada.done(*words(TEXTS, "--set", f"batch_size={size}", cache=size))
        assert stored_bytes(tmp_path / size) == stored_bytes(tmp_path / "cache")
    (run,) = open_cache(tmp_path / "auto").runs()
    assert run.batches is not None
    assert run.batches.auto_limit >= 8192
