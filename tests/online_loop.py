"""Token-level distillation as a textbook has it: the teacher in memory, full logits, one loop.

It shares no code with the product: it writes the special tokens itself, pads with zeros, draws the
orders of epochs, makes the logits of all words of both models in every step, and has the loss

    (1 - alpha) · CE(student, text) + alpha · T² · KL(softmax(teacher/T) || softmax(student/T))

in it, both means over all predicted tokens of a step (Hinton, Vinyals, Dean, arXiv 1503.02531).
Shapes: B texts, T tokens, V words, P predicted tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

Figures = list[float]


@dataclass(frozen=True)
class How:
    """What a run is told; the defaults are those of a job where it has them."""

    epochs: int = 2
    batch_size: int = 8
    gradient_accumulation: int = 1
    alpha: float = 0.7
    temperature: float = 2.0
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    seed: int = 3

    def keys(self) -> dict[str, Any]:
        """The same as keys of a job."""
        told = dict(vars(self))
        return told | {"token_temperature": told.pop("temperature")}


@dataclass
class Online:
    """A student and its teacher, in float32 or in float64."""

    student: Path
    teacher: Path
    texts: Sequence[str]
    how: How
    dtype: torch.dtype = torch.float32
    losses: Figures = field(default_factory=list)
    gradient_norms: Figures = field(default_factory=list)

    def train(self) -> dict[str, Tensor]:
        """Train; returns the weights. `losses` are those of the steps."""
        self.model = self._load(self.student).train()
        self.asked = self._load(self.teacher).eval()
        self.rows = self._tokenize()
        optimizer = torch.optim.AdamW(self._groups(), lr=self.how.learning_rate, fused=False)
        for epoch in range(self.how.epochs):
            for step in self._steps(epoch):
                optimizer.zero_grad()
                self._add_gradients(step)
                norm = torch.nn.utils.clip_grad_norm_(
                    self.model.parameters(), self.how.max_grad_norm
                )
                self.gradient_norms.append(float(norm))
                optimizer.step()
        return {name: each.detach().clone() for name, each in self.model.named_parameters()}

    def _load(self, folder: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=self.dtype)

    def _tokenize(self) -> list[Tensor]:
        tokenizer = AutoTokenizer.from_pretrained(self.student)
        first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
        said = [tokenizer.encode(text, add_special_tokens=False) for text in self.texts]
        return [torch.tensor([first, *ids, last]) for ids in said]

    def _groups(self) -> list[dict[str, Any]]:
        """Matrices decay; biases and norms do not."""
        weights = list(self.model.parameters())
        return [
            {"params": [w for w in weights if w.ndim > 1], "weight_decay": self.how.weight_decay},
            {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
        ]

    def _steps(self, epoch: int) -> Iterator[list[np.ndarray]]:
        how = self.how
        order = np.random.default_rng([how.seed, epoch, 0]).permutation(len(self.texts))
        batches = [order[s : s + how.batch_size] for s in range(0, len(order), how.batch_size)]
        for start in range(0, len(batches), how.gradient_accumulation):
            yield batches[start : start + how.gradient_accumulation]

    def _add_gradients(self, step: Sequence[np.ndarray]) -> None:
        counted = sum(len(self.rows[place]) - 1 for batch in step for place in batch)
        losses = [self._sum_of_losses([self.rows[n] for n in batch]) / counted for batch in step]
        for loss in losses:
            loss.backward()
        self.losses.append(sum(loss.item() for loss in losses))

    def _sum_of_losses(self, rows: Sequence[Tensor]) -> Tensor:
        alpha, temperature = self.how.alpha, self.how.temperature
        ids_BT = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        mask_BT = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], True)
        predicted_BT = mask_BT[:, 1:].bool()
        logits_PV = self._logits(self.model, ids_BT, mask_BT)[predicted_BT]
        with torch.no_grad():
            answers_PV = self._logits(self.asked, ids_BT, mask_BT)[predicted_BT]
        task = F.cross_entropy(logits_PV, ids_BT[:, 1:][predicted_BT], reduction="sum")
        divergence = F.kl_div(
            F.log_softmax(logits_PV / temperature, dim=1),
            F.softmax(answers_PV / temperature, dim=1),
            reduction="sum",
        )
        return (1 - alpha) * task + alpha * temperature**2 * divergence

    @staticmethod
    def _logits(model: Any, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Those of the tokens that have a next one [B, T - 1, V]."""
        logits: Tensor = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
        return logits[:, :-1]
