"""A language model's own continuations of prompts, greedy or drawn, one seed an example.

Prompts of one length are continued together, so that nothing is padded and an answer depends on
its example alone. Shapes: B prompts of one length, V words.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Uniforms = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next word is chosen. temperature 0: the most probable one; else it is drawn from the
    most probable words that together have at least `top_p` of the mass (nucleus sampling, arXiv
    1904.09751)."""

    temperature: float
    top_p: float

    def choose(self, logits_BV: Tensor, uniform_B: Uniforms) -> Tensor:
        """The next word of each text [B]; `uniform_B` are numbers from 0 to 1."""
        if self.temperature == 0:
            return logits_BV.argmax(1)
        probs_BV, ids_BV = (logits_BV / self.temperature).double().softmax(1).sort(1, True)
        summed_BV = probs_BV.cumsum(1)
        # The words before the one at which the mass is reached, and that one.
        kept_B1 = ((summed_BV - probs_BV) < self.top_p).sum(1, keepdim=True)
        mass_B1 = summed_BV.gather(1, kept_B1 - 1)
        wanted_B1 = torch.from_numpy(uniform_B)[:, None].to(mass_B1.device) * mass_B1
        place_B1 = torch.searchsorted(summed_BV, wanted_B1, right=True)
        return ids_BV.gather(1, torch.minimum(place_B1, kept_B1 - 1))[:, 0]


@dataclass(slots=True)
class Continuation:
    """The words that a model said, and the logarithms of their probabilities at temperature 1;
    `broken` if its logits were no numbers."""

    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    broken: bool = False


NextLogits = Callable[[Tensor, Any], tuple[Tensor, Any]]
"""From new tokens [B, T] and what is remembered of those before them (None: nothing) to logits
[B, V] of the next word, and what is to be remembered."""


def continue_prompts(
    next_logits: NextLogits,
    prompts_BT: Tensor,
    most: int,
    ends: Collection[int],
    sampling: Sampling,
    uniforms_BN: Uniforms,
) -> list[Continuation]:
    """Continuations of prompts of one length, at most `most` words each, up to and with one of
    `ends`."""
    found = [Continuation() for _ in prompts_BT]
    saying = np.ones(len(found), dtype=bool)
    past, ids_BT = None, prompts_BT
    for step in range(most):
        logits_BV, past = next_logits(ids_BT, past)
        log_probs_BV = logits_BV.log_softmax(1)
        next_B = sampling.choose(logits_BV.nan_to_num(), uniforms_BN[:, step])
        chosen_B = log_probs_BV.gather(1, next_B[:, None])[:, 0]
        _note(found, saying, next_B.tolist(), chosen_B.tolist(), ends)
        if not saying.any():
            break
        ids_BT = next_B[:, None]
    return found


def _note(
    found: list[Continuation],
    saying: npt.NDArray[np.bool_],
    ids: list[int],
    log_probs: list[float],
    ends: Collection[int],
) -> None:
    for place in np.flatnonzero(saying).tolist():
        one = found[place]
        one.broken = not np.isfinite(log_probs[place])
        one.ids.append(ids[place])
        one.log_probs.append(log_probs[place])
        saying[place] = not one.broken and ids[place] not in ends
