"""`cache derive`: a feature of statistics over a cached one, kept as a teacher of its own.

No model is loaded: a pass over the cache for the statistics (k-means: one an iteration), another
for the rows. The rules are in `../../stages/deriving.py`. A derived teacher has kind `derived`, no
weights, and for settings all that its numbers follow from: the parent's fingerprint and feature,
the rule and its options, digests of the set of texts and of their labels. So it is found again,
verified, sent, merged, exported and learned from as any other; other texts or options make another.

Rows are read and written in the order of their keys, whatever the shards of the parent are, so the
same texts leave the same bytes. Shards that are there already are kept: an interrupted run reads
the parent once more and goes on. Rows of statistics (`table_key`) come first. Memory: a block, a
shard, the keys, and the statistics.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from ...cache_schemas.errors import JobError, ReservationLostError
from ...cache_schemas.features import FeatureSpec
from ...cache_schemas.keys import KeyArray, keys_to_array
from ...cache_schemas.manifest import CorpusRecord, RunRecord, TeacherManifest
from ...cache_schemas.teachers import DERIVED, SettingValue, TeacherSpec
from ...stages.deriving import (
    CachedPoints,
    ClassMeans,
    Clusters,
    Derived,
    Moments,
    PrincipalComponents,
    table_key,
)
from ...stages.store.format.rows import Rows
from ...stages.store.reading.reader import Cache, open_cache
from ...stages.store.writing.teacher_folder import check_teacher
from ...stages.store.writing.writer import CacheWriter, Work
from ..environment import library_versions, new_run_id, now
from ..jobs import make
from ..messages import CountProgress, say_that_it_waits
from ..signals import telling_what_is_kept
from .derive_job import DeriveJob, Rule, Texts, all_texts, feature_of, labelled_texts
from .imports import LIBRARIES, rows_per_shard, run_record

_OPTIONS: dict[Rule, tuple[str, ...]] = {
    "pca": ("components",),
    "clusters": ("clusters", "seed", "iterations"),
}


@dataclass(frozen=True, slots=True)
class DerivedTeacher:
    """Result of a `derive`: rows written now and already there, rows of statistics among them, and
    figures about the statistics; none if all was there."""

    fingerprint: str
    rule: str
    features: tuple[str, ...]
    texts: int
    table: int
    written: int
    already_cached: int
    unlabelled: int
    found: dict[str, Any]
    skipped: tuple[str, ...]


@telling_what_is_kept(lambda: "written shards are kept; run the same command to continue")
def run_derive(job: DeriveJob, quiet: bool = False) -> DerivedTeacher:
    """Derive a feature; raises an InputError for what cannot be derived from."""
    parent = open_cache(job.cache, job.teacher)
    spec = feature_of(job, parent)
    texts = (
        labelled_texts(job, parent, spec)
        if job.rule == "class-means"
        else all_texts(job, parent, spec)
    )
    output = job.output or job.cache
    derived_spec = _spec(job, parent, spec, texts)
    keys = np.concatenate([_table_keys(job.rule, texts), texts.keys])
    known = check_teacher(output, derived_spec, job.rows_per_shard, add_teacher=True)
    if known is not None:
        with CacheWriter(output, known) as writer:
            if not len(writer.pending(keys)):
                return _result(job, known, texts, keys, 0, {})
    points = CachedPoints(parent[spec.name], texts.rows)
    derived = _statistics(job, points, texts)
    manifest = known or _manifest(job, derived_spec, derived)
    with CacheWriter(output, manifest) as writer:
        work = Work(writer, keys, say_that_it_waits(quiet))
        shards = _Shards(job, derived, points, writer, work, _run_record(parent, texts))
        with CountProgress("derive", "rows", work.pending, quiet) as progress:
            shards.write(keys, progress.advance)
    return _result(job, manifest, texts, keys, shards.written, derived.found)


def _result(
    job: DeriveJob,
    manifest: TeacherManifest,
    texts: Texts,
    keys: KeyArray,
    written: int,
    found: dict[str, Any],
) -> DerivedTeacher:
    return DerivedTeacher(
        fingerprint=manifest.fingerprint,
        rule=job.rule,
        features=tuple(f"{each.name} {each.shown}" for each in manifest.spec.features),
        texts=len(texts.keys),
        table=len(keys) - len(texts.keys),
        written=written,
        already_cached=len(keys) - written,
        unlabelled=texts.unlabelled,
        found=found,
        skipped=tuple(texts.corpus.skipped) if texts.corpus else (),
    )


def _statistics(job: DeriveJob, points: CachedPoints, texts: Texts) -> Derived:
    if job.rule == "class-means":
        assert texts.classes is not None
        return ClassMeans(points, texts.classes, texts.names)
    if job.rule == "moments":
        return Moments(points)
    if job.rule == "pca":
        assert job.components is not None
        return PrincipalComponents(points, job.components, job.centred)
    assert job.clusters is not None
    return Clusters(points, job.clusters, job.seed, job.iterations)


def _table_keys(rule: Rule, texts: Texts) -> KeyArray:
    names: Sequence[str] = {
        "class-means": [str(number) for number in range(len(texts.names))],
        "moments": ["mean", "deviation"],
    }.get(rule, [])
    return keys_to_array(table_key(rule, name) for name in names)


def _spec(job: DeriveJob, parent: Cache, spec: FeatureSpec, texts: Texts) -> TeacherSpec:
    """The derived teacher; settings are all that its numbers follow from."""
    settings: dict[str, SettingValue] = {
        "rule": job.rule,
        "parent": parent.holder(spec.name).teacher.fingerprint,
        "feature": spec.name,
        "texts": len(texts.keys),
        "keys_digest": _digest(texts.keys.tobytes()),
    }
    settings |= {key: getattr(job, key) for key in _OPTIONS.get(job.rule, ())}
    if not job.centred:
        settings["centred"] = False
    if job.rule == "class-means":
        assert texts.classes is not None
        labels = texts.classes.astype("<i8").tobytes()
        settings |= {"classes": texts.names, "labels_digest": _digest(labels)}
    teacher = parent.teacher.spec
    return TeacherSpec(
        kind=DERIVED,
        name=f"{job.rule} of {spec.name} of {teacher.kind}:{teacher.name}",
        weights={},
        settings=settings,
        features=tuple(make(FeatureSpec, each, "feature") for each in _features(job, spec)),
    )


def _features(job: DeriveJob, parent: FeatureSpec) -> list[Mapping[str, Any]]:
    kept = {"dtype": job.store_dtype}
    if job.rule == "class-means":
        about = f"mean {parent.name} of the text's class"
        return [kept | _like(parent, "class_mean") | {"description": about}]
    if job.rule == "moments":
        about = f"{parent.name} less their mean, in units of their deviation, over all texts"
        return [kept | _like(parent, "logits") | {"description": about}]
    if job.rule == "pca":
        shape, about = (job.components,), f"principal components of {parent.name}"
        return [kept | {"name": "components", "shape": shape, "description": about}]
    centres = {"name": "logits", "shape": (job.clusters,)}
    return [
        {
            "name": "cluster",
            "shape": (),
            "dtype": "uint16",
            "description": f"number of the nearest centre of {parent.name}",
        },
        kept | centres | {"description": f"minus squared distance of {parent.name} to each centre"},
    ]


def _like(parent: FeatureSpec, name: str) -> dict[str, Any]:
    return {"name": name, "shape": parent.shape, "labels": parent.labels}


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def _manifest(job: DeriveJob, spec: TeacherSpec, derived: Derived) -> TeacherManifest:
    """The manifest with figures in the last feature's description, which no fingerprint covers."""
    *others, last = spec.features
    if derived.found:
        figures = "; ".join(f"{name} {value}" for name, value in derived.found.items())
        last = last.model_copy(update={"description": f"{last.description}; {figures}"})
    size = max(each.row_bytes for each in spec.features)
    return TeacherManifest(
        fingerprint=spec.fingerprint,
        rows_per_shard=job.rows_per_shard or rows_per_shard(size),
        spec=spec.model_copy(update={"features": (*others, last)}),
    )


def _run_record(parent: Cache, texts: Texts) -> RunRecord:
    """Provenance: the corpus, or the corpora of the parent with their licences; no teacher ran."""
    if texts.corpus is not None:
        return run_record(texts.corpus)
    corpora: dict[str, CorpusRecord] = {}
    for run in parent.runs():
        corpora |= {each.name: each for each in run.corpora}
    return RunRecord(
        started=now(),
        versions={name: library_versions()[name] for name in LIBRARIES},
        hardware={},
        corpora=tuple(corpora.values()),
    )


class _Shards:
    """Writes rows of statistics and of texts, in this order."""

    def __init__(
        self,
        job: DeriveJob,
        derived: Derived,
        points: CachedPoints,
        writer: CacheWriter,
        work: Work,
        run: RunRecord,
    ) -> None:
        self._job, self._derived, self._points = job, derived, points
        self._writer, self._work = writer, work
        self._run_id, self._run = new_run_id(), run
        self.written = 0

    def write(self, keys: KeyArray, advance: Callable[[int], None]) -> None:
        """Write what is pending. Raises JobError for numbers beyond the stored dtype."""
        while (task := self._work.reserve()) is not None:
            try:
                record = self._writer.commit(
                    keys[task.rows],
                    self._of(task.rows),
                    np.zeros(len(task.rows), dtype=bool),
                    reservation=task.reservation,
                )
            except ReservationLostError:
                self._work.put_back(task)
                continue
            self.written += record.rows
            seconds = self._run.teacher_seconds | {record.shard: 0.0}
            self._run = self._run.model_copy(update={"teacher_seconds": seconds})
            self._writer.record_run(self._run_id, self._run)
            advance(record.rows)

    def _of(self, positions: Rows) -> dict[str, Any]:
        """The features at positions among all rows, those of statistics first."""
        table = list(self._derived.table.values())
        own, texts = positions[positions < len(table)], positions[positions >= len(table)]
        parts: dict[str, list[Any]] = {f.name: [] for f in self._writer.manifest.spec.features}
        if len(own):
            (name,) = parts
            parts[name].append(np.stack([table[index] for index in own.tolist()]))
        step = 4096
        for start in range(0, len(texts), step):
            indices = texts[start : start + step] - len(table)
            for name, values in self._derived.of(self._points.take(indices), indices).items():
                parts[name].append(values)
        return {
            f.name: self._stored(f, np.concatenate(parts[f.name]), len(positions))
            for f in self._writer.manifest.spec.features
        }

    def _stored(self, spec: FeatureSpec, values: Any, count: int) -> Any:
        with np.errstate(over="ignore"):
            stored = values.astype(spec.dtype).reshape(count, *spec.shape)
        if not spec.whole and not np.isfinite(stored).all():
            raise JobError(
                f"store_dtype {spec.dtype}: too small for the numbers of {spec.name!r}, of up to "
                f"{np.abs(values).max():.4g}; use float32"
            )
        return stored
