"""A student that a run of `distill` left, as the teacher of the next: chains, born-again networks
(Furlanello et al., arXiv 1805.04770), teacher assistants (Mirzadeh et al., arXiv 1902.03393).

A run's card says what the student is, and so which teacher reads it: a classifier or regressor, an
embedding model, a language model, with the texts written and cut as in training. The fingerprint
covers the files of the student, and no path. Shapes: B examples, H hidden numbers, K classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel
from safetensors import safe_open
from torch import Tensor

from ....cache_schemas.errors import JobError, TeacherSourceError
from ....cache_schemas.features import FeatureSpec
from ...corpus.labels import NO_LABELS, LabelSpace
from ...embeddings.prompts import Prompts
from ...embeddings.static import is_static_folder
from ...language.masking import MaskSettings
from ...language.recipe import Recipe
from ...pretrained import refusing
from ...sources import resolve
from ...tokenizing.unknown import Unknown
from .base import Answers, Example, Outputs, Prepared, Teacher
from .causal_lm import CausalLMTeacher
from .causal_options import CausalLMOptions
from .classifier import ClassifierTeacher
from .encoder import EncoderTeacher
from .encoder_options import EncoderOptions
from .masked_lm import MaskedLMTeacher
from .masked_lm_options import MaskedLMOptions
from .options import ClassifierOptions, StudentOptions
from .tokenized import Inputs

READER_CARD, LANGUAGE_CARD = "armada_student.json", "armada_language.json"
MASKED_CARD = "armada_masked.json"
HEADS = "heads.safetensors"
"""Files of a student's folder, as stage 2 writes them."""


class StudentTeacher(Teacher):
    """Features by the student's kind: `logits` [K] of a classifier, `score` [1] or [K] of a
    regressor, `pooled` [H] of an embedding model, `top_k` and companions of a language model,
    causal or masked."""

    Options = StudentOptions
    kind = "student"
    selecting = frozenset({"top_k", "temperatures"})

    def __init__(self, source: str, options: StudentOptions, device: torch.device) -> None:
        self._folder = resolve(source, options.revision, TeacherSourceError)
        card = _read_card(self._folder)
        self._columns = card.text_columns
        self._teacher = _make(source, card, options, device)
        self.spec = self._teacher.spec.model_copy(update={"kind": self.kind})
        self.notes = self._teacher.notes
        for name in ("default_batch_size", "default_batch_tokens", "default_rows_per_shard"):
            setattr(self, name, getattr(self._teacher, name))

    def load(self) -> None:
        """Build the student."""
        self._teacher.load()

    def encode(self, examples: Sequence[Example]) -> Answers:
        """The student's outputs."""
        return self.start(self.prepare(examples))()

    def buckets(self, examples: Sequence[Example]) -> Sequence[int]:
        """The padded length of each example, in tokens."""
        return self._teacher.buckets(examples)

    def prepare(self, examples: Sequence[Example]) -> Prepared:
        """Their tokens."""
        self.check(examples)
        return self._teacher.prepare(examples)

    def start(self, batch: Prepared) -> Outputs:
        """See Teacher."""
        return self._teacher.start(batch)

    def check(self, examples: Sequence[Example]) -> None:
        """Raises JobError for other text columns than the student read."""
        for example in examples:
            if len(example.segments) != len(self._columns):
                raise JobError(
                    f"text_column: an example has {len(example.segments)} segments, and student "
                    f"{self._folder} reads {len(self._columns)} ({', '.join(self._columns)})"
                )

    def unknown(self, examples: Sequence[Example]) -> Unknown | None:
        """See Teacher."""
        return self._teacher.unknown(examples)


class RegressorTeacher(ClassifierTeacher):
    """Feature `score`: the student's number [1], which is not negative, or its numbers [K]."""

    def _answer(self, inputs: Inputs) -> dict[str, Tensor]:
        return {"score": _rectified(super()._answer(inputs)["logits"])}

    def _features(self) -> list[FeatureSpec]:
        logits = super()._features()[0]
        return [_score(logits.dtype, logits.shape[0], logits.labels)]


class PooledStudentTeacher(EncoderTeacher):
    """Feature `logits` [K], or `score` [1] or [K], of a student whose head is beside its
    transformer: a linear layer on pooled states."""

    def __init__(
        self, source: str, options: EncoderOptions, device: torch.device, space: LabelSpace
    ) -> None:
        self._space = space
        super().__init__(source, options, device)

    def _find_model(self, folder: Path) -> Path:
        self._declared = None  # of embeddings, which a student may have beside its labels
        return folder

    def _prepare(self) -> None:
        super()._prepare()
        with safe_open(self._folder / HEADS, "pt") as heads:
            weight, bias = (heads.get_tensor(f"head.linear.{name}") for name in ("weight", "bias"))
        self._weight, self._bias = weight.to(self._device), bias.to(self._device)

    def _answer(self, inputs: Inputs) -> dict[str, Tensor]:
        pooled_BH = super()._answer(inputs)["pooled"]
        logits_BK = F.linear(pooled_BH, self._weight.float(), self._bias.float())
        if self._space.regression:
            return {"score": _rectified(logits_BK)}
        return {"logits": logits_BK}

    def _features(self) -> list[FeatureSpec]:
        stored = self._precision.stored
        if self._space.regression:
            return [_score(stored, self._space.num_labels, self._space.names)]
        numbered = tuple(f"LABEL_{each}" for each in range(self._space.num_labels))
        labels = self._space.names or numbered  # as transformers has them
        return [
            FeatureSpec(
                name="logits",
                shape=(len(labels),),
                dtype=stored,
                description="class logits",
                labels=labels,
            )
        ]


def _rectified(numbers_BK: Tensor) -> Tensor:
    return F.relu(numbers_BK) if numbers_BK.shape[1] == 1 else numbers_BK


def _score(stored: Any, count: int, names: tuple[str, ...] | None) -> FeatureSpec:
    if count == 1:
        return FeatureSpec(name="score", shape=(1,), dtype=stored, description="predicted number")
    told = "predicted numbers"
    return FeatureSpec(name="score", shape=(count,), dtype=stored, description=told, labels=names)


class _Card(BaseModel):
    """Contents common to the cards of all students."""

    text_columns: tuple[str, ...]
    max_length: int
    space: LabelSpace = NO_LABELS
    pooling: str | None = None
    recipe: Recipe | None = None
    masks: MaskSettings | None = None
    embedding: Prompts | None = None


def _read_card(folder: Path) -> _Card:
    for name in (READER_CARD, LANGUAGE_CARD, MASKED_CARD):
        if (folder / name).is_file():
            with refusing(TeacherSourceError, f"source {folder}: {name}"):
                return _Card.model_validate_json((folder / name).read_bytes())
    raise TeacherSourceError(
        f"source {folder}: holds neither {READER_CARD} nor {LANGUAGE_CARD} nor {MASKED_CARD}; name "
        "a run of distill, or another kind of teacher, such as encoder, classifier or causal_lm"
    )


def _make(source: str, card: _Card, options: StudentOptions, device: torch.device) -> Teacher:
    """The teacher of the student's kind. Raises JobError for options of another kind."""
    given = options.model_dump(include=options.model_fields_set)
    name = given.pop("prompt_name", None)
    prompts = card.embedding or Prompts()
    if name is not None and card.embedding is None:
        raise JobError(f"prompt_name: student {source} has no prompts; leave it out")
    as_trained = {"max_length": card.max_length, **given}
    if card.recipe is not None:
        written = card.recipe.model_dump()
        return CausalLMTeacher(source, CausalLMOptions(**written | as_trained), device)
    if card.masks is not None:
        masked = MaskedLMOptions(**card.masks.model_dump() | as_trained)
        return MaskedLMTeacher(source, masked, device)
    strange = sorted(StudentTeacher.selecting & given.keys())
    if strange:
        raise JobError(f"{strange[0]}: student {source} is no language model; leave it out")
    if card.space.task == "none":
        prompt = prompts.chosen(name, source)
        own = {**given, **({"prompt": prompt} if prompt else {})}
        return EncoderTeacher(source, EncoderOptions(**own), device)
    if is_static_folder(resolve(source, options.revision, TeacherSourceError), TeacherSourceError):
        raise TeacherSourceError(
            f"source {source}: a static student that predicts labels is no teacher; use "
            "encoder: for its embeddings, or a student of a transformer"
        )
    if card.pooling == "own":
        kind = RegressorTeacher if card.space.regression else ClassifierTeacher
        return kind(source, ClassifierOptions(**as_trained), device)
    if card.pooling == "context":
        raise TeacherSourceError(
            f"source {source}: its pooling 'context' is not supported; train it with another one"
        )
    pooled = EncoderOptions(pooling=card.pooling, **as_trained)
    return PooledStudentTeacher(source, pooled, device, card.space)
