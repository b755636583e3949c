"""Prompts of different lengths continued together, their keys and values padded on the left.

Prompts are read in parts of about one length, so that little of what is read is padding; their keys
and values are then put side by side, so that all prompts end in one column, with room behind them
for the tokens to come. A new token's are written there: a cache that concatenates copies all of
itself at each token. Shapes: A rows, B prompts,
T columns, C rows that are kept.
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from ....cache_schemas.keys import IntArray
from ...language.logits import PADDED_NOISE, hidden_states, same_states, transformer
from ...language.masks import attending
from ...language.probes import probing
from ...language.tokens import Ids
from ...tokenizing.padding import pad
from .base import to_device

PROBE_TOKENS = (48, 47, 9)
"""Tokens of the texts that a model is tried with: two are read together, one alone."""

MOST_PADDING = 32
"""Tokens of padding, or an eighth of all if that is more, among prompts that are read together: to
read the model's weights once more, for a part of its own, costs about as much."""


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values [A, heads, T, numbers] of one layer, the first columns of larger tensors."""

    def __init__(self, like: Any, rows: int, width: int, room: int) -> None:
        """Room for prompts of `width` tokens and `room` more, of a layer that is `like` this."""
        super().__init__()
        self.device = like.keys.device
        self.is_initialized = True
        # Zeros, for numbers that are no numbers stay such where attention gives them no weight.
        self._all_keys, self._all_values = (
            part.new_zeros(rows, part.shape[1], width + room, part.shape[3])
            for part in (like.keys, like.values)
        )
        self._show(width)

    def put(self, layer: Any, rows: slice, repeats: int) -> None:
        """The keys and values of some prompts, each so many times, at the end of the columns."""
        begin = self.keys.shape[2] - layer.keys.shape[2]
        self.keys[rows, :, begin:] = layer.keys.repeat_interleave(repeats, 0)
        self.values[rows, :, begin:] = layer.values.repeat_interleave(repeats, 0)

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write those of new tokens."""
        begin = self.keys.shape[2]
        self._show(begin + key_states.shape[2])
        self.keys[:, :, begin:] = key_states
        self.values[:, :, begin:] = value_states
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        self._all_keys = self._all_keys.index_select(0, indices)
        self._all_values = self._all_values.index_select(0, indices)
        self._show(self.keys.shape[2])

    def _show(self, columns: int) -> None:
        self.keys = self._all_keys[:, :, :columns]
        self.values = self._all_values[:, :, :columns]


class PaddedReader:
    """See `generation.Reader`."""

    drops: ClassVar[bool] = True

    def __init__(self, model: Any, cache_name: str) -> None:
        self._model, self._cache_name = model, cache_name
        self._body = transformer(model)
        self._takes_positions = "position_ids" in inspect.signature(self._body.forward).parameters

    def begin(self, prompts: Sequence[Ids], repeats: int, room: int) -> Tensor:
        """Read prompts, the longest first."""
        lengths = np.array([len(prompt) for prompt in prompts])
        device = self._model.device
        width = int(lengths[0])
        parts, states, self._cache = list(_parts(lengths)), [], DynamicCache()
        for part in parts:
            found, cache = self._read(prompts[part], lengths[part])
            states.append(found.repeat_interleave(repeats, 0))
            rows = slice(part.start * repeats, part.stop * repeats)
            for at, layer in enumerate(cache.layers):
                if at == len(self._cache.layers):
                    made = RoomyLayer(layer, len(prompts) * repeats, width, room)
                    self._cache.layers.append(made)
                self._cache.layers[at].put(layer, rows, repeats)
        lengths = np.repeat(lengths, repeats)
        self._masked = bool((lengths < width).any())
        mask = np.arange(width + room) >= width - lengths[:, None]
        self._mask_AT = to_device(torch.from_numpy(mask.astype(np.int64)), device)
        self._positions_A1 = to_device(torch.from_numpy(lengths[:, None]), device)
        self._columns = width
        return torch.cat(states)

    def go_on(self, ids_A: Tensor) -> Tensor:
        """See `generation.Reader`."""
        self._columns += 1
        inputs: dict[str, Any] = {self._cache_name: self._cache}
        if self._masked:
            inputs["attention_mask"] = self._mask_AT[:, : self._columns]
        states_A1H, _ = self._forward(ids_A[:, None], self._positions_A1, self._masked, inputs)
        self._positions_A1 = self._positions_A1 + 1
        return states_A1H[:, -1]

    def keep(self, rows_C: Tensor) -> None:
        """See `generation.Reader`."""
        self._cache.batch_select_indices(rows_C)
        self._mask_AT = self._mask_AT.index_select(0, rows_C)
        self._positions_A1 = self._positions_A1.index_select(0, rows_C)

    def _read(self, prompts: Sequence[Ids], lengths: Any) -> tuple[Tensor, Any]:
        """The states [B, H] of the last tokens, and the cache."""
        device = self._model.device
        ids = {"input_ids": np.concatenate(prompts)}
        batch = pad(ids, lengths, {"input_ids": int(prompts[0][0])}, left=True)
        mask_BT = batch["attention_mask"]
        positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        inputs = {self._cache_name: DynamicCache(), "attention_mask": to_device(mask_BT, device)}
        states_BTH, cache = self._forward(
            to_device(batch["input_ids"], device),
            to_device(positions_BT, device),
            bool((lengths < lengths[0]).any()),
            inputs,
        )
        return states_BTH[:, -1], cache

    def _forward(
        self, ids_BT: Tensor, positions_BT: Tensor, masked: bool, inputs: dict[str, Any]
    ) -> tuple[Tensor, Any]:
        if self._takes_positions:
            inputs["position_ids"] = positions_BT
        with attending(masked):
            output = self._body(input_ids=ids_BT, use_cache=True, **inputs)
        return output.last_hidden_state, output[self._cache_name]


def _parts(lengths: IntArray) -> Iterator[slice]:
    """Falling lengths [B], in parts of about one length."""
    start = padding = 0
    for at, length in enumerate(lengths.tolist()):
        padding += int(lengths[start]) - length
        if padding > max(MOST_PADDING, int(lengths[start]) * (at - start) // 8):
            yield slice(start, at)
            start, padding = at, 0
    yield slice(start, len(lengths))


def reads_padded(model: Any, cache_name: str) -> bool:
    """Whether prompts of different lengths, continued together, have the states that they have
    alone: not in families with other states than keys and values, or that pay no heed to a mask."""
    words = model.get_input_embeddings().weight.shape[0]
    texts = [np.arange(length, dtype=np.int32) % words for length in PROBE_TOKENS]
    with probing(model):
        try:
            reader = PaddedReader(model, cache_name)
            reader.begin([text[:-2] for text in texts], 1, 2)
            reader.go_on(_column(texts, -2, model.device))
            reader.keep(torch.arange(1, len(texts), device=model.device))
            found = reader.go_on(_column(texts[1:], -1, model.device))
            for text, state_H in zip(texts[1:], found, strict=True):
                ids_1T = torch.from_numpy(text)[None].long().to(model.device)
                alone = hidden_states(model, ids_1T, torch.ones_like(ids_1T)).last_hidden_state
                if not same_states(state_H[None], alone[:, -1], PADDED_NOISE):
                    return False
        except Exception:  # whatever a family raises that cannot be read so
            return False
    return True


def _column(texts: Sequence[Ids], at: int, device: torch.device) -> Tensor:
    return torch.tensor([int(text[at]) for text in texts], device=device)
