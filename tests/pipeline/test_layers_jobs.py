"""Objectives of layers as jobs: an encoder's layers cached, a student learns them, refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import armada as library
import pytest
import yaml
from command_line import CommandLine

Job = dict[str, Any]


@pytest.fixture(scope="module")
def cache(
    distill_bench: Any,
    checkpoint: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """What a BERT of two layers answers about the training texts."""
    folder = tmp_path_factory.mktemp("layers") / "cache"
    library.precompute(
        corpus=str(distill_bench.train),
        text_column="text",
        teacher=f"encoder:{checkpoint('bert')}",
        cache=folder,
        layers=[1, 2],
    )
    return folder


@pytest.fixture
def job(distill_bench: Any, cache: Path, tmp_path: Path) -> Job:
    return {
        **{"train": str(distill_bench.train), "validation": str(distill_bench.validation)},
        **{"text_column": "text", "label_column": "label", "student": str(distill_bench.student)},
        **{"epochs": 1, "batch_size": 16, "learning_rate": 1e-3, "logging_steps": 1},
        **{"output": str(tmp_path / "run"), "teachers": {"bert": {"cache": str(cache)}}},
        "objectives": [{"name": "hidden_layers", "features": ["layer_1", "layer_2"]}],
    }


@pytest.fixture
def distill(armada: CommandLine, tmp_path: Path) -> Callable[..., str]:
    """Runs a job with changes; its one line if it is refused."""

    def run(job: Job, **changes: Any) -> str:
        file = tmp_path / "job.yaml"
        file.write_text(yaml.safe_dump(job | changes))
        result = armada("distill", file, "--quiet")
        assert result.code in (0, 2), result.error
        return result.error if result.code else ""

    return run


def test_a_student_learns_layers(distill: Callable[..., str], job: Job, tmp_path: Path) -> None:
    """As an objective of its own, and beside another, with adapters and checkpointing."""
    assert distill(job) == ""
    rows = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    steps = [row for row in rows if "layers" in row]
    assert len(steps) == 4
    assert steps[0]["loss"] == pytest.approx(steps[0]["task"] + steps[0]["layers"], rel=1e-5)
    more = {"name": "hidden_layers", "feature": "layer_1", "map": [-2], "weight": 0.5}
    other = {"objectives": [{"name": "undistilled"}, more], "output": str(tmp_path / "other")}
    assert distill(job, **other, lora_rank=2, gradient_checkpointing=True) == ""


REFUSED: dict[str, tuple[Job, str]] = {
    "a layer that is not cached": (
        {"features": ["layer_2", "layer_9"]},
        "(encoder) has pooled, layer_1, layer_2; precompute with layers=[9] and add_features=true",
    ),
    "too many layers": (
        {"features": ["layer_1", "layer_2", "pooled"]},
        "objective hidden_layers: 3 features for a student of 2 layers; name fewer features, or "
        "use map=learned",
    ),
    "a layer that the student lacks": (
        {"features": ["layer_1"], "map": [3]},
        "objective hidden_layers: layer 3 is beyond the student's; choose from 0",
    ),
    "a list of another length": (
        {"features": ["layer_1"], "map": [1, 2]},
        "map: names 2 layers, and objective hidden_layers reads 1 features",
    ),
    "no such map": ({"features": ["layer_1"], "map": "skip"}, "job key 'map"),
    "lengths that do not count": (
        {"features": ["layer_1"], "normalize": True, "distance": "cosine"},
        "normalize: cosine compares directions alone; leave it out",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(distill: Callable[..., str], job: Job, tmp_path: Path, name: str) -> None:
    keys, message = REFUSED[name]
    assert message in distill(job, objectives=[{"name": "hidden_layers"} | keys])
    assert not (tmp_path / "run").exists()
