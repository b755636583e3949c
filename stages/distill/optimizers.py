"""Optimizers of a student and of what trains beside it: AdamW, SGD, and SGD with two momenta.

Only matrices decay, biases and norms do not. AdamW and SGD are fused: one kernel updates a
parameter (on CUDA, all of them) in place of about ten, on the CPU too. In tables of which a batch
looks up few rows, AdamW updates these alone (`RowAdamW`).
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
    if any(has_rows(parameter) for group in groups for parameter in group["params"]):
        return RowAdamW(groups, settings.max_grad_norm)
    return adamw(groups)


def updates_rows(table: nn.Parameter) -> None:
    """Mark a table [V, D] whose rows are looked up: AdamW treats each row as a parameter of its
    own."""
    table.updates_rows = True  # type: ignore[attr-defined]


def has_rows(parameter: nn.Parameter) -> bool:
    """Whether a parameter is marked so."""
    return bool(getattr(parameter, "updates_rows", False))


def adamw(groups: Groups) -> torch.optim.AdamW:
    """AdamW over parameter groups."""
    return torch.optim.AdamW(groups, fused=True)


class RowAdamW(torch.optim.AdamW):
    """AdamW (fused) in which each row of a marked table is a parameter of its own: one that a batch
    does not look up keeps its value and its moments, does not decay, and counts no step.

        n_r <- n_r + 1,  m_r <- β₁ m_r + (1 - β₁) g_r,  v_r <- β₂ v_r + (1 - β₂) g_r²
        w_r <- (1 - η λ) w_r - η m_r / (1 - β₁^n_r) / (√(v_r / (1 - β₂^n_r)) + ε)

    for rows r whose gradient g_r is not 0 in all numbers; other parameters are as in AdamW
    (arXiv 1711.05101). So a step costs the rows of its batch, not those of the vocabulary, if
    gradients are sparse; dense ones give the same numbers in more time. All gradients together are
    clipped to a norm, which the trainer's own clipping cannot do for sparse ones.
    """

    def __init__(self, groups: Groups, max_grad_norm: float) -> None:
        super().__init__(groups, fused=True)
        self._max_grad_norm = max_grad_norm
        self._norm: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; gradients of tables are used up by it."""
        assert closure is None
        norm, self._norm = self.norm(), None
        factor = (self._max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in self._gradients():
            gradient.mul_(factor)
        for group in self.param_groups:
            for parameter in filter(has_rows, group["params"]):
                if parameter.grad is not None:
                    on_cpu = parameter.device.type == "cpu"
                    (self._update_rows if on_cpu else self._update_marked)(parameter, group)
                    parameter.grad = None
        super().step()

    @torch.no_grad()
    def norm(self) -> Tensor:
        """The norm of all gradients of this step before they are clipped."""
        if self._norm is None:
            self._norm = nn.utils.get_total_norm(self._gradients())
        return self._norm

    def _gradients(self) -> list[Tensor]:
        """The numbers of all gradients; sparse ones are from here on of each row once."""
        found = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    parameter.grad = parameter.grad.coalesce()
                if parameter.grad is not None:
                    found.append(_values(parameter.grad))
        return found

    def _state_of(self, table: nn.Parameter) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[table]
        if not state:
            state["step"] = torch.zeros(len(table), dtype=torch.float32, device=table.device)
            state["exp_avg"] = torch.zeros_like(table)
            state["exp_avg_sq"] = torch.zeros_like(table)
        return state

    def _update_rows(self, table: nn.Parameter, group: dict[str, Any]) -> None:
        assert table.grad is not None
        state, gradient_RD = self._state_of(table), _values(table.grad)
        if table.grad.is_sparse:
            rows_R = table.grad.indices()[0]
        else:
            rows_R = gradient_RD.any(1).nonzero()[:, 0]
            gradient_RD = gradient_RD.index_select(0, rows_R)
        own_R = {name: values.index_select(0, rows_R) for name, values in state.items()}
        rows_RD = table.index_select(0, rows_R)
        table.index_copy_(0, rows_R, _adamw_of_rows(rows_RD, gradient_RD, own_R, group))
        for name, values in own_R.items():
            state[name].index_copy_(0, rows_R, values)

    def _update_marked(self, table: nn.Parameter, group: dict[str, Any]) -> None:
        """The same over the whole table: a GPU would have to tell which rows there are."""
        assert table.grad is not None
        state, gradient_VD = self._state_of(table), table.grad
        found_V = gradient_VD.any(1)
        new = {name: values.clone() for name, values in state.items()}
        table_VD = _adamw_of_rows(table, gradient_VD, new, group)
        spoiled = getattr(self, "found_inf", None)
        if spoiled is not None:
            found_V = found_V & (spoiled == 0)
        found_V1 = found_V.unsqueeze(1)
        table.copy_(torch.where(found_V1, table_VD, table))
        for name, values in new.items():
            chosen = found_V if values.ndim == 1 else found_V1
            state[name].copy_(torch.where(chosen, values, state[name]))


def _values(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient._values() if gradient.is_sparse else gradient


def _adamw_of_rows(
    rows_RD: Tensor, gradient_RD: Tensor, state: dict[str, Tensor], group: dict[str, Any]
) -> Tensor:
    """Rows after a step; `state`, theirs, is updated in place."""
    beta1, beta2 = group["betas"]
    steps_R1 = state["step"].add_(1).unsqueeze(1)
    mean_RD = state["exp_avg"].lerp_(gradient_RD, 1 - beta1)
    square_RD = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient_RD, gradient_RD, value=1 - beta2)
    root_RD = (square_RD / (1 - beta2**steps_R1)).sqrt_().add_(group["eps"])
    step_RD = mean_RD / (1 - beta1**steps_R1) / root_RD
    kept = 1 - group["lr"] * group["weight_decay"]
    return torch.add(rows_RD * kept, step_RD, alpha=-group["lr"])


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
