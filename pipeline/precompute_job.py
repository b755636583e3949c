"""The keys of a `precompute` job, and the teacher it names."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ..cache_schemas.errors import JobError
from ..cache_schemas.locations import Source, expand_home
from ..cache_schemas.manifest import RowsPerShard
from ..stages.corpus.reading import prompt_columns
from ..stages.language.prompt_templates import by_number
from ..stages.precompute.teachers import TEACHERS
from .budget_keys import BudgetKeys
from .environment import choose_device
from .jobs import Corpora, LocalFolder, Names, TextFormatKeys, make, unknown_key

if TYPE_CHECKING:
    import torch

    from ..stages.precompute.teachers.base import Teacher
    from ..stages.precompute.teachers.options import TeacherOptions


class PrecomputeJob(BudgetKeys, TextFormatKeys):
    """Computation. Other keys are options of the teacher."""

    corpus: Corpora = Field(min_length=1, description="files or folders of texts")
    text_column: Names = Field(
        min_length=1,
        description="columns of the text segments, in order; a name ending in ? may be blank",
    )
    teacher: str = Field(description="KIND:SOURCE, for example open_clip:FOLDER or hash:16")
    cache: LocalFolder = Field(description="folder of the cache; made if it is not there")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the teacher")
    id_column: str | Literal[False] | None = Field(
        default=None, description="column of unique ids; default `id` if there is one; false: none"
    )
    limit: int | None = Field(default=None, ge=1, description="maximum rows to read from each file")
    skip_bad_rows: bool = Field(default=False, description="skip invalid rows and list them")
    corpus_licence: str = Field(default="", description="licence recorded in the manifest")
    part: str | None = Field(
        default=None, description="I/N: only the I-th of N parts of the texts, for job arrays"
    )
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        default=None,
        description="number of worker processes on this machine; auto is one for each GPU",
    )
    dask: Source | None = Field(
        default=None,
        description="tcp://HOST:PORT or scheduler file of a Dask cluster to compute on",
    )
    takeover_seconds: float = Field(
        default=60.0,
        ge=1,
        description="seconds without heartbeat after which a writer on another host counts as dead",
    )
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        default=None,
        description="texts per batch; default as many as have 8,192 padded tokens, or what suits "
        "the teacher; auto doubles that as long as more texts a second come out; halved for texts "
        "of that length where memory runs out",
    )
    rows_per_shard: RowsPerShard | None = Field(
        default=None, description="maximum rows of a shard, which a kill can lose; a multiple of 64"
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps, xpu")
    add_teacher: bool = Field(
        default=False, description="allow the same model under other settings in the cache"
    )

    add_features: bool = Field(
        default=False,
        description="add features to the cached teacher, if nothing but its features differs",
    )

    @field_validator("part")
    @classmethod
    def _is_one_of_some(cls, value: str | None) -> str | None:
        if value is not None:
            part_of(value)
        return value

    @model_validator(mode="after")
    def _has_one_cluster(self) -> "PrecomputeJob":
        if self.workers is not None and self.dask is not None:
            raise ValueError("job keys 'workers' and 'dask': name only one")
        return self

    @field_validator("teacher")
    @classmethod
    def _has_kind_and_source(cls, value: str) -> str:
        if re.match(r"\w[\w+.-]*://", value):
            raise ValueError(
                "is a URL, not KIND:SOURCE, such as encoder:FOLDER or encoder:org/name"
            )
        if not all(value.partition(":")):
            hint = f"; did you mean encoder:{value}?" if "/" in value.strip("/") else ""
            raise ValueError(f"is not KIND:SOURCE{hint}")
        kind, _, source = value.partition(":")
        return f"{kind}:{expand_home(source)}"


def part_of(text: str) -> tuple[int, int]:
    """(I, N) of 'I/N'; raises ValueError unless I is from 1 to N."""
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return int(number), int(count)
    raise ValueError("is not I/N with I from 1 to N; for example 3/8")


def make_precompute_job(keys: Mapping[str, Any]) -> PrecomputeJob:
    """A job of flat keys; a key that is no job key is an option of the job's teacher.

    Raises JobError for what is neither, for a wrong value, and for an unknown kind of teacher."""
    known = PrecomputeJob.model_fields
    job_keys = {key: value for key, value in keys.items() if key in known}
    extra = {key: value for key, value in keys.items() if key not in known}
    options = job_keys.get("options") or {}
    # What is no mapping is left for the job to refuse.
    job_keys["options"] = {**options, **extra} if isinstance(options, Mapping) else options
    job = _with_numbers(make(PrecomputeJob, job_keys))
    options = parse_options(job)
    if options.is_divided:
        _refuse_other_processes(job)
    renamed = options.renamed
    present = {renamed.get(name, name): value for name, value in job.options.items()}
    return job.model_copy(update={"options": present})


def _with_numbers(job: PrecomputeJob) -> PrecomputeJob:
    """The job with numbers in its templates, where they name columns."""
    options, kept = teacher_options(job.teacher), placeholders(job)
    columns = prompt_columns(job.text_column)
    numbered = {
        name: by_number(template, columns, kept)
        for name in options.templates & job.options.keys()
        if isinstance(template := job.options[name], str)
    }
    return job.model_copy(update={"options": {**job.options, **numbered}})


def placeholders(job: PrecomputeJob) -> list[str]:
    """Names in the job's templates that are no columns."""
    named = teacher_options(job.teacher).placeholders
    return [name for option, name in named.items() if job.options.get(option)]


def _refuse_other_processes(job: PrecomputeJob) -> None:
    for key in ("workers", "dask", "part"):
        if getattr(job, key) is not None:
            raise JobError(
                f"job key {key!r} and option 'tensor_parallel': name only one; the processes of "
                "torchrun compute each batch together"
            )
    if ":" in job.device:
        raise JobError(
            f"job key 'device': {job.device!r} is one device, and with tensor_parallel each "
            "process has its own; leave it out"
        )


def teacher_options(teacher: str) -> "type[TeacherOptions]":
    """The options of a kind of teacher; `teacher` is KIND or KIND:SOURCE. Raises JobError for an
    unknown kind, and for a plug-in that a job could not give its options to."""
    kind = teacher.partition(":")[0]
    options: type[TeacherOptions] = TEACHERS.options(kind)
    taken = sorted(options.model_fields.keys() & PrecomputeJob.model_fields.keys())
    if taken:
        raise JobError(
            f"teacher {kind}: its options {', '.join(taken)} clash with job keys; rename them in "
            f"{options.__module__}"
        )
    return options


def parse_options(job: PrecomputeJob) -> "TeacherOptions":
    """The options of the job's teacher; raises JobError for unknown ones and wrong values."""
    kind, options = job.teacher.partition(":")[0], teacher_options(job.teacher)
    for key in job.options:
        if key not in options.model_fields and key not in options.renamed:
            known = [*options.model_fields, *PrecomputeJob.model_fields]
            raise JobError(unknown_key(f"teacher {kind}", key, known))
    return make(options, job.options, f"teacher {kind}")


def make_teacher(job: PrecomputeJob, device: "torch.device | None" = None) -> "Teacher":
    """The job's teacher, not loaded yet; raises JobError or TeacherSourceError.

    `device`: its device, if not that of the job."""
    kind, _, source = job.teacher.partition(":")
    options = parse_options(job)
    teacher_class: type[Teacher] = TEACHERS.load(kind)
    return teacher_class(source, options, device or choose_device(job.device))
