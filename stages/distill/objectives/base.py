"""Base of objectives: the trainable parts beside the student, and the loss that uses them.

A step calls `objective(pooled_BD, output_BK, feature_BH, labels_B)` and gets named scalars;
`total` is the one to backpropagate, all others are detached, for logs. One that
reads more of a student than that takes a `StudentSide`, and is called by `of_sources`.
Shapes: B rows, D pooled student text, K classes or outputs, H numbers of a feature.

An objective has its own options (`Options`), declares what it reads (`reads`), and may be one of
several in a run (`sum.py`). Plug-in objectives subclass `Objective` and register under
`armada.objectives`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from ....cache_schemas.errors import JobError, MissingFeatureError
from ....cache_schemas.features import AxisName
from ..aligner import AlignerAnswers
from ..embedding.candidates import Candidates
from ..losses import task_loss
from ..negatives import Negatives, negatives_name
from ..order import Indices
from ..placement import to_device
from ..token_loss.answers import TokenAnswers
from ..token_loss.loss import Tokens, cross_entropy
from .options import SOURCE
from .options import ObjectiveOptions as ObjectiveOptions  # for objectives of other packages

Feature = Tensor | AlignerAnswers
"""A batch's features [B, *shape], or along tokens [B, T, *shape], 0 at padding; or, for an
objective whose aligner is frozen, what that reads out of them, worked out ahead
(`../schedules.py`)."""

TeacherSide = Feature | tuple[Feature, ...] | None
"""Teacher inputs of an objective: one feature, or as many as it reads; None if it reads none."""

Sources = Mapping[str, Feature | TokenAnswers | Negatives]
"""Cached outputs of all teachers for a batch, by source name; and negatives that were drawn from a
source, under the `negatives_name` of it."""

StudentTensor = Literal["pooled", "output", "layers", "attention", "tokens", "pairs", "candidates"]
"""Student tensors that an objective may read: the text vector, the head's output, hidden states of
layers, queries, keys and values of attention layers, a language model's predicted tokens, its
log-probabilities of two responses to each prompt, or embeddings of a query and its candidates."""

Shape = tuple[int, ...]
"""Shape of the feature of one example."""

TASK_PART = "task_part"
"""Term: what the task's own loss adds to `total`, with its graph; only where `splits` is set."""


@dataclass(frozen=True, slots=True)
class Reads:
    """Declared inputs of an objective, by which unsuitable jobs are refused before a model
    loads."""

    features: int | None = 1
    """Number of features of its teacher; 0: none; None: as many as a job names."""
    several_teachers: bool = False
    """Whether it reads one feature of each of several teachers, in place of features of one."""
    default_feature: str | None = None
    """The feature to read when a job names none; None: the only one that there is."""
    axis: AxisName | None = None
    """Axis of its features: `predictions`, a row per predicted token; `tokens`, a row per token of
    the text, which the student reads as the same tokens; None: one per text."""
    student: frozenset[StudentTensor] = frozenset({"pooled", "output"})
    """Student tensors it reads; `Objective.layers_of` names the `layers`, `attention_of` those of
    the `attention`."""
    classes: bool = False
    """Whether a feature's numbers stand for the student's own classes, in their order."""
    labels: bool = True
    """Whether it takes labels to train anything of use."""
    headless: bool = False
    """Whether it has a loss all the same for a language model whose texts have no labels: then
    output and labels are None."""
    task: bool = True
    """Whether it scores the task itself whenever it is one of several: the labels, or, if it reads
    tokens, those of the corpus; else it leaves that to the others, gets no output of the student,
    and the task's loss is added if no objective scores it."""
    regression: bool = True
    """Whether it has a meaning where labels are numbers."""
    multilabel: bool = False
    """Whether, if it reads classes, it has a meaning where any number of them holds."""
    scores: bool = False
    """Whether it reads one number of a pair of texts as well as vectors of texts."""
    nonnegative: bool = True
    """Whether its loss is never below 0, or a learned weight of it would grow without end."""
    least_rows: int = 1
    """The fewest rows of a batch that it has a loss for: 2 for one that compares pairs of rows."""


def require_fit(name: str, reads: Reads, sizes: "Sizes") -> None:
    """Raises JobError where an objective of some name has no meaning for such a student and such
    features, as far as its inputs decide."""
    if sizes.regression and not reads.regression:
        raise JobError(
            f"objective {name} compares class probabilities, but the task is regression; choose "
            "kd, armada, feature or undistilled"
        )
    if sizes.multilabel and reads.classes and not reads.multilabel:
        raise JobError(
            f"objective {name} compares probabilities of which one class holds, but the task is "
            "multilabel; choose kd, armada, feature or undistilled"
        )
    if sizes.regression and reads.classes and sizes.feature_dim != sizes.num_labels:
        raise JobError(
            f"objective {name}: the teacher's feature has {sizes.feature_dim} numbers, the task "
            f"{sizes.num_labels} outputs; choose a teacher of the same task, and its numbers as "
            "the feature"
        )
    if reads.classes and sizes.feature_dim != sizes.num_labels:
        raise JobError(
            f"objective {name}: the teacher's logits have {sizes.feature_dim} classes, the task "
            f"{sizes.num_labels}; choose a teacher of the same task, and its logits as the "
            "feature, or armada, feature or rkd, which need no common classes"
        )


def require_layers(name: str, layers: Sequence[int], sizes: "Sizes") -> None:
    """Raises JobError where an objective of some name reads layers that a student lacks."""
    count = len(sizes.layer_dims)
    for layer in layers:
        if not -count <= layer < count:
            raise JobError(
                f"objective {name}: layer {layer} is beyond the student's; choose from 0 (its "
                f"embeddings) to {count - 1} (its last), or from -1 (its last) to {-count}"
            )


def require_attention(name: str, layers: Sequence[int], sizes: "Sizes") -> None:
    """Raises JobError where an objective of some name reads attention layers that a student
    lacks."""
    count = len(sizes.attention_dims) - 1
    for layer in layers:
        if not (1 <= layer <= count or -count <= layer <= -1):
            raise JobError(
                f"objective {name}: attention layer {layer} is beyond the student's; choose from 1 "
                f"to {count} (its last), or from -1 (its last) to {-count}"
            )


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes for an objective: `feature_shape` is the shape of one example, None for none;
    `more_shapes` those of further features; `dropout` that of the student's head; `layer_dims` the
    widths of its embeddings and of each layer, where an objective reads layers; `multilabel`:
    whether any number of classes holds; `attention_dims` the widths of a query of each layer from
    the first, after a 0 for the embeddings, where one reads attention."""

    pooled_dim: int
    num_labels: int
    regression: bool
    feature_shape: Shape | None
    more_shapes: tuple[Shape, ...] = ()
    dropout: float = 0.1
    layer_dims: tuple[int, ...] = ()
    multilabel: bool = False
    attention_dims: tuple[int, ...] = ()

    @property
    def feature_dim(self) -> int:
        """H, how many numbers one feature has. Raises MissingFeatureError if there is none."""
        if self.feature_shape is None:
            raise MissingFeatureError(
                "needs a teacher feature, and none is named; name one of the cache, or use "
                "objective=undistilled"
            )
        return math.prod(self.feature_shape)


@dataclass(frozen=True, slots=True)
class ResponsePairs:
    """A language model's log-probabilities of two responses to each of B prompts, in nats; the
    preferred one first."""

    log_probs_B2: Tensor
    """Sums over the tokens of a response."""
    counts_B2: Tensor
    """Tokens of each response."""
    weights_B: Tensor | None = None
    """Weights of the pairs; None: 1."""
    total_weight: float | None = None
    """Sum of the weights over a step, divided by its batches; None: that of these pairs."""
    total_tokens: float | None = None
    """The same for the preferred responses' tokens, each with the weight of its pair."""


@dataclass(frozen=True, slots=True)
class StudentSide:
    """Student outputs of a batch; with several processes, all but the tokens are those of the whole
    batch."""

    pooled_BD: Tensor | None = None
    output_BK: Tensor | None = None
    """None of a student without a head."""
    tokens: Tokens | None = None
    """The predicted tokens of a language model, of this process's share; of pairs, those of the
    preferred responses."""
    answered: Mapping[str, float] = field(default_factory=dict)
    """Number of a step's tokens with a prediction, by source, for a share's means over the step."""
    layers: Mapping[int, Tensor] = field(default_factory=dict)
    """Hidden states [B, T, width] of the layers that some objective reads, each under the indices
    of the request; whatever stands where `mask_BT` is 0 has no meaning."""
    mask_BT: Tensor | None = None
    """Mask of the layers: 1 for tokens, 0 for padding."""
    attention: Mapping[int, Tensor] = field(default_factory=dict)
    """Queries, keys and values [B, T, 3, width] of the attention layers that some objective reads,
    likewise."""
    has_answers: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    """Which rows [B] have a feature, of sources that lack some."""
    pairs: ResponsePairs | None = None
    """Two responses to each prompt, if some objective compares them."""
    repeats: Mapping[str, Indices] = field(default_factory=dict)
    """A number for each row's text [B], of sources of which some rows have the same text."""
    candidates: Candidates | None = None
    """The embeddings by example, of a student that embeds several texts of each: the rows of
    `pooled_BD` are then the texts."""

    def take(self, rows: Tensor) -> "StudentSide":
        """The same for some rows, which all have features; of a student of whole texts."""
        return StudentSide(
            pooled_BD=_taken(self.pooled_BD, rows),
            output_BK=_taken(self.output_BK, rows),
            layers={name: each.index_select(0, rows) for name, each in self.layers.items()},
            mask_BT=_taken(self.mask_BT, rows),
            attention={n: each.index_select(0, rows) for n, each in self.attention.items()},
        )


def _taken(tensor: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.index_select(0, rows)


def _of_rows(feature: Any, rows: Tensor) -> Any:
    """Some rows of a feature, or of what an aligner reads out of it."""
    if isinstance(feature, Negatives):  # of the batch as a whole
        return feature
    if isinstance(feature, AlignerAnswers):
        return AlignerAnswers(*(each.index_select(0, rows) for each in feature))
    return feature.index_select(0, rows)


def task_terms(side: StudentSide, labels_B: Tensor | None, regression: bool) -> dict[str, Tensor]:
    """The loss of the student's own task: of the tokens of a language model, else of labels."""
    if side.tokens is not None:
        language = cross_entropy(side.tokens)
        return named_terms(language, language=language)
    assert side.output_BK is not None
    assert labels_B is not None
    task = task_loss(side.output_BK, labels_B, regression)
    return named_terms(task, task=task)


class Objective(nn.Module, ABC):
    """Turns a student's outputs into named loss terms; owns what is trained beside the student."""

    Options: ClassVar[type[BaseModel]] = ObjectiveOptions
    """Its keys in a job."""
    reads: ClassVar[Reads] = Reads()
    """Its inputs in a batch."""
    has_aligner: ClassVar[bool] = False
    """Whether it trains an aligner, its part of that name, which a control can leave as drawn."""

    aligner: nn.Module | None
    splits: bool = False
    """Whether its terms have the task's part of the loss by itself."""

    def __init__(self, options: Any, sizes: Sizes) -> None:
        """`options` are of the class `Options`."""
        super().__init__()
        require_fit(type(self).__name__, self.reads, sizes)
        self.require_options(type(self).__name__, options, sizes)
        self._options = self.options = options
        self._progress = 0.0
        self.progress = 0.0
        self.sizes = sizes
        self.layers = self.layers_of(options)
        """The student's layers that it reads."""
        require_layers(type(self).__name__, self.layers, sizes)
        self.require_inputs(type(self).__name__, options, sizes)
        self.attention = self.attention_of(options)
        """The student's attention layers that it reads."""
        require_attention(type(self).__name__, self.attention, sizes)
        self.negatives = self.negatives_of(options)
        """Rows to draw from its first source for each batch."""
        self.examples: int | None = None
        """Number of training examples with a feature of its first source, set before training;
        None: unknown."""
        self.aligner = None
        self.label = ""
        """Prefix of its terms in logs with several objectives."""
        self.sources: tuple[str, ...] = (SOURCE,) if self.reads.features != 0 else ()
        """Names of what it reads, in the order of its features."""

    @property
    def progress(self) -> float:
        """Share of the training steps that are made, set before each step."""
        return self._progress

    @progress.setter
    def progress(self, share: float) -> None:
        self._progress = share
        self._set_options()

    def _set_options(self) -> None:
        """Options that are schedules as of this step; in an evaluation, as of the end, or epochs
        would not compare."""
        if isinstance(self._options, ObjectiveOptions) and self._options.schedules:
            self.options = self._options.at(self._progress if self.training else 1.0)

    @classmethod
    def require_options(cls, name: str, options: Any, sizes: Sizes) -> None:
        """Raises JobError for options without a meaning for such a student's task."""

    @classmethod
    def require_inputs(cls, name: str, options: Any, sizes: Sizes) -> None:
        """Raises JobError for features and layers of the student that do not fit each other. Of a
        student that is not read yet, `layer_dims` has the right length and no widths, or is
        empty."""
        if sizes.layer_dims:
            require_layers(name, cls.layers_of(options), sizes)

    @classmethod
    def require_teachers(cls, name: str, options: Any, count: int) -> None:
        """Raises JobError for options that do not fit the number of its features."""

    @classmethod
    def layers_of(cls, options: Any) -> tuple[int, ...]:
        """The student's layers to read under some options, of one that declares `layers`: 0 is the
        embeddings, 1 the first layer, -1 the last."""
        return ()

    @classmethod
    def attention_of(cls, options: Any) -> tuple[int, ...]:
        """The student's attention layers to read, of one that declares `attention`: 1 is the first,
        -1 the last."""
        return ()

    @classmethod
    def negatives_of(cls, options: Any) -> int:
        """Rows to draw from its first source for each batch, beside those of the batch, under some
        options. `negatives_in` gives them."""
        return 0

    def forward(
        self, pooled_BD: Tensor, output_BK: Tensor, feature_BH: TeacherSide, labels_B: Tensor
    ) -> dict[str, Tensor]:
        """Named scalar terms of one batch; `total` is the one to backpropagate. One that reads
        tokens or layers has `of_sources` in its place."""
        raise TypeError(f"{type(self).__name__} is asked by `of_sources`")

    def task_weight(self, sources: Sources) -> float:
        """Weight of the task's own loss (`task_terms`) in `total`, where it is given labels or
        tokens. Needed for an optimizer that treats the task and distillation apart."""
        raise TypeError(f"{type(self).__name__} does not tell the weight of the task")

    @property
    def parts(self) -> Sequence["Objective"]:
        """The objectives that are summed up here: itself."""
        return (self,)

    @property
    def active_parts(self) -> Sequence["Objective"]:
        """The objectives of `parts` that are computed in this step."""
        return self.parts

    @property
    def answers_name(self) -> str:
        """Name of its aligner's precomputed outputs among the sources."""
        return f"aligner of {self.label}"

    def of_batch(
        self, side: StudentSide, sources: Sources, labels_B: Tensor | None
    ) -> dict[str, Tensor]:
        """The terms of a batch in which teachers may lack rows (`StudentSide.has_answers`).

        total = (S · total of the S rows that have all features + R · task loss of the R others)
        / (S + R), the second where it is for this objective to score the task. A term of a teacher
        is the mean over the S rows, and left out where there are none, or too few to compare."""
        lacking = [side.has_answers[name] for name in self.sources if name in side.has_answers]
        answered = np.logical_and.reduce(lacking) if lacking else np.ones(1, np.bool_)
        if answered.all():
            whole = self.of_sources(side, sources, labels_B)
            moving = self._moving(whole["total"])
            return whole | moving | self._task_part(side, sources, labels_B)
        assert side.pooled_BD is not None
        if answered.sum() < max(1, self.reads.least_rows):
            answered = np.zeros_like(answered)
        share = float(answered.mean())
        own, rest = (
            to_device(torch.from_numpy(np.flatnonzero(rows)), side.pooled_BD.device)
            for rows in (answered, ~answered)
        )
        terms: dict[str, Tensor] = {}
        parts: dict[str, Tensor] = {}
        total = side.pooled_BD.new_zeros(())
        if share:
            read = sources.keys() & self._read_names()
            taken = {name: _of_rows(sources[name], own) for name in read}
            repeats = {name: texts[answered] for name, texts in side.repeats.items()}
            with_answers = replace(side.take(own), repeats=repeats)
            labels = _taken(labels_B, own)
            terms = self.of_sources(with_answers, taken, labels)
            total = share * terms.pop("total")
            part = self._task_part(with_answers, taken, labels)
            parts = {name: share * each for name, each in part.items()}
        if side.output_BK is not None and labels_B is not None:
            task = task_terms(side.take(rest), _taken(labels_B, rest), self.sizes.regression)
            total = total + (1 - share) * task["total"]
            terms["task"] = share * terms.get("task", 0.0) + (1 - share) * task["task"]
            if self.splits:
                parts = {TASK_PART: parts.get(TASK_PART, 0.0) + (1 - share) * task["total"]}
        elif not share:
            total = 0 * side.pooled_BD.sum()  # which depends on the student as any loss does
        return named_terms(total, **(terms | self._moving(total))) | parts

    def _moving(self, total: Tensor) -> dict[str, Tensor]:
        """The options that are schedules, to be reported."""
        if not isinstance(self._options, ObjectiveOptions):
            return {}
        moving = {name: getattr(self.options, name) for name in self._options.schedules}
        return {n: torch.full((), value, device=total.device) for n, value in moving.items()}

    def _task_part(
        self, side: StudentSide, sources: Sources, labels_B: Tensor | None
    ) -> dict[str, Tensor]:
        """The task's part of the loss of a batch whose features are all there, if it is needed."""
        if "tokens" in self.reads.student and side.tokens is not None:
            scored = self.reads.task
        else:
            side = replace(side, tokens=None)
            scored = side.output_BK is not None and labels_B is not None
        if not self.splits or not scored:
            return {}
        task = task_terms(side, labels_B, self.sizes.regression)["total"]
        return {TASK_PART: self.task_weight(sources) * task}

    def _read_names(self) -> set[str]:
        """Everything that it may read, by its name among the sources of a batch."""
        return {*self.sources, *map(negatives_name, self.sources), self.answers_name}

    def of_sources(
        self, side: StudentSide, sources: Sources, labels_B: Tensor | None
    ) -> dict[str, Tensor]:
        """The terms of a batch with features of several teachers."""
        teacher = self.teacher_side(sources)
        terms: dict[str, Tensor] = self(side.pooled_BD, side.output_BK, teacher, labels_B)
        return terms

    def negatives_in(self, sources: Sources) -> Negatives | None:
        """Its negatives of a batch: fewer than `negatives` where a source has no more; None if none
        are drawn."""
        found = sources.get(negatives_name(self.sources[0])) if self.negatives else None
        return found.first(self.negatives) if isinstance(found, Negatives) else None

    def same_text(self, side: StudentSide) -> Tensor | None:
        """Which rows of a batch have the text of its first source that another row has [B, B], but
        for the row itself; None: none."""
        texts_B = side.repeats.get(self.sources[0])
        if texts_B is None:
            return None
        assert side.pooled_BD is not None
        same_BB = texts_B[:, None] == texts_B
        np.fill_diagonal(same_BB, False)
        return to_device(torch.from_numpy(same_BB), side.pooled_BD.device)

    def embedding(self, pooled_BD: Tensor) -> Tensor | None:
        """The student's texts in the space of its only feature [B, H], of an objective that has
        them meet the feature itself there; None of any other."""
        return None

    def told(self, sources: Sources) -> TeacherSide:
        """Deprecated name of `teacher_side`."""
        return self.teacher_side(sources)

    def teacher_side(self, sources: Sources) -> TeacherSide:
        """The inputs of this objective among those of all sources."""
        ahead = sources.get(self.answers_name)
        if isinstance(ahead, AlignerAnswers):
            return ahead
        found = (sources.get(name) for name in self.sources)
        known = [each for each in found if isinstance(each, Tensor | AlignerAnswers)]
        if not known:
            return None
        return known[0] if self.reads.features == 1 else tuple(known)

    def train(self, mode: bool = True) -> Self:
        """As for any module, but a frozen aligner stays in eval mode."""
        super().train(mode)
        self._set_options()
        if self.aligner is not None and is_frozen(self.aligner):
            self.aligner.eval()
        return self

    def _feature(self, feature: TeacherSide) -> Tensor:
        """The feature as [B, H], whatever the shape of one example."""
        if not isinstance(feature, Tensor):
            raise MissingFeatureError(
                f"{type(self).__name__} needs a teacher feature and the batch carries none"
            )
        return feature.reshape(len(feature), -1)


class AlignedObjective(Objective):
    """An objective whose aligner is trained from features alone, with outputs computed ahead of the
    student.

    Others with an aligner train it in `total`, along with the student, whatever the schedule."""

    has_aligner = True
    aligner: nn.Module
    joint: bool = False
    """Set by the schedule: whether `total` includes the aligner's own loss."""

    @abstractmethod
    def aligner_loss(self, feature_BH: Tensor, labels_B: Tensor) -> Tensor:
        """The loss that trains the aligner, with its graph and in the mode the module is in."""

    @abstractmethod
    def read(self, feature: Tensor) -> AlignerAnswers:
        """The aligner's outputs for features [B, *shape], without dropout and without a graph."""


def aligned_parts(objective: Objective) -> list[AlignedObjective]:
    """Parts of an objective that have such an aligner."""
    return [part for part in objective.parts if isinstance(part, AlignedObjective)]


def freeze(part: nn.Module) -> None:
    """Eval mode, no gradients."""
    part.eval().requires_grad_(False)


def is_frozen(part: nn.Module) -> bool:
    """Whether nothing of a part learns."""
    return not any(parameter.requires_grad for parameter in part.parameters())


def named_terms(total: Tensor, **reported: Tensor) -> dict[str, Tensor]:
    """`total` with its graph and the others without, so that a log never keeps a graph alive."""
    return {"total": total, **{name: term.detach() for name, term in reported.items()}}
