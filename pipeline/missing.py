"""Rows of a corpus that a cache has no answers for: counted, the first ones named."""

from collections.abc import Sequence

from ..cache_schemas.errors import MissingKeysError
from ..stages.corpus.corpus import Corpus
from ..stages.store.format.rows import Rows
from ..stages.store.reading.reader import Cache

SHOWN_MISSING = 5


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
        "the same text columns, or leave such rows out with skip_bad_rows=true. First: "
        f"{first}",
        missing.tolist(),
    )
