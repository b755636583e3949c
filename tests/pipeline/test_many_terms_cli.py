"""Three teachers, four objectives, a schedule, a learned weight, negatives and a rule of choice, in
one run: cut and resumed, and in two processes."""

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from armada.cache_schemas.features import FeatureSpec
from command_line import CommandLine
from cuts import cut_at
from hangs import HANG_S
from small_caches import make_manifest, write_cache
from tiny_runs import TEXTS, class_labels, freeze_dropout

TEACHERS = {"votes": ("logits", 3), "meaning": ("embedding", 8), "picture": ("latents", 6)}
JOB: dict[str, Any] = {
    "text_column": "text",
    "label_column": "label",
    "objectives": [
        {"name": "kd", "teacher": "votes", "weight": {"from": 1, "to": 0.2, "until": 0.5}},
        {"name": "rkd", "teacher": "meaning", "weight": 0.5},
        {"name": "infonce", "teacher": "picture", "negatives": 5, "weight": 0.1},
        {"name": "feature", "teacher": "meaning", "distance": "cosine", "weight": "learned"},
    ],
    "select": [{"rule": "entropy", "teacher": "votes", "most": 0.9}],
    "epochs": 3,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "max_length": 16,
    "dropout": 0,
    "logging_steps": 1,
    "save_steps": 2,
    "device": "cpu",
    "seed": 5,
}


@pytest.fixture(scope="module")
def job(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    pq.write_table(
        pa.table({"text": TEXTS, "label": class_labels(len(TEXTS), 3)}), folder / "train.parquet"
    )
    for name, (feature, width) in TEACHERS.items():
        spec = FeatureSpec(name=feature, shape=(width,), dtype="float32")
        write_cache(folder / name, make_manifest((spec,)), [TEXTS])
    keys = {
        **JOB,
        "train": str(folder / "train.parquet"),
        "student": str(freeze_dropout(Path(shutil.copytree(checkpoint("bert"), folder / "bert")))),
        "teachers": {name: {"cache": str(folder / name)} for name in TEACHERS},
        "output": str(folder / "whole"),
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(keys), encoding="utf-8")
    return folder / "job.yaml"


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


def terms(run: Path) -> list[dict[str, float]]:
    """Loss, terms and weights of each step."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    timed = ("_seconds", "grad_norm", "epoch")
    return [
        {name: value for name, value in row.items() if not name.endswith(timed)}
        for row in rows
        if "loss" in row
    ]


def test_a_cut_run_has_the_losses_of_a_whole_one(
    armada: CommandLine, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    armada.done("distill", job, "--quiet", "--output", whole)
    steps = terms(whole)
    metrics = json.loads((whole / "metrics.json").read_text())
    assert 24 < metrics["train_examples"] < len(TEXTS)
    assert steps[0]["kd.weight"] == 1
    assert steps[-1]["kd.weight"] == pytest.approx(0.2)
    assert len({step["feature.weight"] for step in steps}) == len(steps)
    assert {"rkd.angle", "infonce.infonce"} <= steps[0].keys()
    for at in (3, len(steps) - 1):
        monkeypatch.setattr("armada.pipeline.seed_run.append_log", cut_at(at))
        assert armada("distill", job, "--quiet", "--output", cut, "--resume").code != 0
        monkeypatch.undo()
    armada.done("distill", job, "--quiet", "--output", cut, "--resume")
    assert terms(cut) == steps


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(
    armada: CommandLine, job: Path, tmp_path: Path, torchrun: Sequence[str]
) -> None:
    armada.done("distill", job, "--quiet", "--output", tmp_path / "one")
    words = ["distill", str(job), "--quiet", "--output", str(tmp_path / "two")]
    command = [*torchrun, "-m", "armada.cli", *words]
    subprocess.run(command, check=True, timeout=HANG_S, capture_output=True)
    one, two = terms(tmp_path / "one"), terms(tmp_path / "two")
    assert len(one) == len(two)
    for ours, theirs in zip(one, two, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-3, abs=1e-5)
