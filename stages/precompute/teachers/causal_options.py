"""Options of language models: what is requested of the tokens of a text, and of responses to its
prompt; and the features of both."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from ....cache_schemas.codings import Coding, SamplesCoding, Temperature, TopKCoding
from ....cache_schemas.errors import JobError
from ....cache_schemas.features import (
    GENERATED_IDS,
    GENERATED_LENGTHS,
    TOKEN_IDS,
    TOKENS,
    FeatureSpec,
    StoredDtype,
)
from ....cache_schemas.teachers import SettingValue
from ...language.recipe import Recipe
from ...language.tokens import INSIDE, TokenTexts, encode_prompts, encode_texts
from .options import CheckpointOptions, PaddingOptions, TeacherOptions, distinct_layers

if TYPE_CHECKING:
    import torch

PREDICTIONS, GENERATED = "predictions", "generated_tokens"
"""The axes beside `tokens`: those of a text that are predicted, and generated tokens."""


class CausalOptions(TeacherOptions, Recipe):
    """Options of every teacher that is a language model, whatever computes it."""

    templates: ClassVar[frozenset[str]] = frozenset({"prompt_template", "user_template"})

    revision: str | None = Field(
        default=None, description="branch, tag or commit of a hub id; none is the main branch"
    )
    max_length: int | None = Field(
        default=None,
        ge=2,
        description="maximum tokens per text, longer ones are truncated; default 1024, or the "
        "model's maximum if that is less",
    )

    def of_template(self, tokenizer: Any) -> dict[str, SettingValue]:
        """The date of texts that depend on it. Raises JobError for one that none depends on."""
        reads_clock = self.text_format == "chat" and self.template(tokenizer).reads_clock
        if self.template_date is not None and not reads_clock:
            raise JobError("template_date: the chat template uses no date; leave it out")
        return {"template_date": self.date} if reads_clock else {}


class CausalCheckpointOptions(CheckpointOptions, CausalOptions):
    """Options of one that is a checkpoint of transformers."""


_LATER: Mapping[str, SettingValue] = {
    **{"response_column": True, "stop": (), "thinking": "keep", "responses_per_prompt": 1},
    "own_log_probs": False,
}
"""Settings that caches of earlier releases do not have, and what they are there."""


class TokenOptions(CausalOptions):
    """Options of every teacher that predicts tokens, whatever computes it."""

    seed: int = Field(
        default=0, ge=0, lt=2**63, description="of samples, and of responses that are sampled"
    )
    response_column: bool = Field(
        default=True,
        description="the last text column is a given response; false: there are prompts alone, to "
        "be answered, and top_k is null",
    )
    top_k: int | None = Field(
        default=64,
        ge=1,
        description="most probable tokens to keep of each predicted token, with the mass of all "
        "others; null: none",
    )
    top_k_bits: Literal[5, 6, 8, 16] = Field(
        default=8, description="bits per log-probability of top_k: 5, 6, 8 or 16"
    )
    own_log_probs: bool = Field(
        default=False,
        description="keep the log-probability of the text's own token at each predicted one; 2 "
        "bytes per token",
    )
    characters: bool = Field(
        default=False,
        description="keep the character offset of each predicted token: for students with another "
        "tokenizer",
    )
    max_new_tokens: int | None = Field(
        default=None,
        ge=1,
        description="generate the model's own response to each prompt, of at most so many tokens",
    )
    generation_temperature: float = Field(
        default=0.0, ge=0, le=100, description="0: greedy; else tokens are sampled"
    )
    generation_top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="sample from the tokens with this much of the mass (nucleus)",
    )
    responses_per_prompt: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="responses to each prompt, one after another; several have to be sampled",
    )
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), description="strings that end a generated response"
    )
    thinking: Literal["keep", "cut"] = Field(
        default="keep",
        description="thoughts before a generated response, up to </think>: kept, or cut",
    )

    @model_validator(mode="before")
    @classmethod
    def _prompts_alone_predict_nothing(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("response_column") is False:
            return {"top_k": None, **given}
        return given

    @model_validator(mode="after")
    def _prompts_alone_are_answered(self) -> "TokenOptions":
        if not self.response_column and (self.reads_texts or not self.max_new_tokens):
            raise ValueError(
                "response_column: without one there is nothing to predict; set max_new_tokens, and "
                "nothing but responses; or name a column of responses"
            )
        if not self.max_new_tokens and (self.stop or self.thinking == "cut"):
            raise ValueError("stop, thinking: of no generated response; set max_new_tokens")
        return self

    @model_validator(mode="after")
    def _responses_differ(self) -> "TokenOptions":
        count = self.responses_per_prompt
        if self.max_new_tokens and not self.has_prompt:
            raise ValueError("max_new_tokens: texts have no prompt; use text_format plain or chat")
        if count > 1 and not self.max_new_tokens:
            raise ValueError(f"responses_per_prompt: {count} of no tokens; set max_new_tokens")
        if count > 1 and self.generation_temperature == 0:
            raise ValueError(
                f"responses_per_prompt: {count} greedy ones would be the same; set "
                "generation_temperature above 0, or leave it out"
            )
        return self

    def settings(self) -> dict[str, SettingValue]:
        """The settings in the fingerprint: some only where they are not as ever. So earlier caches
        keep their fingerprint."""
        settings = super().settings()
        return {k: v for k, v in settings.items() if (k, v) not in _LATER.items()}

    @property
    def reads_texts(self) -> bool:
        """Whether anything is asked of a text but responses to its prompt."""
        return bool(self.top_k or self.own_log_probs)

    @property
    def known_temperatures(self) -> tuple[float, ...]:
        """Temperatures at which the tail is kept, ascending: 1 is always among them."""
        return (1.0,)

    def codings(self, vocab_size: int) -> dict[str, Coding]:
        """Codings of the features for a vocabulary size. Raises JobError."""
        if self.top_k is None:
            return {}
        return {"top_k": self.top_k_coding("top_k", self.top_k, vocab_size)}

    def top_k_coding(self, option: str, k: int, vocab_size: int) -> TopKCoding:
        """The coding of the `k` most probable tokens, which `option` asks for. Raises JobError."""
        if k > vocab_size:
            raise JobError(
                f"{option}: {k} is above the tokenizer's vocabulary of {vocab_size}; use "
                f"at most {vocab_size}"
            )
        with _within_limits(f"{option}, temperatures"):
            return TopKCoding(
                k=k,
                vocab_size=vocab_size,
                bits=self.top_k_bits,
                temperatures=self.known_temperatures,
            )

    def tokens(
        self, tokenizer: Any, examples: Sequence[Sequence[str]], max_length: int
    ) -> TokenTexts:
        """The tokens of examples, of their segments: of prompts alone, or with a response."""
        if not self.response_column:
            return encode_prompts(tokenizer, self, examples, max_length)
        return encode_texts(tokenizer, self, examples, max_length, self.characters)

    def text_features(self, vocab_size: int, max_length: int) -> list[FeatureSpec]:
        """The features of a text's tokens, and of those that are predicted."""
        of_tokens = {"axis": TOKENS, "max_length": max_length}
        of_predictions: dict[str, Any] = {"axis": PREDICTIONS, "max_length": max_length}
        found = [
            _spec(TOKEN_IDS, (), "uint32", "token ids of the text", **of_tokens),
            _spec("prompt_tokens", (), "uint32", "tokens at its start that are not predicted"),
        ]
        for name, coding in self.codings(vocab_size).items():
            description = _described(coding)
            width_of_row = (coding.row_bytes,)
            found.append(
                _spec(name, width_of_row, "uint8", description, coding=coding, **of_predictions)
            )
        return found


class CausalLMOptions(PaddingOptions, TokenOptions, CausalCheckpointOptions):
    """Options of the teacher `causal_lm`."""

    renamed: ClassVar[Mapping[str, str]] = {
        "draws": "samples",
        "draws_log_probs": "samples_log_probs",
    }

    temperatures: tuple[Temperature, ...] = Field(
        default=(1.0,),
        description="temperatures at which the mass outside of top_k is kept: those that students "
        "will be trained at, and 1",
    )
    samples: int | None = Field(
        default=None,
        ge=1,
        description="tokens to sample from the model's distribution for each predicted token, with "
        "replacement: unbiased where top_k is not (arXiv 2503.16870)",
    )
    samples_log_probs: bool = Field(
        default=False,
        description="keep the log-probability of each sample: for temperatures and divergences "
        "beside forward KL; 2 bytes a sample",
    )
    dense: bool = Field(
        default=False, description="keep the log-probabilities of all tokens (small vocabularies)"
    )
    hidden_layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(),
        description="layers whose hidden states to keep for each predicted token: 0 (embeddings), "
        "1, ...; the last one is the input of the head",
    )
    generation: Literal["auto", "exact", "batched"] = Field(
        default="auto",
        description="exact: prompts of one length share a batch, so a response is the same in any; "
        "batched: prompts of all lengths, padded: faster, numbers differ by rounding, and with "
        "them a token now and then; auto: exact on a CPU, batched elsewhere",
    )

    _differ = field_validator("hidden_layers")(distinct_layers)

    @model_validator(mode="after")
    def _asks_for_something(self) -> "CausalLMOptions":
        if not (self.reads_texts or self.max_new_tokens):
            raise ValueError(
                "top_k, samples, dense, own_log_probs, hidden_layers, max_new_tokens: set at least "
                "one of them"
            )
        return self

    def settings(self) -> dict[str, SettingValue]:
        """The settings in the fingerprint: of `generation` what a teacher has resolved it to."""
        settings = super().settings()
        del settings["generation"]
        return settings

    def batches_prompts(self, device: "torch.device") -> bool:
        """Whether prompts of different lengths are continued together."""
        if not self.max_new_tokens or self.generation == "exact":
            return False
        return self.generation == "batched" or device.type != "cpu"

    @property
    def reads_texts(self) -> bool:
        """Whether anything is asked of a text but responses to its prompt."""
        requested = (self.top_k, self.samples, self.dense, self.own_log_probs, self.hidden_layers)
        return any(requested)

    @property
    def known_temperatures(self) -> tuple[float, ...]:
        """Temperatures at which the tail is kept, ascending: 1 is always among them."""
        return tuple(sorted({1.0, *self.temperatures}))

    def codings(self, vocab_size: int) -> dict[str, Coding]:
        """Codings of the features for a vocabulary size. Raises JobError."""
        codings = super().codings(vocab_size)
        if self.samples is not None:
            bits: Literal[0, 16] = 16 if self.samples_log_probs else 0
            with _within_limits("samples"):
                codings["samples"] = SamplesCoding(
                    samples=self.samples, vocab_size=vocab_size, log_prob_bits=bits
                )
        return codings

    def features(
        self, vocab_size: int, width: int, max_length: int, stored: StoredDtype
    ) -> list[FeatureSpec]:
        """The requested features, for a vocabulary size and hidden size."""
        of_predictions: dict[str, Any] = {"axis": PREDICTIONS, "max_length": max_length}
        found = self.text_features(vocab_size, max_length)
        if self.dense:
            description = "log-probabilities of all tokens"
            found.append(_spec("dense", (vocab_size,), stored, description, **of_predictions))
        if self.own_log_probs:
            found.append(own_log_probs_feature(max_length))
        if self.characters:
            found.append(characters_feature(max_length))
        if self.hidden_layers:
            shape = (len(self.hidden_layers), width)
            description = (
                f"hidden states that predict the token, of layers {list(self.hidden_layers)}"
            )
            found.append(_spec("hidden", shape, stored, description, **of_predictions))
        if self.max_new_tokens:
            most = self.max_new_tokens * self.responses_per_prompt
            of_generated: dict[str, Any] = {"axis": GENERATED, "max_length": most}
            description = "the model's own response, its end token included"
            if self.responses_per_prompt > 1:
                description = (
                    f"the model's own {self.responses_per_prompt} responses, one after another"
                )
            found.append(_spec(GENERATED_IDS, (), "uint32", description, **of_generated))
            description = "log-probabilities of its tokens, at temperature 1"
            found.append(_spec("generated_log_probs", (), "float32", description, **of_generated))
        if self.responses_per_prompt > 1:
            description = "tokens of each response"
            found.append(
                _spec(GENERATED_LENGTHS, (self.responses_per_prompt,), "uint32", description)
            )
        return found


def own_log_probs_feature(max_length: int) -> FeatureSpec:
    """The feature of `own_log_probs`."""
    description = "log-probability of the text's own token"
    return _spec(
        "own_log_probs", (), "float16", description, axis=PREDICTIONS, max_length=max_length
    )


def characters_feature(max_length: int) -> FeatureSpec:
    """The feature of `characters`."""
    description = f"characters of the response read before the token; {INSIDE}: within one"
    return _spec(
        "characters_read", (), "uint32", description, axis=PREDICTIONS, max_length=max_length
    )


def _described(coding: Coding) -> str:
    if isinstance(coding, TopKCoding):
        return (
            f"the {coding.k} most probable tokens, their log-probabilities, the mass of all others"
        )
    return f"{coding.samples} tokens sampled from the model's distribution"


def _spec(
    name: str, shape: tuple[int, ...], dtype: Any, description: str, **more: Any
) -> FeatureSpec:
    option = (
        "max_new_tokens, responses_per_prompt"
        if more.get("axis") == GENERATED
        else f"{name}, max_length"
    )
    with _within_limits(option):
        return FeatureSpec(name=name, shape=shape, dtype=dtype, description=description, **more)


@contextmanager
def _within_limits(options: str) -> Iterator[None]:
    """Turns limits of a cache into errors of the options."""
    try:
        yield
    except ValidationError as cause:
        problem = cause.errors()[0]
        field = "".join(f"{part}: " for part in problem["loc"][:1])
        message = problem["msg"].removeprefix("Value error, ")
        raise JobError(f"{options}: {field}{message}; use less") from cause
