"""`evaluate` of a student that embeds on tasks of MTEB, by the package `mteb` (Muennighoff et al.,
arXiv 2210.07316): its folder is opened by sentence-transformers, and each task has its main score.

Queries and passages are read behind the student's prompts. Texts that are neither, as those of STS
or of a classification, have the student's only prompt, or that of `prompt_name`. Tasks load their
data from the hub; nothing is kept in mteb's own folder of results.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...cache_schemas.errors import JobError, RunError
from ...cache_schemas.extras import require_extra
from ...stages.distill.export import student_folder, tower_folders
from ...stages.distill.saved_student import load_embedder
from ...stages.embeddings.folders import MODULES
from ...stages.embeddings.prompts import PromptName, Prompts
from ...stages.pretrained import quiet_transformers
from ..environment import choose_device
from ..student_jobs import EvaluateJob

_TEXT = "text"


def evaluate_mteb(job: EvaluateJob, folder: Path) -> dict[str, Any]:
    """The main score of each task, under `metrics`, and what it is, under `tasks`. Raises JobError
    for an unknown task, and one that is not about texts; RunError for data that cannot be
    loaded."""
    require_extra("evaluate with mteb", "mteb", "mteb")
    towers = tower_folders(folder)
    student = load_embedder(towers[0])
    if student is None:
        raise JobError(f"mteb: student {folder} predicts labels and has no embeddings")
    student.require_one_vector("mteb")
    if not (student_folder(folder) / MODULES).is_file():
        raise JobError(
            f"mteb: student {folder}: holds no {MODULES}, so that sentence-transformers would pool "
            "its texts otherwise; train it with pooling=mean, cls or last"
        )
    tasks = _tasks(job.mteb or ())
    if len(towers) > 1 and (others := _of_neither(tasks)):
        raise JobError(
            f"mteb {others[0]!r}: its texts are neither queries nor passages, and student {folder} "
            f"has a tower for each; name one, {towers[0]} or {towers[1]}, or leave the task out"
        )
    model = _model(job, folder, _prompt_name(job, folder, student.card.embedding, tasks))
    metrics, told = dict[str, float](), dict[str, Any]()
    for task in tasks:
        found = _result(model, task, job)
        name = task.metadata.name
        metrics[name] = float(found.get_score())
        told[name] = {
            "main_score": task.metadata.main_score,
            "type": task.metadata.type,
            "splits": list(found.scores),
            "dataset_revision": found.dataset_revision,
            "mteb_version": found.mteb_version,
        }
    return {
        "examples": len(tasks),
        "truncated_examples": 0,
        "skipped_rows": [],
        "metrics": metrics,
        "tasks": told,
    }


def _tasks(names: Sequence[str]) -> list[Any]:
    with _quietly():
        import mteb

        found = []
        for name in names:
            try:
                found.append(mteb.get_task(name))
            except KeyError as error:
                told = str(error.args[0]).removeprefix("KeyError: ")
                raise JobError(f"mteb {name!r}: is no task of mteb: {told}") from error
    for task in found:
        others = sorted({*task.modalities} - {_TEXT})
        if others:
            raise JobError(
                f"mteb {task.metadata.name!r}: is about {', '.join(others)}, and the student reads "
                "texts; choose another task"
            )
    return found


def _of_neither(tasks: Sequence[Any]) -> list[str]:
    """The tasks with texts that are neither queries nor passages."""
    from mteb.abstasks import AbsTaskRetrieval

    return [task.metadata.name for task in tasks if not isinstance(task, AbsTaskRetrieval)]


def _prompt_name(
    job: EvaluateJob, folder: Path, prompts: Prompts | None, tasks: Sequence[Any]
) -> PromptName | None:
    """The prompt of texts that are neither queries nor passages; None: none. Raises JobError where
    there are such texts and two prompts, and the job names neither."""
    if prompts is None or not (_of_neither(tasks) or job.prompt_name):
        return None
    prompt = prompts.chosen(job.prompt_name, str(folder))
    return (job.prompt_name or "query") if prompt else None


def _model(job: EvaluateJob, folder: Path, prompt_name: PromptName | None) -> Any:
    """The folder, as mteb runs it."""
    with _quietly(), quiet_transformers():
        from mteb.models import SentenceTransformerEncoderWrapper

        device = str(choose_device(job.device))
        opened = SentenceTransformerEncoderWrapper(str(student_folder(folder)), device=device)
        opened.model.default_prompt_name = prompt_name
    return opened


def _result(model: Any, task: Any, job: EvaluateJob) -> Any:
    with _quietly():
        import mteb

        try:
            found = mteb.evaluate(
                model,
                task,
                cache=None,
                co2_tracker=False,
                encode_kwargs={"batch_size": job.batch_size, "show_progress_bar": False},
                show_progress_bar=False,
            )
        except OSError as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RunError(
                f"mteb {task.metadata.name!r}: its data cannot be loaded: {reason}"
            ) from error
    return found.task_results[0]


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the package says of its own deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
