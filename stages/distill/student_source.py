"""Load or make a student: from a folder, a hub id, or from scratch.

Only safetensors are read, `trust_remote_code` is off, weights become float32.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ...cache_schemas.errors import StudentSourceError
from ..corpus.labels import LabelSpace
from ..pretrained import (
    LOCAL_ONLY,
    quiet_transformers,
    read_config,
    read_tokenizer,
    refuse_other_shapes,
    refusing,
)
from ..sources import require_safetensors, resolve
from .scratch import make_config, plain_config, train_tokenizer
from .student import (
    Student,
    StudentSettings,
    check_kind,
    check_pooling,
    choose_pooling,
    keep_layers,
)

SCRATCH = "scratch:"


def load_student(
    settings: StudentSettings, space: LabelSpace, texts: Iterable[str], dropout: float
) -> tuple[Student, Any]:
    """A student and its tokenizer; `texts` train a vocabulary if the student has none.

    Raises StudentSourceError."""
    if settings.student.startswith(SCRATCH):
        backbone, tokenizer = _from_scratch(settings, texts)
    elif settings.student_from_scratch:
        backbone, tokenizer = _from_config(settings, texts)
    else:
        backbone, tokenizer = _from_checkpoint(settings)
    pooling = choose_pooling(settings.pooling, backbone)
    if reason := check_pooling(pooling, backbone):
        raise StudentSourceError(f"pooling {pooling!r}: {reason}")
    match_tokenizer(tokenizer, backbone.config)
    return Student(backbone, pooling, space, dropout), tokenizer


def check_student(settings: StudentSettings) -> None:
    """Raise StudentSourceError for what can be told from a student's configuration alone; of a hub
    id, nothing else is fetched."""
    if settings.student.startswith(SCRATCH):
        plain_config(settings)
        return
    revision = settings.student_revision
    folder = resolve(settings.student, revision, StudentSourceError, ("config.json",))
    load_config(folder)
    if Path(settings.student).is_dir() and not settings.student_from_scratch:
        require_safetensors(folder, StudentSourceError)


def _from_scratch(settings: StudentSettings, texts: Iterable[str]) -> tuple[Any, Any]:
    tokenizer = _tokenizer(settings, texts)
    return random_model(make_config(settings, tokenizer)), tokenizer


def _tokenizer(settings: StudentSettings, texts: Iterable[str]) -> Any:
    if settings.student_tokenizer:
        return load_tokenizer(resolve(settings.student_tokenizer, None, StudentSourceError))
    return train_tokenizer(texts, settings.student_vocab_size)


def _from_config(settings: StudentSettings, texts: Iterable[str]) -> tuple[Any, Any]:
    folder = resolve(settings.student, settings.student_revision, StudentSourceError)
    config = load_config(folder)
    config.num_hidden_layers = settings.student_layers or config.num_hidden_layers
    if settings.student_tokenizer or not any(folder.glob("tokenizer*")):
        tokenizer = _tokenizer(settings, texts)
        config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    else:
        tokenizer = load_tokenizer(folder)
    return random_model(config), tokenizer


def _from_checkpoint(settings: StudentSettings) -> tuple[Any, Any]:
    folder = resolve(settings.student, settings.student_revision, StudentSourceError)
    backbone, tokenizer = load_backbone(folder), load_tokenizer(folder)
    if settings.student_layers:
        count, choice = settings.student_layers, settings.student_layer_choice
        if reason := keep_layers(backbone, count, choice):
            raise StudentSourceError(reason)
    return backbone, tokenizer


def load_backbone(folder: Path, auto_class: str = "AutoModel") -> Any:
    """The transformer of a checkpoint folder, in float32; of another auto class, with its head."""
    import transformers

    config = load_config(folder)
    require_safetensors(folder, StudentSourceError)
    with refusing(StudentSourceError, f"student {folder}"), quiet_transformers():
        backbone, report = getattr(transformers, auto_class).from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are refused here, by name
            output_loading_info=True,
            **LOCAL_ONLY,
        )
    refuse_other_shapes(report["mismatched_keys"], folder, StudentSourceError)
    _refuse_random(folder, report["missing_keys"])
    return backbone


def _refuse_random(folder: Path, missing: Iterable[str]) -> None:
    # A pooler may be drawn: checkpoints of language models have none, and it is trained here.
    lacking = sorted(name for name in missing if not name.startswith("pooler."))
    if lacking:
        raise StudentSourceError(
            f"student {folder}: the weights lack {', '.join(lacking[:4])}"
            f"{' and more' if len(lacking) > 4 else ''}, which would be random; use a whole "
            "checkpoint, or student_from_scratch=true"
        )


def load_config(folder: Path) -> Any:
    """The configuration of a checkpoint folder; refuses encoder-decoders."""
    config = read_config(folder, StudentSourceError)
    if reason := check_kind(config):
        raise StudentSourceError(f"student {folder}: {reason}")
    return config


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder; pads with the end-of-text token if it has no padding token."""
    tokenizer = read_tokenizer(folder, StudentSourceError)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def match_tokenizer(tokenizer: Any, config: Any) -> None:
    """Keep a tokenizer from making segment numbers for a model that tells no segments apart: some
    (GPT-2) would add them as words."""
    if (getattr(config, "type_vocab_size", None) or 0) < 2:
        names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        tokenizer.model_input_names = names


def random_model(config: Any, auto_class: str = "AutoModel") -> Any:
    """A model of a configuration with weights as they are drawn, in float32."""
    import transformers

    return getattr(transformers, auto_class).from_config(config, dtype=torch.float32)
