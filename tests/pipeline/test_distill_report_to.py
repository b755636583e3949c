"""`report_to`: TensorBoard by default; other trackers where their packages are installed."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine


def losses(output: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def test_none_leaves_no_log_but_our_own(armada: CommandLine, distill_bench: Any, tmp_path: Path):
    armada.done(*distill_bench.words(tmp_path / "run"), "--set", "report_to=none")
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert losses(tmp_path / "run")


@pytest.mark.parametrize("package", ["wandb", "mlflow", "trackio", "tensorboard"])
def test_a_package_that_is_missing_is_named(
    package: str, refused: Any, distill_bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    words = distill_bench.words(tmp_path / "run", "--set", f"report_to={package}")
    assert refused(*words) == (
        f"job key 'report_to': {package} is not installed; `pip install {package}`, or leave it out"
    )


def test_a_tracker_that_does_not_exist_is_refused(
    refused: Any, distill_bench: Any, tmp_path: Path
) -> None:
    line = refused(*distill_bench.words(tmp_path / "run", "--set", "report_to=[tensorbord]"))
    assert line.startswith("job key 'report_to': 'tensorbord': Input should be 'tensorboard', ")


def test_an_unfinished_run_may_go_on_with_other_trackers(
    armada: CommandLine, distill_bench: Any, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    armada.done(*distill_bench.words(output))
    (output / "metrics.json").unlink()
    armada.done(*distill_bench.words(output, "--resume", "--set", "report_to=none"))


def test_mlflow_gets_the_losses_of_each_seed(
    armada: CommandLine, distill_bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    place = (tmp_path / "mlflow").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    seeds = ("--set", "seed=[0, 1]", "--set", "report_to=mlflow", "--set", "run_name=mine")
    armada.done(*distill_bench.words(tmp_path / "run", *seeds))
    client = MlflowClient(place)
    runs = {run.info.run_name: run for run in client.search_runs(["0"])}
    assert runs.keys() == {"mine, seed 0", "mine, seed 1"}
    for seed in (0, 1):
        history = client.get_metric_history(runs[f"mine, seed {seed}"].info.run_id, "loss")
        seen = {each.step: each.value for each in history}
        assert seen == pytest.approx(losses(tmp_path / "run" / f"seed-{seed}"))


def test_trackio_gets_the_losses_of_each_seed(
    armada: CommandLine, distill_bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    seeds = ("--set", "seed=[0, 1]", "--set", "report_to=[trackio, tensorboard]")
    armada.done(*distill_bench.words(tmp_path / "run", *seeds))
    for seed in (0, 1):
        (run,) = [r for r in trackio.Api().runs("huggingface") if r.name == f"run, seed {seed}"]
        seen = {each["train/global_step"]: each["train/loss"] for each in logged(run)}
        assert seen == pytest.approx(losses(tmp_path / "run" / f"seed-{seed}"))
        assert (tmp_path / "run" / f"seed-{seed}" / "tensorboard").is_dir()


def logged(run: Any) -> list[Mapping[str, Any]]:
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs(run.project, run.name)
    return [row for row in rows if "train/loss" in row]


def test_wandb_gets_a_run_for_each_seed(
    armada: CommandLine, distill_bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    seeds = ("--set", "seed=[0, 1]", "--set", "report_to=wandb")
    armada.done(*distill_bench.words(tmp_path / "run", *seeds))
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2


def test_a_tracker_that_cannot_begin_says_so_in_a_line(
    armada: CommandLine, distill_bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://at.all")
    ended = armada(*distill_bench.words(tmp_path / "run", "--set", "report_to=mlflow"))
    assert ended.code == 1
    assert ended.error.startswith("report_to: mlflow cannot start: ")
