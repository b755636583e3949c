"""A transformers model that reads tokens, as a teacher: what encoders and classifiers share.

In go texts; out comes one row of numbers for each of them, which does not depend on padding.
"""

import inspect
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from .....cache_schemas.errors import JobError, TeacherSourceError
from .....cache_schemas.teachers import SettingValue
from ....pretrained import embedding_rows, read_tokenizer, token_limit
from ....tokenizing.unknown import Unknown
from ..base import Answers, Example
from .checkpoint_teacher import CheckpointTeacher
from .tokenized import DEFAULT_MAX_LENGTH, TextTokenizer, TokenBatch, TokenizedOptions

PROBE = Example(b"", ("a b c",))
"""A text shorter than its bucket, and longer than the window of a model of characters."""

PADDING_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.1}
"""How far padding may move an answer, in parts of its largest number (at least 0.1): rounding."""


class LanguageModelTeacher(CheckpointTeacher):
    """A frozen transformers model that answers a text with arrays of one shape.

    Subclasses: `auto_class`, `_features`, `_answer`, and where needed `_prepare` and `_unused`."""

    def __init__(self, source: str, options: TokenizedOptions, device: torch.device) -> None:
        super().__init__(source, options.revision, options.precision(), device)
        tokenizer = read_tokenizer(self._folder, TeacherSourceError)
        options = self._resolve(options, tokenizer)
        positions = token_limit(tokenizer, self._reader())
        max_length = options.max_length or min(DEFAULT_MAX_LENGTH, positions)
        check_max_length(max_length, positions, tokenizer)
        self._texts = TextTokenizer(
            tokenizer,
            options,
            max_length=max_length,
            names=self._arguments(),
            vocabulary=embedding_rows(self._reader()),
            positions=positions,
            fixed=self._pads_to_its_limit(),
        )
        self.spec = self._make_spec(options, max_length=max_length, **self._declared_settings())

    def encode(self, examples: Sequence[Example]) -> Answers:
        """One array [B, *shape] a feature."""
        batch = self._texts.batch(examples)
        with self._answering():
            answers = self._answer(batch)
        stored = {
            name: self._precision.store(values[: len(examples)]) for name, values in answers.items()
        }
        return Answers(stored, batch.truncated)

    def buckets(self, examples: Sequence[Example]) -> list[int]:
        """The padded length of each example, in tokens."""
        return self._texts.buckets(examples)

    def unknown(self, examples: Sequence[Example]) -> Unknown | None:
        """See Teacher."""
        return self._texts.unknown(examples)

    def _resolve(self, options: TokenizedOptions, tokenizer: Any) -> TokenizedOptions:
        """The options, with what the source declares in place of what they leave open."""
        return options

    def _reader(self) -> Any:
        """The part of the skeleton that reads tokens."""
        return self._skeleton

    def _arguments(self) -> frozenset[str]:
        """What the model is told of a text."""
        return frozenset(inspect.signature(self._skeleton.forward).parameters)

    def _pads_to_its_limit(self) -> bool:
        """Whether every text has to be as long as the model takes."""
        return False

    def _declared_settings(self) -> dict[str, SettingValue]:
        """What the source declares beside the options, and changes answers."""
        return {}

    @abstractmethod
    def _answer(self, batch: TokenBatch) -> dict[str, torch.Tensor]:
        """Feature -> [B or more, *shape], rows beyond B being repeated ones."""

    @torch.inference_mode()
    def _probe(self) -> None:
        # Not every model heeds a mask (FNet), or finds a text's end before padding (XLNet's head).
        bare = self._answer(self._texts.batch([PROBE], padded=False))
        padded = self._answer(self._texts.batch([PROBE]))
        tolerance = PADDING_TOLERANCE[self._precision.torch_dtype]
        for name, expected in bare.items():
            feature = self.spec.feature(name)
            if feature is not None and expected.shape[1:] != feature.shape:
                raise TeacherSourceError(
                    f"source {self._folder}: {type(self._model).__name__} gives "
                    f"{list(expected.shape[1:])} numbers a text where its config.json says "
                    f"{list(feature.shape)} ({name}); use another model"
                )
            largest = expected.abs().max().clamp(min=0.1)
            if (padded[name] - expected).abs().max() > tolerance * largest:
                raise TeacherSourceError(
                    f"source {self._folder}: {type(self._model).__name__} answers otherwise when a "
                    f"text is padded ({name}), so its answers would depend on it; use another model"
                )


def check_max_length(max_length: int, most: int, tokenizer: Any) -> None:
    """Raises JobError if the model takes fewer tokens, or no text fits beside the special ones."""
    least = tokenizer.num_special_tokens_to_add(pair=True) + 1
    if max_length > most:
        raise JobError(f"max_length: {max_length} is more than the model takes; at most {most}")
    if max_length < least:
        raise JobError(
            f"max_length: {max_length} has no room beside the special tokens; at least {least}"
        )
