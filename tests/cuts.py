"""Runs that are interrupted at a step of their own choosing."""

from pathlib import Path
from typing import Any

from armada.pipeline.run_folder import append_log


def cut_at(step: int) -> Any:
    """A log that stands for Ctrl-C at a step."""

    def append(folder: Path, row: Any) -> None:
        append_log(folder, row)
        if row["step"] == step:
            raise KeyboardInterrupt

    return append
