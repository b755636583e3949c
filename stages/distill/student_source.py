"""Load or make a student: from a folder, a hub id, or from scratch.

Only safetensors are read, `trust_remote_code` is off, weights become float32.
"""

import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from torch import nn

from ...cache_schemas.errors import StudentSourceError
from ..corpus.labels import NO_LABELS, LabelSpace
from ..embeddings.folders import MODULES, EmbeddingFolder, read_embedding_folder, transformer_folder
from ..embeddings.layers import Dense, load_layers
from ..embeddings.static import is_static_folder
from ..pretrained import DEFAULT_MAX_LENGTH, refusing
from ..sources import require_safetensors, resolve
from .adapters import with_adapters
from .own_classifier import make_classifier
from .scratch import DEFAULT_LAYERS, make_config, plain_config, train_tokenizer
from .settings import SCRATCH, LoraSettings, Pooling, StudentSettings
from .static_student import check_static_student, load_static_student, static_max_length
from .student import PooledStudent, Student, check_pooling, choose_pooling
from .student_models import (
    Source,
    check_vocab_size,
    load_config,
    load_tokenizer,
    match_tokenizer,
)
from .student_probe import warn_of_padding

NO_ADAPTERS = LoraSettings()
_CONFIGS = ("config.json", MODULES, "*/config.json")
_LOGGER = logging.getLogger(__name__)


def load_student(
    settings: StudentSettings,
    space: LabelSpace,
    texts: Iterable[str],
    dropout: float,
    lora: LoraSettings = NO_ADAPTERS,
    embeds: bool = False,
) -> tuple[Student, Any]:
    """A student and its tokenizer; `texts` train a vocabulary if the student has none; `embeds`:
    whether its pooling, where none is named or declared, is that of embedding models.

    Raises StudentSourceError."""
    if settings.static_source is not None:
        return load_static_student(settings, space, dropout)
    student, tokenizer = _load(settings, space, texts, dropout, lora, embeds)
    check_vocab_size(student.model, tokenizer, settings.student)
    warn_of_padding(student, tokenizer, settings.student)
    return student, tokenizer


def _load(
    settings: StudentSettings,
    space: LabelSpace,
    texts: Iterable[str],
    dropout: float,
    lora: LoraSettings,
    embeds: bool,
) -> tuple[Student, Any]:
    source = _source(settings, texts)
    source.tokenizer.padding_side = "right"
    match_tokenizer(source.tokenizer, source.config)
    if space.task != "none":
        student = make_classifier(source, settings.pooling, space, dropout, lora)
        if student is not None:
            return student, source.tokenizer
    declared = _declared(settings, space)
    if settings.pooling == "own":
        raise StudentSourceError(
            f"pooling 'own': transformers has no sequence classifier for "
            f"{source.config.model_type}; use auto, context, cls, mean or last"
        )
    requested = settings.pooling
    if requested == "auto" and declared is not None:
        requested = _declared_pooling(declared, embeds)
    return _pooled(source, requested, space, dropout, lora, embeds), source.tokenizer


def default_max_length(settings: StudentSettings, space: LabelSpace) -> int:
    """Default maximum tokens of a text: 128, or as declared."""
    if settings.static_source is not None:
        return static_max_length(settings)
    declared = _declared(settings, space)
    if declared is None:
        return DEFAULT_MAX_LENGTH
    return declared.max_length or sys.maxsize


def _declared(settings: StudentSettings, space: LabelSpace) -> EmbeddingFolder | None:
    """Declarations of the sentence-transformers folder that a student starts from."""
    if settings.student.startswith(SCRATCH) or space.task != "none":
        return None
    folder = resolve(settings.student, settings.student_revision, StudentSourceError)
    return read_embedding_folder(folder, StudentSourceError)


def _declared_pooling(declared: EmbeddingFolder, embeds: bool) -> Pooling:
    if declared.of_tokens:
        raise StudentSourceError(
            f"student {declared.transformer}: has a vector for each token; set pooling=none, with "
            "task=embedding, or choose pooling=mean, cls, last, max, ... for one of a text"
        )
    if declared.pooling is None or len(declared.pooling) != 1:
        raise StudentSourceError(
            f"student {declared.transformer}: declares several poolings, and a student has one; "
            "choose pooling=mean, cls, last, max, ..."
        )
    dropped = _weighted(declared)
    if dropped and not embeds:
        _LOGGER.warning(
            f"student {declared.transformer}: starts from its pooling {declared.pooling[0]} "
            f"without the layers after it ({'; '.join(dropped)}), which the projection replaces"
        )
    return declared.pooling[0]


def _weighted(declared: EmbeddingFolder) -> list[str]:
    return [str(layer.settings) for layer in declared.layers if not layer.normalizes]


def declared_dense(settings: StudentSettings) -> tuple[nn.Linear | None, tuple[str, ...]]:
    """The linear layer behind the pooling of the folder that a student that embeds starts from,
    with its weights, None if it has none; and all layers there that have weights, in words. With a
    pooling that the job names, or random weights, there are none to start from."""
    if settings.static_source or settings.student_from_scratch:
        return None, ()
    declared = _declared(settings, NO_LABELS)
    if declared is None or settings.pooling != ("none" if declared.of_tokens else "auto"):
        return None, ()
    found: nn.Linear | None = None
    for layer in load_layers(declared.layers[:1], StudentSourceError):
        if not isinstance(layer, Dense) or layer.adds:
            continue
        if isinstance(layer.activation_function, nn.Identity):
            found = layer.linear
    return found, tuple(_weighted(declared))


def _pooled(
    source: Source,
    requested: Literal["auto"] | Pooling,
    space: LabelSpace,
    dropout: float,
    lora: LoraSettings,
    embeds: bool,
) -> Student:
    backbone = source.model()
    pooling = choose_pooling(requested, backbone, embeds)
    if reason := check_pooling(pooling, backbone):
        raise StudentSourceError(f"pooling {pooling!r}: {reason}")
    with refusing(
        StudentSourceError, f"student: a {source.config.model_type} as a reader of texts"
    ):
        student = PooledStudent(backbone, pooling, space, dropout)
    if lora.lora_rank is not None:
        student.model = _adapted(backbone, pooling, lora)
    return student


def _adapted(backbone: Any, pooling: Pooling, lora: LoraSettings) -> Any:
    """The transformer with adapters; a pooler of its own trains whole where it is read."""
    own = [name for name, _ in backbone.named_modules() if name.partition(".")[0] == "pooler"]
    if pooling == "pooler":
        return with_adapters(backbone, lora, "FEATURE_EXTRACTION", whole=["pooler"])
    return with_adapters(backbone, lora, "FEATURE_EXTRACTION", unread=own)


def check_student(settings: StudentSettings) -> None:
    """Raise StudentSourceError for an unsuitable configuration; of a hub id, nothing else is
    downloaded."""
    if settings.student.startswith(SCRATCH):
        plain_config(settings)
        return
    if settings.static_source is not None:
        check_static_student(settings)
        return
    folder = resolve(settings.student, settings.student_revision, StudentSourceError, _CONFIGS)
    _refuse_static(folder, settings)
    folder = transformer_folder(folder, StudentSourceError)
    _check_layers(settings, load_config(folder))
    if Path(settings.student).is_dir() and not settings.student_from_scratch:
        require_safetensors(folder, StudentSourceError)


def _check_layers(settings: StudentSettings, config: Any) -> None:
    wanted, count = settings.student_layers or 0, getattr(config, "num_hidden_layers", None)
    if isinstance(count, int) and wanted > count and not settings.student_from_scratch:
        raise StudentSourceError(f"student_layers {wanted}: the checkpoint has {count} layers")


def _refuse_static(folder: Path, settings: StudentSettings) -> None:
    if is_static_folder(folder, StudentSourceError):
        raise StudentSourceError(
            f"student {settings.student}: is a static model, a table of token embeddings, and no "
            f"transformer; name it static:{settings.student}"
        )


def layer_count(settings: StudentSettings) -> int | None:
    """The number of a student's layers, of which its configuration tells; None if it does not. No
    weights are read, and of a hub id only configurations. Raises StudentSourceError."""
    if settings.student.startswith(SCRATCH):
        plain_config(settings)
        return settings.student_layers or DEFAULT_LAYERS
    folder = resolve(settings.student, settings.student_revision, StudentSourceError, _CONFIGS)
    config = load_config(transformer_folder(folder, StudentSourceError))
    count = settings.student_layers or getattr(config, "num_hidden_layers", None)
    return count if isinstance(count, int) else None


def _source(settings: StudentSettings, texts: Iterable[str]) -> Source:
    if settings.student.startswith(SCRATCH):
        tokenizer = _tokenizer(settings, texts)
        return Source(settings, make_config(settings, tokenizer), tokenizer, None)
    folder = resolve(settings.student, settings.student_revision, StudentSourceError)
    _refuse_static(folder, settings)
    folder = transformer_folder(folder, StudentSourceError)
    config = load_config(folder)
    if not settings.student_from_scratch:
        return Source(settings, config, load_tokenizer(folder), folder)
    config.num_hidden_layers = settings.student_layers or config.num_hidden_layers
    if settings.student_tokenizer or not any(folder.glob("tokenizer*")):
        tokenizer = _tokenizer(settings, texts)
        config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    else:
        tokenizer = load_tokenizer(folder)
    return Source(settings, config, tokenizer, None)


def _tokenizer(settings: StudentSettings, texts: Iterable[str]) -> Any:
    if settings.student_tokenizer:
        return load_tokenizer(resolve(settings.student_tokenizer, None, StudentSourceError))
    return train_tokenizer(texts, settings.student_vocab_size)
