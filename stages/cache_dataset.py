"""Cached features of texts, for any DataLoader of torch.

    dataset = CacheDataset("cache", texts, "pooled")
    for batch in DataLoader(dataset, batch_size=64, shuffle=True, num_workers=4):
        batch["pooled"]                                        # [B, *shape]

Only keys are read until an example is indexed. Worker processes, forked or spawned, map
the shards for themselves; of a cache at a URL, all of them fill one mirror.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, default_collate

from ..cache_schemas.errors import CacheError
from ..cache_schemas.features import FeatureSpec
from .store.format.rows import Rows
from .store.reading.reader import Cache, Example
from .store.transfer.mirror import open_cache

Item = dict[str, Tensor]

_WIDER = {"uint16": np.int32, "uint32": np.int64}
"""Types that torch hardly computes with, and those that hold the same numbers."""


class CacheDataset(Dataset[Item]):
    """The features of N texts, in their order: of each, feature -> tensor [*shape], or [n, *shape]
    of a feature along an axis, in the type it is stored in (uint16 and uint32 as int32, int64)."""

    def __init__(
        self,
        cache: str | Path | Cache,
        texts: Iterable[Example],
        features: str | Sequence[str] | None = None,
        teacher: str | None = None,
    ) -> None:
        """`cache`: a folder, a URL, or what `open_cache` returned; `texts`: of several columns,
        tuples of segments (`zip(premises, hypotheses)`); `features`: default all; `teacher`: a
        fingerprint or a prefix, where a cache that is not open yet has several.

        Raises MissingKeysError, with the count, for texts that the cache does not hold with all of
        the features; MissingFeatureError; CacheError, for texts that are one text."""
        if isinstance(texts, str | bytes):
            raise CacheError(f"texts {texts!r:.60}: is a single text; give a list of texts")
        self._cache = cache if isinstance(cache, Cache) else open_cache(cache, teacher)
        named = (features,) if isinstance(features, str) else features
        self.features = tuple(dict.fromkeys(self._cache.features if named is None else named))
        self.specs: dict[str, FeatureSpec] = {
            name: self._cache.feature_spec(name) for name in self.features
        }
        """Spec of each feature: shape, dtype, axis, coding."""
        examples = texts if isinstance(texts, np.ndarray) else list(texts)
        self._rows: Rows = self._cache.lookup(examples, *self.features)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        features = ", ".join(f"{name} {spec.shown}" for name, spec in self.specs.items())
        return f"<CacheDataset of {len(self)} texts: {features}>"

    def __getitem__(self, index: int) -> Item:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """The features of several texts, read at once; DataLoader fetches batches this way."""
        rows = self._rows[np.asarray(indices, dtype=np.int64)]
        columns = {name: self._read(name, rows) for name in self.features}
        return [{name: values[at] for name, values in columns.items()} for at in range(len(rows))]

    def collate(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """A batch of items, for DataLoader's `collate_fn`. A feature along an axis is padded with
        zeros to [B, max length, *shape], and AXIS_lengths [B] holds the lengths. All others are
        stacked, as by the default."""
        batch: dict[str, Tensor] = {}
        for name, spec in self.specs.items():
            rows = [item[name] for item in items]
            if spec.axis is None:
                batch[name] = default_collate(rows)
            else:
                batch[name] = pad_sequence(rows, batch_first=True)
                batch[f"{spec.axis}_lengths"] = torch.tensor([len(row) for row in rows])
        return batch

    def _read(self, name: str, rows: Rows) -> Sequence[Tensor]:
        """One tensor a row."""
        spec = self.specs[name]
        wider = _WIDER.get(spec.dtype, spec.dtype)
        if spec.axis is None:
            values = self._cache[name][rows].astype(wider, copy=False)
            return torch.from_numpy(values).unbind()
        found = self._cache.ragged(name).gather(rows)
        values = found.values.astype(wider, copy=False)
        return torch.split(torch.from_numpy(values), found.lengths.tolist())
