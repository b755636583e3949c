"""Any masked language model of transformers as a teacher: its predictions at the masked tokens of a
text.

Which tokens are masked follows from the text's key alone (`../../language/masking.py`), so a
student can read the same masked text. Logits are made at masked tokens only, a part of them at a
time. Shapes: B masked texts, T tokens, P predicted tokens of all, H hidden numbers, V tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ....cache_schemas.codings import TopKCoding
from ....cache_schemas.errors import JobError, TeacherSourceError
from ....cache_schemas.features import TOKEN_IDS, FeatureSpec
from ....cache_schemas.keys import KEY_BYTES, IntArray, keys_to_array
from ...language.masked_heads import body, find_head_transform
from ...language.masking import MaskedTexts, Masker, WholeTexts, encode_whole
from ...language.masks import attending
from ...language.probes import PROBE_TOKENS, without_memory
from ...language.tokens import (
    by_text,
    special_ends,
    tokenizer_digest,
    vocab_digest,
    vocab_size_of,
)
from ...pretrained import (
    DEFAULT_MAX_LENGTH,
    choose_length,
    embedding_rows,
    padding_id,
    read_tokenizer,
    token_limit,
)
from ...ragged import arange_each
from ...tokenizing.padding import pad
from ...tokenizing.unknown import Unknown, mostly_unknown
from .base import (
    Answers,
    Example,
    Outputs,
    Prepared,
    in_row_groups,
    to_device,
)
from .causal_checkpoint import require_rows, tokens_at_once
from .checkpoint_teacher import PADDING_TOLERANCE, CheckpointTeacher
from .masked_lm_options import POSITIONS, READ, MaskedLMOptions
from .padded_lengths import padded_lengths
from .token_answers import MEASURED_EVERY, Answer, Dense, TokenAnswers, TopK


@dataclass(frozen=True, slots=True)
class _Batch:
    """N texts under each of their masks: text i's are rows i * masks, i * masks + 1, ..."""

    rows: MaskedTexts
    masks: int

    def take(self, texts: IntArray) -> "_Batch":
        """Some of the texts, in the order of `texts` [B]."""
        rows = (texts[:, None] * self.masks + np.arange(self.masks)).ravel()
        return _Batch(self.rows.take(rows), self.masks)

    @property
    def predicted(self) -> IntArray:
        """Predicted tokens of each text, under all masks [N]."""
        predicted: IntArray = self.rows.predicted.reshape(-1, self.masks).sum(axis=1)
        return predicted


class MaskedLMTeacher(CheckpointTeacher):
    """Answers with `token_ids`; `masked_positions` and `masked_ids`; and, for each of these, with
    `top_k` and `dense` as requested."""

    Options = MaskedLMOptions
    kind = "masked_lm"
    selecting = frozenset({"top_k", "top_k_bits", "temperatures", "dense"})
    default_batch_tokens = 64 * DEFAULT_MAX_LENGTH
    default_rows_per_shard = 1024
    auto_class = "AutoModelForMaskedLM"

    def __init__(self, source: str, options: MaskedLMOptions, device: torch.device) -> None:
        super().__init__(source, options.revision, options, device)
        self._options = options
        self._check_kind()
        self._tokenizer = read_tokenizer(self._folder, TeacherSourceError)
        what = f"source {self._folder}"
        self._masker = Masker.of(self._tokenizer, options.masks, TeacherSourceError, what)
        self._vocab_size = vocab_size_of(self._tokenizer)
        self._positions = token_limit(self._tokenizer, self._skeleton)
        self._max_length = choose_length(
            options.max_length, self._positions, DEFAULT_MAX_LENGTH, 3, JobError
        )
        rows = embedding_rows(self._skeleton)
        require_rows(self._folder, self._vocab_size, rows)
        self._fill = padding_id(self._tokenizer, rows)
        spec = self._make_spec(
            options,
            max_length=self._max_length,
            tokenizer=tokenizer_digest(self._tokenizer),
            vocab_size=self._vocab_size,
            temperatures=options.known_temperatures,
        )
        self.spec = spec.model_copy(update={"vocab_digest": vocab_digest(self._tokenizer)})

    def encode(self, examples: Sequence[Example]) -> Answers:
        """Rows of each example for each of its tokens, and of its predicted tokens."""
        return self.start(self.prepare(examples))()

    def buckets(self, examples: Sequence[Example]) -> Sequence[int]:
        """The padded length of each example, in tokens of all of its masked texts."""
        buckets: list[int] = self.prepare(examples).buckets.tolist()
        return buckets

    def prepare(self, examples: Sequence[Example]) -> Prepared:
        """Their tokens, and their masks."""
        masks = self._options.masks_per_text
        texts = encode_whole(
            self._tokenizer, [example.segments for example in examples], self._max_length
        )
        keys = keys_to_array(example.key for example in examples)
        texts, numbers = texts.repeated(masks)
        rows = self._masker.mask(texts, np.repeat(keys, masks, axis=0), numbers)
        lengths = texts.lengths[::masks]
        buckets = padded_lengths(lengths, self._positions, self._options.padding)
        return Prepared(examples, buckets * masks, _Batch(rows, masks), lengths * masks)

    def start(self, batch: Prepared) -> Outputs:
        """See Teacher."""
        inputs: _Batch = batch.inputs
        of_texts = inputs.predicted
        answers = TokenAnswers(self._answers, arange_each(of_texts) % MEASURED_EVERY == 0)
        with self._answering():
            states_PH = self._states(inputs.rows)
            answers.gather(
                lambda start, stop: self._logits(states_PH[start:stop]),
                self._chunk,
                np.empty((len(states_PH), 0)),
                inputs.rows.ids[inputs.rows.chosen].astype(np.int64),
            )
        return partial(self._outputs, inputs, of_texts, answers)

    def _outputs(self, inputs: _Batch, of_texts: IntArray, answers: TokenAnswers) -> Answers:
        rows, answers = inputs.rows, answers.wait()
        whole = [rows.of(row) for row in range(0, len(rows), inputs.masks)]
        positions, read = rows.positions, rows.read[rows.chosen]
        owners_P = np.repeat(np.arange(len(of_texts)), of_texts)
        return Answers(
            {
                TOKEN_IDS: whole,
                POSITIONS: by_text(positions.astype(np.uint32), of_texts),
                READ: by_text(read.astype(np.uint32), of_texts),
                **answers.rows_of_texts(of_texts),
            },
            rows.truncated[:: inputs.masks],
            invalid=dict.fromkeys(answers.broken(of_texts), "logits"),
            fidelity=answers.fidelity_of_texts(owners_P, len(of_texts)),
        )

    def unknown(self, examples: Sequence[Example]) -> Unknown | None:
        """See Teacher."""
        texts = [text for example in examples for text in example.segments if text]
        return mostly_unknown(self._tokenizer, texts)

    def _states(self, rows: MaskedTexts, width: int | None = None) -> Tensor:
        """Hidden states of the predicted tokens [P, H] of texts, padded to a width."""
        if width is None:
            longest = rows.lengths.max(keepdims=True)
            width = int(padded_lengths(longest, self._positions, self._options.padding)[0])
        batch = pad({"input_ids": rows.read}, rows.lengths, {"input_ids": self._fill}, width=width)
        owners = np.repeat(np.arange(len(rows)), rows.predicted)
        at_P = to_device(torch.from_numpy(owners * width + rows.positions), self._device)
        below = body(self._model)
        with attending(bool((rows.lengths < width).any())):
            output = below(
                input_ids=in_row_groups(batch["input_ids"], self._device),
                attention_mask=in_row_groups(batch["attention_mask"], self._device),
                **without_memory(below),
            )
        states_PH: Tensor = output.last_hidden_state.flatten(0, 1).index_select(0, at_P)
        return states_PH

    def _logits(self, states_CH: Tensor) -> Tensor:
        """Logits of the tokenizer's tokens [C, V]: what a model has beyond them stands for none."""
        rows_CH = in_row_groups(states_CH, self._device)
        logits_CV: Tensor = self._head(self._transform(self._model, rows_CH))
        return logits_CV[: len(states_CH), : self._vocab_size].float()

    def _features(self) -> list[FeatureSpec]:
        return self._options.features(self._vocab_size, self._max_length, self._precision.stored)

    def _prepare(self) -> None:
        transform = find_head_transform(self._model)
        if transform is None:
            raise TeacherSourceError(
                f"source {self._folder}: the layers of {type(self._model).__name__} that make its "
                "logits are not known; use a BERT, RoBERTa, DistilBERT, ALBERT, ELECTRA or "
                "ModernBERT"
            )
        self._transform, self._head = transform, self._model.get_output_embeddings()
        self._chunk = tokens_at_once(self._head)
        self._answers: dict[str, Answer] = {}
        for name, coding in self._options.codings(self._vocab_size).items():
            assert isinstance(coding, TopKCoding)
            self._answers[name] = TopK(coding)
        if self._options.dense:
            self._answers["dense"] = Dense(self._precision)

    @torch.inference_mode()
    def _probe(self) -> None:
        # Not every model heeds a mask.
        rows = self._probe_text()
        own = int(rows.lengths[0])
        bare, padded = (
            self._logits(self._states(rows, width)).log_softmax(1)
            for width in (own, min(own + 8, self._positions))
        )
        tolerance = PADDING_TOLERANCE[self._precision.torch_dtype]
        if (bare - padded).abs().max() > tolerance * bare.abs().max().clamp(min=0.1):
            raise TeacherSourceError(
                f"source {self._folder}: {type(self._model).__name__} gives other outputs for "
                "padded texts, so they would depend on the batch; use another model"
            )

    def _probe_text(self) -> MaskedTexts:
        """Some tokens of the vocabulary, between those that every text is between."""
        ends = special_ends(self._tokenizer)
        inner = self._masker.ordinary[: max(self._max_length - len(ends.before + ends.after), 1)]
        ids = np.array([*ends.before, *inner[:PROBE_TOKENS], *ends.after], np.int32)
        text = WholeTexts(ids, np.array([0, len(ids)]), np.zeros(1, dtype=bool))
        return self._masker.mask(text, keys_to_array([bytes(KEY_BYTES)]), np.zeros(1, np.int64))

    def _check_kind(self) -> None:
        if self._config.is_encoder_decoder:
            raise TeacherSourceError(
                f"source {self._folder}: a {self._config.model_type} is an encoder-decoder; use "
                "an encoder, such as a BERT or RoBERTa"
            )
