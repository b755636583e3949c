"""From token states to one vector a text: pooled [B, D].

`pooler` is the model's own (BERT), `context` a dense layer over the first token with the model's
activation (as DeBERTa's and DistilBERT's classifiers have; trained with the student), `cls` the
first token, `mean` the mean over tokens, `last` the last token (decoders).
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

Pooling = Literal["pooler", "context", "cls", "mean", "last"]


class Pooler(nn.Module):
    """Pools the output of a transformer; only `context` has weights."""

    def __init__(self, pooling: Pooling, config: Any, dropout: float) -> None:
        super().__init__()
        self.pooling = pooling
        if pooling == "context":
            from transformers.activations import ACT2FN

            self.dropout = nn.Dropout(dropout)
            self.dense = nn.Linear(config.hidden_size, config.hidden_size)
            name = getattr(config, "pooler_hidden_act", None)
            self.activation: nn.Module = ACT2FN[name or getattr(config, "hidden_act", "gelu")]

    def forward(self, outputs: Any, mask_BT: Tensor) -> Tensor:
        """[B, D] from a model output with [B, T, D] states."""
        if self.pooling == "pooler":
            pooled: Tensor = outputs.pooler_output
            return pooled
        states_BTD: Tensor = outputs.last_hidden_state
        if self.pooling == "mean":
            weight_BT1 = mask_BT.unsqueeze(-1).to(states_BTD.dtype)
            return (states_BTD * weight_BT1).sum(1) / weight_BT1.sum(1)
        if self.pooling == "last":
            return states_BTD[_rows(mask_BT), _last(mask_BT)]
        first_BD = states_BTD[:, 0]
        if self.pooling == "context":
            return torch.as_tensor(self.activation(self.dense(self.dropout(first_BD))))
        return first_BD


def _rows(mask_BT: Tensor) -> Tensor:
    return torch.arange(mask_BT.shape[0], device=mask_BT.device)


def _last(mask_BT: Tensor) -> Tensor:
    """Place of the last token of each text, whichever side is padded."""
    places_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    return (mask_BT * places_T).argmax(1)
