"""A student whose weights, gradients and optimizer state are sharded over processes (FSDP, version
2). Accelerate shards it; this module has the choices left to users: the units of sharding, what is
not sharded, and gathering full weights. An aligner that is trained and used outside the student's
steps is replicated on every process.
"""

import copy
from collections.abc import Collection
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

from .model import TrainedModel
from .objectives.base import is_frozen


def fsdp_arguments(model: TrainedModel) -> dict[str, Any]:
    """FSDP options of `TrainingArguments`: one unit per layer of the student."""
    config: dict[str, Any] = {"version": 2, "state_dict_type": "FULL_STATE_DICT"}
    config["transformer_layer_cls_to_wrap"] = _layer_classes(model.student)
    return {"fsdp": True, "fsdp_config": config}


def _layer_classes(student: Any) -> list[str]:
    """Class names of a student's layers, of all of its towers, also if its models do not declare
    them."""
    found = set[str]()
    for backbone in (tower.backbone for tower in getattr(student, "towers", (student,))):
        if backbone._no_split_modules:
            found.update(backbone._no_split_modules)
            continue
        count = backbone.config.num_hidden_layers
        stacks = (m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
        found.update(type(layer).__name__ for stack in stacks for layer in stack)
    return sorted(found)


def shard(accelerator: Accelerator, plugin_arguments: dict[str, Any], model: TrainedModel) -> None:
    """Have the accelerator shard a model when it prepares it, its aligner left out."""
    state = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU:
        # Accelerate offers it to accelerators only, where torch does it on CPUs as well. Its state
        # is kept twice, and copied from the second to the first now and then.
        state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**plugin_arguments)
    # As without sharding, autocast chooses what is rounded (see the trainer).
    state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
    aligners = [part.aligner for part in model.objective.parts if part.aligner is not None]
    if frozen := [aligner for aligner in aligners if is_frozen(aligner)]:
        state.fsdp_plugin.ignored_modules = frozen


class UnshardedCopy:
    """The same model on the meta device, made before sharding, to receive full weights after it."""

    def __init__(self, model: TrainedModel) -> None:
        # Those that are worked out and not loaded.
        self._buffers = {name: buffer.cpu() for name, buffer in model.named_buffers()}
        self._model = copy.deepcopy(model).to("meta")

    def filled(self, weights: dict[str, Tensor]) -> TrainedModel:
        """The twin with these weights, on the processor."""
        model = self._model.to_empty(device="cpu")
        for name, buffer in model.named_buffers():
            buffer.copy_(self._buffers[name])
        model.load_state_dict(weights)
        return model


def load_whole(model: nn.Module, file: Any) -> None:
    """Load whole weights into a model, which may be sharded; every process calls it.

    Raises RuntimeError if they are another model's."""
    weights = load_file(file)
    names = model.state_dict().keys()
    if weights.keys() - names or names - weights.keys() - _unsaved(model):
        raise RuntimeError(f"{file}: holds the weights of another model")
    if not isinstance(model, FSDPModule):
        model.load_state_dict(weights, strict=False)
        return
    # Frozen weights were not saved, and have not changed.
    whole = StateDictOptions(full_state_dict=True, strict=False)
    set_model_state_dict(model, weights, options=whole)


def plain(weights: dict[str, Tensor], frozen: Collection[str] = ()) -> dict[str, Tensor]:
    """Tensors that can be written to a file as they are: the base of an orthogonal map is a
    transposed view, what was just gathered may be a promise of a tensor, and one tensor may have
    two names; without those that are `frozen`."""
    twice = _second_names(weights)
    return {
        name: tensor.contiguous() if type(tensor) is Tensor else tensor.clone()
        for name, tensor in weights.items()
        if name not in frozen and name not in twice
    }


def frozen_names(model: nn.Module) -> set[str]:
    """The weights of a student that do not train: those below adapters."""
    return {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name.startswith("student.") and not parameter.requires_grad
    }


def _unsaved(model: nn.Module) -> set[str]:
    return frozen_names(model) | _second_names(model.state_dict())


def _second_names(weights: dict[str, Tensor]) -> set[str]:
    """Further names of tied weights (such as embeddings that are also the head)."""
    seen: set[tuple[int, torch.Size]] = set()
    second = set()
    for name, tensor in weights.items():
        memory = (tensor.data_ptr(), tensor.shape) if type(tensor) is Tensor else (0, tensor.shape)
        if memory[0] and memory in seen:
            second.add(name)
        seen.add(memory)
    return second
