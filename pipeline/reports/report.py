"""`report`: finished runs become one page that needs nothing else, and its pictures as files.

RUN... -> findings (numbers) -> figures, looks (pictures) -> page.html -> OUT
                                                                  OUT's name-pictures/*.png
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from ...cache_schemas.errors import ArmadaError, OutputError
from ...stages.store.files.atomic import write_atomic
from ..findings.findings import Study, find
from ..findings.runs import find_runs
from ..findings.significance import FACTORS
from ..jobs import Job
from ..show import counted, warn
from .figures import Picture, by_epoch, comparison, losses, weights
from .looks import Looks, look
from .manifolds import Method, manifolds, reliability
from .page import MARK, Section, render
from .pictures import Gallery, teacher_images


class ReportJob(Job):
    """Keys of a report."""

    runs: tuple[Path, ...] = Field(
        min_length=1, description="folders of finished runs, or folders around such"
    )
    out: Path = Field(default=Path("report.html"), description="file of the page")
    title: str = Field(default="Distillation report", description="heading of the page")
    colour_by: str | None = Field(
        default=None,
        description="column of the training corpus to colour texts by; default the labels",
    )
    manifold: Method = Field(
        default="pca", description="how points become two numbers: pca or tsne"
    )
    texts: int = Field(default=500, ge=10, description="texts that students are looked at with")
    students: bool = Field(
        default=True, description="false: load no students; no manifolds, agreement, calibration"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="for the students")
    force: bool = Field(default=False, description="replace a page that is not a report")

    @field_validator("runs", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path) else value


def run_report(job: ReportJob, quiet: bool = False, gallery: Gallery | None = None) -> list[Path]:
    """Write the page and its pictures; returns their files, the page first. A `gallery` takes the
    place of the images that a teacher made.

    Raises InputError for a folder that holds no finished run, OutputError rather than replace what
    somebody wrote or write where that is not allowed."""
    found = find_runs(job.runs)
    _check_out(job)
    if found.unfinished and not quiet:
        warn(
            f"{counted(len(found.unfinished), 'run')} not finished and left out, first "
            f"{found.unfinished[0]}"
        )
    findings = find(found.runs)
    if findings.repeats and not quiet:
        warn(
            f"{counted(len(findings.repeats), 'run')} with settings and seed of another one left "
            f"out, first {findings.repeats[0].folder}"
        )
    sections = [_section(job, study, quiet) for study in findings.studies]
    page = render(job.title, findings, sections, found, gallery or teacher_images(found.runs))
    return _write(job.out, page, sections)


def _check_out(job: ReportJob) -> None:
    if job.out.is_dir():
        raise OutputError(f"out {job.out}: is a folder; name a file, such as report.html")
    if job.out.exists() and not job.force and MARK not in job.out.read_text("utf-8", "replace"):
        raise OutputError(f"out {job.out}: somebody wrote it; name another file, or --force")
    try:
        job.out.parent.mkdir(parents=True, exist_ok=True)
        with (job.out.parent / f".{job.out.name}.tmp").open("wb"):
            pass
        (job.out.parent / f".{job.out.name}.tmp").unlink()
    except OSError as cause:
        raise OutputError(f"out {job.out}: cannot be written: {cause.strerror}") from cause


def _section(job: ReportJob, study: Study, quiet: bool) -> Section:
    looks, note = None, None
    if job.students:
        try:
            looks = look(study, job.colour_by, job.texts, job.device)
        except (ArmadaError, OSError) as error:
            note = f"Students were not looked at: {error}"
            if not quiet:
                warn(note)
    return Section(study, tuple(_pictures(job, study, looks)), looks, note)


def _pictures(job: ReportJob, study: Study, looks: Looks | None) -> Iterator[Picture]:
    distilled = study.distilled.condition if study.distilled else study.conditions[0]
    drawn = [
        comparison(study) if any(each.values for each in study.conditions) else None,
        by_epoch(study),
        *(weights(study, factor) for factor in FACTORS),
        losses(distilled),
    ]
    yield from (picture for picture in drawn if picture is not None)
    if looks is not None:
        yield from manifolds(looks, job.manifold)
        picture = reliability(looks)
        if picture is not None:
            yield picture


def _write(out: Path, page: str, sections: list[Section]) -> list[Path]:
    files = {out: page.encode()}
    folder = out.with_name(f"{out.stem}-pictures")
    for number, section in enumerate(sections, 1):
        for picture in section.pictures:
            prefix = f"{number}-" if len(sections) > 1 else ""
            files[folder / f"{prefix}{picture.name}.png"] = picture.png
    folder.mkdir(exist_ok=True)
    for file, content in files.items():
        write_atomic(file, [content])
    return list(files)
