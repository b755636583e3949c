"""Students that are language models: hidden states of their tokens, and the head over them.

The logits of all tokens are never made: the loss takes hidden states and the head's weight. With
adapters, all other weights are frozen.
Shapes: B rows, T tokens, P predicted tokens, H width, V rows of the head.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ....cache_schemas.errors import StudentSourceError
from ...adapters import without_adapters
from ...corpus.labels import LabelSpace
from ...language.logits import LogitTransform, find_transform, is_causal, transformer
from ...language.masked_heads import body, find_head_transform
from ...language.masks import attending
from ...language.probes import without_memory
from ...pretrained import refusing
from ..aligner import ClassificationHead


class LanguageStudent(nn.Module):
    """A causal language model: `model` as transformers has it, or as peft wraps it; `head` beside
    it where texts have labels."""

    always_observed: ClassVar[bool] = False
    """Whether an evaluation looks at the logits also where no teacher is compared with."""

    def __init__(self, model: Any, space: LabelSpace, dropout: float) -> None:
        super().__init__()
        self.model = model
        self.space = space
        self.dropout = dropout
        with refusing(StudentSourceError, f"student: {self._name}"):
            transform = self._prove()
        self._always: dict[str, bool] = self._without_memory()
        self.transform = transform
        self.head = None
        if space.task != "none":
            self.head = ClassificationHead(self.dim, space.num_labels, space.regression, dropout)

    @property
    def language_model(self) -> Any:
        """The language model itself, without adapters."""
        return without_adapters(self.model)

    @property
    def backbone(self) -> Any:
        """The transformer below the head."""
        return transformer(self.language_model)

    @property
    def dim(self) -> int:
        """H, the width of the hidden states that the head reads."""
        return int(self.language_model.get_output_embeddings().weight.shape[1])

    @property
    def head_weights(self) -> tuple[Tensor, Tensor | None]:
        """Weight [V, H] of the head, and its bias [V] if it has one."""
        head = self.language_model.get_output_embeddings()
        return head.weight, getattr(head, "bias", None)

    def before_head(self, states_PH: Tensor) -> Tensor:
        """What the head reads [P, H] of the last hidden states of predicted tokens."""
        return states_PH

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
            return self.backbone(input_ids=input_ids, **self._always, **known, **more)

    @property
    def _name(self) -> str:
        return type(self.language_model).__name__

    def _without_memory(self) -> dict[str, bool]:
        return {"use_cache": False}

    def _prove(self) -> LogitTransform:
        """How logits are made of what the head gives. Raises StudentSourceError where that is not
        known, or where the model is of another kind."""
        transform = find_transform(self.language_model)
        if transform is None:
            raise StudentSourceError(
                f"student: {self._name} does not compute its logits as head(last hidden state); "
                "use another model"
            )
        if not is_causal(self.language_model):
            raise StudentSourceError(
                f"student: a {self._name} attends to later tokens; use a causal language model"
            )
        return transform

    @property
    def _separable(self) -> bool:
        """Whether attention masks alone keep texts in a row apart: one that carries a state from
        token to token takes that from positions, and a compiled one makes its masks itself."""
        backbone = self.backbone
        return not (backbone._is_stateful or backbone._compiled_call_impl)


class MaskedStudent(LanguageStudent):
    """A masked language model: its own layers before the head see predicted tokens alone."""

    always_observed = True

    def before_head(self, states_PH: Tensor) -> Tensor:
        """What the head reads [P, H] of the last hidden states of predicted tokens."""
        return self._head_transform(self.language_model, states_PH)

    @property
    def backbone(self) -> Any:
        """The transformer below the head."""
        return body(self.language_model)

    def _without_memory(self) -> dict[str, bool]:
        return without_memory(self.backbone)

    def _prove(self) -> LogitTransform:
        found = find_head_transform(self.language_model)
        if found is None:
            raise StudentSourceError(
                f"student: the layers of a {self._name} that make its logits are not known; use a "
                "BERT, RoBERTa, DistilBERT, ALBERT, ELECTRA or ModernBERT"
            )
        self._head_transform = found
        return LogitTransform()
