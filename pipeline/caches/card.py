"""`armada cache card`: a README.md that describes a cache, and plots of its features.

All facts are in the cache's documents; permitted uses are for people to add. A plot shows the two
main components of a teacher's features, of a random sample with a fixed seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, model_validator

from ...cache_schemas.errors import CacheError, OutputError, shown_url
from ...cache_schemas.extras import require_extra
from ...cache_schemas.manifest import fidelity_of
from ...stages.corpus.corpus import Corpus, read_corpus
from ...stages.corpus.label_kinds import LabelSpace, is_missing, one_a_row
from ...stages.corpus.labels import label_space, label_values
from ...stages.store.files.atomic import write_atomic
from ...stages.store.files.lock import locked
from ...stages.store.files.own_files import write_file
from ...stages.store.format.manifests import held_features, list_teachers, read_part
from ...stages.store.format.rows import Rows
from ...stages.store.reading.feature_array import FeatureArray
from ...stages.store.reading.reader import Cache, read_digest
from ..jobs import Corpora, LocalFolder, Names, TextFormatKeys
from ..reports.drawing import (
    COLOURS,
    Labels,
    dots,
    draw_classes,
    draw_numbers,
    label_axes,
    main_components,
    new_figure,
    png,
)
from .card_text import MARK, CardFacts, TeacherFacts, card
from .summary import committed_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_ROWS = 2_000
MAX_VALUES = 2**24
"""128 MiB as float64."""
MAX_PANELS = 3
"""Limit of panels in one figure."""


class CardJob(TextFormatKeys):
    """Keys of `armada cache card`."""

    cache: LocalFolder = Field(description="folder of the cache")
    output: Path | None = Field(default=None, description="file; default README.md in the cache")
    title: str | None = Field(default=None, description="default the name of the folder")
    licence: str | None = Field(
        default=None, description="licence of the features, as the hub spells it: cc-by-4.0"
    )
    corpus: Corpora = Field(default=(), description="labelled files to colour the plots by")
    text_column: Names = Field(default=(), description="columns of the text segments")
    label_column: str | None = Field(default=None, description="column of labels")
    force: bool = Field(default=False, description="replace a README.md that armada did not write")

    @model_validator(mode="after")
    def _labels_need_all_three(self) -> "CardJob":
        given = [bool(self.corpus), bool(self.text_column), self.label_column is not None]
        if any(given) and not all(given):
            raise ValueError("corpus, text_column and label_column go together; give all or none")
        return self


@dataclass(frozen=True, slots=True)
class Colouring:
    """Labels of some rows: numbers for a colour scale, or class names."""

    rows: Rows
    labels: Labels
    title: str


def run_card(job: CardJob) -> list[Path]:
    """Write the card and its pictures; returns their files, the card first.

    Raises OutputError rather than replace a file that armada did not write."""
    output = job.output or job.cache / "README.md"
    _refuse_to_replace(output, job.force)
    teachers = [Cache(job.cache, teacher) for teacher in list_teachers(job.cache)]
    if not teachers:
        raise CacheError(f"cache {job.cache}: holds no teacher; there is nothing to describe")
    labelled = _read_labelled(job) if job.corpus else None
    colourings = [_colouring(job, cache, *labelled) if labelled else None for cache in teachers]
    files = {output: b""}  # the card first; it is written when it is known what there is to show
    facts = []
    for cache, colouring in zip(teachers, colourings, strict=True):
        picture = _picture(cache, colouring)
        if picture is not None:
            files[output.with_name(_picture_name(cache))] = picture
        facts.append(_facts(cache, picture is not None, colouring))
    files[output] = _card(job, facts).encode()
    if output.parent.resolve() == job.cache.resolve():
        with locked(job.cache):
            for file, content in files.items():
                write_file(job.cache / file.name, [content], job.cache)
    else:
        for file, content in files.items():
            write_atomic(file, [content])
    return list(files)


def _card(job: CardJob, teachers: list[TeacherFacts]) -> str:
    name = job.cache.resolve().name
    facts = CardFacts(
        title=job.title or name,
        name=name,
        licence=job.licence,
        digest=read_digest(job.cache),
        teachers=tuple(teachers),
    )
    return shown_url(card(facts))  # earlier caches may hold URLs of corpora as they were given


def _refuse_to_replace(output: Path, force: bool) -> None:
    if force or not output.exists():
        return
    if not output.is_file() or MARK not in output.read_text(encoding="utf-8", errors="replace"):
        raise OutputError(f"{output}: was not written by armada; name another --output, or --force")


def _read_labelled(job: CardJob) -> tuple[Corpus, LabelSpace]:
    corpus = read_corpus(
        job.corpus,
        job.text_column,
        label_column=job.label_column,
        id_column=False,
        form=job.file_format,
    )
    return corpus, label_space(corpus)


def _colouring(job: CardJob, cache: Cache, corpus: Corpus, space: LabelSpace) -> Colouring | None:
    """The labels of the cached texts; None if there are none."""
    labels = label_values(corpus, space)
    rows = cache.find(corpus.keys())
    there = (rows >= 0) & ~is_missing(labels)
    if not there.any():
        return None
    shown = one_a_row(labels[there], space)
    if space.names is not None and space.task == "classification":
        shown = np.array(space.names)[shown]
    return Colouring(rows[there], shown, job.label_column or "")


def _picture_name(cache: Cache) -> str:
    return f"features-{cache.teacher.fingerprint[:12]}.png"


def _picture(cache: Cache, colouring: Colouring | None) -> bytes | None:
    held = held_features(cache.teacher, read_part(cache.path, cache.teacher.fingerprint))
    drawn = [feature.name for feature in held if feature.axis is None and not feature.whole]
    if not len(cache) or not drawn:
        return None
    require_extra("the picture of armada cache card", "report", "matplotlib")
    return _draw([cache[name] for name in drawn], colouring)


def _facts(cache: Cache, has_picture: bool, colouring: Colouring | None) -> TeacherFacts:
    return TeacherFacts(
        manifest=cache.teacher,
        rows=len(cache),
        shards=len(cache.commits),
        bytes=committed_bytes(cache),
        runs=tuple(cache.runs()),
        picture=_picture_name(cache) if has_picture else None,
        coloured_by=colouring.title if colouring else None,
        fidelity=fidelity_of(cache.commits),
    )


def choose_rows(count: int, width: int) -> Rows:
    """At most 2,000 of `count` rows, fewer if they are wide; sorted, the same each time."""
    most = min(MAX_ROWS, max(MAX_VALUES // width, 100))
    if count <= most:
        return np.arange(count, dtype=np.int64)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False)).astype(np.int64)


def _draw(features: Sequence[FeatureArray], colouring: Colouring | None) -> bytes:
    """A PNG with one panel for each of the first features; all of them have the same rows."""
    shown = features[:MAX_PANELS]
    figure = new_figure(4.4 * len(shown) + (1.6 if colouring else 0), 4.2, dpi=110)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for panel, feature in zip(panels, shown, strict=True):
        _draw_panel(panel, feature, colouring, last=panel is panels[-1])
    return png(figure)


def _draw_panel(
    panel: "Axes", feature: FeatureArray, colouring: Colouring | None, last: bool
) -> None:
    known = np.arange(len(feature)) if colouring is None else colouring.rows
    chosen = choose_rows(len(known), feature.spec.values_per_row)
    components = main_components(feature.gather(known[chosen]))
    if colouring is None:
        dots(panel, components.points, 8, COLOURS[0], alpha=0.6)
    elif colouring.labels.dtype.kind == "f":
        draw_numbers(panel, components, colouring.labels[chosen], colouring.title, last)
    else:
        draw_classes(panel, components, colouring.labels[chosen], colouring.title, last)
    shape = " x ".join(map(str, feature.spec.shape)) or "one number"
    panel.set_title(f"{feature.spec.name} ({shape}), {len(chosen)} rows", fontsize=10)
    label_axes(panel, components)
