"""Which keys of a job its student depends on: two jobs that agree in these train the same one.

What a student's objective never reads is left out (an undistilled student has no alpha), and so is
what says only where and how a run is made. Data are named by their files here; runs that are made
know their digests.
"""

from collections.abc import Iterator
from typing import Any

from ..stages.distill.token_loss.settings import TokenLossSettings
from .distill_job import DistillJob
from .objective_keys import CacheKeys

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
        *("teachers", "objectives"),
        *("objective", "control", "schedule", "aligner_batch_size", "aligner_learning_rate"),
        *TokenLossSettings.model_fields,
        *("token_temperature", "tail", "responses", "cross_tokenizer"),
        *("token_cache", "token_teacher", "token_feature"),
    }
)
"""What a student without a teacher has no use for, beside options of the objective."""


def student_settings(job: DistillJob) -> dict[str, Any]:
    """Those keys with their values, as plain data; nested ones as `objectives.1.weight`."""
    unread = set(_MEANS_NOTHING)
    if not job.distilled:
        unread |= _TEACHERS_SIDE | job.options.keys()
    document = job.model_dump(mode="json", exclude=unread - job.options.keys())
    settings = {
        key: value
        for name, nested in document.items()
        if name not in unread
        for key, value in _flattened(name, nested)
        if key.rpartition(".")[2] not in _MEANS_NOTHING or "." not in key
    }
    # But for this one, the order of examples does not depend on it.
    settings["placement"] = "streamed" if job.placement == "streamed" else "auto"
    return settings


def _flattened(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if name.partition(".")[0] not in ("teachers", "objectives"):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _flattened(f"{name}.{key}", inner)
    elif isinstance(value, list) and name == "objectives":
        for place, inner in enumerate(value):
            yield from _flattened(f"{name}.{place}", inner)
    else:
        yield name, value
