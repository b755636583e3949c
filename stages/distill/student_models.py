"""transformers' model folders, as students are made from: configuration, weights, tokenizer.

Only safetensors are read, `trust_remote_code` is off, weights become float32.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...cache_schemas.errors import StudentSourceError
from ..language.tokens import vocab_size_of
from ..pretrained import (
    LOCAL_ONLY,
    embedding_rows,
    quiet_transformers,
    read_config,
    read_tokenizer,
    refuse_other_shapes,
    refusing,
)
from ..sources import require_safetensors
from .settings import StudentSettings
from .student import check_kind, keep_layers

CLASSIFIER = "AutoModelForSequenceClassification"


@dataclass(frozen=True, slots=True)
class Source:
    """Source of a student: a configuration and a tokenizer; weights are in `folder`, or random."""

    settings: StudentSettings
    config: Any
    tokenizer: Any
    folder: Path | None

    def model(self) -> Any:
        """The transformer alone."""
        if self.folder is None:
            return random_model(copy.deepcopy(self.config))
        return self._cut(load_backbone(self.folder))

    def classifier(self, config: Any) -> tuple[Any, set[str]]:
        """The family's sequence classifier of a configuration, and the names of randomly
        initialised weights."""
        if self.folder is None:
            model = random_model(config, CLASSIFIER)
            return model, set(model.state_dict())
        model, drawn = load_classifier(self.folder, config)
        return self._cut(model), drawn

    def _cut(self, model: Any) -> Any:
        if self.settings.student_layers:
            count, choice = self.settings.student_layers, self.settings.student_layer_choice
            if reason := keep_layers(model, count, choice):
                raise StudentSourceError(reason)
        return model


def load_backbone(folder: Path, auto_class: str = "AutoModel") -> Any:
    """The transformer of a checkpoint folder, in float32; of another auto class, with its head."""
    model, report = _read(folder, auto_class, load_config(folder))
    refuse_other_shapes(report["mismatched_keys"], folder, StudentSourceError)
    _refuse_random_transformer(folder, report["missing_keys"])
    return model


def load_classifier(folder: Path, config: Any) -> tuple[Any, set[str]]:
    """The sequence classifier of a checkpoint folder with a configuration, in float32, and the
    names of randomly initialised weights: those of a head that is not in the folder, or has other
    labels."""
    model, report = _read(folder, CLASSIFIER, config)
    base = f"{model.base_model_prefix}."
    others = [each for each in report["mismatched_keys"] if each[0].startswith(base)]
    refuse_other_shapes(others, folder, StudentSourceError)
    missing = report["missing_keys"]
    below = (name.removeprefix(base) for name in missing if name.startswith(base))
    _refuse_random_transformer(folder, below)
    return model, {*missing, *(name for name, *_ in report["mismatched_keys"])}


def _read(folder: Path, auto_class: str, config: Any) -> tuple[Any, dict[str, Any]]:
    import transformers

    require_safetensors(folder, StudentSourceError)
    with refusing(StudentSourceError, f"student {folder}"), quiet_transformers():
        model, report = getattr(transformers, auto_class).from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are refused here, by name
            output_loading_info=True,
            **LOCAL_ONLY,
        )
    return model, report


def _refuse_random_transformer(folder: Path, missing: Iterable[str]) -> None:
    # A pooler may be random: checkpoints of language models have none, and it is trained here.
    refuse_random(folder, (name for name in missing if not name.startswith("pooler.")))


def refuse_random(folder: Path, missing: Iterable[str]) -> None:
    """Raise StudentSourceError if any weights are missing."""
    lacking = sorted(missing)
    if lacking:
        raise StudentSourceError(
            f"student {folder}: the weights lack {', '.join(lacking[:4])}"
            f"{' and more' if len(lacking) > 4 else ''}, which would be random; use a complete "
            "checkpoint, or student_from_scratch=true"
        )


def load_config(folder: Path) -> Any:
    """The configuration of a checkpoint folder; refuses encoder-decoders, and weights that do not
    train."""
    config = read_config(folder, StudentSourceError)
    if getattr(config, "quantization_config", None):
        raise StudentSourceError(
            f"student {folder}: its weights are quantised, and do not train; use the checkpoint "
            "without quantisation"
        )
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
    """Keep a tokenizer from making token_type_ids for a model without segments: some (GPT-2) would
    add them as tokens."""
    if (getattr(config, "type_vocab_size", None) or 0) < 2:
        names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        tokenizer.model_input_names = names


def check_vocab_size(model: Any, tokenizer: Any, source: str) -> None:
    """Refuse a tokenizer with tokens that the model has no numbers for."""
    vocab_size, rows = vocab_size_of(tokenizer), embedding_rows(model)
    if vocab_size > rows:
        raise StudentSourceError(
            f"student {source}: its tokenizer has {vocab_size} tokens, the model {rows}; resize "
            "the model's embeddings, and train adapters on the resized model"
        )


def random_model(config: Any, auto_class: str = "AutoModel") -> Any:
    """A randomly initialised model of a configuration, in float32."""
    import transformers

    return getattr(transformers, auto_class).from_config(config, dtype=torch.float32)
