"""What the losses alone cost, forward and backward: plain formulas against closed forms."""

import time
from types import ModuleType

import torch
from armada.stages.distill import closed_forms, losses

ROUNDS, CALLS = 9, 30


def loss_seconds(batch_size: int, dim: int, device: torch.device) -> tuple[float, float]:
    """Median seconds a step of the plain formulas, and of the closed forms, taking turns."""
    modules = (losses, closed_forms)
    rounds: dict[ModuleType, list[float]] = {module: [] for module in modules}
    for _ in range(ROUNDS):
        for module in modules:
            rounds[module].append(_seconds(module, batch_size, dim, device))
    plain, closed = (sorted(rounds[module])[ROUNDS // 2] for module in modules)
    return plain, closed


def _seconds(module: ModuleType, rows: int, dim: int, device: torch.device) -> float:
    widths = {"output": 2, "aux_output": 2, "projection": dim}
    inputs = {
        f"{side}_{name}": torch.randn(rows, width, device=device, requires_grad=side == "student")
        for side in ("student", "aligner")
        for name, width in widths.items()
    }
    labels = torch.randint(2, (rows,), device=device)
    settings = {"alpha": 0.5, "beta": 1.0, "gamma": 1.0, "temperature": 5.0}

    def step() -> None:
        terms = module.armada_loss(
            **inputs, labels=labels, **settings, manifold="cosine", regression=False
        )
        terms.total.backward()

    step()
    started = _now(device)
    for _ in range(CALLS):
        step()
    return (_now(device) - started) / CALLS


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
