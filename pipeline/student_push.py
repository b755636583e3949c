"""A trained student goes to a model repository on the Hub: all of its folder in one commit.

What can be wrong with the name and the token is found before training. A student that does not
arrive is in its folder all the same, and the error says how to send it from there.
"""

from pathlib import Path

from ..cache_schemas.errors import ArmadaError, JobError, StorageError
from ..stages.store.transfer.hub_place import HubPlace
from .distill_job import DistillJob
from .messages import LOGGER

_THREADS = 4


def check_student_push(job: DistillJob) -> None:
    """Raise InputError if a job's `push_to_hub` names no repository, or there is no token."""
    if job.push_to_hub is None:
        return
    if len(job.seeds) > 1:
        raise JobError(
            f"job key 'push_to_hub': the students of {len(job.seeds)} seeds cannot be one "
            "repository; name one seed, or send the best with `hf upload`"
        )
    _repository(job.push_to_hub).require_writable()


def push_student(job: DistillJob) -> None:
    """Send the student of a finished run to where `push_to_hub` says, if it says anything.

    Raises StorageError if it does not arrive; the run's folder stays as it is."""
    if job.push_to_hub is None:
        return
    folder = job.output / "student"
    try:
        place = _repository(job.push_to_hub)
        if place.is_new():
            place.create(public=False)
            LOGGER.info("%s: made a private model repository", place.shown)
        place.commit(_files(folder), "A student trained with armada", _THREADS)
    except ArmadaError as cause:
        raise StorageError(
            f"student {folder}: is trained and written, but not on the Hub: {cause}; send it with "
            f"`hf upload {job.push_to_hub} {folder} --private`, or by the same command with "
            "--resume"
        ) from cause
    LOGGER.info("the student is at %s", place.shown)


def _repository(name: str) -> HubPlace:
    return HubPlace(f"hf://{name}")


def _files(folder: Path) -> dict[str, Path | bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in paths}
