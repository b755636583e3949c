"""Runs of language models, and of students that embed, in float64, in this process or in each of
several that share them; `torchrun language_processes.py JOBS.json`. Each job's folder is left with
its log and student."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.embedding.task import EmbeddingTask
from armada.pipeline.jobs import make
from armada.pipeline.language.masked_task import MaskedLanguageTask
from armada.pipeline.language.task import LanguageTask
from armada.pipeline.run_data import read_data
from armada.pipeline.seed_run import SeedRun
from armada.pipeline.task import Built, MakeObjective, Plan
from armada.pipeline.terms import terms_of
from armada.stages.distill.processes import processes
from hangs import HANG_S
from safetensors.torch import load_file
from torch import Tensor

TESTS = Path(__file__).parent
PLUG_INS = TESTS / "hint_objective"
Keys = Mapping[str, Any]


class InFloat64(LanguageTask):
    """Rounding is then too small to hide anything."""

    def build(self, plan: Plan, objective: MakeObjective) -> Built:
        built = super().build(plan, objective)
        built.model.double()
        return built


class MaskedInFloat64(MaskedLanguageTask):
    """Likewise."""

    def build(self, plan: Plan, objective: MakeObjective) -> Built:
        built = super().build(plan, objective)
        built.model.double()
        return built


class EmbeddingInFloat64(EmbeddingTask):
    """Likewise."""

    def build(self, plan: Plan, objective: MakeObjective) -> Built:
        built = super().build(plan, objective)
        built.model.double()
        return built


_TASKS = {
    "language": InFloat64,
    "masked_language": MaskedInFloat64,
    "embedding": EmbeddingInFloat64,
}


def run(keys: Keys) -> None:
    """A run of one job."""
    job = make(DistillJob, dict(keys))
    terms = terms_of(job)
    data = read_data(job, terms)
    task = _TASKS[str(job.task)]()
    SeedRun(job, job.output, job.seeds[0], data, terms, task, processes(), True).run()


def run_in_two_processes(torchrun: Sequence[str], plan: Path, jobs: Sequence[Keys]) -> None:
    """All of some jobs, in two processes that gloo joins."""
    plan.write_text(json.dumps([dict(keys) for keys in jobs]))
    paths = os.pathsep.join([str(TESTS), str(PLUG_INS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*torchrun, __file__, str(plan)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def losses(folder: Path, name: str = "loss") -> list[float]:
    """A term of the loss in every step of a run that has logged each one."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a run's student that trained, as they are on disk."""
    (file,) = (folder / "student").glob("*model.safetensors")
    return load_file(file)


def main(plan: Path) -> None:
    processes().meet(torch.device("cpu"))
    for keys in json.loads(plan.read_bytes()):
        run(keys)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
