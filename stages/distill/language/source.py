"""Load or make a language model as a student: a folder, a hub id, or from scratch; with adapters.

Only safetensors are read, `trust_remote_code` is off, weights become float32.
"""

from collections.abc import Iterable
from typing import Any

from ....cache_schemas.errors import StudentSourceError
from ...corpus.labels import LabelSpace
from ...language.logits import isolates_packed_documents, transformer
from ...pretrained import choose_length, token_limit
from ...sources import resolve
from ..adapters import with_adapters
from ..scratch import make_config, train_byte_tokenizer
from ..settings import SCRATCH, LoraSettings, StudentSettings
from ..student import is_decoder, keep_layers
from ..student_models import (
    check_vocab_size,
    load_backbone,
    load_config,
    load_tokenizer,
    random_model,
)
from .student import LanguageStudent

AUTO_CLASS = "AutoModelForCausalLM"
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
    if settings.student.startswith(SCRATCH):
        model, tokenizer = _from_scratch(settings, texts)
    else:
        model, tokenizer = _from_folder(settings, texts)
    check_vocab_size(model, tokenizer, settings.student)
    if lora.lora_rank is not None:
        model = with_adapters(model, lora, "CAUSAL_LM")
    return LanguageStudent(model, space, dropout), tokenizer


def choose_row_length(requested: int | None, tokenizer: Any, model: Any) -> int:
    """The most tokens of a text, and of a row of texts: as requested, or 512, or the student's
    maximum if less. Raises StudentSourceError if the request exceeds that."""
    limit = token_limit(tokenizer, model)
    return choose_length(requested, limit, DEFAULT_ROW_LENGTH, 1, StudentSourceError)


def check_document_mask(student: LanguageStudent) -> None:
    """Refuse a model whose texts would see each other although they are packed apart."""
    if not isolates_packed_documents(student.causal):
        raise StudentSourceError(
            f"packing document_mask: a {type(student.causal).__name__} lets texts in a row attend "
            "to each other; use packing=none or concat"
        )


def _from_scratch(settings: StudentSettings, texts: Iterable[str]) -> tuple[Any, Any]:
    tokenizer = _tokenizer(settings, texts)
    return random_model(_decoder(make_config(settings, tokenizer)), AUTO_CLASS), tokenizer


def _tokenizer(settings: StudentSettings, texts: Iterable[str]) -> Any:
    if settings.student_tokenizer:
        return load_tokenizer(resolve(settings.student_tokenizer, None, StudentSourceError))
    return train_byte_tokenizer(texts, settings.student_vocab_size)


def _from_folder(settings: StudentSettings, texts: Iterable[str]) -> tuple[Any, Any]:
    folder = resolve(settings.student, settings.student_revision, StudentSourceError)
    config = _decoder(load_config(folder))
    if not settings.student_from_scratch:
        tokenizer = load_tokenizer(folder)
        return _cut(load_backbone(folder, AUTO_CLASS), settings), tokenizer
    config.num_hidden_layers = settings.student_layers or config.num_hidden_layers
    if not settings.student_tokenizer and any(folder.glob("tokenizer*")):
        return random_model(config, AUTO_CLASS), load_tokenizer(folder)
    tokenizer = _tokenizer(settings, texts)
    config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    return random_model(config, AUTO_CLASS), tokenizer


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
