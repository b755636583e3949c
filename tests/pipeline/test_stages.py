"""Weights that are learned or move, and stages of a run: whole, cut, and refused."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import armada as library
import pytest
import yaml
from armada.cache_schemas.errors import JobError
from armada.pipeline import seed_run
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.terms import terms_of
from command_line import CommandLine
from cuts import cut_at
from safetensors.torch import load_file

Job = dict[str, Any]
HINT = {"name": "feature", "feature": "embedding"}
STAGES = [
    {"until": 0.35, "objectives": ["feature"]},
    {"until": 0.8, "objectives": ["feature", "kd"]},
    {"objectives": ["kd"]},
]


@pytest.fixture
def job(distill_bench: Any, tmp_path: Path) -> Job:
    return {
        "train": str(distill_bench.train),
        "validation": str(distill_bench.validation),
        "text_column": "text",
        "label_column": "label",
        "student": str(distill_bench.student),
        "output": str(tmp_path / "run"),
        **{"epochs": 3, "batch_size": 16, "learning_rate": 1e-3, "logging_steps": 1},
        **{"device": "cpu", "save_steps": 1},
        "teachers": {"made": {"cache": str(distill_bench.cache), "teacher": distill_bench.made_up}},
        "objectives": [HINT, {"name": "kd"}],
    }


def rows(run: Path) -> list[dict[str, float]]:
    lines = (run / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in rows(run)]


def write(job: Job, folder: Path) -> Path:
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job, sort_keys=False))
    return file


def cut_and_resumed(
    job: Job, folder: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> list[float]:
    """The losses of a job that is interrupted at a step."""
    keys = job | {"output": str(folder)}
    with monkeypatch.context() as patched:
        patched.setattr(seed_run, "append_log", cut_at(step))
        with pytest.raises(KeyboardInterrupt):
            library.distill(**keys)
    library.distill(**keys | {"resume": True})
    return losses(folder)


def test_hint_first_and_logits_later(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 steps: what is not in a stage is not computed. The first stage learns no labels."""
    job["stages"] = STAGES
    library.distill(**job)
    run = tmp_path / "run"
    names = [{name for name in ("feature.feature", "kd.task") if name in r} for r in rows(run)]
    assert (
        names
        == [{"feature.feature"}] * 5 + [{"feature.feature", "kd.task"}] * 5 + [{"kd.task"}] * 2
    )
    first = rows(run)[0]
    assert first["loss"] == pytest.approx(first["feature.feature"], rel=1e-5)
    metrics = json.loads((run / "metrics.json").read_bytes())
    assert [stage["until_step"] for stage in metrics["stages"]] == [5, 10, 12]
    shown = [stage["validation"]["epoch"] for stage in metrics["stages"]]
    assert shown == [1, 2, 3]
    for step in (3, 8):
        assert cut_and_resumed(job, tmp_path / f"cut-{step}", monkeypatch, step) == losses(run)


def test_learned_weights(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: weight exp(-s) of each, and s / 2 added; s moves against its gradient, 1/2 -
    exp(-s) · loss, by AdamW's first step, which is as long as the rate."""
    job["objectives"] = [HINT | {"weight": "learned"}, {"name": "kd", "weight": "learned"}]
    job |= {"aligner_learning_rate": 0.01, "weight_decay": 0.5}
    library.distill(**job)
    run = tmp_path / "run"
    first, second = rows(run)[:2]
    alone = {"feature": first["feature.feature"], "kd": first["kd.task"] / 2}
    alone["kd"] += first["kd.distillation"] / 2
    assert first["feature.weight"] == first["kd.weight"] == 1
    assert first["loss"] == pytest.approx(sum(alone.values()), rel=1e-4)
    for name, loss in alone.items():
        moved = second[f"{name}.weight"]
        assert moved == pytest.approx(1.01005 if loss < 0.5 else 0.99005, rel=1e-4)
    heads = load_file(run / "student" / "heads.safetensors")
    assert heads["objective.log_variances"].shape == (2,)
    assert cut_and_resumed(job, tmp_path / "cut", monkeypatch, 6) == losses(run)


def test_options_that_move(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The annealed temperature of arXiv 2104.07163, and a weight that decays."""
    alpha = {"from": 1, "to": 0.2, "after": 0.25, "until": 0.75}
    temperature = {"from": 8, "to": 1, "shape": "exponential"}
    job["objectives"] = [{"name": "kd", "alpha": alpha, "temperature": temperature}]
    library.distill(**job)
    run = tmp_path / "run"
    shown = rows(run)
    assert [row["alpha"] for row in shown][:4] == [1, 1, 1, 1]
    assert shown[6]["alpha"] == pytest.approx(0.6)
    assert shown[-1]["alpha"] == pytest.approx(0.2)
    for before, after in pairwise(row["temperature"] for row in shown):
        assert after / before == pytest.approx(8 ** (-1 / 12))
    for row in shown:
        whole = row["alpha"] * row["distillation"] + (1 - row["alpha"]) * row["task"]
        assert row["loss"] == pytest.approx(whole, rel=1e-4)
    assert cut_and_resumed(job, tmp_path / "cut", monkeypatch, 6) == losses(run)
    assert yaml.safe_load((run / "job.yaml").read_text())["objectives"][0]["alpha"] == alpha | {
        "shape": "linear"
    }


REFUSED: dict[str, tuple[Job, str]] = {
    "stages of one objective": (
        {"objectives": None, "objective": "kd", "teachers": None, "cache": "c"},
        "job key 'stages': needs objectives; name each in `objectives` first",
    ),
    "nobody's": (
        {"stages": [{"objectives": ["hint"]}]},
        "stages.0 key 'objectives': 'hint' is none of the job's; choose from feature, kd",
    ),
    "of no stage": (
        {"stages": [{"objectives": ["kd"]}]},
        "objective feature: is in no stage; add it to one, or leave it out",
    ),
    "backwards": (
        {"stages": [{"until": 0.5, "objectives": ["kd"]}, {"until": 0.5, "objectives": ["kd"]}]},
        "stage 1 ends at 0.5 of the steps, the one before at 0.5; let each end later",
    ),
    "an end": (
        {"stages": [{"until": 0.5, "objectives": ["kd", "feature"]}]},
        "the last ends at 0.5 of the steps; leave its until out",
    ),
    "an empty stage": ({"stages": [{"objectives": []}]}, "stages.0 key 'objectives'"),
    "another key": (
        {"stages": [{"objectives": ["kd"], "from": 0}]},
        "stages.0 key 'from' is unknown",
    ),
    "a weight in words": (
        {"objectives": [{"name": "kd", "weight": "much"}]},
        "objectives.0 key 'weight'",
    ),
    "nan": ({"objectives": [{"name": "kd", "weight": float("nan")}]}, "is not a number of 0"),
    "an alpha beyond 1": (
        {"objectives": [{"name": "kd", "alpha": {"from": 0.5, "to": 2}}]},
        "alpha: 2 of its schedule: Input should be less than or equal to 1",
    ),
    "a temperature of 0": (
        {"objectives": [{"name": "kd", "temperature": {"from": 0, "to": 2}}]},
        "temperature: 0 of its schedule: Input should be greater than 0",
    ),
    "a schedule without an end": (
        {"objectives": [{"name": "kd", "alpha": {"from": 0.5}}]},
        "job key 'alpha.to' is missing",
    ),
    "nothing by a factor": (
        {"objectives": [{"name": "kd", "weight": {"from": 1, "to": 0, "shape": "exponential"}}]},
        "shape exponential: reaches no 0",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(
    refused: Callable[..., str], job: Job, tmp_path: Path, changes: Job, message: str
) -> None:
    given = {"stages": STAGES} | changes if "stages" in message else changes
    keys = {key: value for key, value in (job | given).items() if value is not None}
    assert message in refused("distill", write(keys, tmp_path), "--quiet")


def test_learned_weights_are_not_sharded(job: Job) -> None:
    job["objectives"] = [{"name": "kd", "weight": "learned"}]
    with pytest.raises(JobError, match="objective kd: learned weights are not sharded; leave out"):
        terms_of(DistillJob(**job, shard_student=True))


def test_losses_below_0_have_no_learned_weights(job: Job) -> None:
    job["objectives"] = [{"name": "kd"}, HINT | {"name": "wcord", "weight": "learned"}]
    with pytest.raises(JobError, match="objective wcord: weight=learned: its loss may be below 0"):
        terms_of(DistillJob(**job))


def test_schedules_by_the_command_line(armada: CommandLine, job: Job, tmp_path: Path) -> None:
    """An option that moves of a job with one objective."""
    short = {key: value for key, value in job.items() if key not in ("teachers", "objectives")}
    made = job["teachers"]["made"]
    file = write(short | made | {"objective": "kd", "epochs": 1}, tmp_path)
    armada.done("distill", file, "--quiet", "--set", "temperature={from: 4, to: 2, shape: step}")
    assert [row["temperature"] for row in rows(tmp_path / "run")] == [4, 4, 4, 4]
