"""A student that is a causal language model: hidden states of its tokens, and the head over them.

The logits of all tokens are never made: the loss takes hidden states and the head's weight. With
adapters, all other weights are frozen.
Shapes: B rows, T tokens, H width, V rows of the head.
"""

from typing import Any

from torch import Tensor, nn

from ....cache_schemas.errors import StudentSourceError
from ...adapters import without_adapters
from ...corpus.labels import LabelSpace
from ...language.logits import find_transform, is_causal, transformer
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
    ) -> Tensor:
        """The last hidden states [B, T, H]. Without a mask, positions separate texts."""
        states: Tensor = self._read(input_ids, attention_mask, position_ids).last_hidden_state
        return states

    def with_hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The same, and the hidden states [B, T, width] of the embeddings and of each layer."""
        told = self._read(input_ids, attention_mask, position_ids, output_hidden_states=True)
        return told.last_hidden_state, told.hidden_states

    def _read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        **more: bool,
    ) -> Any:
        given = {"attention_mask": attention_mask, "position_ids": position_ids}
        known = {name: tensor for name, tensor in given.items() if tensor is not None}
        return self.backbone(input_ids=input_ids, use_cache=False, **known, **more)
