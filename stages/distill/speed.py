"""Faster or smaller steps of a student, with equal numbers up to rounding."""

import torch

from ...cache_schemas.errors import JobError, StudentSourceError
from .settings import TrainingSettings
from .student import Student


def speed_up(student: Student, settings: TrainingSettings, device: torch.device) -> None:
    """Apply the settings to a student, in place; raises an InputError if that is not possible."""
    if settings.gradient_checkpointing:
        _checkpoint(student)
    if settings.compile_student:
        _check_compiler(device)
        student.backbone.compile()


def _checkpoint(student: Student) -> None:
    backbone = student.backbone
    if not backbone.supports_gradient_checkpointing:
        raise StudentSourceError(
            f"gradient_checkpointing: a {backbone.config.model_type} does not support it; leave it "
            "out"
        )
    # The newer name of the two; transformers warns of the older one.
    newer = getattr(backbone, "activation_checkpointing_enable", None)
    (newer or backbone.gradient_checkpointing_enable)({"use_reentrant": False})


def _check_compiler(device: torch.device) -> None:
    """A model is compiled at its first step, and errors of a compiler appear only there."""
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except Exception as cause:
        reason = str(cause).strip().splitlines()[0]
        raise JobError(
            f"compile_student: torch.compile does not work here: {reason}; leave it out"
        ) from cause
