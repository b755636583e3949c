"""Teachers of whom a cache holds a part, because only a part was pulled.

`part.json` beside `teacher.json` says which features and tables are missing; where there is none,
all are held. Every committed shard has all files of what is held, so readers look no further.
Commit records stay the origin's: they name files that are not here, and their digest is the same.
"""

from pathlib import Path

from ....cache_schemas.errors import CacheError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.layout import TEACHER_PART, teacher_folder
from ....cache_schemas.manifest import PartRecord, TeacherManifest
from ..files.plain_files import read_document


def read_part(cache: Path, fingerprint: str) -> PartRecord | None:
    """What is missing of a teacher; None if nothing is, or there is no such teacher."""
    file = teacher_folder(cache, fingerprint) / TEACHER_PART
    return read_document(PartRecord, file, cache) if file.exists() else None


def held_features(teacher: TeacherManifest, part: PartRecord | None) -> tuple[FeatureSpec, ...]:
    """The features whose files are here, in the order of the spec."""
    missing = part.missing_features if part else ()
    return tuple(feature for feature in teacher.spec.features if feature.name not in missing)


def first_own_shard(cache: Path, fingerprint: str) -> int:
    """The lowest number that a shard written here may have: lower ones are the origin's, whether
    they were pulled yet or not. Raises CacheError if nothing can be added here."""
    part = refuse_part(cache, fingerprint, "nothing can be added")
    return part.next_shard if part else 0


def refuse_part(cache: Path, fingerprint: str, purpose: str) -> PartRecord | None:
    """What `read_part` gives; raises CacheError if features or tables of a teacher are missing.

    `purpose` completes 'so ...', for example 'nothing can be added'."""
    part = read_part(cache, fingerprint)
    missing = (*part.missing_features, *part.missing_tables) if part else ()
    if missing:
        raise CacheError(
            f"cache {cache}: holds teacher {fingerprint[:12]} without {', '.join(missing):.200}, "
            f"so {purpose}; pull the rest first (`armada cache pull`, without --feature)"
        )
    return part
