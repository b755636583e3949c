"""Whose answers a precompute job writes: its teacher's, or what that adds to a cached teacher."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..cache_schemas.errors import MissingKeysError
from ..cache_schemas.keys import KeyArray
from ..cache_schemas.manifest import TeacherManifest
from ..stages.corpus.corpus import Corpus
from ..stages.store.reading.reader import Cache
from ..stages.store.writing.extending import plan_extension
from ..stages.store.writing.teacher_folder import check_teacher
from .precompute_job import PrecomputeJob

if TYPE_CHECKING:
    from ..stages.precompute.teachers.base import Teacher


@dataclass(frozen=True, slots=True)
class Admission:
    """`manifest`: whose answers are written; `base`: the teacher that these are features of, if it
    is another."""

    manifest: TeacherManifest
    base: TeacherManifest | None = None


def admit(job: PrecomputeJob, teacher: "Teacher") -> Admission:
    """How the job's cache takes the teacher's answers; raises CacheError if it does not.

    With `add_features`, only the features are written that the cached teacher lacks."""
    spec, selecting = teacher.spec, teacher.selecting
    keep_both = job.add_teacher or job.add_features
    known = check_teacher(job.cache, spec, job.rows_per_shard, keep_both, selecting)
    if known is not None:
        return Admission(known)
    if job.add_features:
        base, added = plan_extension(job.cache, spec, selecting, job.rows_per_shard)
        return Admission(added, base)
    rows = job.rows_per_shard or teacher.default_rows_per_shard
    return Admission(TeacherManifest(fingerprint=spec.fingerprint, rows_per_shard=rows, spec=spec))


def only_cached(
    job: PrecomputeJob, base: TeacherManifest, corpus: Corpus, keys: KeyArray
) -> tuple[Corpus, KeyArray]:
    """The examples that `base` has answered: a feature is added to rows that are there. Others are
    listed as left out; raises MissingKeysError if that is all of them."""
    rows = Cache(job.cache, base).find(keys)
    missing = np.flatnonzero(rows < 0)
    name = base.fingerprint[:12]
    if len(missing) == len(keys):
        raise MissingKeysError(
            f"add_features: none of the {len(keys)} rows is in the cache of teacher {name}; run "
            "`armada precompute` with its settings first, without add_features",
            missing.tolist(),
        )
    if not len(missing):
        return corpus, keys
    return corpus.without(missing, f"teacher {name} was not asked yet"), keys[rows >= 0]
