"""A student that is a causal language model: hidden states of its tokens, and the head over them.

The logits of all tokens are never made: the loss takes hidden states and the head's weight. With
adapters, all other weights are frozen.
Shapes: B rows, T tokens, H width, V rows of the head.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ....cache_schemas.errors import StudentSourceError
from ...adapters import without_adapters
from ...corpus.labels import LabelSpace
from ...language.logits import find_transform, is_causal, transformer
from ...language.masks import attending
from ...pretrained import refusing
from ..aligner import ClassificationHead


class LanguageStudent(nn.Module):
    """`model` as transformers has it, or as peft wraps it; `head` beside it where texts have
    labels."""

    def __init__(self, model: Any, space: LabelSpace, dropout: float) -> None:
        super().__init__()
        self.model = model
        self.space = space
        self.dropout = dropout
        with refusing(StudentSourceError, f"student: {type(self.causal).__name__}"):
            transform = find_transform(self.causal)
        if transform is None:
            raise StudentSourceError(
                f"student: {type(self.causal).__name__} does not compute its logits as head(last "
                "hidden state); use another model"
            )
        if not is_causal(self.causal):
            raise StudentSourceError(
                f"student: a {type(self.causal).__name__} attends to later tokens; use a causal "
                "language model"
            )
        self.transform = transform
        self.head = None
        if space.task != "none":
            self.head = ClassificationHead(self.dim, space.num_labels, space.regression, dropout)

    @property
    def causal(self) -> Any:
        """The causal language model itself."""
        return without_adapters(self.model)

    @property
    def backbone(self) -> Any:
        """The transformer below the head."""
        return transformer(self.causal)

    @property
    def dim(self) -> int:
        """H, the width of the hidden states that the head reads."""
        return int(self.causal.get_output_embeddings().weight.shape[1])

    @property
    def head_weights(self) -> tuple[Tensor, Tensor | None]:
        """Weight [V, H] of the head, and its bias [V] if it has one."""
        head = self.causal.get_output_embeddings()
        return head.weight, getattr(head, "bias", None)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        masked: bool | None = None,
    ) -> Tensor:
        """The last hidden states [B, T, H]. Without a mask, positions separate texts. `masked`:
        whether something is padded or texts share a row, if that is known without reading it from
        the device."""
        states: Tensor = self._read(
            input_ids, attention_mask, position_ids, masked
        ).last_hidden_state
        return states

    def with_hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None = None,
        masked: bool | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The same, and the hidden states [B, T, width] of the embeddings and of each layer."""
        more = {"output_hidden_states": True}
        output = self._read(input_ids, attention_mask, position_ids, masked, **more)
        return output.last_hidden_state, output.hidden_states

    def _read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        masked: bool | None,
        **more: bool,
    ) -> Any:
        apart = None
        if attention_mask is None and masked is not None and self._separable:
            attention_mask, apart = torch.ones_like(input_ids), position_ids
        given = {"attention_mask": attention_mask, "position_ids": position_ids}
        known = {name: tensor for name, tensor in given.items() if tensor is not None}
        with attending(masked, apart):
            return self.backbone(input_ids=input_ids, use_cache=False, **known, **more)

    @property
    def _separable(self) -> bool:
        """Whether attention masks alone keep texts in a row apart: one that carries a state from
        token to token takes that from positions, and a compiled one makes its masks itself."""
        backbone = self.backbone
        return not (backbone._is_stateful or backbone._compiled_call_impl)
