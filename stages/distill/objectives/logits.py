"""Objectives that compare class logits: softened, as they are, split at the target class."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ....cache_schemas.errors import JobError
from .. import closed_forms
from ..losses import accumulated, logits
from .base import Objective, Reads, Sizes, Sources, TeacherSide, named_terms
from .one_loss import AlphaObjective, LogitsObjective, require_standardisable
from .options import DKDOptions, DualHeadOptions, KDOptions, LogitMSEOptions

LOWEST_TEMPERATURE = 1.0
TEMPERATURE_RANGE = 20.0


class KDObjective(Objective):
    """Class probabilities of the teacher, softened by a temperature.

    Formula: alpha · T²·KL(softmax(t/T) ‖ softmax(s/T)) + (1 - alpha) · task
    Source: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, arXiv 1503.02531.

    Of a multilabel task, the KL of each class by itself, with a sigmoid (arXiv 2308.06453); of a
    regression, alpha · (t - s)² + (1 - alpha) · task, without T (arXiv 2102.13088).

    Owns nothing but the temperature, when that is learned.
    """

    Options = KDOptions
    options: KDOptions
    reads = Reads(default_feature="logits", classes=True, multilabel=True)

    def __init__(self, options: KDOptions, sizes: Sizes) -> None:
        super().__init__(options, sizes)
        learned = options.temperature == "learned"
        self.learned_temperature = LearnedTemperature() if learned else None

    @classmethod
    def require_options(cls, name: str, options: KDOptions, sizes: Sizes) -> None:
        """Raises JobError for a temperature of numbers."""
        default = KDOptions.model_fields["temperature"].default
        if sizes.regression and options.temperature != default:
            raise JobError(
                f"objective {name}: temperature {options.temperature}: the task is a regression, "
                "whose numbers have none; leave it out"
            )

    def forward(
        self, pooled_BD: Tensor, output_BK: Tensor, feature_BH: TeacherSide, labels_B: Tensor
    ) -> dict[str, Tensor]:
        """total, task, distillation; and temperature where it is learned."""
        temperature = self._temperature()
        terms = closed_forms.kd_loss(
            student_output=output_BK,
            teacher_logits=self._feature(feature_BH),
            labels=labels_B,
            alpha=self.options.alpha,
            temperature=temperature,
            regression=self.sizes.regression,
        )
        parts = {"task": terms.task, "distillation": terms.distillation}
        if isinstance(temperature, Tensor):
            parts["temperature"] = temperature
        return named_terms(terms.total, **parts)

    def task_weight(self, sources: Sources) -> float:
        """1 - alpha."""
        return 1 - self.options.alpha

    def _temperature(self) -> float | Tensor:
        if self.learned_temperature is None:
            return float(self.options.temperature)
        learned: Tensor = self.learned_temperature()
        return learned


class LogitMSEObjective(LogitsObjective):
    """Squared differences of the logits themselves.

    Formula: alpha · mean (s - t)² + (1 - alpha) · task; centred: of s and t less their rows' means
    Source: Ba and Caruana, arXiv 1312.6184; Kim et al., arXiv 2105.08919.
    """

    Options = LogitMSEOptions
    options: LogitMSEOptions

    def distillation(
        self, student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Reports nothing more."""
        return logits.logit_mse_loss(student_BK, teacher_BK, self.options.centred), {}


class DKDObjective(LogitsObjective):
    """Decoupled distillation: the target class against all others, and those among themselves.

    Formula: alpha · T²·[target_weight · KL of (p_y, 1 - p_y) + nontarget_weight · KL of the other
    classes] + (1 - alpha) · task; y is the label or, without one, the teacher's first class
    Source: Zhao et al., Decoupled Knowledge Distillation, arXiv 2203.08679.

    With two classes the second part is 0. The paper's warm-up is a `weight` that moves.
    """

    Options = DKDOptions
    options: DKDOptions

    def distillation(
        self, student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Reports target and nontarget."""
        targets_B = logits.target_classes(teacher_BK, labels_B)
        temperature = self.options.temperature
        target, nontarget = logits.dkd_losses(student_BK, teacher_BK, targets_B, temperature)
        total = self.options.target_weight * target + self.options.nontarget_weight * nontarget
        return total, {"target": target, "nontarget": nontarget}


class DualHeadObjective(AlphaObjective):
    """Logits of a second head, class by class: the task's own head learns from labels alone.

    Formula: alpha · T²·Σ over classes of KL(σ(n(t)/T) ‖ σ(n(head(pooled))/T)) + (1 - alpha) · task,
    n standardises a row of logits
    Source: Yang et al., Dual-Head Knowledge Distillation, arXiv 2411.08937.

    Simplified: a linear second head, without the paper's alignment of gradients. Needs three
    classes or more. Owns `head`.
    """

    Options = DualHeadOptions
    options: DualHeadOptions
    reads = LogitsObjective.reads

    def __init__(self, options: DualHeadOptions, sizes: Sizes) -> None:
        super().__init__(options, sizes)
        self.head = nn.Linear(sizes.pooled_dim, sizes.num_labels)

    @classmethod
    def require_options(cls, name: str, options: DualHeadOptions, sizes: Sizes) -> None:
        """Raises JobError for two classes, of which standardised logits have no slope."""
        require_standardisable(name, sizes, "choose kd or another objective")

    def forward(
        self, pooled_BD: Tensor, output_BK: Tensor, feature_BH: TeacherSide, labels_B: Tensor
    ) -> dict[str, Tensor]:
        """total, task, distillation."""
        teacher_BK = accumulated(self._feature(feature_BH).detach())
        second_BK = accumulated(self.head(accumulated(pooled_BD)))
        distillation = logits.binary_kl_loss(second_BK, teacher_BK, self.options.temperature)
        return self.beside_task(distillation, output_BK, labels_B)


class LearnedTemperature(nn.Module):
    """T = 1 + 20·sigmoid(θ), one number in [1, 21], trained to make the student's loss larger.

    The student lowers the loss and the temperature raises it: the gradient is reversed on its way
    to θ. Descending along T as well would collapse it to its lower bound, for T²·KL shrinks with T
    whether the student learns or not. θ starts at 1 (T = 15.6), as in the paper's code.
    Source: Li et al., Curriculum Temperature for Knowledge Distillation, arXiv 2211.16231.
    """

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(1.0))
        # Strength λ of the reversed gradient. In the paper it grows from 0 to 1 over the first
        # epochs, from easy to hard; a schedule may do the same here.
        self.reversal = 1.0

    def forward(self) -> Tensor:
        """The temperature, a 0-d tensor."""
        constant = self.theta.detach()
        # The difference is exactly 0: the value is θ, the gradient is -λ.
        reversed_theta = constant - self.reversal * (self.theta - constant)
        return LOWEST_TEMPERATURE + TEMPERATURE_RANGE * torch.sigmoid(reversed_theta)
