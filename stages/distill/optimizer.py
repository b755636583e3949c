"""AdamW as both schedules use it: only matrices decay, biases and norms do not."""

from collections.abc import Iterable
from typing import Any

from torch import nn


def parameter_groups(
    parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """The parameters that train, in groups with and without weight decay; no group is empty."""
    groups: dict[bool, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            groups.setdefault(parameter.ndim > 1, []).append(parameter)
    return [
        {"params": group, "lr": learning_rate, "weight_decay": weight_decay if decays else 0.0}
        for decays, group in groups.items()
    ]
