"""`report`: finished runs become one page that needs nothing else, and its pictures as files.

RUN... -> findings (numbers) -> figures, looks (pictures) -> page.html -> OUT
                                                                  OUT's name-pictures/*.png
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ...cache_schemas.errors import OutputError
from ...cache_schemas.extras import require_extra
from ...stages.store.files.atomic import make_folders, write_atomic
from ..findings.measures import names_of, require_measures
from ..findings.runs import find_runs
from .job import MARK, ReportJob

if TYPE_CHECKING:
    from .gallery import Gallery
    from .page import Section

_HEAD_BYTES = 4096
"""Bytes at the start of a page that hold its generator mark."""


def run_report(job: ReportJob, quiet: bool = False, gallery: "Gallery | None" = None) -> list[Path]:
    """Write the page and its pictures; returns their files, the page first. A `gallery` replaces
    the images that a teacher made.

    Raises InputError for a folder that holds no finished run, OutputError rather than replace a
    file that armada did not write or write where that is not allowed."""
    require_extra("armada report", "report", "matplotlib", "statsmodels", "PIL")
    found = find_runs(job.runs)
    require_measures(job.measures, (name for run in found.runs for name in names_of(run)))
    again = _check_out(job)
    from .sections import make_page

    page, sections = make_page(job, found, quiet, gallery)
    return _write(job.out, page, sections, again)


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


def _write(out: Path, page: str, sections: "list[Section]", again: bool) -> list[Path]:
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
