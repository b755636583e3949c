"""The cache a run learns from: a local folder, or a URL whose shards are downloaded during the run.

In: the job's `cache`, and the rows used, in order. Out: an open cache, and the digest of its
content. For a cache at a URL, documents and keys are downloaded at once into a local mirror, then
only the shards that hold the run's keys, and only its feature.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..cache_schemas.errors import DamagedCacheError, MissingKeysError
from ..stages.corpus.corpus import Corpus
from ..stages.store.format.rows import Rows
from ..stages.store.reading.reader import Cache, check_digest, open_cache, read_digest
from ..stages.store.transfer.mirror import Mirror, ToCome, default_mirror
from .objective_keys import CacheKeys

SHOWN_MISSING = 5


@dataclass(frozen=True, slots=True)
class Answers:
    """An open cache. `digest` is that of the whole cache at its location; None for a local one with
    a damaged document of a teacher that is not read."""

    cache: Cache
    digest: str | None
    mirror: Mirror | None = None
    verify: bool = False

    def of(self, feature: str, corpora: Sequence[Corpus]) -> "Answers":
        """The same with as little as some corpora need of a cache at a URL."""
        if self.mirror is None:
            return self
        keys = np.concatenate([corpus.keys() for corpus in corpora])
        narrowed = self.mirror.narrowed(self.cache, feature, keys, self.verify)
        return Answers(narrowed, self.digest, self.mirror, self.verify)

    def fetch_ahead(self, feature: str, rows: Rows) -> ToCome | None:
        """Start downloading a feature of the shards that hold rows, in the order of the rows."""
        if self.mirror is None:
            return None
        return self.mirror.fetch_ahead(self.cache, feature, self.cache.keys[rows])


def open_answers(keys: CacheKeys) -> Answers:
    """Open the cache of a job; raises CacheError, also if its digest is not the expected one."""
    assert keys.cache is not None
    if isinstance(keys.cache, Path):
        digest = _local_digest(keys.cache, keys.expect_digest)
        return Answers(open_cache(keys.cache, keys.teacher, keys.verify_cache), digest)
    folder = keys.mirror or default_mirror(keys.cache)
    mirror = Mirror(keys.cache, folder, keys.mirror_limit, keys.expect_digest)
    cache = mirror.open(keys.teacher, keys.verify_cache)
    return Answers(cache, mirror.index.digest, mirror, keys.verify_cache)


def _local_digest(path: Path, expected: str | None) -> str | None:
    try:
        digest = read_digest(path)
    except DamagedCacheError:
        if expected is not None:
            raise
        return None
    check_digest(str(path), digest, expected)
    return digest


def missing_keys(
    cache: Cache, corpus: Corpus, missing: Rows, features: Sequence[str] = ()
) -> MissingKeysError:
    """The error for rows `missing` of a corpus, which `features` were to be read for."""
    first = "; ".join(corpus.where(int(row)) for row in missing[:SHOWN_MISSING])
    added = [name for name in features if cache.holder(name) is not cache]
    lacking = f" with {', '.join(added)}" if added else ""
    remedy = ", with add_features=true for features that were added later," if added else ""
    return MissingKeysError(
        f"{len(missing)} of {len(corpus)} rows are not in the cache of teacher "
        f"{cache.teacher.fingerprint[:12]}{lacking}; run `armada precompute` on them{remedy} with "
        f"the same text columns, or skip such rows with skip_bad_rows=true. First: {first}",
        missing.tolist(),
    )
