"""What can be refused of a language job from its keys alone."""

from ...cache_schemas.errors import JobError
from ...stages.distill.objectives.armada import ArmadaOptions
from ..distill_job import DistillJob
from .keys import LanguageKeys

_TEMPERATURE = ArmadaOptions.model_fields["temperature"].default
OBJECTIVES = ("armada", "tokens", "undistilled")


def check_language_job(job: DistillJob) -> None:
    """Raises JobError for keys that contradict each other."""
    if job.teachers is not None or job.objectives is not None:
        raise JobError(
            "task language: has one objective and its teacher; say objective, cache and teacher, "
            "not teachers and objectives"
        )
    if job.objective not in OBJECTIVES:
        raise JobError(
            f"objective {job.objective!r}: a language model learns by {', '.join(OBJECTIVES)}"
        )
    if job.objective == "tokens" and job.parsed_control.name not in ("none", "undistilled"):
        raise JobError(
            f"control {job.control}: is of features, and objective tokens reads none; use "
            "control=undistilled, or objective armada"
        )
    if job.objective == "tokens" and job.beside_a_feature:
        raise JobError(
            "token_cache, token_teacher, token_feature: are for a teacher beside that of a feature "
            "(objective=armada); with objective tokens, say cache, teacher and feature"
        )
    if job.responses == "generated" and job.objective != "tokens":
        raise JobError("responses generated: is for objective tokens")
    if job.options.get("temperature", _TEMPERATURE) != _TEMPERATURE and job.label_column is None:
        raise JobError(
            f"job key 'temperature': {job.options['temperature']}: is of outputs for classes; "
            "words are softened by token_temperature"
        )
    _check_cross_tokenizer(job)


def _check_cross_tokenizer(job: DistillJob) -> None:
    if job.cross_tokenizer and job.responses == "generated":
        raise JobError(
            "responses generated: are words of the teacher's tokenizer; use a student that has it"
        )
    if job.cross_tokenizer and job.divergence != "forward_kl":
        raise JobError(
            f"divergence {job.divergence}: cross_tokenizer compares sorted probabilities, by the "
            "sum of their differences; leave divergence out"
        )
    if job.cross_tokenizer and job.token_temperature != 1:
        raise JobError(
            f"token_temperature {job.token_temperature:g}: probabilities of two tokenizers are "
            "compared at temperature 1; leave it out"
        )
    if job.cross_tokenizer and job.tail != "bucket":
        raise JobError("tail renormalised: cross_tokenizer compares tails as well; leave it out")


def check_other_job(job: DistillJob) -> None:
    """Raises JobError for keys of language models in a job of any other task: nobody reads them."""
    if "tokens" in (keys.name for keys in job.all_objectives):
        raise JobError("objective tokens: is for language models; say task=language")
    if job.lora_rank is not None:
        raise JobError("job key 'lora_rank': is for language models; say task=language")
    for key, field in LanguageKeys.model_fields.items():
        if getattr(job, key) != field.default:
            raise JobError(f"job key {key!r}: is for language models; say task=language")
