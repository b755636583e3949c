"""What teachers' features and embeddings have to be for each other: widths, lengths, numbers."""

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from ...cache_schemas.errors import JobError
from ...stages.corpus.labels import NO_LABELS
from ...stages.distill.embedding_student import has_length_1
from ...stages.distill.objectives.base import Sizes, require_fit
from ..distill_job import DistillJob
from ..sources import Source
from ..terms import Term
from .joining import Joined, is_of_texts
from .own_columns import OwnColumns

_LENGTH_ROWS = 64
_OF_ONE_WIDTH = ("crd", "wcord")
"""Built-in objectives with maps of embeddings of one width; others are refused when they are
made."""


def check_features(job: DistillJob, terms: Sequence[Term], sources: Mapping[str, Source]) -> None:
    """Raise JobError for features that objectives cannot read, or embeddings of this width not
    meet."""
    for term in terms:
        for reading in term.readings:
            spec = sources[reading.source].spec
            sizes = Sizes(0, NO_LABELS.num_labels, NO_LABELS.regression, spec.shape)
            require_fit(term.keys.name, term.objective.reads, sizes)
            term.require_options(sizes)
            if np.dtype(spec.dtype).kind != "f":
                raise JobError(
                    f"feature {spec.name!r}: holds whole numbers ({spec.dtype}), no embeddings; "
                    "name another"
                )
    dim = embedding_dim(job, terms, sources)
    for term in terms:
        if getattr(term.options, "projector", None) == "none":
            width = prod(sources[term.readings[0].source].spec.shape)
            if width != dim:
                raise JobError(
                    f"objective {term.keys.name}: embeddings of {dim} numbers are to meet a "
                    f"feature of {width}; set embedding_dim={width}, or projector=linear for it"
                )
        elif job.prefix_dims and (
            hasattr(term.options, "projector") or term.keys.name in _OF_ONE_WIDTH
        ):
            raise JobError(
                f"matryoshka_dims: objective {term.keys.name} has weights for embeddings of one "
                "width, and prefixes have fewer numbers; use projector=none or another objective, "
                "or leave matryoshka_dims out"
            )
    for cut in job.prefix_dims:
        if dim is not None and cut >= dim:
            raise JobError(
                f"matryoshka_dims {cut}: an embedding has {dim} numbers; choose fewer than that"
            )


def embedding_dim(
    job: DistillJob, terms: Sequence[Term], sources: Mapping[str, Source]
) -> int | None:
    """Numbers of an embedding, as named or as the feature that is met has; None: the student's
    width decides."""
    if job.embedding_dim is not None:
        return job.embedding_dim
    for term in terms:
        if getattr(term.options, "projector", None) == "none":
            return prod(sources[term.readings[0].source].spec.shape)
    return None


def normalizes(
    job: DistillJob, terms: Sequence[Term], sources: Mapping[str, Source], joined: Joined
) -> bool:
    """Whether embeddings have length 1: as the job says, or unless they are to meet numbers of a
    feature that has another length."""
    if job.normalize_embeddings is not None:
        return job.normalize_embeddings
    units = []
    for term in terms:
        met = getattr(term.options, "projector", None) == "none"
        if met and getattr(term.options, "distance", "cosine") != "cosine":
            source = sources[term.readings[0].source]
            sample = joined.rows[term.readings[0].source][:_LENGTH_ROWS]
            units.append(has_length_1(source.feature.gather(sample)))
    return all(units)


def check_negatives(job: DistillJob, terms: Sequence[Term], joined: Joined) -> None:
    """Refuse negatives that are more than the other texts of the training set."""
    batch = job.batch_size * joined.groups.columns
    for term in terms:
        wanted = term.objective.negatives_of(term.options)
        for reading in term.readings[:1] if wanted else ():
            texts = len(np.unique(joined.rows[reading.source]))
            if wanted > texts - batch:
                raise JobError(
                    f"objective {term.keys.name}: negatives {wanted}: teacher {reading.teacher} "
                    f"has features of {texts} different training texts, up to {batch} of them in a "
                    f"batch; choose at most {max(0, texts - batch)}"
                )


def source_of_passages(
    job: DistillJob,
    terms: Sequence[Term],
    sources: Mapping[str, Source],
    own: OwnColumns,
) -> str:
    """The source of the embeddings that passages have; `own`: columns of teachers that have not
    read them. Raises JobError unless there is one, or one
    whose numbers an objective meets, as wide as those of queries."""
    of_texts = [n for n, s in sources.items() if is_of_texts(s.spec) and n not in own]
    met = [name for name in of_texts if is_met(terms, name)]
    for names in (met, of_texts):
        if len(names) == 1:
            _check_width(names[0], sources, embedding_dim(job, terms, sources))
            return names[0]
    problem = "no objective reads embeddings of texts"
    if of_texts:
        problem = f"objectives read embeddings of several teachers ({', '.join(of_texts)})"
    raise JobError(
        f"passage_tower=cached: {problem}; have one of them learned by objective feature with "
        "projector=none, whose embeddings the passages then have"
    )


def _check_width(name: str, sources: Mapping[str, Source], dim: int | None) -> None:
    width = prod(sources[name].spec.shape)
    if dim != width:
        raise JobError(
            f"passage_tower=cached: the passages' embeddings have {width} numbers, and those of "
            f"queries {dim or 'as many as the student is wide'}; set embedding_dim={width}"
        )


def is_met(terms: Sequence[Term], source: str) -> bool:
    """Whether embeddings are in the space of a source: an objective has them meet its numbers."""
    return any(
        getattr(term.options, "projector", None) == "none"
        for term in terms
        for reading in term.readings
        if reading.source == source
    )
