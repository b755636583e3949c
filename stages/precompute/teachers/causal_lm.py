"""Any causal language model as a teacher: its predictions at each token of a text, and its own
responses.

Of a text (`../../language`), the predicted tokens have features: the most probable tokens, tokens
sampled from the model's distribution, the whole distribution, hidden states, as requested. The
logits of all tokens are never in memory at once. Shapes: B examples, T tokens, P predicted tokens
of all examples, H hidden numbers, V tokens.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....cache_schemas.codings import TopKCoding
from ....cache_schemas.errors import JobError, TeacherSourceError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.keys import IntArray
from ...language.logits import find_transform, hidden_states, is_causal
from ...language.masks import attending
from ...language.tokens import (
    TokenTexts,
    by_text,
    encode_texts,
    end_ids,
    read_before_predicted,
    tokenizer_digest,
    vocab_digest,
    vocab_size_of,
)
from ...pretrained import choose_length, padding_id, read_tokenizer, token_limit
from ...ragged import arange_each
from ...tokenizing.padding import pad
from ...tokenizing.unknown import Unknown, mostly_unknown
from .base import (
    ROW_GROUP,
    Answers,
    Example,
    Outputs,
    Prepared,
    example_seed,
    in_row_groups,
    to_device,
    to_host,
)
from .causal_options import CausalLMOptions
from .checkpoint_teacher import CheckpointTeacher
from .generation import Continuation, Sampling, continue_prompts, find_cache_name, next_states
from .padded_lengths import padded_lengths
from .token_answers import MEASURED_EVERY, Answer, Dense, Samples, TokenAnswers, TopK

DEFAULT_TEXT_LENGTH = 1024
CHUNK_BYTES = 64 * 2**20
"""Bytes of float32 logits at once."""


class CausalLMTeacher(CheckpointTeacher):
    """Answers with `token_ids` and `prompt_tokens`, and with `top_k`, `samples`, `dense`, `hidden`,
    `generated_ids` and `generated_log_probs` as requested."""

    Options = CausalLMOptions
    kind = "causal_lm"
    selecting = frozenset(
        {"top_k", "top_k_bits", "temperatures", "samples", "samples_log_probs", "dense"}
        | {"characters", "hidden_layers", "max_new_tokens"}
    )
    default_batch_size = 8
    default_batch_tokens = 8 * DEFAULT_TEXT_LENGTH
    default_rows_per_shard = 1024
    auto_class = "AutoModelForCausalLM"

    def __init__(self, source: str, options: CausalLMOptions, device: torch.device) -> None:
        super().__init__(source, options.revision, options, device)
        self._options = options
        self._tokenizer = read_tokenizer(self._folder, TeacherSourceError)
        self._vocab_size, self._rows = vocab_size_of(self._tokenizer), self._head_rows()
        self._positions = token_limit(self._tokenizer, self._skeleton)
        self._max_length = choose_length(
            options.max_length, self._positions, DEFAULT_TEXT_LENGTH, 1, JobError
        )
        self._check()
        spec = self._make_spec(
            options,
            **self._of_template(),
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
        return Prepared(examples, self._buckets(texts.lengths), texts, texts.lengths)

    def start(self, batch: Prepared) -> Outputs:
        """See Teacher. Responses are generated here, token by token, as the device answers."""
        texts: TokenTexts = batch.inputs
        seeds = [example_seed(self._options.seed, example.key) for example in batch.examples]
        with self._answering():
            output, positions_P = self._run(texts)
            answers = self._predict(output, positions_P, texts.predicted, seeds)
        layers = [
            _chosen(output.hidden_states[n], positions_P) for n in self._options.hidden_layers
        ]
        hidden = to_host([self._precision.cast(torch.stack(layers, dim=1))] if layers else [])
        said = []
        if self._options.max_new_tokens:
            with self._answering():
                said = self._generate(texts, seeds)
        return partial(self._outputs, texts, answers, hidden, said)

    def _outputs(
        self,
        texts: TokenTexts,
        answers: TokenAnswers,
        hidden: Callable[[], list[npt.NDArray[Any]]],
        said: Sequence[Continuation],
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
        for rows in hidden():
            features["hidden"] = by_text(rows, texts.predicted)
        if self._options.max_new_tokens:
            features["generated_ids"] = [np.array(one.ids, dtype=np.uint32) for one in said]
            features["generated_log_probs"] = [np.array(one.log_probs, "f4") for one in said]
            invalid |= {row: "generated_ids" for row, one in enumerate(said) if one.broken}
        owners_P = np.repeat(np.arange(len(texts)), texts.predicted)
        fidelity = answers.fidelity_of_texts(owners_P, len(texts))
        return Answers(features, texts.truncated, invalid=invalid, fidelity=fidelity)

    def unknown(self, examples: Sequence[Example]) -> Unknown | None:
        """See Teacher."""
        texts = [text for example in examples for text in self._options.own_texts(example.segments)]
        return mostly_unknown(self._tokenizer, texts)

    def _buckets(self, lengths: IntArray) -> IntArray:
        return padded_lengths(lengths, self._positions, self._options.padding)

    def _texts(self, examples: Sequence[Example]) -> TokenTexts:
        segments = [example.segments for example in examples]
        options = self._options
        return encode_texts(
            self._tokenizer, options, segments, self._max_length, options.characters
        )

    def _predict(
        self, output: Any, positions_P: Tensor, predicted: IntArray, seeds: Sequence[int]
    ) -> TokenAnswers:
        """The predictions of all tokens, of which each text has so many."""
        hidden_PH = _chosen(output.last_hidden_state, positions_P)
        answers = TokenAnswers(self._answers, arange_each(predicted) % MEASURED_EVERY == 0)
        answers.gather(
            lambda start, stop: self._logits(hidden_PH[start:stop]),
            self._chunk,
            _uniforms(predicted, seeds, self._options.samples or 0),
        )
        return answers

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

    def _logits(self, hidden_CH: Tensor) -> Tensor:
        """Logits of the tokenizer's tokens [C, V]: what a model has beyond them stands for none."""
        rows_CH = in_row_groups(hidden_CH, self._device)
        logits_CV = self._transform.apply_(self._head(rows_CH))
        return logits_CV[: len(hidden_CH), : self._vocab_size].float()

    def _next_logits(self, ids_BT: Tensor, past: Any) -> tuple[Tensor, Any]:
        """Logits [B, V] of what comes after rows of tokens, and what is kept of them: never the
        logits of all tokens of a prompt."""
        states_BH, past = next_states(self._model, self._cache_name, ids_BT, past)
        return self._logits(states_BH), past

    def _generate(self, texts: TokenTexts, seeds: Sequence[int]) -> list[Continuation]:
        most = self._options.max_new_tokens or 0
        said = [Continuation() for _ in seeds]
        whole = np.flatnonzero(texts.lengths >= texts.prompts)
        for length in np.unique(texts.prompts[whole]).tolist():
            group = whole[texts.prompts[whole] == length].tolist()
            prompts_BT = torch.from_numpy(np.stack([texts.of(g)[:length] for g in group])).long()
            uniforms = [np.random.default_rng([seeds[g], 1]).random(most) for g in group]
            found = continue_prompts(
                self._next_logits,
                in_row_groups(prompts_BT, self._device),
                min(most, self._positions - length),
                self._ends,
                Sampling(self._options.generation_temperature, self._options.generation_top_p),
                _repeated(np.stack(uniforms), self._device),
            )
            for text, one in zip(group, found, strict=False):
                said[text] = one
        return said

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
        logit_bytes = 4 * self._head.weight.shape[0]
        self._chunk = max(CHUNK_BYTES // logit_bytes // ROW_GROUP, 1) * ROW_GROUP
        self._answers = self._make_answers()
        self._ends = end_ids(self._tokenizer, self._options, self._model)
        self._cache_name = find_cache_name(self._model) if self._options.max_new_tokens else None
        self._fill = padding_id(self._tokenizer, self._rows)

    def _make_answers(self) -> dict[str, Answer]:
        answers: dict[str, Answer] = {}
        for name, coding in self._options.codings(self._vocab_size).items():
            answers[name] = TopK(coding) if isinstance(coding, TopKCoding) else Samples(coding)
        if self._options.dense:
            answers["dense"] = Dense(self._precision)
        return answers

    def _features(self) -> list[FeatureSpec]:
        return self._options.features(
            self._vocab_size, self._hidden_width(), self._max_length, self._precision.stored
        )

    def _head_rows(self) -> int:
        head = self._skeleton.get_output_embeddings()
        if head is None:
            raise TeacherSourceError(
                f"source {self._folder}: {type(self._skeleton).__name__} has no head that makes "
                "logits; use another model"
            )
        return int(head.weight.shape[0])

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

    def _of_template(self) -> dict[str, str]:
        """The date of texts that depend on it."""
        options = self._options
        clock = options.text_format == "chat" and options.template(self._tokenizer).reads_clock
        if options.template_date is not None and not clock:
            raise JobError("template_date: the chat template uses no date; leave it out")
        return {"template_date": options.date} if clock else {}

    def _check(self) -> None:
        self._options.check(self._tokenizer)
        if self._vocab_size > self._rows:
            raise TeacherSourceError(
                f"source {self._folder}: its tokenizer has {self._vocab_size} tokens, the model "
                f"{self._rows}; use the model's own tokenizer, or resize the model's embeddings"
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


def _repeated(rows: npt.NDArray[np.float64], device: torch.device) -> npt.NDArray[np.float64]:
    return in_row_groups(torch.from_numpy(rows), device).cpu().numpy()
