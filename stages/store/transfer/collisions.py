"""Two places that hold a teacher in shards that are not the same: only a merge can join them."""

from ....cache_schemas.errors import CacheError
from ....cache_schemas.manifest import CommitRecord, TeacherManifest

_REMEDY = "join the two with `armada cache merge`"


def refuse_other(
    here: str, ours: CommitRecord, there: str, theirs: CommitRecord, teacher: TeacherManifest
) -> None:
    """Raise CacheError unless the records of a shard number in two places are the same."""
    if ours != theirs:
        raise CacheError(
            f"teacher {teacher.fingerprint[:12]}: shard {ours.shard} of {here} is not shard "
            f"{theirs.shard} of {there}; {_REMEDY}"
        )


def refuse_other_sizes(
    here: str, ours: TeacherManifest, there: str, theirs: TeacherManifest
) -> None:
    """Raise CacheError unless the shards of a teacher in two places have equally many rows."""
    if ours.rows_per_shard != theirs.rows_per_shard:
        raise CacheError(
            f"teacher {ours.fingerprint[:12]}: {here} has {ours.rows_per_shard} rows a shard, "
            f"{there} {theirs.rows_per_shard}; {_REMEDY}"
        )
