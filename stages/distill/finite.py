"""A loss that is not finite ends a run before it reaches the weights, and is named; so are cached
features that are not, which no learning rate fixes.

On a CPU a batch's loss is looked at before its gradients are worked out. To read a number back from
a GPU in every step would make that wait; there a flag on the device keeps AdamW from stepping from
the first such batch on, and the host looks when losses are logged.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...cache_schemas.errors import TrainingError
from .batches import DistillDataset
from .order import Indices

NAMED = 3
"""Examples of a batch that a message names."""

_SLOWER = "lower the learning rate, or use precision=float32"
_DAMAGED = "run `armada cache verify` and `armada cache repair`"
_IN_DOUBT = "`armada cache verify` checks whether the teacher's features are as committed"


@dataclass(frozen=True, slots=True)
class _Seen:
    """The terms of a step's batch, on their device, and its examples."""

    step: int
    terms: Mapping[str, Tensor]
    indices: npt.NDArray[np.int64]


class FiniteLosses:
    """Watches the losses of a run. `deferred`: as on a GPU."""

    def __init__(self, dataset: DistillDataset, deferred: bool) -> None:
        self._dataset, self._deferred = dataset, deferred
        self._seen: list[_Seen] = []
        self._spoiled: Tensor | None = None

    def look_at(
        self,
        step: int,
        terms: Mapping[str, Tensor],
        indices: npt.NDArray[np.int64],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Before the backward pass of a batch. Raises TrainingError, or keeps the optimizer, which
        must be a fused one, from changing anything until `check` does."""
        detached = {name: term.detach() for name, term in terms.items()}
        self._seen.append(_Seen(step, detached, indices))
        if not self._deferred:
            self.check()
            return
        spoiled = (~torch.isfinite(detached["total"])).float()
        self._spoiled = spoiled if self._spoiled is None else self._spoiled.maximum(spoiled)
        optimizer.found_inf = self._spoiled  # type: ignore[attr-defined]

    def check(self) -> None:
        """Raises TrainingError for the first batch since the last call whose loss was not finite;
        waits for the device."""
        seen, self._seen = self._seen, []
        if not seen:
            return
        totals = torch.stack([batch.terms["total"] for batch in seen]).tolist()
        for total, batch in zip(totals, seen, strict=True):
            if not math.isfinite(total):
                raise self._error(total, batch)

    def _error(self, total: float, batch: _Seen) -> TrainingError:
        terms = ", ".join(
            f"{name} {term.item():.4g}" for name, term in batch.terms.items() if name != "total"
        )
        return TrainingError(
            f"the loss is {total} at step {batch.step} ({terms}) on "
            f"{_named(self._dataset, batch.indices)}; no weight was updated; "
            f"{_remedy(self._dataset, [batch.indices], _SLOWER)}"
        )


def aligner_error(
    loss: float, epoch: int, dataset: DistillDataset, batches: Iterable[Indices]
) -> TrainingError:
    """The error for an aligner's non-finite loss over the batches of an epoch, counted from 0."""
    return TrainingError(
        f"the aligner's loss is {loss} in epoch {epoch + 1}; "
        f"{_remedy(dataset, batches, 'lower aligner_learning_rate')}"
    )


def _remedy(dataset: DistillDataset, batches: Iterable[Indices], otherwise: str) -> str:
    for indices in batches if dataset.features else ():
        for source, features in dataset.all_features_of(indices).items():
            finite = torch.isfinite(features).flatten(1).all(dim=1).cpu().numpy()
            finite |= ~dataset.has(source, indices)
            if not finite.all():
                of = f" from {source}" if len(dataset.features) > 1 else ""
                return (
                    f"the cached features{of} of {_named(dataset, indices[~finite])} are not "
                    f"finite, though teachers store only finite values: {_DAMAGED}"
                )
    return f"{otherwise}; {_IN_DOUBT}" if dataset.reads_cache else otherwise


def _named(dataset: DistillDataset, indices: Indices) -> str:
    names = dataset.names(indices[:NAMED])
    more = f" and {len(indices) - NAMED} more" if len(indices) > NAMED else ""
    return ", ".join(names) + more
