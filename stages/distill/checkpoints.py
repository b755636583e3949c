"""Files of an unfinished run: checkpoints to resume from, and the weights of the best epoch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer import OPTIMIZER_NAME, TRAINER_STATE_NAME

from ..store.files.atomic import follow_umask, make_folders, write_atomic
from .averaging import AVERAGED_STEPS
from .evaluation import better
from .settings import Keep
from .sharding import frozen_names, load_whole, plain

CHECKPOINTS = "checkpoints"


def steps_done(folder: Path) -> int:
    """The step that a run in this folder would resume from."""
    checkpoint = last_checkpoint(folder)
    return _step_of(checkpoint) if checkpoint else 0


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run that was written to its end, or None."""
    found = [path for path in (folder / CHECKPOINTS).glob("checkpoint-*") if _is_whole(path)]
    return max(found, key=_step_of, default=None)


def is_of_a_whole_student(checkpoint: Path) -> bool:
    """And not of one that was divided among processes, whose optimizer has another form."""
    optimizer: Path = checkpoint / OPTIMIZER_NAME
    return optimizer.exists()


def _is_whole(checkpoint: Path) -> bool:
    # The trainer writes its state last.
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_bytes())
    except (OSError, ValueError):
        return False
    return True


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.partition("-")[2])


# --- Keeps the best weights by validation, or the last ones, and restores them at the end.

BEST = "best"

Weights = dict[str, Tensor]


class BestStudent(TrainerCallback):  # type: ignore[misc]
    """Writes the model whenever an evaluation beats all before it; survives an interruption."""

    def __init__(
        self, folder: Path, metric: str, keep: Keep = "best", averages: bool = False
    ) -> None:
        """`averages`: whether weights are averaged; then those before that are not kept."""
        self._folder, self._metric, self._keep = folder / BEST, metric, keep
        self._averages = averages
        self.weights_of: Callable[[nn.Module], Weights] = nn.Module.state_dict
        """All weights of a model, which may be sharded: a collective call, whose result only the
        first process gets."""
        self.evaluations: list[dict[str, float]] = self._read()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Forgets evaluations after the checkpoint that training resumes from."""
        self.evaluations = [row for row in self.evaluations if row["step"] <= state.global_step]

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        """Notes the metrics; keeps the weights if they are the best so far."""
        row = {
            name.removeprefix("eval_"): value
            for name, value in metrics.items()
            if name.startswith("eval_") and not name.endswith(("_runtime", "_per_second"))
        }
        row = {"step": state.global_step, "epoch": state.epoch, **row}
        improved = self._beats(row, self._best())
        self.evaluations.append(row)
        model = kwargs["model"]
        weights = self.weights_of(model) if improved else None
        if state.is_world_process_zero:
            self._write(weights and plain(weights, frozen_names(model)))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drops weights that no resumed run can want any more: there is a newer checkpoint."""
        if not state.is_world_process_zero:
            return
        follow_umask(Path(args.output_dir))
        best = self._best()
        for file in self._folder.glob("*.safetensors"):
            if best is not None and file != self._weights(best):
                file.unlink()

    def restore(self, model: nn.Module) -> float | None:
        """Load the best weights into `model`; the epoch they are of, None without evaluation."""
        best = self._best()
        if best is None:
            return None
        load_whole(model, self._weights(best))
        return best["epoch"]

    def _weights(self, row: dict[str, float]) -> Path:
        return self._folder / f"step-{int(row['step'])}.safetensors"

    def _best(self) -> dict[str, float] | None:
        best = None
        for row in self.evaluations:
            if self._beats(row, best):
                best = row
        return best

    def _beats(self, row: dict[str, float], best: dict[str, float] | None) -> bool:
        if self._averages and AVERAGED_STEPS not in row:
            return False
        if self._keep == "last":
            return True
        return better(self._metric, row[self._metric], best[self._metric] if best else None)

    def _read(self) -> list[dict[str, float]]:
        file = self._folder / "evaluations.json"
        rows: list[dict[str, float]] = json.loads(file.read_bytes()) if file.is_file() else []
        return rows

    def _write(self, weights: Weights | None) -> None:
        make_folders(self._folder)
        if weights is not None:
            save_file(weights, self._weights(self.evaluations[-1]))
            follow_umask(self._folder)
        document = json.dumps(self.evaluations).encode()
        write_atomic(self._folder / "evaluations.json", [document])
