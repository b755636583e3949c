"""Any transformers sequence classifier as a teacher: its logits, and what they were made from.

Shapes: B examples, T tokens, H hidden numbers, K classes.
"""

from typing import Any

import torch
from pydantic import Field

from ....cache_schemas.errors import TeacherSourceError
from ....cache_schemas.features import FeatureSpec
from .text.language_models import LanguageModelTeacher
from .text.tokenized import TokenBatch, TokenizedOptions


class ClassifierOptions(TokenizedOptions):
    pooled: bool = Field(
        default=False,
        description="keep the input of the last linear layer as well, as feature pooled",
    )


class ClassifierTeacher(LanguageModelTeacher):
    """Answers with `logits` [K], named by the model's labels, and `pooled` [H] if asked.

    `pooled` is what the head's last linear layer turns into the logits: pooled . W' + b = logits.
    """

    Options = ClassifierOptions
    kind = "classifier"
    selecting = frozenset({"pooled"})
    auto_class = "AutoModelForSequenceClassification"

    def __init__(self, source: str, options: ClassifierOptions, device: torch.device) -> None:
        self._options = options
        super().__init__(source, options, device)

    def _prepare(self) -> None:
        # Decoders find the last token of a text by looking for padding.
        self._model.config.get_text_config().pad_token_id = self._texts.pad_id
        if self._options.pooled:
            head = self._model.get_submodule(self._head()[0])
            head.register_forward_pre_hook(self._keep_head_input)

    def _answer(self, batch: TokenBatch) -> dict[str, torch.Tensor]:
        inputs = batch.on(self._device)
        answers = {"logits": self._model(**inputs).logits}
        if self._options.pooled:
            answers["pooled"] = self._head_input(inputs["input_ids"])
        return answers

    def _keep_head_input(self, head: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        self._seen = inputs[0]

    def _head_input(self, ids_BT: torch.Tensor) -> torch.Tensor:
        if self._seen.ndim == 2:
            return self._seen
        # A decoder's head runs on all tokens, and the logits of the last one that is not padding
        # are taken. The same choice, by the same rule.
        places_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        last_B = (places_T * (ids_BT != self._texts.pad_id)).argmax(dim=1)
        return self._seen[torch.arange(len(ids_BT), device=ids_BT.device), last_B]

    def _features(self) -> list[FeatureSpec]:
        labels = tuple(str(name) for _, name in sorted(self._config.id2label.items()))
        stored = self._precision.stored
        logits = FeatureSpec(
            name="logits",
            shape=(len(labels),),
            dtype=stored,
            description="class logits",
            labels=labels,
        )
        if not self._options.pooled:
            return [logits]
        name, width = self._head()
        told = f"input of the classification layer {name}"
        return [
            logits,
            FeatureSpec(name="pooled", shape=(width,), dtype=stored, description=told),
        ]

    def _head(self) -> tuple[str, int]:
        """Name and input width of the last linear layer with one output a class."""
        found = [
            (name, int(module.in_features))
            for name, module in self._skeleton.named_modules()
            if isinstance(module, torch.nn.Linear)
            and module.out_features == self._config.num_labels
        ]
        if not found:
            raise TeacherSourceError(
                f"source {self._folder}: {type(self._skeleton).__name__} has no linear "
                "classification layer to take pooled from; leave pooled off"
            )
        return found[-1]
