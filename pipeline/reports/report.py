"""`report`: finished runs become one page that needs nothing else, and its pictures as files.

RUN... -> findings (numbers) -> figures, looks (pictures) -> page.html -> OUT
                                                                  OUT's name-pictures/*.png
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from ...cache_schemas.errors import ArmadaError, OutputError, shown_url
from ...cache_schemas.extras import require_extra
from ...stages.store.files.atomic import make_folders, write_atomic
from ..findings.findings import Findings, Study, find
from ..findings.runs import FACTORS, Found, find_runs
from ..jobs import Job
from ..messages import counted, warn
from .figures import Method, Picture, by_epoch, comparison, losses, manifolds, reliability, weights
from .gallery import Gallery, teacher_images
from .looks import Looks, UnknownColumn, look
from .page import MARK, Section, render

_HEAD_BYTES = 4096
"""Bytes at the start of a page that hold its generator mark."""


class ReportJob(Job):
    """Keys of a report."""

    runs: tuple[Path, ...] = Field(
        min_length=1, description="folders of finished runs, or folders around such"
    )
    out: Path = Field(default=Path("report.html"), description="file of the page")
    title: str = Field(default="Distillation report", description="heading of the page")
    colour_by: str | None = Field(
        default=None,
        description="column of the training corpus to colour texts by; default: the labels",
    )
    manifold: Method = Field(default="pca", description="projection to two dimensions: pca or tsne")
    texts: int = Field(default=500, ge=10, description="number of texts in plots of students")
    students: bool = Field(
        default=True,
        description="false: do not load students; skips manifolds, agreement and calibration",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="device for the students"
    )
    cache: Path | None = Field(
        default=None,
        description="folder of a cache to read instead of the one that runs name; caches at a URL "
        "are not opened",
    )
    force: bool = Field(default=False, description="replace a page that is not a report")

    @field_validator("runs", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path) else value


def run_report(job: ReportJob, quiet: bool = False, gallery: Gallery | None = None) -> list[Path]:
    """Write the page and its pictures; returns their files, the page first. A `gallery` replaces
    the images that a teacher made.

    Raises InputError for a folder that holds no finished run, OutputError rather than replace a
    file that armada did not write or write where that is not allowed."""
    require_extra("armada report", "report", "matplotlib", "statsmodels", "PIL")
    found = find_runs(job.runs)
    again = _check_out(job)
    findings = find(found.runs, job.cache)
    left_out = tuple(_left_out(found, findings))
    if not quiet:
        for line in left_out:
            warn(line)
    sections = [_section(job, study, quiet) for study in findings.studies]
    shown = gallery or teacher_images(found.runs, job.cache)
    page = render(shown_url(job.title), findings, sections, found, shown, left_out)
    return _write(job.out, page, sections, again)


def _left_out(found: Found, findings: Findings) -> Iterator[str]:
    """Runs below the paths that are not on the page, one line per reason."""
    if found.unfinished:
        first = found.unfinished[0]
        yield f"{counted(len(found.unfinished), 'run')} not finished and left out, first {first}"
    if found.unreadable:
        yield f"{counted(len(found.unreadable), 'run')} left out, first {found.unreadable[0]}"
    if findings.repeats:
        yield (
            f"{counted(len(findings.repeats), 'run')} with the settings and seed of another run "
            f"left out, first {findings.repeats[0].folder}"
        )


def _check_out(job: ReportJob) -> bool:
    """Whether there is a report already; raises OutputError for a file that must not be
    replaced."""
    if job.out.is_dir():
        raise OutputError(f"out {job.out}: is a folder; name a file, such as report.html")
    again = job.out.exists() and _is_report(job.out)
    if job.out.exists() and not (again or job.force):
        raise OutputError(
            f"out {job.out}: was not written by armada; name another file, or --force"
        )
    try:
        make_folders(job.out.parent)
        with tempfile.TemporaryFile(dir=job.out.parent):
            return again
    except OSError as cause:
        raise OutputError(
            f"out {job.out}: cannot be written: {cause.strerror}; name another file"
        ) from cause


def _is_report(file: Path) -> bool:
    with file.open("rb") as opened:
        return MARK.encode() in opened.read(_HEAD_BYTES)


def _section(job: ReportJob, study: Study, quiet: bool) -> Section:
    looks, notes = None, []
    if job.students:
        try:
            looks = look(study, job.colour_by, job.texts, job.device, job.cache)
            notes = [f"Not plotted: {each}" for each in looks.missing] if looks else []
        except UnknownColumn:
            raise
        except (ArmadaError, OSError) as error:
            notes = [f"Students were not plotted: {error}"]
    if not quiet:
        for note in notes:
            warn(note)
    return Section(study, tuple(_pictures(job, study, looks)), looks, tuple(notes))


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


def _write(out: Path, page: str, sections: list[Section], again: bool) -> list[Path]:
    files = {out: page.encode()}
    folder = out.with_name(f"{out.stem}-pictures")
    for number, section in enumerate(sections, 1):
        for picture in section.pictures:
            prefix = f"{number}-" if len(sections) > 1 else ""
            files[folder / f"{prefix}{picture.name}.png"] = picture.png
    make_folders(folder)
    for file, content in files.items():
        write_atomic(file, [content])
    if again:  # of the page that was here before
        for stale in set(folder.glob("*.png")) - files.keys():
            stale.unlink()
    return list(files)
