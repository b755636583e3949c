"""A student's lm_head, tokens, and what a teacher said about them, all drawn from a seed."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Size:
    """P tokens, H width, V words, k words that the cache lists."""

    tokens: int
    width: int
    words: int
    listed: int

    def __str__(self) -> str:
        return f"{self.words:,} words, {self.tokens:,} tokens, width {self.width}"


class Material:
    """Inputs of the ways. Teachers are a hidden state and an lm_head, which some ways ask for; the
    likeliest words and their tail, and every word's probability, are worked out from these once."""

    def __init__(self, size: Size, dtype: torch.dtype, device: torch.device, dense: bool) -> None:
        random = torch.Generator(device).manual_seed(0)

        def normal(*shape: int, spread: float = 1.0) -> Tensor:
            drawn = torch.randn(*shape, generator=random, device=device, dtype=torch.float32)
            return drawn.mul_(spread).to(dtype)

        self.size = size
        spread = 3 * size.width**-0.5
        self.hidden_PH = normal(size.tokens, size.width).requires_grad_()
        self.weight_VH = normal(size.words, size.width, spread=spread).requires_grad_()
        shape = (size.tokens,)
        self.labels_P = torch.randint(size.words, shape, generator=random, device=device)
        self.teacher_PH = normal(size.tokens, size.width)
        self.teacher_VH = normal(size.words, size.width, spread=spread)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        like = {"device": device, "dtype": wide}
        self.ids_Pk = torch.empty(size.tokens, size.listed, device=device, dtype=torch.int64)
        self.log_probs_Pk = torch.empty(size.tokens, size.listed, **like)
        self.log_probs_PV = torch.empty(size.tokens, size.words, **like) if dense else None
        weight_HV = self.teacher_VH.to(wide).t()
        for rows in torch.arange(size.tokens, device="cpu").split(128):
            log_p = (self.teacher_PH[rows].to(wide) @ weight_HV).log_softmax(dim=1)
            self.log_probs_Pk[rows], self.ids_Pk[rows] = log_p.topk(size.listed)
            if self.log_probs_PV is not None:
                self.log_probs_PV[rows] = log_p
        self.log_tail_P = torch.log1p(-self.log_probs_Pk.exp().sum(dim=1))

    def cast(self, dtype: torch.dtype) -> "Material":
        """The same numbers in a wider dtype, for references."""
        wide = object.__new__(Material)
        for name, value in vars(self).items():
            floating = isinstance(value, Tensor) and value.is_floating_point()
            vars(wide)[name] = value.detach().to(dtype) if floating else value
        for leaf in (wide.hidden_PH, wide.weight_VH):
            leaf.requires_grad_()
        return wide

    def gradients(self, total: Tensor) -> tuple[Tensor, ...]:
        """Of hidden states and lm_head."""
        return torch.autograd.grad(total, (self.hidden_PH, self.weight_VH))
