"""Features that are added later to a cached teacher.

A cache's documents do not change, and a teacher's fingerprint covers its list of features. So the
added ones belong to a teacher of their own, which extends the first: same model, same settings but
for those that only choose features, which are left out. Readers join the two by key
(`../reading/reader.py`).
"""

from collections.abc import Sequence
from pathlib import Path

from ....cache_schemas.errors import TeacherMismatchError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.manifest import TeacherManifest
from ....cache_schemas.teachers import (
    TeacherSpec,
    differ_in_features_alone,
    differences,
    without_settings,
)
from ..format.manifests import list_teachers, refuse_part
from .teacher_folder import check_rows_per_shard, is_new


def plan_extension(
    path: Path, asked: TeacherSpec, selecting: frozenset[str], rows_per_shard: int | None
) -> tuple[TeacherManifest, TeacherManifest]:
    """The teacher in the cache at `path` whose features `asked` would add to, and the one that is
    to hold what the first, and those that extend it, lack.

    If nothing is lacking, the second is the one that holds what was added before: it may lack
    texts. Raises TeacherMismatchError, naming each difference, if no cached teacher is the same but
    for options in `selecting`."""
    teachers = [] if is_new(path) else list_teachers(path)
    base = _base(path, teachers, asked, selecting)
    wanted = [spec for spec in asked.features if base.spec.feature(spec.name) is None]
    if not wanted:
        raise TeacherMismatchError(
            f"add_features: teacher {base.fingerprint[:12]} has "
            f"{', '.join(spec.name for spec in asked.features)} already; leave add_features out, "
            f"and use its own settings: {'; '.join(differences(base.spec, asked))}"
        )
    added = [known for known in teachers if known.extends == base.fingerprint]
    new = [spec for spec in wanted if not any(known.spec.feature(spec.name) for known in added)]
    if new:
        return base, _extension(base, asked, selecting, new, rows_per_shard)
    return base, _extension_that_holds(path, wanted, added, rows_per_shard)


def _base(
    path: Path, teachers: Sequence[TeacherManifest], asked: TeacherSpec, selecting: frozenset[str]
) -> TeacherManifest:
    """The base teacher; of several, the one that lacks the fewest features."""
    bases = [
        known
        for known in teachers
        if known.extends is None and differ_in_features_alone(known.spec, asked, selecting)
    ]
    if not bases:
        raise TeacherMismatchError(
            f"add_features: cache {path} holds no teacher that differs from {asked.kind}:"
            f"{asked.name} in {_options(selecting)} alone{_closest(teachers, asked)}; leave "
            "add_features out, or use the cached settings"
        )
    lacking = {
        known.fingerprint: sum(known.spec.feature(spec.name) is None for spec in asked.features)
        for known in bases
    }
    return min(bases, key=lambda known: lacking[known.fingerprint])


def _options(selecting: frozenset[str]) -> str:
    return " and ".join(sorted(selecting)) or "nothing (none of its options only chooses features)"


def _closest(teachers: Sequence[TeacherManifest], asked: TeacherSpec) -> str:
    same_kind = [t for t in teachers if t.spec.kind == asked.kind and t.extends is None]
    if not same_kind:
        return ""
    closest = min(same_kind, key=lambda known: len(differences(known.spec, asked)))
    return f" ({closest.fingerprint[:12]}: {'; '.join(differences(closest.spec, asked))})"


def _extension(
    base: TeacherManifest,
    asked: TeacherSpec,
    selecting: frozenset[str],
    features: Sequence[FeatureSpec],
    rows_per_shard: int | None,
) -> TeacherManifest:
    spec = TeacherSpec(
        kind=asked.kind,
        name=asked.name,
        weights=asked.weights,
        settings=without_settings(asked, selecting),
        features=tuple(features),
        vocab_digest=asked.vocab_digest,
    )
    return TeacherManifest(
        fingerprint=spec.fingerprint_extending(base.fingerprint),
        rows_per_shard=rows_per_shard or base.rows_per_shard,
        spec=spec,
        extends=base.fingerprint,
    )


def _extension_that_holds(
    path: Path,
    wanted: Sequence[FeatureSpec],
    added: Sequence[TeacherManifest],
    rows_per_shard: int | None,
) -> TeacherManifest:
    """The teacher that holds exactly the wanted features, all of which were added before."""
    names = {spec.name for spec in wanted}
    for known in added:
        if {spec.name for spec in known.spec.features} == names:
            check_rows_per_shard(known, rows_per_shard)
            refuse_part(path, known.fingerprint, "nothing can be added")
            return known
    listed = "; ".join(
        f"{known.fingerprint[:12]} has {', '.join(spec.name for spec in known.spec.features)}"
        for known in added
    )
    raise TeacherMismatchError(
        f"add_features: {', '.join(sorted(names))} were not added in one step ({listed}); read "
        "those of one step at a time"
    )
