"""A cross-encoder as a teacher: a sequence classifier that reads a query and a passage together,
and scores the pair.

What a folder of sentence-transformers declares is used: the activation behind the logits, the
maximum length. Shapes: K classes, H hidden numbers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ....cache_schemas.errors import JobError, TeacherSourceError
from ....cache_schemas.features import FeatureSpec
from ...embeddings.folders import read_cross_encoder
from ...embeddings.layers import activation
from ...pretrained import token_limit
from .base import Example, Prepared
from .classifier import ClassifierTeacher
from .options import CrossEncoderOptions, TokenizedOptions
from .tokenized import Inputs

NO_LIMIT = 2**20
"""Tokens that no model takes: what tokenizers say that know no limit."""

DEFAULT_PAIR_LENGTH = 512


class CrossEncoderTeacher(ClassifierTeacher):
    """Features `score` [1], or of several classes `logits` [K]; and `pooled` [H] if requested."""

    Options = CrossEncoderOptions
    kind = "cross_encoder"
    _options: CrossEncoderOptions

    def _find_model(self, folder: Path) -> Path:
        self._declared = read_cross_encoder(folder, TeacherSourceError)
        return self._declared.transformer

    def _resolve(self, options: TokenizedOptions, tokenizer: Any) -> TokenizedOptions:
        found = self._options
        limit = token_limit(tokenizer, self._skeleton)
        longest = self._declared.max_length or (limit if limit < NO_LIMIT else DEFAULT_PAIR_LENGTH)
        self._options = found.model_copy(
            update={
                "activation": self._activation_name(),
                "max_length": found.max_length or min(longest, limit),
            }
        )
        if self._declared.lowercase and "lowercase" not in found.model_fields_set:
            self._options = self._options.model_copy(update={"lowercase": True})
        return self._options

    def _activation_name(self) -> str:
        """The activation's class in torch.nn."""
        given, scores = self._options.activation, self._config.num_labels == 1
        name = given or self._declared.activation or ("Sigmoid" if scores else "Identity")
        last = name.rpartition(".")[2]
        try:
            self._activation = activation(name if "." in name else f"torch.nn.{name}")
        except ValueError as cause:
            if given:
                raise JobError(f"activation: {cause}; such as Sigmoid or Identity") from cause
            raise TeacherSourceError(
                f"source {self._folder}: activation {cause}; name another by activation"
            ) from cause
        if not scores and last != "Identity":
            raise JobError(
                f"activation: {last} of {self._config.num_labels} classes has no feature; set "
                "activation=Identity for their logits"
            )
        if scores and not _keeps_scores(self._activation):
            raise JobError(
                f"activation: {last} makes no number of one score, or always the same; use one "
                "such as Sigmoid or Identity"
            )
        return last

    def prepare(self, examples: Sequence[Example]) -> Prepared:
        """Their tokens."""
        self.check(examples)
        return super().prepare(examples)

    def check(self, examples: Sequence[Example]) -> None:
        """Raises JobError for what is no pair, unless a template makes one text of it."""
        odd = next((each for each in examples if len(each.segments) != 2), None)
        if odd is not None and self._options.template == "{text}":
            raise JobError(
                f"text_column: a cross_encoder reads pairs, and an example has {len(odd.segments)} "
                "segments; name two columns, query and passage"
            )

    def _answer(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        answers = super()._answer(inputs)
        if self._config.num_labels == 1:
            answers = {"score": self._activation(answers.pop("logits").float()), **answers}
        return answers

    def _features(self) -> list[FeatureSpec]:
        logits, *more = super()._features()
        if self._config.num_labels > 1:
            return [logits, *more]
        name = self._options.activation
        told = "score of the pair" + ("" if name == "Identity" else f", {name} of the logit")
        score = FeatureSpec(name="score", shape=(1,), dtype=logits.dtype, description=told)
        return [score, *more]


def _keeps_scores(activation: torch.nn.Module) -> bool:
    """Whether different scores [B, 1] remain B numbers, and are not all the same."""
    scores_B1 = torch.tensor([[-2.0], [0.5], [2.0]])
    try:
        found_B1 = activation.eval()(scores_B1)
    except (RuntimeError, TypeError, ValueError):  # of GLU, which halves what it is given
        return False
    return found_B1.shape == scores_B1.shape and len(found_B1.unique()) > 1
