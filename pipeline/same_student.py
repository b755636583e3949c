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
from .language.keys import LanguageKeys

_MEANS_NOTHING = frozenset(
    {
        *("output", "name", "seed", "resume", "device", "mirror", "mirror_limit"),
        *("verify_cache", "expect_digest", "logging_steps", "save_steps"),
        *("compile_student", "gradient_checkpointing", "shard_student"),
    }
)
_TEACHERS_SIDE = frozenset(
    {
        *CacheKeys.model_fields,
        *("objective", "control", "schedule", "aligner_batch_size", "aligner_learning_rate"),
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
    unread |= _language_keys_unread(job)
    settings = job.model_dump(mode="json", exclude=unread)
    # But for this one, the order of examples does not depend on it.
    settings["placement"] = "streamed" if job.placement == "streamed" else "auto"
    return settings


def _language_keys_unread(job: DistillJob) -> set[str]:
    """Of students that are no language models, all of their keys; of those without a teacher of
    words, what says how these are compared."""
    if job.task != "language":
        return set(LanguageKeys.model_fields)
    heads = set() if job.label_column is not None else {"gamma", "temperature"}
    if job.distilled and (job.objective == "tokens" or job.beside_a_feature):
        return heads
    return (
        heads
        | {"alpha", "token_temperature", "tail", "cross_tokenizer", "responses"}
        | {
            *TokenLossSettings.model_fields,
            *("token_cache", "token_teacher", "token_feature"),
        }
    )


def _settings_read(job: DistillJob) -> frozenset[str] | None:
    """By the objective, and by the student's head; None of an objective that is not installed."""
    try:
        words = {"alpha"} if job.task == "language" else set()
        return objective_class(job).settings_read | {"dropout"} | words
    except JobError:
        return None
