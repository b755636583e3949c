"""A frozen causal language model as teachers use it: its tokenizer, logits from hidden states, and
how it reads prompts that it goes on from.

Shapes: C tokens, H hidden numbers, V tokens of the vocabulary.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ....cache_schemas.errors import JobError, TeacherSourceError
from ...language.logits import find_transform, is_causal
from ...language.tokens import vocab_size_of
from ...pretrained import choose_length, padding_id, read_tokenizer, token_limit
from .base import ROW_GROUP, in_row_groups
from .causal_options import CausalCheckpointOptions
from .checkpoint_teacher import CheckpointTeacher
from .generation import Reader, SameLengths, find_cache_name

DEFAULT_TEXT_LENGTH = 1024
CHUNK_BYTES = 64 * 2**20
"""Bytes of float32 logits at once."""


def require_rows(folder: Path, tokens: int, rows: int) -> None:
    """Raises TeacherSourceError for a tokenizer with more tokens than its model has rows."""
    if tokens > rows:
        raise TeacherSourceError(
            f"source {folder}: its tokenizer has {tokens} tokens, the model {rows}; use the "
            "model's own tokenizer, or resize the model's embeddings"
        )


def tokens_at_once(head: nn.Module) -> int:
    """For how many tokens a head makes logits at once: whole groups of rows."""
    logit_bytes = 4 * cast(Tensor, head.weight).shape[0]
    return max(CHUNK_BYTES // logit_bytes // ROW_GROUP, 1) * ROW_GROUP


class CausalCheckpointTeacher(CheckpointTeacher):
    """A causal language model and its tokenizer.

    Subclasses: `spec`, and what CheckpointTeacher wants of them."""

    default_batch_size = 8
    default_batch_tokens = 8 * DEFAULT_TEXT_LENGTH
    default_rows_per_shard = 1024
    auto_class = "AutoModelForCausalLM"

    def __init__(self, source: str, options: CausalCheckpointOptions, device: torch.device) -> None:
        super().__init__(source, options.revision, options, device)
        self._tokenizer = read_tokenizer(self._folder, TeacherSourceError)
        self._vocab_size, self._rows = vocab_size_of(self._tokenizer), self._head_rows()
        self._positions = token_limit(self._tokenizer, self._skeleton)
        self._max_length = choose_length(
            options.max_length, self._positions, DEFAULT_TEXT_LENGTH, 1, JobError
        )
        options.check(self._tokenizer)
        require_rows(self._folder, self._vocab_size, self._rows)

    def _prepare(self) -> None:
        transform = find_transform(self._model)
        if transform is None:
            raise TeacherSourceError(
                f"source {self._folder}: {type(self._model).__name__} does not compute its logits "
                "as head(last hidden state); use another model"
            )
        if not is_causal(self._model):
            raise TeacherSourceError(
                f"source {self._folder}: a {type(self._model).__name__} attends to later tokens; "
                "use a causal language model"
            )
        self._transform, self._head = transform, self._model.get_output_embeddings()
        self._chunk = tokens_at_once(self._head)
        self._fill = padding_id(self._tokenizer, self._rows)

    def _find_reader(self, padded: bool, noise: float) -> None:
        """How prompts are read: `_make_reader()` for each batch, which takes prompts of different
        lengths if `_pads_prompts`; `padded`: whether that is wanted. `noise`: what the model may
        differ by when it goes on from its cache."""
        self._cache_name = name = find_cache_name(self._model, noise)
        self._make_reader: Callable[[], Reader] = partial(SameLengths, self._model, name)
        self._pads_prompts = False
        if padded and name is not None:
            from .key_values import PaddedReader, reads_padded

            if reads_padded(self._model, name):
                self._make_reader = partial(PaddedReader, self._model, name)
                self._pads_prompts = True

    def _logits(self, hidden_CH: Tensor) -> Tensor:
        """Logits of the tokenizer's tokens [C, V]: what a model has beyond them stands for none."""
        rows_CH = in_row_groups(hidden_CH, self._device)
        logits_CV = self._transform.apply_(self._head(rows_CH))
        return logits_CV[: len(hidden_CH), : self._vocab_size].float()

    def _head_rows(self) -> int:
        head = self._skeleton.get_output_embeddings()
        if head is None:
            raise TeacherSourceError(
                f"source {self._folder}: {type(self._skeleton).__name__} has no head that makes "
                "logits; use another model"
            )
        return int(head.weight.shape[0])
