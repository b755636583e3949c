"""The core does its work without the packages of extras, and names the extra that is missing."""

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from hangs import HANG_S
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tiny_language_models import make_causal_lm

pytestmark = pytest.mark.long

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))
OPTIONAL: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]

EXTRAS = {
    "teachers": {"diffusers", "open_clip", "PIL", "torchvision", "timm"},
    "cluster": {"dask", "distributed"},
    "report": {"matplotlib", "statsmodels", "patsy", "pandas", "PIL"},
    "lora": {"peft"},
    "api": {"h2"},
    "s3": {"s3fs"},
    "datasets": {"datasets"},
}
"""What each brings, by the names that are imported, and what comes with it alone."""

APART = {"onnx": {"onnx", "onnxscript", "onnxruntime"}, "faiss": {"faiss"}}
"""Likewise, of extras that are not in `all`."""

HIDDEN = sorted({*set().union(*EXTRAS.values(), *APART.values()), "pytest", "vllm"})


PRECOMPUTE = ["precompute", "--corpus", "texts.csv", "--text-column", "text", "--cache"]
HASH = ["--teacher", "hash:4"]
LABELLED = [
    "--train",
    "texts.csv",
    "--validation",
    "texts.csv",
    "--text-column",
    "text",
    "--label-column",
    "label",
]


def distill(output: str, *settings: str) -> list[str]:
    words = ["distill", *LABELLED, "--cache", "cache", "--student", "bert", "--quiet"]
    words += ["--set", "aligner_hidden_size=8", "--set", "epochs=1"]
    return [*words, "--output", output, *(w for each in settings for w in ("--set", each))]


LORA = [
    *["distill", "--train", "texts.csv", "--text-column", "text", "--student", "causal"],
    *["--set", "task=language", "--objective", "undistilled", "--quiet"],
]
CORE = [
    [*PRECOMPUTE, "cache", "--teacher", "encoder:bert"],
    ["cache", "ls", "cache"],
    ["cache", "verify", "cache"],
    ["cache", "push", "cache", "pushed"],
    ["cache", "pull", "pushed", "pulled"],
    distill("run"),
    ["evaluate", "run", "--corpus", "texts.csv"],
    ["predict", "run", "--corpus", "texts.csv", "--output", "said.jsonl"],
    ["precompute", "--keys", "--teacher", "diffusers"],
    ["schema", "precompute"],
    ["import armada; assert len(armada.CacheDataset('pulled', ['a good day number 0'])) == 1"],
    ["import armada; armada.load_student('run').predict(['a good day'])"],
]
"""What the core is for."""

LACKING: list[tuple[list[str], str, str]] = [
    ([*PRECOMPUTE, "c", "--teacher", "open_clip:there"], "open_clip", "teachers"),
    ([*PRECOMPUTE, "c", "--teacher", "diffusers:there"], "diffusers and PIL", "teachers"),
    ([*PRECOMPUTE, "c", "--teacher", "vllm:there"], "vllm", "vllm"),
    ([*PRECOMPUTE, "c", *HASH, "--workers", "2"], "distributed", "cluster"),
    ([*PRECOMPUTE, "c", *HASH, "--dask", "tcp://h:1"], "distributed", "cluster"),
    (["ablate", "grid.yaml"], "statsmodels", "report"),
    (
        [
            *("mine", "--corpus", "texts.csv", "--text-column", "text", "--text-column", "label"),
            *("--cache", "cache", "--output", "mined.parquet", "--set", "index=ivf"),
        ],
        "faiss",
        "faiss",
    ),
    (["export", "run"], "onnx, onnxscript and onnxruntime", "onnx"),
    (["report", "run"], "matplotlib, statsmodels and PIL", "report"),
    (["cache", "card", "cache"], "matplotlib", "report"),
    (["demo", "--quick"], "open_clip, PIL, matplotlib and statsmodels", "all"),
    ([*LORA, "--set", "lora_rank=2", "--output", "lora"], "peft", "lora"),
    (["cache", "pull", "s3://somewhere/cache", "there"], "s3fs", "s3"),
    (["import armada.testing"], "pytest", "test"),
    (
        ["precompute", "--corpus", "hf-dataset:a/b", *PRECOMPUTE[3:], "c", *HASH],
        "datasets",
        "datasets",
    ),
]
GRID = {
    **{"train": "texts.csv", "validation": "texts.csv", "text_column": "text"},
    **{"label_column": "label", "cache": "cache", "student": "bert", "output": "grid"},
    "grid": {"alpha": [0, 1]},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]) -> Path:
    """A folder with a file of labelled texts, a tiny model, and a job of `ablate`."""
    folder = tmp_path_factory.mktemp("core")
    shutil.copytree(checkpoint("bert"), folder / "bert")
    make_causal_lm(folder / "causal")
    rows = [f"a {'bad' if n % 2 else 'good'} day number {n},{n % 2}" for n in range(24)]
    (folder / "texts.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (folder / "grid.yaml").write_text(yaml.safe_dump(GRID))
    return folder


@pytest.fixture(scope="module")
def ended(place: Path) -> list[dict[str, Any]]:
    """How all the commands ended, one after another in one process."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("core_only.py"), ",".join(HIDDEN)],
        cwd=place,
        input=json.dumps([*CORE, *(words for words, *_ in LACKING)]),
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=True,
    )
    results: list[dict[str, Any]] = json.loads(done.stdout)
    return results


def test_the_core_needs_no_extra(ended: list[dict[str, Any]]) -> None:
    for result in ended[: -len(LACKING)]:
        assert result["code"] == 0, result
        assert "pip install" not in result["err"]


@pytest.mark.parametrize("at", range(len(LACKING)), ids=[" ".join(w[:2]) for w, *_ in LACKING])
def test_what_is_missing_is_named(ended: list[dict[str, Any]], at: int, place: Path) -> None:
    result, (_, packages, extra) = ended[at - len(LACKING)], LACKING[at]
    assert result["code"] == 2, result
    assert result["err"].count("\n") == 1, result["err"]
    assert result["err"].endswith(f" needs {packages}: pip install 'armada-kd[{extra}]'\n")
    assert result["out"] == ""
    assert not {"c", "grid", "lora", "there", "armada-demo"} & {p.name for p in place.iterdir()}


def test_packages_of_extras_are_hidden_here() -> None:
    owners = packages_distributions()
    apart = ("all", "docs", "test", "lm-eval", "mteb", "vllm", *APART)
    listed = {name for name in OPTIONAL if name not in apart}
    assert listed == EXTRAS.keys()
    for extra in listed:
        hidden = {canonicalize_name(own) for name in EXTRAS[extra] for own in owners.get(name, ())}
        wanted = {canonicalize_name(Requirement(line).name) for line in OPTIONAL[extra]}
        assert wanted <= hidden
    assert set(Requirement(OPTIONAL["all"][0]).extras) == listed
    assert OPTIONAL["test"][0] == "armada-kd[all]"
