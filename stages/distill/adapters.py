"""Low-rank adapters by peft (arXiv 2106.09685) on a student of any kind, and which of it train."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from ...cache_schemas.errors import JobError
from ...cache_schemas.extras import require_extra
from ..adapters import quiet_peft, trained_whole
from ..pretrained import one_line
from .settings import LoraSettings

ALL_LINEAR = "all-linear"

TaskType = Literal["CAUSAL_LM", "SEQ_CLS", "FEATURE_EXTRACTION"]


def with_adapters(
    model: Any,
    settings: LoraSettings,
    task_type: TaskType,
    whole: Sequence[str] = (),
    unread: Sequence[str] = (),
) -> Any:
    """The model with adapters that train, and the modules `whole`; nothing else of it does. Modules
    that are `unread` get no adapter.

    Raises MissingExtraError where peft is not installed, JobError where it finds no such layers, or
    where the head of a language model would have an adapter: the loss takes its weight as it is."""
    require_extra("job key 'lora_rank'", "lora", "peft")
    from peft import LoraConfig, get_peft_model

    assert settings.lora_rank is not None
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha or settings.lora_rank,
        lora_dropout=settings.lora_dropout,
        target_modules=list(settings.lora_targets) or _all_linear(model, task_type),
        exclude_modules=list(unread) or None,
        modules_to_save=list(whole) or None,
        task_type=task_type,
    )
    try:
        with quiet_peft():
            adapted = get_peft_model(model, config)
    except ValueError as cause:
        raise JobError(
            f"lora_targets {list(settings.lora_targets)}: {one_line(cause)}; name layers as in a"
            f" {type(model).__name__}"
        ) from cause
    if task_type == "CAUSAL_LM" and _adapts_head(model):
        raise JobError(
            f"lora_targets {list(settings.lora_targets)}: the head, and embeddings tied to it, "
            "cannot have adapters; leave them out"
        )
    _refuse_layers_like(whole, model)
    return adapted


def _all_linear(model: Any, task_type: TaskType) -> str | list[str]:
    """All linear layers by peft's definition; of a language model without its head, by names within
    the transformer, so that a folder opens as that transformer alone, too."""
    if task_type == "CAUSAL_LM":
        return ALL_LINEAR
    from transformers.pytorch_utils import Conv1D

    layers = model.base_model.named_modules()
    return [name for name, layer in layers if isinstance(layer, nn.Linear | Conv1D)]


def _refuse_layers_like(whole: Sequence[str], model: Any) -> None:
    """peft trains every module whose name ends so."""
    wanted = {*whole, *(f"{model.base_model_prefix}.{name}" for name in whole)}
    if others := [name for name in trained_whole(model) if name not in wanted]:
        raise JobError(
            f"lora_rank: a {type(model).__name__} has transformer layers with the name of its head "
            f"({others[0]}), which would be trained too; leave it out"
        )


def _adapts_head(model: Any) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    tied = model.config.get_text_config().tie_word_embeddings
    layers = [model.get_output_embeddings(), *([model.get_input_embeddings()] if tied else [])]
    return any(isinstance(layer, BaseTunerLayer) for layer in layers)
