"""What to take of a cache elsewhere: which teachers, which features, which shards."""

from collections.abc import Sequence
from dataclasses import dataclass

from ....cache_schemas.contents import CacheIndex, TeacherIndex
from ....cache_schemas.errors import CacheError, MissingFeatureError
from ....cache_schemas.keys import KeyArray
from ....cache_schemas.layout import ROWS_TABLE
from ..format.manifests import choose_teacher, held_features
from .local_part import Held, all_tables
from .place import Place


@dataclass(frozen=True, slots=True)
class Choice:
    """Prefixes of teachers, names of features, keys [N, 16] of a corpus; all where none are
    given."""

    teachers: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    keys: KeyArray | None = None


def chosen_teachers(
    shown: str, index: CacheIndex, prefixes: Sequence[str]
) -> tuple[TeacherIndex, ...]:
    """The teachers that prefixes mean, each with those that extend it; all if there are none."""
    manifests = [teacher.manifest for teacher in index.teachers]
    if not manifests:
        raise CacheError(f"cache {shown}: no teacher has answered yet")
    if not prefixes:
        return index.teachers
    names = {choose_teacher(shown, manifests, prefix).fingerprint for prefix in prefixes}
    return tuple(
        teacher
        for teacher in index.teachers
        if names & {teacher.manifest.fingerprint, teacher.manifest.extends}
    )


def with_features(
    place: Place, teachers: Sequence[TeacherIndex], features: Sequence[str]
) -> tuple[TeacherIndex, ...]:
    """Those of some teachers that have one of the features there, and those that they extend.

    All of them if no features are given. Raises MissingFeatureError for one that nobody has."""
    if not features:
        return tuple(teachers)
    there = [{spec.name for spec in held_features(t.manifest, t.part)} for t in teachers]
    for name in features:
        if not any(name in names for names in there):
            known = ", ".join(sorted(set().union(*there)))
            raise MissingFeatureError(f"feature {name!r}: {place.shown} has {known}")
    offering = [
        t.manifest for t, names in zip(teachers, there, strict=True) if names & set(features)
    ]
    wanted = {m.fingerprint for m in offering} | {m.extends for m in offering}
    return tuple(t for t in teachers if t.manifest.fingerprint in wanted)


def wanted_parts(
    place: Place, origin: TeacherIndex, held: Held, features: Sequence[str]
) -> tuple[frozenset[str], frozenset[str]]:
    """Features and tables that all shards here are to have: those asked for and those they have.

    With features asked for, `rows` is the one table that comes along. Raises MissingFeatureError
    if the place lacks what the shards here have."""
    missing = origin.part.missing_tables if origin.part else ()
    tables = all_tables(origin.commits) - frozenset(missing)
    there = frozenset(spec.name for spec in held_features(origin.manifest, origin.part))
    lacking = sorted(
        (held.features - there) | ((held.tables & all_tables(origin.commits)) - tables)
    )
    if lacking:
        raise MissingFeatureError(
            f"teacher {origin.manifest.fingerprint[:12]}: {place.shown} lacks "
            f"{', '.join(lacking)}, which every shard here has; pull into another folder"
        )
    if features:
        there, tables = there & frozenset(features), tables & {ROWS_TABLE}
    return there | held.features, tables | held.tables
