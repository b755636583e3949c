"""Checks of a language job's keys."""

from ...cache_schemas.errors import JobError
from ..distill_job import DistillJob
from .keys import LanguageKeys


def check_language_job(job: DistillJob) -> None:
    """Raises JobError for keys that contradict each other."""
    if job.responses == "generated":
        _check_generated(job)


def _check_generated(job: DistillJob) -> None:
    if job.objective_name != "tokens":
        raise JobError("responses=generated: is only for objective tokens")
    (keys,) = job.all_objectives
    if keys.options.get("cross_tokenizer"):
        raise JobError(
            "responses=generated: needs the teacher's tokenizer; use a student that has it"
        )


def check_other_job(job: DistillJob) -> None:
    """Raises JobError for keys of language models in a job of any other task: nobody reads them."""
    for key, field in LanguageKeys.model_fields.items():
        if getattr(job, key) != field.default:
            raise JobError(f"job key {key!r}: is for language models; set task=language")
