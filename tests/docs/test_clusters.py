"""Job files for clusters do what they say, in small, and the image holds what is installed."""

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from armada.stages.store.reading.reader import open_cache
from docs_material import TEXTS, write_table
from docs_pages import ROOT, Workplace

SLURM = ROOT / "examples" / "slurm"
KUBERNETES = ROOT / "examples" / "kubernetes"
TASKS = 2
"""Of the eight."""


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERNETES / name).read_text(encoding="utf-8")))


def container(name: str) -> dict[str, Any]:
    """What a Job runs."""
    (job,) = documents(name)
    (only,) = job["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def write_corpus(folder: Path) -> None:
    (folder / "corpus").mkdir()
    write_table(folder / "corpus" / "train.parquet", rows=len(TEXTS))
    write_table(folder / "corpus" / "validation.parquet")


def check(folder: Path, printed: list[str]) -> None:
    """All tasks together asked about every text once, and a student learned from it."""
    counts = [re.search(r"(\d+) rows, (\d+) unique", each) for each in printed]
    assert sum(int(found[2]) for found in counts if found) == len(TEXTS)
    assert all(counts)
    assert len(open_cache(folder / "cache")) == len(TEXTS)
    metrics = json.loads((folder / "runs" / "student" / "metrics.json").read_bytes())
    assert metrics["objective"] == "armada"


@pytest.mark.parametrize("script", sorted(SLURM.glob("*.sbatch")), ids=lambda file: file.name)
def test_scripts_are_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    options = re.findall(r"^#SBATCH (\S+)$", script.read_text(encoding="utf-8"), re.MULTILINE)
    assert "--requeue" in options
    assert all(option.startswith("--") for option in options)


def test_slurm(place: Workplace) -> None:
    write_corpus(place.folder)
    for file in SLURM.iterdir():
        text = file.read_text(encoding="utf-8")
        text = text.replace("--nproc-per-node 4", "--nproc-per-node 1")
        (place.folder / file.name).write_text(text.replace("bf16", "bf16\nepochs: 1"))
    variables = f"export SLURM_ARRAY_TASK_COUNT={TASKS} SLURM_ARRAY_TASK_ID"
    printed = [
        place.shell(f"{variables}={task}; bash precompute.sbatch") for task in range(1, TASKS + 1)
    ]
    place.shell("bash distill.sbatch")
    check(place.folder, printed)
    place.shell("bash distill.sbatch")  # one that was requeued at the very end


def test_kubernetes(place: Workplace) -> None:
    write_corpus(place.folder)
    (job,) = documents("precompute.yaml")
    spec = job["spec"]
    assert (spec["completionMode"], spec["parallelism"]) == ("Indexed", spec["completions"])
    (command,) = container("precompute.yaml")["args"]
    assert f'/{spec["completions"]}"' in command
    command = command.replace("/data", ".").replace(f'/{spec["completions"]}"', f'/{TASKS}"')
    printed = [
        place.shell(f"export JOB_COMPLETION_INDEX={index}; {command}") for index in range(TASKS)
    ]
    (command,) = container("distill.yaml")["args"]
    place.shell(command.replace("/data", ".") + " --set epochs=1")
    check(place.folder, printed)


def test_pods_write_one_volume_without_rights() -> None:
    (claim,) = documents("storage.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for name in ("precompute.yaml", "distill.yaml"):
        (job,) = documents(name)
        pod = job["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert {"name": "data", "mountPath": "/data"} in container(name)["volumeMounts"]
        claims = [volume.get("persistentVolumeClaim") for volume in pod["volumes"]]
        assert {"claimName": claim["metadata"]["name"]} in claims


def test_the_image_holds_what_is_installed() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["setuptools"]["packages"]
    wanted = {name.split(".")[1] for name in packages if "." in name}
    wanted |= {file.name for file in ROOT.glob("*.py")} | {"py.typed", "pyproject.toml"}
    wanted |= {project["project"]["readme"], *project["project"]["license-files"]}
    assert kept == wanted


def test_the_image_runs_without_rights() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    users = re.findall(r"^USER (\S+)$", text, re.MULTILINE)
    assert users == ["armada"]
    assert text.index("\nUSER ") < text.index("\nENTRYPOINT ")
    assert re.findall(r"^(?:ARG|ENV) .*(?:TOKEN|SECRET|PASSWORD)", text, re.MULTILINE) == []
