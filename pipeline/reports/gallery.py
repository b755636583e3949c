"""Images beside texts: those that a teacher made, if its cache keeps them, as small PNG files."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa

from ...cache_schemas.errors import ArmadaError
from ..answers import open_answers
from ..distill_job import DistillJob
from ..findings.runs import FinishedRun
from ..objective_keys import TeacherKeys
from ..run_data import read_data
from ..terms import terms_of

MOST = 8
THUMBNAIL_PIXELS = 192
MOST_PIXELS = 2**24


@dataclass(frozen=True, slots=True)
class TextImage:
    """An image and the text that goes with it."""

    text: str
    png: bytes


@dataclass(frozen=True, slots=True)
class Gallery:
    """Some images under one heading."""

    title: str
    images: tuple[TextImage, ...]


def teacher_images(runs: Sequence[FinishedRun], cache: Path | None) -> Gallery | None:
    """Images of the teacher of the first run whose cache is still there and holds any."""
    firsts = {run.provenance.fingerprints: run for run in reversed(runs) if run.distilled}
    for run in firsts.values():
        try:
            job = run.readable_job(cache)
            # Of teachers that read what the student reads: the texts beside images are its own.
            teachers = [keys for keys in job.all_teachers.values() if not keys.text_column]
            found = [image for keys in teachers for image in _images(job, keys)][:MOST]
        except (ArmadaError, OSError):
            continue  # the page lists missing files elsewhere
        if found:
            return Gallery("What the teacher imagined", tuple(found))
    return None


def _images(job: DistillJob, keys: TeacherKeys) -> list[TextImage]:
    """Images of a teacher's cache; the job's corpus is read only if there are any."""
    cache = open_answers(keys).cache
    rows, table = cache.first_rows("images", {"png": pa.binary()}, MOST)
    if not len(rows):
        return []
    images = {cache.keys[row].tobytes(): table["png"][i] for i, row in enumerate(rows)}
    corpus = read_data(job, terms_of(job)).train.corpus
    indices = {i: key.tobytes() for i, key in enumerate(corpus.keys()) if key.tobytes() in images}
    texts = corpus.examples(np.array(list(indices), dtype=np.int64))
    small = [_thumbnail(images[key].as_py()) for key in indices.values()]
    return [
        TextImage(" / ".join(segments), image)
        for segments, image in zip(texts, small, strict=True)
        if image is not None
    ]


def _thumbnail(image: bytes) -> bytes | None:
    """A thumbnail; None for anything but an image of reasonable size: caches may come from
    strangers."""
    from PIL import Image

    if not 0 < _pixels(image) <= MOST_PIXELS:
        return None
    try:
        with Image.open(BytesIO(image), formats=("PNG",)) as picture:
            small = picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = BytesIO()
    small.save(buffer, format="PNG")
    return buffer.getvalue()


def _pixels(png: bytes) -> int:
    """Number of pixels by the header of a PNG file; 0 for other bytes."""
    if len(png) < 24 or not png.startswith(b"\x89PNG\r\n\x1a\n"):
        return 0
    return int.from_bytes(png[16:20]) * int.from_bytes(png[20:24])
