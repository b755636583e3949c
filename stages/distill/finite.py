"""A loss that is not finite ends a run before it reaches the weights, and is named.

On a CPU a batch's loss is looked at before its gradients are worked out. To read a number back from
a GPU in every step would make that wait; there a flag on the device keeps AdamW from stepping from
the first such batch on, and the host looks when losses are logged.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...cache_schemas.errors import TrainingError

NAMED = 3
"""Examples of a batch that a message names."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """The terms of a step's batch, on their device, and its examples."""

    step: int
    terms: Mapping[str, Tensor]
    places: npt.NDArray[np.int64]


class FiniteLosses:
    """Watches the losses of a run. `deferred`: as on a GPU; `names` says what examples are."""

    def __init__(self, names: Callable[[npt.NDArray[np.int64]], list[str]], deferred: bool) -> None:
        self._names, self._deferred = names, deferred
        self._seen: list[_Seen] = []
        self._spoiled: Tensor | None = None

    def look_at(
        self,
        step: int,
        terms: Mapping[str, Tensor],
        places: npt.NDArray[np.int64],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Before the backward pass of a batch. Raises TrainingError, or keeps the optimizer, which
        must be a fused one, from changing anything until `check` does."""
        detached = {name: term.detach() for name, term in terms.items()}
        self._seen.append(_Seen(step, detached, places))
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
        names = self._names(batch.places[:NAMED])
        more = f" and {len(batch.places) - NAMED} more" if len(batch.places) > NAMED else ""
        return TrainingError(
            f"the loss is {total} at step {batch.step} ({terms}) on {', '.join(names)}{more}; no "
            "weight has changed by it; lower the learning rate, or use precision=float32"
        )
