"""The vector of a text that a student pools: [B, D].

`pooler` is the model's own (BERT), `context` a dense layer over the first token with the model's
activation (as DeBERTa's and DistilBERT's classifiers have; trained with the student), and others
are of the states, as embedding models have them (`../pooling.py`). `own` is what the last layer of
the family's own sequence classifier reads, which is not part of this module.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..pooling import StatePooling, pool

Pooling = Literal["pooler", "context"] | StatePooling
AnyPooling = Literal["own"] | Pooling


class Pooler(nn.Module):
    """Pools the output of a transformer; only `context` has weights."""

    def __init__(self, pooling: Pooling, config: Any, width: int, dropout: float) -> None:
        """`width`: that of the states, H."""
        super().__init__()
        self.pooling = pooling
        if pooling == "context":
            from transformers.activations import ACT2FN

            self.dropout = nn.Dropout(dropout)
            self.dense = nn.Linear(width, width)
            name = getattr(config, "pooler_hidden_act", None)
            self.activation: nn.Module = ACT2FN[name or getattr(config, "hidden_act", "gelu")]

    def forward(self, outputs: Any, mask_BT: Tensor) -> Tensor:
        """[B, D] from a model output with [B, T, D] states."""
        if self.pooling == "pooler":
            pooled: Tensor = outputs.pooler_output
            return pooled
        states_BTD: Tensor = outputs.last_hidden_state
        if self.pooling == "context":
            return torch.as_tensor(self.activation(self.dense(self.dropout(states_BTD[:, 0]))))
        return pool(states_BTD, mask_BT, [self.pooling])
