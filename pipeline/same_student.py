"""Which keys of a job its student depends on: two jobs that agree in these train the same one.

What a student's objective never reads is left out (an undistilled student has no alpha), and so is
what says only where and how a run is made. Data are named by their files here; runs that are made
know their digests.
"""

from typing import Any

from ..cache_schemas.errors import JobError
from ..stages.distill.objectives.base import ObjectiveSettings
from ..stages.distill.token_loss.settings import TokenLossSettings
from .distill import objective_class
from .distill_job import CacheKeys, DistillJob

_MEANS_NOTHING = frozenset(
    {
        *("output", "name", "seed", "resume", "device", "mirror", "mirror_limit"),
        *("verify_cache", "expect_digest", "logging_steps", "save_steps"),
        *("report_to", "run_name", "push_to_hub"),
        *("compile_student", "gradient_checkpointing", "shard_student"),
    }
)
_TEACHERS_SIDE = frozenset(
    {
        *CacheKeys.model_fields,
        *("objective", "control", "schedule", "aligner_batch_size", "aligner_learning_rate"),
        *TokenLossSettings.model_fields,
        *("token_temperature", "tail", "responses", "cross_tokenizer"),
        *("token_cache", "token_teacher", "token_feature"),
    }
)
"""What a student without a teacher has no use for, beside settings of the objective."""


def student_settings(job: DistillJob) -> dict[str, Any]:
    """Those keys with their values, as plain data."""
    unread = set(_MEANS_NOTHING)
    if reads := _settings_read(job):
        unread |= ObjectiveSettings.model_fields.keys() - reads
    if not job.distilled:
        unread |= _TEACHERS_SIDE
    settings = job.model_dump(mode="json", exclude=unread)
    # But for this one, the order of examples does not depend on it.
    settings["placement"] = "streamed" if job.placement == "streamed" else "auto"
    return settings


def _settings_read(job: DistillJob) -> frozenset[str] | None:
    """By the objective, and by the student's head; None of an objective that is not installed."""
    try:
        reads = objective_class(job).settings_read | {"dropout"}
    except JobError:
        return None
    # Words are not an objective's affair: the weight of a teacher of words stands beside it.
    learns_words = job.task == "language" and job.objective == "tokens" and job.distilled
    return reads | {"alpha"} if learns_words else reads
