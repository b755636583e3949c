"""Any causal language model as a teacher: its predictions at each token of a text, and its own
responses.

Of a text (`../../language`), the predicted tokens have features: the most probable tokens, tokens
sampled from the model's distribution, the whole distribution, hidden states, as requested. The
logits of all tokens are never in memory at once. Shapes: B examples, T tokens, P predicted tokens
of all examples, H hidden numbers, V tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....cache_schemas.codings import TopKCoding
from ....cache_schemas.errors import JobError
from ....cache_schemas.features import GENERATED_IDS, GENERATED_LENGTHS, FeatureSpec
from ....cache_schemas.keys import IntArray
from ...language.logits import NOISE, PADDED_NOISE, hidden_states
from ...language.masks import attending
from ...language.tokens import (
    TokenTexts,
    by_text,
    end_ids,
    read_before_predicted,
    tokenizer_digest,
    vocab_digest,
)
from ...ragged import arange_each
from ...tokenizing.padding import pad
from ...tokenizing.unknown import Unknown, mostly_unknown
from .base import (
    Answers,
    Example,
    Outputs,
    Prepared,
    example_seed,
    in_row_groups,
    to_device,
    to_host,
)
from .causal_checkpoint import CausalCheckpointTeacher
from .causal_options import CausalLMOptions
from .generated import FINISHED, Response, ResponseFeatures
from .generation import (
    Continuation,
    Sampling,
    continue_prompts,
    filled,
    stop_strings,
)
from .padded_lengths import padded_lengths
from .response_parts import Part, part_of_response
from .token_answers import (
    MEASURED_EVERY,
    Answer,
    Dense,
    OwnLogProbs,
    Samples,
    TokenAnswers,
    TopK,
)

_Coming = tuple[list[int], Callable[[], list[Continuation]]]
"""Texts of a batch, and the responses to their prompts, which are waited for."""


class CausalLMTeacher(CausalCheckpointTeacher):
    """Answers with `token_ids` and `prompt_tokens`, and with `top_k`, `samples`, `dense`, `hidden`,
    `generated_ids`, `generated_log_probs` and `generated_lengths` as requested; of prompts alone
    also with `generated_text`, `generated_text_lengths` and `finish`."""

    Options = CausalLMOptions
    kind = "causal_lm"
    selecting = frozenset(
        {"top_k", "top_k_bits", "temperatures", "samples", "samples_log_probs", "dense"}
        | {"own_log_probs"}
        | {"characters", "hidden_layers", "max_new_tokens", "responses_per_prompt"}
    )

    def __init__(self, source: str, options: CausalLMOptions, device: torch.device) -> None:
        super().__init__(source, options, device)
        self._options = options
        self._check()
        self._batches_prompts = options.batches_prompts(device)
        self._of_text = None
        if not options.response_column and options.max_new_tokens:
            self._of_text = ResponseFeatures(options.responses_per_prompt, options.max_new_tokens)
        spec = self._make_spec(
            options,
            **options.of_template(self._tokenizer),
            **({"generation": "batched"} if self._batches_prompts else {}),
            max_length=self._max_length,
            tokenizer=tokenizer_digest(self._tokenizer),
            vocab_size=self._vocab_size,
            temperatures=options.known_temperatures,
        )
        self.spec = spec.model_copy(update={"vocab_digest": vocab_digest(self._tokenizer)})

    def encode(self, examples: Sequence[Example]) -> Answers:
        """Rows of each example for each of its tokens, predicted tokens, and generated ones."""
        return self.start(self.prepare(examples))()

    def buckets(self, examples: Sequence[Example]) -> Sequence[int]:
        """The padded length of each example, in tokens."""
        buckets: list[int] = self.prepare(examples).buckets.tolist()
        return buckets

    def prepare(self, examples: Sequence[Example]) -> Prepared:
        """Their tokens."""
        texts = self._texts(examples)
        if self._batches_prompts and not self._options.reads_texts:
            tokens = texts.prompts + (self._options.max_new_tokens or 0)
            tokens = np.minimum(tokens, min(self._positions, int(tokens.max(initial=1))))
            tokens *= self._options.responses_per_prompt
            return Prepared(examples, filled(tokens), texts, tokens)
        return Prepared(examples, self._buckets(texts.lengths), texts, texts.lengths)

    def start(self, batch: Prepared) -> Outputs:
        """See Teacher. Responses are generated here, token by token, as the device answers."""
        texts: TokenTexts = batch.inputs
        seeds = [example_seed(self._options.seed, example.key) for example in batch.examples]
        answers = TokenAnswers(self._answers, arange_each(texts.predicted) % MEASURED_EVERY == 0)
        layers = []
        if self._options.reads_texts:
            with self._answering():
                output, positions_P = self._run(texts)
                hidden_PH = _chosen(output.last_hidden_state, positions_P)
                self._gather(answers, hidden_PH, texts, seeds)
            layers = [
                _chosen(output.hidden_states[n], positions_P) for n in self._options.hidden_layers
            ]
        hidden = to_host([self._precision.cast(torch.stack(layers, dim=1))] if layers else [])
        with self._answering():
            coming = self._generate(texts, seeds) if self._options.max_new_tokens else []
        return partial(self._outputs, texts, answers, hidden, coming)

    def _outputs(
        self,
        texts: TokenTexts,
        answers: TokenAnswers,
        hidden: Callable[[], list[npt.NDArray[Any]]],
        coming: Sequence[_Coming],
    ) -> Answers:
        features: dict[str, Any] = {
            "token_ids": [texts.of(text) for text in range(len(texts))],
            "prompt_tokens": np.minimum(texts.prompts, texts.lengths),
        }
        if texts.read is not None:
            features["characters_read"] = read_before_predicted(texts)
        answers.wait()
        features |= answers.rows_of_texts(texts.predicted)
        invalid = dict.fromkeys(answers.broken(texts.predicted), "logits")
        refused: dict[int, str] = {}
        for rows in hidden():
            features["hidden"] = by_text(rows, texts.predicted)
        if self._options.max_new_tokens:
            responses = _responses(coming, len(texts))
            features |= self._of_responses(responses, refused)
            broken = [any(each.broken for each in of_prompt) for of_prompt in responses]
            invalid |= dict.fromkeys(np.flatnonzero(broken).tolist(), GENERATED_IDS)
        owners_P = np.repeat(np.arange(len(texts)), texts.predicted)
        fidelity = answers.fidelity_of_texts(owners_P, len(texts))
        return Answers(
            features, texts.truncated, invalid=invalid, refused=refused, fidelity=fidelity
        )

    def _of_responses(
        self, responses: Sequence[Sequence[Continuation]], refused: dict[int, str]
    ) -> dict[str, Any]:
        """Features of the responses to each prompt, of which there are none without room; a text of
        too many bytes is `refused`."""
        parts = [[self._part(each) for each in of_prompt] for of_prompt in responses]
        both = [list(zip(*row, strict=True)) for row in zip(responses, parts, strict=True)]
        ids = [[each.ids[part.tokens] for each, part in row] for row in both]
        log_probs = [[each.log_probs[part.tokens] for each, part in row] for row in both]
        features: dict[str, Any] = {
            GENERATED_IDS: [np.concatenate([np.empty(0, "u4"), *each]) for each in ids],
            "generated_log_probs": [
                np.concatenate([np.empty(0, "f4"), *each]) for each in log_probs
            ],
        }
        if (count := self._options.responses_per_prompt) > 1:
            lengths = [[*map(len, each), *[0] * (count - len(each))] for each in ids]
            features[GENERATED_LENGTHS] = np.array(lengths, dtype=np.uint32)
        if (kept := self._of_text) is not None:
            rows = [[self._text_of(each, part) for each, part in row] for row in both]
            for row, texts in enumerate(rows):
                size, most = max((len(each.text) for each in texts), default=0), kept.most_bytes
                if size > most:
                    refused[row] = f"its response has {size} bytes; at most {most}"
            features |= kept.values(
                [[] if row in refused else rows[row] for row in range(len(rows))]
            )
        return features

    def _part(self, response: Continuation) -> Part:
        options = self._options
        if not (options.stop or self._of_text or options.thinking == "cut"):
            return Part(0, len(response.ids), "", ended=False)
        return part_of_response(self._decode, response.ids, options.stop, options.thinking == "cut")

    def _decode(self, ids: npt.NDArray[np.uint32]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _text_of(self, response: Continuation, part: Part) -> Response:
        ended = part.ended or response.ids[-1] in self._ends_of_texts
        return Response(part.text.encode(), FINISHED["stop" if ended else "length"])

    def unknown(self, examples: Sequence[Example]) -> Unknown | None:
        """See Teacher."""
        texts = [text for example in examples for text in self._options.own_texts(example.segments)]
        return mostly_unknown(self._tokenizer, texts)

    def _buckets(self, lengths: IntArray) -> IntArray:
        return padded_lengths(lengths, self._positions, self._options.padding)

    def _texts(self, examples: Sequence[Example]) -> TokenTexts:
        segments = [example.segments for example in examples]
        return self._options.tokens(self._tokenizer, segments, self._max_length)

    def _gather(
        self, answers: TokenAnswers, hidden_PH: Tensor, texts: TokenTexts, seeds: Sequence[int]
    ) -> None:
        """Begin the predictions of all tokens of texts."""
        predicted = texts.predicted
        starts = np.repeat(texts.offsets[:-1] + texts.prompts, predicted)
        answers.gather(
            lambda start, stop: self._logits(hidden_PH[start:stop]),
            self._chunk,
            _uniforms(predicted, seeds, self._options.samples or 0),
            texts.ids[starts + arange_each(predicted)].astype(np.int64),
        )

    def _run(self, texts: TokenTexts) -> tuple[Any, Tensor]:
        """The transformer's output, and where in it, counted over all [B, T], predictions are made:
        at the token before the predicted one."""
        width = int(self._buckets(texts.lengths.max(keepdims=True))[0])
        fills = {"input_ids": self._fill}
        batch = pad({"input_ids": texts.ids}, texts.lengths, fills, width=width)
        begins = np.arange(len(texts)) * width + texts.prompts - 1
        positions = np.repeat(begins, texts.predicted) + arange_each(texts.predicted)
        with attending(bool((texts.lengths < width).any())):
            output = hidden_states(
                self._model,
                in_row_groups(batch["input_ids"], self._device),
                in_row_groups(batch["attention_mask"], self._device),
                output_hidden_states=bool(self._options.hidden_layers),
            )
        return output, to_device(torch.from_numpy(positions), self._device)

    def _generate(self, texts: TokenTexts, seeds: Sequence[int]) -> list[_Coming]:
        """Begin to continue the prompts."""
        coming = []
        for rows, room in self._together(texts):
            reader = self._make_reader()
            prompts = [texts.of(row)[: texts.prompts[row]] for row in rows]
            states_AH = reader.begin(prompts, self._options.responses_per_prompt, room)
            uniforms = self._response_uniforms([seeds[row] for row in rows], len(states_AH))
            found = continue_prompts(
                reader,
                states_AH,
                self._logits,
                room,
                self._ends,
                self._stops,
                Sampling(self._options.generation_temperature, self._options.generation_top_p),
                to_device(torch.from_numpy(uniforms), self._device),
            )
            coming.append((rows, found.arrive(len(rows) * self._options.responses_per_prompt)))
        return coming

    def _together(self, texts: TokenTexts) -> Iterator[tuple[list[int], int]]:
        """Texts whose prompts are continued together, the longest first, and by how many tokens at
        most: all that have room for as many as are asked for, or those of one length."""
        most = self._options.max_new_tokens or 0
        whole = np.flatnonzero(texts.lengths >= texts.prompts)
        lengths = texts.prompts[whole]
        padded = (lengths <= self._positions - most) & self._pads_prompts
        if padded.any():
            yield whole[padded][np.argsort(-lengths[padded], kind="stable")].tolist(), most
        for length in np.unique(lengths[~padded]).tolist():
            if (room := min(most, self._positions - length)) > 0:
                yield whole[~padded & (lengths == length)].tolist(), room

    def _response_uniforms(self, seeds: Sequence[int], rows: int) -> npt.NDArray[np.float64]:
        """Numbers from 0 to 1 [N, A], those of a response from its example's seed and its place;
        the last one's once more for each further row."""
        most = self._options.max_new_tokens
        of_each = [
            np.random.default_rng([seed, 1 + number]).random(most)
            for seed in seeds
            for number in range(self._options.responses_per_prompt)
        ]
        of_each += [of_each[-1]] * (rows - len(of_each))
        return np.stack(of_each, axis=1)

    def _prepare(self) -> None:
        super()._prepare()
        self._answers = self._make_answers()
        if self._options.max_new_tokens:
            self._prepare_generation()

    def _prepare_generation(self) -> None:
        ends = sorted(end_ids(self._tokenizer, self._options, self._model.generation_config))
        self._ends = torch.tensor(ends, dtype=torch.int64, device=self._device)
        self._ends_of_texts = self._ends.tolist()
        self._stops = stop_strings(self._tokenizer, self._options.stop)
        # Earlier releases took less for rounding, and a cache of theirs goes on with its bits.
        as_begun = self._options.padding == self._options.earlier["padding"]
        noise = NOISE if as_begun and not self._batches_prompts else PADDED_NOISE
        self._find_reader(self._batches_prompts, noise)

    def _make_answers(self) -> dict[str, Answer]:
        answers: dict[str, Answer] = {}
        for name, coding in self._options.codings(self._vocab_size).items():
            answers[name] = TopK(coding) if isinstance(coding, TopKCoding) else Samples(coding)
        if self._options.dense:
            answers["dense"] = Dense(self._precision)
        if self._options.own_log_probs:
            answers["own_log_probs"] = OwnLogProbs()
        return answers

    def _features(self) -> list[FeatureSpec]:
        found = self._options.features(
            self._vocab_size, self._hidden_width(), self._max_length, self._precision.stored
        )
        return found if self._of_text is None else [*found, *self._of_text.specs()]

    def _hidden_width(self) -> int:
        """H of the layers that are kept: what the head reads may be narrower than the others."""
        layers = self._options.hidden_layers
        read_by_head = int(self._skeleton.get_output_embeddings().weight.shape[1])
        if not layers:
            return read_by_head
        config = self._config.get_text_config()
        width, last = int(config.hidden_size), config.num_hidden_layers
        if last not in layers:
            return width
        if len(layers) > 1 and width != read_by_head:
            raise JobError(
                f"hidden_layers: layer {last}, which the head reads, has {read_by_head} numbers "
                f"per token and the others {width}; keep it alone, or the others"
            )
        return read_by_head

    def _check(self) -> None:
        if self._device.type == "mps" and (self._options.samples or self._options.max_new_tokens):
            raise JobError(
                "samples, max_new_tokens: tokens are sampled in float64, which an mps device does "
                "not have; leave them out, or use device=cpu"
            )
        if self._options.hidden_layers:
            self._check_layers()

    def _check_layers(self) -> None:
        deepest = getattr(self._config.get_text_config(), "num_hidden_layers", 0)
        beyond = [layer for layer in self._options.hidden_layers if layer > deepest]
        if beyond:
            raise JobError(f"hidden_layers: {beyond[0]} is beyond the model's; from 0 to {deepest}")


def _chosen(states_BTH: Tensor, positions_P: Tensor) -> Tensor:
    return states_BTH.flatten(0, 1).index_select(0, positions_P)


def _uniforms(predicted: IntArray, seeds: Sequence[int], samples: int) -> npt.NDArray[np.float64]:
    """Numbers from 0 to 1 [P, K], those of a text from its own seed."""
    parts = [
        np.random.default_rng(seed).random((count, samples))
        for seed, count in zip(seeds, predicted.tolist(), strict=True)
    ]
    return np.concatenate([np.empty((0, samples)), *parts])


def _responses(coming: Sequence[_Coming], count: int) -> list[list[Continuation]]:
    """The responses to each of so many prompts."""
    found: list[list[Continuation]] = [[] for _ in range(count)]
    for rows, arriving in coming:
        responses = arriving()
        each = len(responses) // len(rows)
        for number, row in enumerate(rows):
            found[row] = responses[number * each : (number + 1) * each]
    return found
