"""Options of language models: what is requested of the tokens of a text, and of responses to its
prompt; and the features of both."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ....cache_schemas.codings import Coding, SamplesCoding
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
from .prediction_options import (
    PREDICTIONS,
    DistributionOptions,
    TopKOptions,
    dense_feature,
    spec_of,
    within_limits,
)

if TYPE_CHECKING:
    import torch

GENERATED = "generated_tokens"
"""Axis of generated tokens."""


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


class TokenOptions(TopKOptions, CausalOptions):
    """Options of every teacher that predicts tokens, whatever computes it."""

    seed: int = Field(
        default=0, ge=0, lt=2**63, description="of samples, and of responses that are sampled"
    )
    response_column: bool = Field(
        default=True,
        description="the last text column is a given response; false: there are prompts alone, to "
        "be answered, and top_k is null",
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
        found = [
            spec_of(TOKEN_IDS, (), "uint32", "token ids of the text", **of_tokens),
            spec_of("prompt_tokens", (), "uint32", "tokens at its start that are not predicted"),
        ]
        return found + self.coded_features(vocab_size, max_length)


class CausalLMOptions(PaddingOptions, TokenOptions, DistributionOptions, CausalCheckpointOptions):
    """Options of the teacher `causal_lm`."""

    renamed: ClassVar[Mapping[str, str]] = {
        "draws": "samples",
        "draws_log_probs": "samples_log_probs",
    }

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

    def codings(self, vocab_size: int) -> dict[str, Coding]:
        """Codings of the features for a vocabulary size. Raises JobError."""
        codings = super().codings(vocab_size)
        if self.samples is not None:
            bits: Literal[0, 16] = 16 if self.samples_log_probs else 0
            with within_limits("samples"):
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
            found.append(dense_feature(vocab_size, stored, max_length))
        if self.own_log_probs:
            found.append(own_log_probs_feature(max_length))
        if self.characters:
            found.append(characters_feature(max_length))
        if self.hidden_layers:
            shape = (len(self.hidden_layers), width)
            description = (
                f"hidden states that predict the token, of layers {list(self.hidden_layers)}"
            )
            found.append(spec_of("hidden", shape, stored, description, **of_predictions))
        if self.max_new_tokens:
            most = self.max_new_tokens * self.responses_per_prompt
            of_generated: dict[str, Any] = {"axis": GENERATED, "max_length": most}
            description = "the model's own response, its end token included"
            if self.responses_per_prompt > 1:
                description = (
                    f"the model's own {self.responses_per_prompt} responses, one after another"
                )
            found.append(spec_of(GENERATED_IDS, (), "uint32", description, **of_generated))
            description = "log-probabilities of its tokens, at temperature 1"
            found.append(spec_of("generated_log_probs", (), "float32", description, **of_generated))
        if self.responses_per_prompt > 1:
            description = "tokens of each response"
            found.append(
                spec_of(GENERATED_LENGTHS, (self.responses_per_prompt,), "uint32", description)
            )
        return found


def own_log_probs_feature(max_length: int) -> FeatureSpec:
    """The feature of `own_log_probs`."""
    description = "log-probability of the text's own token"
    return spec_of(
        "own_log_probs", (), "float16", description, axis=PREDICTIONS, max_length=max_length
    )


def characters_feature(max_length: int) -> FeatureSpec:
    """The feature of `characters`."""
    description = f"characters of the response read before the token; {INSIDE}: within one"
    return spec_of(
        "characters_read", (), "uint32", description, axis=PREDICTIONS, max_length=max_length
    )
