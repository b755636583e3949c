"""A causal language model that scores listed answers: a zero-shot classifier, aspects of a text by
yes or no, a critic.

A prompt is read once. Its last state gives the first token of every answer; of longer answers each
goes on from the prompt's keys and values, token by token. A model of images and text reads each
prompt with its picture, one at a time on any device. How log-probabilities become features is said
in `scored_choices.py`. Shapes: B rows, P prompts, Q questions, K answers, L tokens of the longest
answer, M tokens of each row, A rows of the reader, H hidden numbers.
"""

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....cache_schemas.errors import JobError, TeacherOutputError, TeacherSourceError
from ....cache_schemas.extras import require_extra
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.keys import IntArray
from ...language.logits import PADDED_NOISE, same_states
from ...language.probes import probing
from ...language.tokens import Ids, special_ends
from ...pictures import PictureError, read_picture
from ...tokenizing.long_texts import shortened
from ...tokenizing.unknown import Unknown, mostly_unknown
from .base import Answers, Example, Outputs, Prepared, to_device, to_host
from .causal_checkpoint import CausalCheckpointTeacher
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
from .scored_choices import Floats, ScoringRule

PROBE_COLUMNS = 99
"""More than a template names."""


@dataclass(frozen=True, slots=True)
class _Prompts:
    """Prompts of N rows, Q for each, and their tokens; truncated: bool [N]."""

    asked: list[list[str]]
    ids: list[list[Ids]]
    truncated: npt.NDArray[np.bool_]

    def take(self, rows: IntArray) -> "_Prompts":
        """Some of the rows, in the order of `rows` [B]."""
        asked, ids = ([of[row] for row in rows.tolist()] for of in (self.asked, self.ids))
        return _Prompts(asked, ids, self.truncated[rows])


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
        self._plain = options.text_format == "plain"
        self._recipe = options.recipe()
        self._ends = special_ends(self._tokenizer)
        self._splits = self._plain and not self._pictured
        if self._pictured:
            self._read_pictures()
        self._choices = [self._answer_ids(answer) for answer in options.answers]
        self._refuse_same()
        self._rule = ScoringRule(options, [len(ids) for ids in self._choices])
        self._longest = max(self._rule.tokens)
        self._room = self._max_length - self._longest
        if self._room < 1:
            raise JobError(
                f"max_length: {self._max_length} leaves no room for a prompt beside an answer of "
                f"{self._longest} tokens"
            )
        self.notes = tuple(self._doubts())
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
        prompts = self._prompts_of([self._options.texts(each.segments) for each in examples])
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
        prompts: _Prompts = batch.inputs
        refused: dict[int, str] = {}
        with self._answering():
            if self._pictured:
                coming = self._begin_pictured(batch.examples, prompts.asked, refused)
            else:
                coming = self._begin([ids for of_row in prompts.ids for ids in of_row])

        def outputs() -> Answers:
            log_probs_BQK = coming().reshape(len(prompts.ids), -1, len(self._choices))
            found = self._rule.features(log_probs_BQK, self._prior_QK)
            stored = {spec.name: spec.dtype for spec in self.spec.features}
            features = {name: rows.astype(stored[name]) for name, rows in found.items()}
            return Answers(features, prompts.truncated, refused=refused)

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

    # --- prompts and answers as tokens

    def _answer_ids(self, answer: str) -> Ids:
        """Tokens of an answer behind a prompt; of a chat without what ends it, unless that is
        scored, too."""
        if self._pictured:  # as it is, behind the generation prompt of a chat
            ids = [
                *self._tokens([answer])[0],
                *(self._ends.after if self._options.end_token else ()),
            ]
            return np.array(ids, dtype=np.int32)
        written = self._recipe.write(self._tokenizer, ("?", answer))
        text, after = written.response, self._ends.after if self._plain else ()
        if not self._options.end_token:
            text, after = text[: written.start + len(written.content)], ()
        ids = [*self._tokens([text])[0], *after]
        if not ids:
            raise JobError(f"answers: {answer!r} has no tokens; name another word")
        return np.array(ids, dtype=np.int32)

    def _refuse_same(self) -> None:
        known: dict[bytes, str] = {}
        for answer, ids in zip(self._options.answers, self._choices, strict=True):
            other = known.setdefault(ids.tobytes(), answer)
            if other != answer:
                raise JobError(
                    f"answers: {other!r} and {answer!r} have the same tokens, and so the same "
                    "score; name other words"
                )

    def _prompt_ids(self, prompts: Sequence[str]) -> list[Ids]:
        """Tokens of prompts, at least one more than there is room for of those that are longer."""
        written = self._written(prompts)
        before = self._ends.before if self._splits else ()
        how = {"split_special_tokens": self._splits}
        cut = shortened(self._tokenizer, written, self._room, **how)
        return [np.array([*before, *ids], dtype=np.int32) for ids in self._tokens(cut)]

    def _written(self, prompts: Sequence[str]) -> list[str]:
        if self._pictured:
            return [self._with_place(prompt) for prompt in prompts]
        if self._plain:
            return list(prompts)
        write, answer = self._recipe.write, self._options.answers[0]
        return [write(self._tokenizer, (prompt, answer)).prompt for prompt in prompts]

    def _with_place(self, prompt: str) -> str:
        """A prompt as the processor takes it, which puts the picture's tokens in their place."""
        before = "".join(self._tokenizer.convert_ids_to_tokens([*self._ends.before]))
        if self._plain:
            return before + prompt
        said = self._options.system_prompt
        turns = [{"role": "system", "content": [{"type": "text", "text": said}]}] if said else []
        asked = [{"type": "image"}, {"type": "text", "text": prompt}]
        template = self._options.template(self._tokenizer)
        written = template.render([*turns, {"role": "user", "content": asked}], ask=True)
        return written if written.startswith(before) else before + written

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        how = {"split_special_tokens": self._splits}  # a chat template has written some
        found: list[list[int]] = self._tokenizer(
            list(texts), add_special_tokens=False, verbose=False, **how
        )["input_ids"]
        return found

    def _prompts_of(self, rows: Sequence[Sequence[str]]) -> _Prompts:
        asked = [self._options.prompts(segments) for segments in rows]
        ids = iter(self._prompt_ids([prompt for of_row in asked for prompt in of_row]))
        found = [[next(ids) for _ in of_row] for of_row in asked]
        truncated = np.array([max(map(len, each)) > self._room for each in found], dtype=bool)
        for row in np.flatnonzero(truncated).tolist():
            asked[row] = self._cut(rows[row])
            found[row] = self._prompt_ids(asked[row])
        for row, of_row in enumerate(found):
            if not all(map(len, of_row)):
                raise TeacherOutputError(f"text {rows[row]!r:.80}: its prompt has no tokens")
        return _Prompts(asked, found, truncated)

    def _cut(self, segments: Sequence[str]) -> list[str]:
        """The prompts of a row that is too long: of each segment as many characters as fit."""
        segments = shortened(self._tokenizer, segments, self._room)

        def prompts(most: int) -> list[str]:
            return self._options.prompts([each[:most] for each in segments])

        def tokens(most: int) -> int:
            return max(map(len, self._prompt_ids(prompts(most))))

        characters = range(max(map(len, segments), default=0) + 1)
        most = bisect.bisect_right(characters, self._room, key=tokens) - 1
        if most < 0:
            raise JobError(
                f"max_length: the prompt has {tokens(0)} tokens without any text, and room for "
                f"{self._room}; use more, or a shorter prompt_template"
            )
        return prompts(most)

    def _doubts(self) -> Iterator[str]:
        """Warnings of answers that may not be scored as they are meant."""
        for answer, ids in zip(self._options.answers, self._choices, strict=True):
            longer = [
                other
                for other, theirs in zip(self._options.answers, self._choices, strict=True)
                if len(theirs) > len(ids) and np.array_equal(theirs[: len(ids)], ids)
            ]
            if longer:
                yield (
                    f"answers: {longer[0]!r} begins with {answer!r}, which is never less likely; "
                    "set end_token=true"
                )
        if not self._plain:
            return
        (prompt,) = self._options.prompts(("?",) * PROBE_COLUMNS)[:1]
        for answer in self._options.answers:
            apart = [*self._tokens([prompt])[0], *self._tokens([answer])[0]]
            if self._tokens([prompt + answer])[0] != apart:
                yield (
                    f"answers: {answer!r} behind the prompt has other tokens than alone; it may "
                    "lack a space in front, or the prompt have one too many at its end"
                )

    # --- the model

    def _prepare(self) -> None:
        super()._prepare()
        self._find_reader(self._device.type != "cpu" and not self._pictured, PADDED_NOISE)
        if self._pictured and self._cache_name is None:
            raise TeacherSourceError(
                f"source {self._folder}: does not go on from keys and values; use another model"
            )
        ids_KL = np.zeros((len(self._choices), self._longest), dtype=np.int64)
        for answer, ids in enumerate(self._choices):
            ids_KL[answer, : len(ids)] = ids
        lengths_K = np.array(self._rule.tokens)
        self._ids_LK = to_device(torch.from_numpy(ids_KL.T.copy()), self._device)
        mask_LK = np.arange(self._longest)[:, None] < lengths_K
        self._counts_LK = to_device(torch.from_numpy(mask_LK), self._device)
        self._prior_QK = self._find_prior()

    @torch.inference_mode()
    def _find_prior(self) -> Floats | None:
        written = self._options.prompts_without_text()
        if not written:
            return None
        prompts = self._prompt_ids(written)
        if not min(map(len, prompts)) or max(map(len, prompts)) > self._room:
            raise JobError("content_free, premise: a prompt has no tokens, or too many")
        questions = max(len(self._options.questions), 1)
        log_probs_PK = self._begin(prompts)()
        return self._rule.prior(log_probs_PK.reshape(questions, -1, len(self._choices)))

    @property
    def _repeats(self) -> int:
        """Rows of the reader for each prompt."""
        return 1 if self._longest == 1 else len(self._choices)

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
            log_probs_PK = np.empty((len(prompts), len(self._choices)))
            log_probs_PK[order] = coming()[0]
            return log_probs_PK

        return arrived

    def _read_pictures(self) -> None:
        self._processor = read_processor(self._folder)
        self._places = places_of(self._config, self._tokenizer, self._processor)
        if self._plain:
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
                shape = (len(prompts), len(self._choices))
                parts.append(torch.zeros(shape, device=self._device))
                continue
            parts += [self._of_picture(prompt, picture) for prompt in self._written(prompts)]
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
        ids = torch.from_numpy(max(self._choices, key=len)).long().to(self._device)[:, None]
        prompt = self._written(self._options.prompts([""] * PROBE_COLUMNS))[0]
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
