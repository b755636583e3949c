"""Runs of stage 2 in each of several processes; `torchrun processes_worker.py PLAN.json`.

The plan names a student, a cache, a folder for each run, and its settings; the first process writes
the losses of all runs, and in each folder weights and evaluations. `stop_after`: the run is cut
after so many steps; `static`: the student is a table made of the other; `summed`: three objectives,
with a source each; `repeated`: three examples have one text for the teacher."""

import json
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from armada.stages.distill.objectives.options import SOURCE
from armada.stages.distill.processes import processes
from armada.stages.distill.sharding import plain
from armada.stages.distill.training import Run, train
from armada.stages.store.reading.reader import open_cache
from safetensors.torch import save_file
from tiny_runs import Bench, train_logged

WEIGHTS, EPOCHS = "weights.safetensors", "epochs.json"


class Cut(Exception):
    pass


def losses(bench: Bench, how: dict[str, Any]) -> list[float]:
    folder, stop_after = Path(how.pop("folder")), how.pop("stop_after", None)
    if how.pop("static", False):
        bench = replace(bench, student=f"static:{bench.student}")
    make = bench.summed if how.pop("summed", False) else bench.run
    repeated = how.pop("repeated", False)
    run = make(folder, dropout=0.0, **how)
    if repeated:
        gather = run.train.features[SOURCE]
        run.train.features = {SOURCE: replace(gather, rows=gather.rows // 3)}
    run.model.double()
    if stop_after is not None:
        return cut(replace(run, processes=processes()), stop_after)
    training, found = train_logged(replace(run, processes=processes()))
    if processes().first:
        save_file(plain(training.model.state_dict()), folder / WEIGHTS)
        (folder / EPOCHS).write_text(json.dumps(training.epochs))
    return found


def cut(run: Run, after: int) -> list[float]:
    found: list[float] = []
    steps: list[int] = []

    def step(count: int) -> None:
        steps.append(count)
        if len(steps) == after:
            raise Cut

    def log(row: dict[str, float]) -> None:
        found.extend([row["loss"]] if "loss" in row else [])

    with suppress(Cut):
        train(replace(run, on_step=step, on_log=log))
    return found


def main(plan_file: Path) -> None:
    plan = json.loads(plan_file.read_bytes())
    tokens = open_cache(f"{plan['cache']}-tokens")
    bench = Bench(Path(plan["student"]), open_cache(plan["cache"]), tokens=tokens)
    found = {name: losses(bench, how) for name, how in plan["runs"].items()}
    if processes().first:
        plan_file.with_name("losses.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
