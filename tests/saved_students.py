"""Folders of students that no run has trained."""

from pathlib import Path
from typing import Any

from armada.stages.distill.export import StudentCard, save_student
from armada.stages.distill.objectives.base import Sizes
from armada.stages.distill.objectives.options import ObjectiveOptions
from armada.stages.distill.objectives.undistilled import UndistilledObjective
from armada.stages.distill.student import Student


def save_untrained(folder: Path, student: Student, tokenizer: Any, **base: Any) -> Path:
    """The folder of a student of one text column; `base` is what its card says of adapters."""
    sizes = Sizes(student.dim, student.space.num_labels, student.space.regression, None)
    card = StudentCard(
        space=student.space,
        pooling=student.pooling,
        dropout=student.dropout,
        max_length=32,
        text_columns=("text",),
        label_column="label",
        metric="accuracy",
        **base,
    )
    save_student(folder, student, tokenizer, UndistilledObjective(ObjectiveOptions(), sizes), card)
    return folder
