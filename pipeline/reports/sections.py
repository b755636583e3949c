"""The page of a report and the pictures on it: a section for each study of the runs.

Loads students, and so what they need; what can be refused before is refused in `report.py`.
"""

from collections.abc import Callable, Iterator

from ...cache_schemas.errors import ArmadaError, shown_url
from ..findings.findings import Findings, Study, find
from ..findings.runs import FACTORS, Found
from ..messages import counted, warn
from .drawing import Picture
from .embedding_looks import look_at_embeddings
from .epochs import by_epoch, teacher_and_truth
from .figures import comparison, losses, manifolds, reliability, weights
from .gallery import Gallery, teacher_images
from .job import ReportJob
from .looks import Looks, UnknownColumn, look
from .page import Section, render
from .tradeoff import Costs, measure_costs, quality_by_cost


def make_page(
    job: ReportJob, found: Found, quiet: bool, gallery: Gallery | None
) -> tuple[str, list[Section]]:
    """The page about the runs that were found, and its sections with their pictures."""
    findings = find(found.runs, job.cache, measures=job.measures)
    left_out = tuple(_left_out(found, findings))
    if not quiet:
        for line in left_out:
            warn(line)
    sections = [_section(job, study, quiet) for study in findings.studies]
    shown = gallery or teacher_images(found.runs, job.cache)
    return render(shown_url(job.title), findings, sections, found, shown, left_out), sections


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


def _section(job: ReportJob, study: Study, quiet: bool) -> Section:
    looks, costs, notes = None, None, []
    if job.students:
        try:
            looks = _look(study)(study, job.colour_by, job.texts, job.device, job.cache)
            costs = measure_costs(study, looks, job.device) if looks else None
            notes = [f"Not plotted: {each}" for each in looks.missing] if looks else []
        except UnknownColumn:
            raise
        except (ArmadaError, OSError) as error:
            notes = [f"Students were not plotted: {error}"]
    if not quiet:
        for note in notes:
            warn(note)
    pictures = tuple(_pictures(job, study, looks, costs))
    return Section(study, pictures, looks, tuple(notes), costs)


def _look(study: Study) -> Callable[..., Looks | None]:
    embeds = study.conditions[0].first.job.task == "embedding"
    return look_at_embeddings if embeds else look


def _pictures(
    job: ReportJob, study: Study, looks: Looks | None, costs: Costs | None
) -> Iterator[Picture]:
    distilled = study.distilled.condition if study.distilled else study.conditions[0]
    drawn = [
        comparison(study) if any(each.values for each in study.conditions) else None,
        quality_by_cost(study, costs) if costs is not None else None,
        *by_epoch(study),
        *teacher_and_truth(study),
        *(weights(study, factor) for factor in FACTORS),
        losses(distilled),
    ]
    yield from (picture for picture in drawn if picture is not None)
    if looks is not None:
        yield from manifolds(looks, job.manifold)
        picture = reliability(looks)
        if picture is not None:
            yield picture
