"""A causal language model that scores listed answers: a zero-shot classifier, aspects of a text by
yes or no, a critic.

A prompt is read once. Its last state gives the first token of every answer; of longer answers each
goes on from the prompt's keys and values, token by token. A model of images and text reads each
prompt with its picture, one at a time on any device. How log-probabilities become features is said
in `scored_choices.py`. Shapes: B rows, P prompts, Q questions, K answers, L tokens of the longest
answer, M tokens of each row, A rows of the reader, H hidden numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....cache_schemas.errors import TeacherSourceError
from ....cache_schemas.extras import require_extra
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.keys import IntArray
from ...language.logits import PADDED_NOISE, same_states
from ...language.probes import probing
from ...language.tokens import Ids
from ...pictures import PictureError, read_picture
from ...tokenizing.unknown import Unknown, mostly_unknown
from .base import Answers, Example, Outputs, Prepared, to_device, to_host
from .causal_checkpoint import CausalCheckpointTeacher
from .choice_texts import PROBE_COLUMNS, ChoicePrompts, ChoiceTexts
from .choices_options import ChoicesOptions
from .generation import Reader, SameLengths, filled
from .padded_lengths import padded_lengths
from .picture_prompts import (
    blank_picture,
    followed,
    held_place,
    places_of,
    read_pairs,
    read_processor,
    require_place,
)
from .scored_choices import Floats


class ChoicesTeacher(CausalCheckpointTeacher):
    """Features `logits` [K], named by the answers, or `aspects` [Q], named by the questions; and
    `score` [Q] if requested."""

    Options = ChoicesOptions
    kind = "choices"
    selecting = frozenset({"score"})

    def __init__(self, source: str, options: ChoicesOptions, device: torch.device) -> None:
        self._options, self._pictured = options, options.picture == "given"
        if self._pictured:
            require_extra("teacher choices with pictures", "teachers", "PIL", "torchvision")
        super().__init__(source, options, device)
        if self._pictured:
            self._read_pictures()
        self._texts = ChoiceTexts(self._tokenizer, options, self._max_length)
        self.notes = self._texts.notes
        self.spec = self._make_spec(
            options, **options.of_template(self._tokenizer), max_length=self._max_length
        )

    def encode(self, examples: Sequence[Example]) -> Answers:
        """Scores of each example."""
        return self.start(self.prepare(examples))()

    def buckets(self, examples: Sequence[Example]) -> Sequence[int]:
        """The padded length of each example's prompts, in tokens."""
        buckets: list[int] = self.prepare(examples).buckets.tolist()
        return buckets

    def prepare(self, examples: Sequence[Example]) -> Prepared:
        """The tokens of their prompts."""
        prompts = self._texts.read([self._options.texts(each.segments) for each in examples])
        if self._pictured:
            return Prepared(examples, np.zeros(len(examples), dtype=np.int64), prompts)
        lengths = np.array([sum(map(len, of_row)) for of_row in prompts.ids], dtype=np.int64)
        tokens = lengths * self._repeats  # keys and values of as many are in memory
        if self._pads_prompts:
            return Prepared(examples, filled(tokens), prompts, tokens)
        buckets = padded_lengths(tokens, int(tokens.max(initial=1)), "growing_steps")
        return Prepared(examples, buckets, prompts, tokens)

    def start(self, batch: Prepared) -> Outputs:
        """See Teacher."""
        prompts: ChoicePrompts = batch.inputs
        refused: dict[int, str] = {}
        with self._answering():
            if self._pictured:
                coming = self._begin_pictured(batch.examples, prompts.texts, refused)
            else:
                coming = self._begin([ids for of_row in prompts.ids for ids in of_row])

        def outputs() -> Answers:
            log_probs_BQK = coming().reshape(len(prompts.ids), -1, self._texts.count)
            features = self._texts.rule.features(log_probs_BQK, self._prior_QK)
            stored = {spec.name: spec.dtype for spec in self.spec.features}
            rows = {name: values.astype(stored[name]) for name, values in features.items()}
            return Answers(rows, prompts.truncated, refused=refused)

        return outputs

    def check(self, examples: Sequence[Example]) -> None:
        """Raises JobError for a template that names more segments than there are."""
        for example in examples:
            self._options.prompts(self._options.texts(example.segments))

    def unknown(self, examples: Sequence[Example]) -> Unknown | None:
        """See Teacher."""
        return mostly_unknown(
            self._tokenizer,
            [text for e in examples for text in self._options.texts(e.segments) if text],
        )

    def _build_skeleton(self) -> Any:
        from transformers import AutoModelForImageTextToText as Seeing

        # A model of images and text may read texts alone, too.
        kind, known = type(self._config), self._auto()._model_mapping
        if self._pictured or (kind not in known and kind in Seeing._model_mapping):
            self.auto_class = Seeing.__name__
        return super()._build_skeleton()

    # --- the model

    def _prepare(self) -> None:
        super()._prepare()
        self._find_reader(self._device.type != "cpu" and not self._pictured, PADDED_NOISE)
        if self._pictured and self._cache_name is None:
            raise TeacherSourceError(
                f"source {self._folder}: does not go on from keys and values; use another model"
            )
        self._longest = self._texts.longest
        ids_KL = np.zeros((self._texts.count, self._longest), dtype=np.int64)
        for answer, ids in enumerate(self._texts.answers):
            ids_KL[answer, : len(ids)] = ids
        lengths_K = np.array(self._texts.rule.tokens)
        self._ids_LK = to_device(torch.from_numpy(ids_KL.T.copy()), self._device)
        mask_LK = np.arange(self._longest)[:, None] < lengths_K
        self._counts_LK = to_device(torch.from_numpy(mask_LK), self._device)
        self._prior_QK = self._find_prior()

    @torch.inference_mode()
    def _find_prior(self) -> Floats | None:
        prompts = self._texts.without_text()
        if not prompts:
            return None
        return self._texts.prior(self._begin(prompts)())

    @property
    def _repeats(self) -> int:
        """Rows of the reader for each prompt."""
        return 1 if self._texts.longest == 1 else self._texts.count

    def _begin(self, prompts: Sequence[Ids]) -> Callable[[], Floats]:
        """Begin to compute the log-probabilities of all answers behind each prompt [P, K]."""
        lengths = np.array([len(prompt) for prompt in prompts])
        order, parts = [], []
        for rows in self._together(lengths):
            reader = self._make_reader()
            states_AH = reader.begin(
                [prompts[row] for row in rows], self._repeats, self._longest - 1
            )
            parts.append(self._of_answers(reader, states_AH)[: len(rows)])
            order += rows
        coming = to_host([torch.cat(parts)])

        def arrived() -> Floats:
            log_probs_PK = np.empty((len(prompts), self._texts.count))
            log_probs_PK[order] = coming()[0]
            return log_probs_PK

        return arrived

    def _read_pictures(self) -> None:
        self._processor = read_processor(self._folder)
        self._places = places_of(self._config, self._tokenizer, self._processor)
        if self._options.text_format == "plain":
            require_place("prompt_template", self._options.prompt_template, self._places)

    def _begin_pictured(
        self,
        examples: Sequence[Example],
        asked: Sequence[Sequence[str]],
        refused: dict[int, str],
    ) -> Callable[[], Floats]:
        """`_begin` with the prompts of examples with pictures [B * Q, K]. Of those that cannot be
        read it is 0, and `refused` tells why."""
        parts = []
        for row, (example, prompts) in enumerate(zip(examples, asked, strict=True)):
            told = held_place(self._options.texts(example.segments), self._places)
            try:
                picture = read_picture(example.segments[0])
            except PictureError as error:
                told = told or f"picture: {error}"
            if told:
                refused[row] = told
                shape = (len(prompts), self._texts.count)
                parts.append(torch.zeros(shape, device=self._device))
                continue
            parts += [self._of_picture(prompt, picture) for prompt in self._texts.written(prompts)]
        coming = to_host([torch.cat(parts)])
        return lambda: coming()[0].astype(np.float64)

    def _of_picture(self, prompt: str, picture: Any) -> Tensor:
        """[1, K]"""
        reader = SameLengths(self._model, self._cache_name)
        states_KH = reader.begin_with(self._inputs(prompt, picture), self._repeats)
        return self._of_answers(reader, states_KH)

    def _inputs(self, prompt: str, picture: Any) -> dict[str, Tensor]:
        return read_pairs(
            self._processor,
            [(prompt, picture)],
            add_special_tokens=False,
            positions=self._positions - self._longest,
            device=self._device,
            dtype=self._precision.torch_dtype,
        )

    def _probe(self) -> None:
        if self._pictured:
            with probing(self._model):
                self._probe_with_picture()

    def _probe_with_picture(self) -> None:
        """Raises TeacherSourceError if what follows a picture is not what the whole model says."""
        ids = torch.from_numpy(max(self._texts.answers, key=len)).long().to(self._device)[:, None]
        prompt = self._texts.written(self._options.prompts([""] * PROBE_COLUMNS))[0]
        inputs = self._inputs(prompt, blank_picture())
        reader = SameLengths(self._model, self._cache_name)
        states_1H = reader.begin_with(inputs, 1)
        for token_1 in ids:
            states_1H = reader.go_on(token_1)
        found_1V = self._logits(states_1H)
        whole_1V = self._model(**followed(inputs, ids), use_cache=False).logits[:, -1].float()
        dtype = self._precision.torch_dtype  # whose rounding is allowed
        whole_1V = whole_1V[:, : self._vocab_size].to(dtype)
        if not same_states(found_1V.to(dtype), whole_1V, PADDED_NOISE):
            raise TeacherSourceError(
                f"source {self._folder}: a {type(self._model).__name__} goes on from a picture "
                "otherwise than it reads a whole text; use another model"
            )

    def _together(self, lengths: IntArray) -> Iterator[list[int]]:
        """Prompts that are read together: all, the longest first, or those of one length."""
        if self._pads_prompts:
            yield np.argsort(-lengths, kind="stable").tolist()
            return
        for length in np.unique(lengths).tolist():
            yield np.flatnonzero(lengths == length).tolist()

    def _of_answers(self, reader: Reader, states_AH: Tensor) -> Tensor:
        """[C, K] of C prompts, whose rows are repeated for each answer if any has several
        tokens."""
        count = len(states_AH) // self._repeats
        sums_CK = self._log_probs(states_AH[:: self._repeats], self._ids_LK[0].expand(count, -1))
        for at in range(1, self._longest):
            states_AH = reader.go_on(self._ids_LK[at - 1].repeat(count))
            found_A1 = self._log_probs(states_AH, self._ids_LK[at].repeat(count)[:, None])
            found_CK = found_A1.view(count, -1)
            sums_CK = sums_CK + torch.where(self._counts_LK[at], found_CK, 0.0)
        return sums_CK

    def _log_probs(self, states_AH: Tensor, ids_AM: Tensor) -> Tensor:
        """Log-probabilities [A, M] of some tokens each, after hidden states."""
        parts = []
        for start in range(0, len(states_AH), self._chunk):
            rows = slice(start, start + self._chunk)
            logits_CV = self._logits(states_AH[rows])
            chosen_CM = logits_CV.gather(1, ids_AM[rows])
            parts.append(chosen_CM - logits_CV.logsumexp(1, keepdim=True))
        return torch.cat(parts)

    def _features(self) -> list[FeatureSpec]:
        return self._options.features(self._precision.stored)
