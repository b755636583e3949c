"""The folder of a distill run: the resolved job first, the metrics last.

`job.yaml` is there from the start, `metrics.json` only when the run is finished; so a folder shows
whether a run is finished, unfinished or of another job, and nothing is ever overwritten. `run.lock`
is there while a process is running; the kernel frees it when that dies.
"""

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from ..cache_schemas.errors import OutputError, StorageError
from ..cache_schemas.layout import PARTIAL_SUFFIX
from ..cache_schemas.locations import shown
from ..stages.store.files.atomic import make_folders, share, write_atomic
from ..stages.store.files.lock import give_back, take
from .messages import LOGGER
from .objective_keys import ONCE_SHARED, with_new_options

JOB = "job.yaml"
METRICS = "metrics.json"
LOG = "log.jsonl"
RUN = "run.json"
LOCK = "run.lock"
WORKING = ("checkpoints", "best")
"""Folders that a run needs only until it is finished; `stages/distill` names them."""
_DATA = (
    *("train_digest", "validation_digest", "cache_digest", "teacher_fingerprint", "feature"),
    *("read_digest", "token_cache_digest", "token_teacher_fingerprint", "token_feature", "select"),
    *("query_cache_digest", "query_teacher_fingerprint"),
)
"""Keys of `run.json` about the data."""

_MAY_DIFFER = {
    "resume",
    "device",
    "output",
    "name",
    "mirror",
    "mirror_limit",
    "report_to",
    "run_name",
    "push_to_hub",
    "gradient_checkpointing",
    "auto_batch_size",
    "measure_teacher",
}
"""Keys that change nothing of what a run leaves."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lock the folder of a run, which is created if missing, and removed again if it stays empty.
    Raises OutputError if another process holds the lock."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    make_folder(folder)
    try:
        lock = take(folder, LOCK)
    except StorageError as cause:
        LOGGER.warning(f"{cause}; the run is not protected from a second process")
        yield
        return
    if lock is None:
        raise OutputError(
            f"output {folder}: another process is running in it; wait until it ends, or choose "
            "another folder"
        )
    try:
        yield
    finally:
        give_back(lock, folder, LOCK)
        with suppress(OSError):  # there is something in them
            for each in made:
                each.rmdir()


def tidy(folder: Path) -> None:
    """Remove what a finished run, or its runs with one seed each, no longer need: a process that is
    killed has no time to."""
    for run in (folder, *folder.glob("seed-*")):
        if (run / METRICS).is_file():
            for working in WORKING:
                shutil.rmtree(run / working, ignore_errors=True)


def claim(folder: Path, job: Mapping[str, Any], resume: bool) -> None:
    """Make `folder` the output of this job; raises OutputError if it is taken."""
    check_free(folder, job, resume)
    if not (folder / JOB).exists():
        write_atomic(folder / JOB, [yaml.safe_dump(shown(job), sort_keys=False).encode()])


def check_free(folder: Path, job: Mapping[str, Any], resume: bool) -> None:
    """Raise OutputError if `folder` is taken: by a finished run, by an unfinished one unless it is
    of the same job and to be resumed, or by anything else."""
    if (folder / METRICS).exists() and not resume:
        raise OutputError(f"output {folder}: holds a finished run; choose another folder")
    if (folder / JOB).exists():
        if not resume:
            raise OutputError(
                f"output {folder}: holds an unfinished run; continue with resume=true, or choose "
                "another folder"
            )
        _check_same_job(folder, job)
    else:
        require_free(folder)


def require_free(folder: Path, but: Collection[str] = ()) -> None:
    """Raise OutputError unless `is_free`."""
    if not is_free(folder, but):
        raise OutputError(f"output {folder}: is not empty; choose another folder")


def is_free(folder: Path, but: Collection[str] = ()) -> bool:
    """Whether nothing is there, or an empty folder, or only what was being written when a process
    was killed, or its lock, or files called as in `but`."""
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    names = {file.name for file in folder.iterdir() if not file.name.endswith(PARTIAL_SUFFIX)}
    return names <= {LOCK, *but}


def make_folder(folder: Path) -> None:
    """Make a folder that may be there; raises OutputError where that cannot be."""
    try:
        make_folders(folder)
    except OSError as cause:
        raise OutputError(
            f"output {folder}: cannot be made: {cause.strerror}; choose another"
        ) from cause


def _check_same_job(folder: Path, job: Mapping[str, Any]) -> None:
    before = with_new_options(yaml.safe_load((folder / JOB).read_bytes()))
    # An earlier run's job has options that its objective never read.
    unread = ONCE_SHARED - job.keys()
    differing = [
        key
        for key in sorted((before.keys() | job.keys()) - _MAY_DIFFER - unread)
        if not _mean_the_same(key, before.get(key), job.get(key))
    ]
    if differing:
        raise OutputError(
            f"output {folder}: holds a run of another job: "
            f"{_both_sides(differing, before, job, repr)}"
        )


def _mean_the_same(key: str, before: object, now: object) -> bool:
    if key == "placement":  # but for this one, the order of examples does not depend on it
        return (before == "streamed") == (now == "streamed")
    return _without_nothing(before) == _without_nothing(now)


def _without_nothing(value: object) -> object:
    """A value without keys of None, as those of teachers that earlier releases did not have."""
    if isinstance(value, Mapping):
        return {k: _without_nothing(each) for k, each in value.items() if each is not None}
    return [_without_nothing(each) for each in value] if isinstance(value, list) else value


def check_same_data(folder: Path, provenance: Mapping[str, Any]) -> None:
    """Raise OutputError if an unfinished run in `folder` began on other data than it would continue
    with: each difference is named, with both values."""
    file = folder / RUN
    before = _of_data(json.loads(file.read_bytes())) if file.is_file() else {}
    now = _of_data(provenance)
    differing = [key for key in before if before[key] != now.get(key)]
    if differing:
        raise OutputError(
            f"output {folder}: holds an unfinished run on other data: "
            f"{_both_sides(differing, before, now, str)}; restore the data it began with, or "
            "choose another folder"
        )


def _of_data(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a run's provenance about its data; of several teachers, with the name of each."""
    data = {key: provenance[key] for key in _DATA if key in provenance}
    for name, teacher in provenance.get("teachers", {}).items():
        data |= {f"{name} {key}": teacher[key] for key in _DATA if key in teacher}
    return data


def _both_sides(
    keys: list[str],
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    shown: Callable[[object], str],
) -> str:
    return "; ".join(
        f"{key}: was {shown(before.get(key))}, now {shown(now.get(key))}" for key in keys
    )


def write_json(file: Path, document: Any) -> None:
    """Write a JSON document in one step."""
    write_atomic(file, [(json.dumps(shown(document), indent=2) + "\n").encode()])


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """The figures of a finished run, None if it is not."""
    file = folder / METRICS
    return dict(json.loads(file.read_bytes())) if file.is_file() else None


def spread(numbers: list[float]) -> dict[str, Any]:
    """Mean, standard deviation (of a sample) and the single figures of runs with other seeds."""
    return {
        "mean": mean(numbers),
        "std": stdev(numbers) if len(numbers) > 1 else 0.0,
        "runs": numbers,
    }


def append_log(folder: Path, row: Mapping[str, Any]) -> None:
    """Add a row to the log of the run."""
    with (folder / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    share(folder / LOG, folder)


def trim_log(folder: Path, steps: int) -> None:
    """Drop the rows after a step: a resumed run takes these steps again."""
    log = folder / LOG
    if log.is_file():
        rows = log.read_bytes().splitlines(keepends=True)
        # The last row of a killed run may be truncated.
        whole = [row for row in rows if row.endswith(b"\n")]
        write_atomic(log, [row for row in whole if json.loads(row)["step"] <= steps])
