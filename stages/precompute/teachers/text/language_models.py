"""A transformers model that reads tokens, as a teacher: what encoders and classifiers share.

In goes a folder or hub id; out comes a frozen model of which every weight that is used came from
the checkpoint, and whose answers do not depend on padding. Whatever can be refused is refused from
the configuration and a skeleton of the model: its modules without any weights, built in
milliseconds.
"""

import inspect
import sys
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from .....cache_schemas.errors import JobError, TeacherSourceError
from .....cache_schemas.features import FeatureSpec
from ....pretrained import (
    LOAD_ERRORS,
    LOCAL_ONLY,
    one_line,
    quiet_transformers,
    read_config,
    read_tokenizer,
    source_name,
    token_limit,
)
from ....sources import MODEL_FILE_PATTERNS, digest_files, require_safetensors, resolve
from ..base import Answers, Example, Teacher, make_spec
from .tokenized import DEFAULT_MAX_LENGTH, TextTokenizer, TokenBatch, TokenizedOptions

PROBE = Example(b"", ("a",))
"""A text shorter than its bucket."""

PADDING_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.1}
"""How far padding may move an answer, in parts of its largest number (at least 0.1): rounding."""


class LanguageModelTeacher(Teacher):
    """A frozen transformers model, `_model` after `load`.

    Subclasses: `auto_class`, `_features`, `_answer`, and where needed `_prepare` and `_unused`."""

    auto_class: ClassVar[str]

    def __init__(self, source: str, options: TokenizedOptions, device: torch.device) -> None:
        self._device = device
        self._precision = options.precision()
        self._folder = resolve(source, options.revision, TeacherSourceError)
        self._config = read_config(self._folder, TeacherSourceError)
        require_safetensors(self._folder, TeacherSourceError)
        self._skeleton = self._build_skeleton()
        tokenizer = read_tokenizer(self._folder, TeacherSourceError)
        positions = token_limit(tokenizer, self._skeleton)
        max_length = options.max_length or min(DEFAULT_MAX_LENGTH, positions)
        check_max_length(max_length, positions, tokenizer)
        self._texts = TextTokenizer(
            tokenizer,
            options,
            max_length=max_length,
            names=_arguments(self._skeleton),
            vocabulary=_vocabulary(self._skeleton),
            positions=positions,
        )
        features = self._features()  # before the digest, which reads every weight
        self.spec = make_spec(
            self.kind,
            source_name(source, options.revision),
            {"model": digest_files(self._folder, _own_files(self._folder))},
            options,
            features,
            revision=None,  # the digest says it, also where the folder has no revision
            max_length=max_length,
            **self._precision.settings(),
        )

    def load(self) -> None:
        """Read the weights and put them on the device.

        Raises TeacherSourceError if the checkpoint lacks a weight that an answer needs, or if the
        model does not keep padding out of its answers."""
        with quiet_transformers():
            model = self._read()
            model.config.use_cache = False  # nothing is generated: no keys and values to remember
            self._model: Any = model.eval().requires_grad_(False).to(self._device)
            self._prepare()
            self._refuse_padding()

    def encode(self, examples: Sequence[Example]) -> Answers:
        """One array [B, *shape] a feature."""
        batch = self._texts.batch(examples)
        stored = {
            name: self._precision.store(values[: len(examples)])
            for name, values in self._answer(batch).items()
        }
        return Answers(stored, batch.truncated)

    def buckets(self, examples: Sequence[Example]) -> list[int]:
        """The padded length of each example, in tokens."""
        return self._texts.buckets(examples)

    @abstractmethod
    def _features(self) -> list[FeatureSpec]:
        """What the teacher answers, from `_config` and `_skeleton`."""

    @abstractmethod
    def _answer(self, batch: TokenBatch) -> dict[str, torch.Tensor]:
        """Feature -> [B or more, *shape], rows beyond B being repeated ones."""

    def _prepare(self) -> None:
        """What else is to be done with a model that was just read."""

    def _unused(self, weight: str) -> bool:
        """Whether no answer depends on that weight."""
        return False

    def _auto(self) -> Any:
        import transformers

        return getattr(transformers, self.auto_class)

    def _build_skeleton(self) -> Any:
        try:
            with torch.device("meta"), quiet_transformers():
                return self._auto().from_config(self._config, trust_remote_code=False)
        except LOAD_ERRORS as cause:
            raise TeacherSourceError(
                f"source {self._folder}: model type {self._config.model_type!r} does not work as "
                f"{self.auto_class}: {one_line(cause)}"
            ) from cause

    def _read(self) -> Any:
        try:
            model, report = self._auto().from_pretrained(
                self._folder,
                dtype=self._precision.torch_dtype,
                use_safetensors=True,
                output_loading_info=True,
                **LOCAL_ONLY,
            )
        except LOAD_ERRORS as cause:
            raise TeacherSourceError(f"source {self._folder}: {one_line(cause)}") from cause
        self._refuse_random(report["missing_keys"])
        return model

    def _refuse_random(self, missing: Sequence[str]) -> None:
        lacking = sorted(name for name in missing if not self._unused(name))
        if lacking:
            raise TeacherSourceError(
                f"source {self._folder}: the weights lack {', '.join(lacking[:4])}"
                f"{' and more' if len(lacking) > 4 else ''}, which would be random; "
                f"use a checkpoint that was saved as {type(self._skeleton).__name__}"
            )

    @torch.inference_mode()
    def _refuse_padding(self) -> None:
        # Not every model heeds a mask (FNet), or finds a text's end before padding (XLNet's head).
        bare = self._answer(self._texts.batch([PROBE], padded=False))
        padded = self._answer(self._texts.batch([PROBE]))
        tolerance = PADDING_TOLERANCE[self._precision.torch_dtype]
        for name, expected in bare.items():
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


def _own_files(folder: Path) -> list[Path]:
    # Not those of sub-folders: a training folder keeps checkpoints there that nobody asks.
    return [path for pattern in MODEL_FILE_PATTERNS for path in folder.glob(pattern)]


def _arguments(skeleton: Any) -> frozenset[str]:
    return frozenset(inspect.signature(skeleton.forward).parameters)


def _vocabulary(skeleton: Any) -> int:
    # Models of characters and bytes may have none.
    return int(getattr(skeleton.config, "vocab_size", None) or sys.maxsize)
