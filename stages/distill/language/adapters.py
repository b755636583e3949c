"""Low-rank adapters by peft (arXiv 2106.09685): made, and told from all other weights."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ....cache_schemas.errors import JobError, StudentSourceError
from ...pretrained import one_line
from .settings import LoraSettings

ALL_LINEAR = "all-linear"


def with_adapters(model: Any, settings: LoraSettings) -> Any:
    """The model with adapters that train; nothing else of it does.

    Raises JobError where peft is not installed or finds no such layers, or where the head would
    have an adapter: the loss takes its weight as it is."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as cause:
        raise JobError(
            "lora_rank: adapters need the package peft; install armada-kd[lora]"
        ) from cause
    assert settings.lora_rank is not None
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha or settings.lora_rank,
        lora_dropout=settings.lora_dropout,
        target_modules=list(settings.lora_targets) or ALL_LINEAR,
        task_type="CAUSAL_LM",
    )
    try:
        with _quiet_peft():
            adapted = get_peft_model(model, config)
    except ValueError as cause:
        raise JobError(
            f"lora_targets {list(settings.lora_targets)}: {one_line(cause)}; name layers as they "
            f"are called in a {type(model).__name__}"
        ) from cause
    if _adapts_head(adapted.get_base_model()):
        raise JobError(
            f"lora_targets {list(settings.lora_targets)}: the head cannot have an adapter, nor can "
            "embeddings that are the head, too; leave them out"
        )
    return adapted


def _adapts_head(model: Any) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    tied = model.config.get_text_config().tie_word_embeddings
    layers = [model.get_output_embeddings(), *([model.get_input_embeddings()] if tied else [])]
    return any(isinstance(layer, BaseTunerLayer) for layer in layers)


def read_adapters(model: Any, folder: Path) -> Any:
    """A model with the adapters of a folder. Raises StudentSourceError."""
    try:
        from peft import PeftModel

        with _quiet_peft():
            return PeftModel.from_pretrained(model, folder)
    except Exception as cause:  # whatever a library raises at a folder that does not fit
        raise StudentSourceError(f"student {folder}: adapters: {one_line(cause)}") from cause


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """Without warnings that nobody can act upon: of a name that transformers has renamed, of a
    layer whose weights lie the other way round, which peft then sees to, and of an adapter on a
    head that is the embeddings, too, which is refused."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
        yield
