"""A language model's own continuations of prompts, greedy or sampled, one seed per example.

Prompts of one length are continued together, so that nothing is padded and a response depends on
its example alone. Shapes: B prompts of one length, V tokens.
"""

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...language.logits import hidden_states, same_states, transformer
from ...language.probes import probing

CACHE_NAMES = ("cache", "past_key_values", "cache_params", "state")
"""Names of the key-value cache (or states), as an argument and in the output: the first since
transformers 5.24, the second until 5.40."""

PROBE_TOKENS = 6

Uniforms = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Choice of the next token. temperature 0: the most probable one; else it is sampled from the
    most probable tokens that together have at least `top_p` of the mass (nucleus sampling, arXiv
    1904.09751)."""

    temperature: float
    top_p: float

    def choose(self, logits_BV: Tensor, uniform_B: Uniforms) -> Tensor:
        """The next token of each text [B]; `uniform_B` are numbers from 0 to 1."""
        if self.temperature == 0:
            return logits_BV.argmax(1)
        probs_BV, ids_BV = (logits_BV / self.temperature).double().softmax(1).sort(1, True)
        summed_BV = probs_BV.cumsum(1)
        # The tokens before the one at which the mass is reached, and that one.
        kept_B1 = ((summed_BV - probs_BV) < self.top_p).sum(1, keepdim=True)
        mass_B1 = summed_BV.gather(1, kept_B1 - 1)
        wanted_B1 = torch.from_numpy(uniform_B)[:, None].to(mass_B1.device) * mass_B1
        position_B1 = torch.searchsorted(summed_BV, wanted_B1, right=True)
        return ids_BV.gather(1, torch.minimum(position_B1, kept_B1 - 1))[:, 0]


@dataclass(slots=True)
class Continuation:
    """Generated tokens, and their log-probabilities at temperature 1; `broken` if logits were not
    finite."""

    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    broken: bool = False


NextLogits = Callable[[Tensor, Any], tuple[Tensor, Any]]
"""Maps new tokens [B, T] and the cache of earlier ones (None: empty) to logits [B, V] of the next
token, and the new cache."""


def find_cache_name(model: Any) -> str | None:
    """Name by which a causal model takes and returns its cache; None if it has none, or if
    continuing from it differs from reading the whole text, which is tested."""
    taken = inspect.signature(transformer(model).forward).parameters
    name = next((name for name in CACHE_NAMES if name in taken), None)
    if name is None:
        return None
    vocab_size = model.get_input_embeddings().weight.shape[0]
    # Two rows: RWKV's recurrence is right for a single one only.
    ids_BT = torch.arange(2 * PROBE_TOKENS, device=model.device).view(2, -1) % vocab_size
    with probing(model):
        whole_BH, _ = next_states(model, None, ids_BT, None)
        try:
            _, past = next_states(model, name, ids_BT[:, :-2], None)
            _, past = next_states(model, name, ids_BT[:, -2:-1], past)
            continued_BH, _ = next_states(model, name, ids_BT[:, -1:], past)
        except Exception:  # whatever a family raises that cannot continue so: it reads all again
            return None
    return name if same_states(continued_BH, whole_BH) else None


def next_states(
    model: Any, cache_name: str | None, ids_BT: Tensor, past: Any
) -> tuple[Tensor, Any]:
    """Hidden states [B, H] at the last of new tokens [B, T], and the cache of all tokens so far:
    the model's, or without one the tokens themselves, which are read again each time."""
    if cache_name is None:
        ids_BT = ids_BT if past is None else torch.cat([past, ids_BT], dim=1)
        output = hidden_states(model, ids_BT, torch.ones_like(ids_BT))
        return output.last_hidden_state[:, -1], ids_BT
    told: dict[str, Any] = {cache_name: past}
    if past is None:
        told = {"attention_mask": torch.ones_like(ids_BT)}
    output = transformer(model)(input_ids=ids_BT, use_cache=True, **told)
    return output.last_hidden_state[:, -1], output[cache_name]


def continue_prompts(
    next_logits: NextLogits,
    prompts_BT: Tensor,
    most: int,
    ends: Collection[int],
    sampling: Sampling,
    uniforms_BN: Uniforms,
) -> list[Continuation]:
    """Continuations of prompts of one length, at most `most` tokens each, up to and with one of
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
    for index in np.flatnonzero(saying).tolist():
        one = found[index]
        one.broken = not np.isfinite(log_probs[index])
        one.ids.append(ids[index])
        one.log_probs.append(log_probs[index])
        saying[index] = not one.broken and ids[index] not in ends
