"""Any transformers sequence classifier as a teacher: its logits, and what they were made from.

Shapes: B examples, T tokens, H hidden numbers, K classes.
"""

import torch

from ....cache_schemas.errors import TeacherSourceError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.teachers import SettingValue
from ...language.classifiers import NO_TOKEN, find_head, last_linear
from .checkpoint_teacher import LanguageModelTeacher
from .options import ClassifierOptions
from .tokenized import Inputs

SEVERAL_TOKENS = "a b c d e"


class ClassifierTeacher(LanguageModelTeacher):
    """Features `logits` [K], named by the model's labels, and `pooled` [H] if requested.

    `pooled` is the input of the head's last linear layer: pooled . W' + b = logits. For a decoder,
    both are those of the last token by the mask.
    """

    Options = ClassifierOptions
    kind = "classifier"
    selecting = frozenset({"pooled"})
    auto_class = "AutoModelForSequenceClassification"

    def __init__(self, source: str, options: ClassifierOptions, device: torch.device) -> None:
        self._options = options
        super().__init__(source, options, device)

    def _prepare(self) -> None:
        config = self._model.config.get_text_config()
        if getattr(config, "pad_token_id", None) is None:
            # Decoders refuse to look for the end of several texts without it; it is not read.
            config.pad_token_id = NO_TOKEN
        rows = self._texts.read_own(SEVERAL_TOKENS)
        inputs = self._texts.inputs(rows, self._device, padded=False)
        with torch.inference_mode():
            self._read_out = find_head(self._model, self._config.num_labels, inputs)
        if self._options.pooled and self._read_out is None:
            raise TeacherSourceError(
                f"source {self._folder}: {type(self._model).__name__} does not compute its logits "
                "by a linear layer from one vector; leave pooled off"
            )

    def _probe(self) -> None:
        try:
            super()._probe()
        except TeacherSourceError:
            self._texts.pad_left = True  # XLNet reads the last position of a row
            super()._probe()

    def _answer(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        if not self._config.is_encoder_decoder:
            return self._forward(inputs)
        # transformers reads these at their last end of sequence, and wants as many in each row.
        counts_B = (inputs["input_ids"] == self._config.eos_token_id).sum(dim=1)
        answers: dict[str, torch.Tensor] = {}
        for count in counts_B.unique():
            rows = torch.nonzero(counts_B == count)[:, 0]
            filled = rows.repeat(-(-len(counts_B) // len(rows)))[: len(counts_B)]
            found = self._forward({name: values[filled] for name, values in inputs.items()})
            for name, values in found.items():
                whole = answers.setdefault(name, torch.empty_like(values))
                whole[rows] = values[: len(rows)]
        return answers

    def _forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self._read_out is None:
            return {"logits": self._model(**inputs).logits}
        pooled, logits, _ = self._read_out.read(self._model, inputs)
        return {"logits": logits, "pooled": pooled} if self._options.pooled else {"logits": logits}

    def _declared_settings(self) -> dict[str, SettingValue]:
        # Such texts were once read a token early: features of that time belong to another teacher.
        return {"text_end": "mask"} if self._texts.ends_with_padding else {}

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
        name = last_linear(self._skeleton, self._config.num_labels)
        if name is None:
            raise TeacherSourceError(
                f"source {self._folder}: {type(self._skeleton).__name__} has no linear "
                "classification layer to take pooled from; leave pooled off"
            )
        return name, int(self._skeleton.get_submodule(name).in_features)
