"""Options of the teacher `vllm`: what is requested of an engine, and how it runs."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ....cache_schemas.codings import TopKCoding
from ....cache_schemas.features import FeatureSpec, StoredDtype
from ....cache_schemas.teachers import SettingValue
from ...language.prompt_templates import one_text
from ..teachers.causal_options import TokenOptions, characters_feature, own_log_probs_feature
from ..teachers.choices_options import (
    OF_ANSWERS,
    OF_PROMPTS,
    ScoredAnswers,
    choices_of,
    settings_of,
)
from ..teachers.generated import ResponseFeatures

Runner = Literal["generate", "pooling"]

_OF_POOLING = frozenset({"text_template", "store_dtype"})
_OF_CHOICES = OF_ANSWERS | OF_PROMPTS | {"store_dtype"}
_OF_BOTH = frozenset({"runner", "revision", "max_length", "dtype"})


class VLLMOptions(ScoredAnswers, TokenOptions):
    """Options of the teacher `vllm`. Those `of_a_run` are the engine's place and memory."""

    templates: ClassVar[frozenset[str]] = TokenOptions.templates | {"text_template"}
    of_a_run: ClassVar[frozenset[str]] = frozenset(
        {"engine_python", "tensor_parallel_size", "gpu_memory_utilization", "tokens_per_step"}
        | {"enforce_eager"}
    )

    runner: Runner = Field(
        default="generate",
        description="the engine's runner: generate, for predictions of tokens and for responses; "
        "or pooling, for the feature embedding",
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto",
        description="dtype the model computes in; auto is the one the checkpoint was saved in",
    )
    generated_top_k: int | None = Field(
        default=None,
        ge=1,
        description="most probable tokens to keep in the place of each token of a response",
    )
    text_template: str = Field(
        default="{text}",
        description="text to be embedded; {text} is the segments joined by a space; or {1}, {2}, "
        "..., or names of columns, are single ones (pooling)",
    )
    store_dtype: StoredDtype = Field(
        default="float32",
        description="dtype of the stored embedding (runner=pooling), or scores of answers",
    )

    engine_python: str | None = Field(
        default=None,
        description="Python of another environment, which has vllm; default: this one",
    )
    tensor_parallel_size: int = Field(
        default=1, ge=1, le=1024, description="GPUs that one model is spread over"
    )
    gpu_memory_utilization: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="share of the device's memory that the engine takes; default 0.9, on a CPU "
        "4 GiB beside the weights",
    )
    tokens_per_step: int | None = Field(
        default=None,
        ge=1,
        description="tokens that the engine computes at once; default: 2048 where texts are read, "
        "whose logits take memory, else the engine's own choice",
    )

    enforce_eager: bool = Field(
        default=False,
        description="compile nothing: the engine is ready earlier, by a minute or more on a CPU, "
        "and computes more slowly",
    )

    @model_validator(mode="after")
    def _is_of_its_runner(self) -> "VLLMOptions":
        pooling = self.runner == "pooling"
        if self.answers and not pooling:
            for name in sorted(self.model_fields_set - _OF_CHOICES - _OF_BOTH - self.of_a_run):
                raise ValueError(f"{name}: is not of scored choices; leave it out, or answers")
            choices_of(self)
            return self
        if extra := sorted(self.model_fields_set & (OF_ANSWERS - {"answers"})):
            raise ValueError(f"{extra[0]}: is of scored choices; leave it out, or set answers")
        own = _OF_POOLING if pooling else self._of_tokens()
        for name in sorted(self.model_fields_set - own - _OF_BOTH - self.of_a_run):
            other = "generate" if pooling else "pooling"
            raise ValueError(f"{name}: is for runner={other}; leave it out, or set runner")
        return self

    @model_validator(mode="after")
    def _asks_for_something(self) -> "VLLMOptions":
        if self.answers:
            return self
        if self.runner == "generate" and not (self.reads_texts or self.max_new_tokens):
            raise ValueError(
                "top_k, own_log_probs, max_new_tokens, answers: set at least one of them"
            )
        if self.generated_top_k and not self.max_new_tokens:
            raise ValueError("generated_top_k: is of no tokens; set max_new_tokens")
        return self

    @classmethod
    def _of_tokens(cls) -> frozenset[str]:
        return frozenset({*TokenOptions.model_fields, "generated_top_k"})

    def settings(self) -> dict[str, SettingValue]:
        """The settings in the fingerprint: those of the runner."""
        settings = super().settings()
        if self.answers:
            choices = settings_of(choices_of(self))
            return {**{name: settings[name] for name in _OF_BOTH | {"store_dtype"}}, **choices}
        own = _OF_BOTH | (_OF_POOLING if self.runner == "pooling" else self._of_tokens())
        return {name: value for name, value in settings.items() if name in own}

    def embedded_text(self, segments: Sequence[str]) -> str:
        """The text of one example that is embedded."""
        return one_text(self.text_template, segments)

    @property
    def most_log_probs(self) -> int:
        """The most probable tokens that are ever asked for."""
        return max(self.top_k or 0, self.generated_top_k or 0)

    def responses(self, vocab_size: int) -> ResponseFeatures:
        """The features of responses, for a vocabulary size. Raises JobError."""
        return ResponseFeatures(
            self.responses_per_prompt,
            self.max_new_tokens or 0,
            "at temperature 1",
            self._response_coding(vocab_size),
        )

    def _response_coding(self, vocab_size: int) -> TopKCoding | None:
        k = self.generated_top_k
        return None if k is None else self.top_k_coding("generated_top_k", k, vocab_size)

    def features(self, vocab_size: int, max_length: int) -> list[FeatureSpec]:
        """The requested features of tokens."""
        found = self.text_features(vocab_size, max_length)
        if self.own_log_probs:
            found.append(own_log_probs_feature(max_length))
        if self.characters:
            found.append(characters_feature(max_length))
        return [*found, *(self.responses(vocab_size).specs() if self.max_new_tokens else [])]
