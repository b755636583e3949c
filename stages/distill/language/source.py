"""Load or make a language model, causal or masked, as a student: a folder, a hub id, or from
scratch; a causal one with adapters.

Only safetensors are read, `trust_remote_code` is off, weights become float32.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ....cache_schemas.errors import StudentSourceError
from ...corpus.labels import NO_LABELS, LabelSpace
from ...language.logits import isolates_packed_documents, transformer
from ...pretrained import DEFAULT_MAX_LENGTH, choose_length, token_limit
from ...sources import resolve
from ..adapters import with_adapters
from ..scratch import make_config, train_byte_tokenizer, train_tokenizer
from ..settings import SCRATCH, LoraSettings, StudentSettings
from ..student import is_decoder, keep_layers
from ..student_models import (
    check_vocab_size,
    load_backbone,
    load_config,
    load_tokenizer,
    random_model,
)
from ..student_probe import warn_of_padding
from .student import LanguageStudent, MaskedStudent

AUTO_CLASS = "AutoModelForCausalLM"
MASKED_AUTO_CLASS = "AutoModelForMaskedLM"
DEFAULT_ROW_LENGTH = 512


def load_language_student(
    settings: StudentSettings,
    lora: LoraSettings,
    space: LabelSpace,
    texts: Iterable[str],
    dropout: float,
) -> tuple[LanguageStudent, Any]:
    """A student and its tokenizer; `texts` train a vocabulary if the student has none.

    Raises StudentSourceError."""
    model, tokenizer = _load(_CAUSAL, settings, texts)
    if lora.lora_rank is not None:
        model = with_adapters(model, lora, "CAUSAL_LM")
    return LanguageStudent(model, space, dropout), tokenizer


def load_masked_student(
    settings: StudentSettings, texts: Iterable[str], dropout: float
) -> tuple[MaskedStudent, Any]:
    """The same of a masked language model. Raises StudentSourceError."""
    model, tokenizer = _load(_MASKED, settings, texts)
    student = MaskedStudent(model, NO_LABELS, dropout)
    warn_of_padding(student, tokenizer, settings.student, side="right")
    return student, tokenizer


def choose_masked_length(requested: int | None, tokenizer: Any, model: Any) -> int:
    """The most tokens of a text of a masked language model: as requested, or 128, or its maximum if
    less. Raises StudentSourceError if the request exceeds that."""
    limit = token_limit(tokenizer, model)
    return choose_length(requested, limit, DEFAULT_MAX_LENGTH, 3, StudentSourceError)


def choose_row_length(requested: int | None, tokenizer: Any, model: Any) -> int:
    """The most tokens of a text, and of a row of texts: as requested, or 512, or the student's
    maximum if less. Raises StudentSourceError if the request exceeds that."""
    limit = token_limit(tokenizer, model)
    return choose_length(requested, limit, DEFAULT_ROW_LENGTH, 1, StudentSourceError)


def check_document_mask(student: LanguageStudent) -> None:
    """Refuse a model whose texts would see each other although they are packed apart."""
    if not isolates_packed_documents(student.language_model):
        raise StudentSourceError(
            f"packing document_mask: a {type(student.language_model).__name__} lets texts in a row "
            "attend to each other; use packing=none or concat"
        )


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of language model: its class in transformers, a check of configurations, and what
    trains a vocabulary for one without."""

    auto_class: str
    check: Callable[[Any], Any]
    train_tokenizer: Callable[[Iterable[str], int], Any]


def _load(kind: _Kind, settings: StudentSettings, texts: Iterable[str]) -> tuple[Any, Any]:
    make = _from_scratch if settings.student.startswith(SCRATCH) else _from_folder
    model, tokenizer = make(kind, settings, texts)
    check_vocab_size(model, tokenizer, settings.student)
    return model, tokenizer


def _from_scratch(kind: _Kind, settings: StudentSettings, texts: Iterable[str]) -> tuple[Any, Any]:
    tokenizer = _tokenizer(kind, settings, texts)
    config = kind.check(make_config(settings, tokenizer))
    return random_model(config, kind.auto_class), tokenizer


def _tokenizer(kind: _Kind, settings: StudentSettings, texts: Iterable[str]) -> Any:
    if settings.student_tokenizer:
        return load_tokenizer(resolve(settings.student_tokenizer, None, StudentSourceError))
    return kind.train_tokenizer(texts, settings.student_vocab_size)


def _from_folder(kind: _Kind, settings: StudentSettings, texts: Iterable[str]) -> tuple[Any, Any]:
    folder = resolve(settings.student, settings.student_revision, StudentSourceError)
    config = kind.check(load_config(folder))
    if not settings.student_from_scratch:
        tokenizer = load_tokenizer(folder)
        return _cut(load_backbone(folder, kind.auto_class), settings), tokenizer
    config.num_hidden_layers = settings.student_layers or config.num_hidden_layers
    if not settings.student_tokenizer and any(folder.glob("tokenizer*")):
        return random_model(config, kind.auto_class), load_tokenizer(folder)
    tokenizer = _tokenizer(kind, settings, texts)
    config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    return random_model(config, kind.auto_class), tokenizer


def _cut(model: Any, settings: StudentSettings) -> Any:
    if settings.student_layers:
        layers, choice = settings.student_layers, settings.student_layer_choice
        reason = keep_layers(transformer(model), layers, choice)
        if reason:
            raise StudentSourceError(reason)
    return model


def _decoder(config: Any) -> Any:
    if not is_decoder(config):
        raise StudentSourceError(
            f"task language: a {config.model_type} is not a causal language model; use one, such "
            "as scratch:llama"
        )
    return config


def _masked(config: Any) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise StudentSourceError(
            f"task masked_language: a {config.model_type} is not a masked language model; use one, "
            "such as scratch:bert"
        )
    return config


_CAUSAL = _Kind(AUTO_CLASS, _decoder, train_byte_tokenizer)
_MASKED = _Kind(MASKED_AUTO_CLASS, _masked, train_tokenizer)
