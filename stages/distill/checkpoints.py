"""What the trainer leaves of an unfinished run in its folder, to go on from."""

import json
from pathlib import Path

from transformers.trainer import OPTIMIZER_NAME, TRAINER_STATE_NAME

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
    # The trainer's state is what it writes last.
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_bytes())
    except (OSError, ValueError):
        return False
    return True


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.partition("-")[2])
