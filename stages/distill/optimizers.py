"""Optimizers of a student and of what trains beside it: AdamW, SGD, and SGD with two momenta.

Only matrices decay, biases and norms do not. AdamW and SGD are fused: one kernel updates a
parameter (on CUDA, all of them) in place of about ten, on the CPU too.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .processes import Processes
from .settings import DEFAULT_MOMENTUM, DEFAULT_MOMENTUM_DELTA, TrainingSettings

Groups = list[dict[str, Any]]


def parameter_groups(
    parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
) -> Groups:
    """The parameters that train, in groups with and without weight decay; no group is empty."""
    groups: dict[bool, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            groups.setdefault(parameter.ndim > 1, []).append(parameter)
    return [
        {"params": group, "lr": learning_rate, "weight_decay": weight_decay if decays else 0.0}
        for decays, group in groups.items()
    ]


def optimizer_of(settings: TrainingSettings, processes: Processes, groups: Groups) -> "Optimizer":
    """The optimizer that a job names, over parameter groups."""
    momentum = DEFAULT_MOMENTUM if settings.momentum is None else settings.momentum
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=momentum, fused=True)
    if settings.optimizer == "dot":
        delta = settings.momentum_delta
        delta = DEFAULT_MOMENTUM_DELTA if delta is None else delta
        return DOT(groups, momentum, delta, settings.max_grad_norm, processes.mean)
    return adamw(groups)


def adamw(groups: Groups) -> torch.optim.AdamW:
    """AdamW over parameter groups."""
    return torch.optim.AdamW(groups, fused=True)


class DOT(torch.optim.Optimizer):
    """SGD with one momentum for the task's gradient and a larger one for that of distillation.

        v_task    <- (μ - Δ) · v_task    + g_task + λ · w
        v_distill <- (μ + Δ) · v_distill + g_distill
        w         <- w - η · (v_task + v_distill)

    with weights w, learning rate η and weight decay λ. With Δ = 0 it is SGD. The gradient of the
    whole loss is clipped as usual, and both parts of it by the same factor.
    Source: Zhao et al., DOT: A Distillation-Oriented Trainer, arXiv 2303.13364.
    Their code has momentum μ for weights that the distillation's gradient does not reach; here all
    weights have both.
    """

    def __init__(
        self,
        groups: Groups,
        momentum: float,
        delta: float,
        max_grad_norm: float,
        mean: Callable[[Tensor], Tensor] = lambda gradient: gradient,
    ) -> None:
        """`mean` is that of a gradient over all processes."""
        super().__init__(groups, {"task_momentum": momentum - delta, "momentum": momentum + delta})
        self._max_grad_norm, self._mean = max_grad_norm, mean
        self._task: dict[nn.Parameter, Tensor] = {}

    def add_task(self, loss: Tensor) -> None:
        """Add the gradient of the task's part of a loss; its graph is kept for the whole."""
        parameters = [each for group in self.param_groups for each in group["params"]]
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        for parameter, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                before = self._task.get(parameter)
                self._task[parameter] = gradient if before is None else before + gradient

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; the gradients of the parameters are those of the whole loss."""
        assert closure is None
        factor = self._clipping()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, factor, group)
        self._task = {}  # here, for a trainer may clear the gradients of the model alone

    def _clipping(self) -> Tensor:
        """The factor of all gradients, which stays on its device."""
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norm = nn.utils.get_total_norm([each for each in gradients if each is not None])
        return (self._max_grad_norm / (norm + 1e-6)).clamp(max=1.0)

    def _update(
        self, parameter: nn.Parameter, whole: Tensor, factor: Tensor, group: dict[str, Any]
    ) -> None:
        state = self.state[parameter]
        if not state:
            state["task"] = torch.zeros_like(parameter)
            state["distillation"] = torch.zeros_like(parameter)
        state["task"].mul_(group["task_momentum"]).add_(parameter, alpha=group["weight_decay"])
        state["distillation"].mul_(group["momentum"]).addcmul_(whole, factor)
        if (task := self._task.get(parameter)) is not None:
            task = self._mean(task)
            state["task"].addcmul_(task, factor)
            state["distillation"].addcmul_(task, factor, value=-1)
        for velocity in state.values():
            parameter.add_(velocity, alpha=-group["lr"])


Optimizer = torch.optim.AdamW | torch.optim.SGD | DOT
