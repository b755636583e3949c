"""Options of an encoder: those of the job, else those a sentence-transformers folder declares, else
the mean of the last hidden states."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from ....cache_schemas.errors import JobError
from ....cache_schemas.features import TOKEN_IDS, TOKENS, FeatureSpec
from ....cache_schemas.teachers import SettingValue
from ...pooling import StatePooling
from .options import TokenizedOptions, distinct_layers, one_is_no_list

if TYPE_CHECKING:
    from ...embeddings.folders import EmbeddingFolder
    from ...embeddings.layers import Layer

Pooling = StatePooling | Literal["pooler", "features"]

TOKEN_STATES, ATTENTION = "token_states_{}", "attention_{}"
"""Names of features along the tokens, by layer."""

_WITHOUT_EFFECT: dict[str, SettingValue] = {
    "prompt": "",
    "include_prompt": True,
    "dim": None,
    "token_layers": (),
    "attention_layers": (),
}
"""Values that keep features as they were before these options existed."""


class EncoderOptions(TokenizedOptions):
    """Options that the job leaves out are as the folder declares, if sentence-transformers saved
    it; the defaults are those of any other folder."""

    pooling: Pooling | tuple[StatePooling, ...] = Field(
        default="mean",
        description="how token vectors become one text vector: mean, cls (the first), last, max, "
        "mean_sqrt_len_tokens, weightedmean, or the model's own pooler; a list is concatenated; "
        "default: as a sentence-transformers folder declares, else mean; for CLIP, SigLIP and "
        "similar, their text features",
    )
    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(),
        description="hidden layers to keep as well, as features layer_0 (embeddings), layer_1, "
        "...; pooled the same way, by the first token if pooling=pooler",
    )
    token_layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(),
        description="hidden layers to keep for each token, as token_states_0 (embeddings), "
        "token_states_1, ...: 2 bytes a number, with token_ids",
    )
    attention_layers: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(),
        description="layers whose queries, keys and values to keep for each token, as attention_1, "
        "...: 2 bytes a number, with token_ids; of BERT, RoBERTa, ELECTRA, DistilBERT and similar",
    )
    normalize: bool = Field(
        default=False, description="scale every feature to length 1; default: as declared"
    )
    prompt: str = Field(default="", description="prefix of every text; default: as declared")
    prompt_name: str | None = Field(
        default=None, description="name of one of the folder's prompts: query, document, ..."
    )
    include_prompt: bool = Field(
        default=True, description="pool the tokens of the prompt too; default: as declared"
    )
    dim: int | None = Field(
        default=None,
        ge=1,
        description="keep only the first dimensions of pooled (Matryoshka models); length 1 again "
        "with normalize=true",
    )

    _one_is_no_list = field_validator("pooling")(one_is_no_list)
    _differ = field_validator("layers", "token_layers", "attention_layers")(distinct_layers)

    @property
    def prefix(self) -> str:
        """Prefix of every text, or of the first one of a pair."""
        return self.prompt

    def settings(self) -> dict[str, SettingValue]:
        """The settings in the fingerprint."""
        settings = super().settings()
        del settings["prompt_name"]  # given by the prompt
        if not self.prompt:
            settings["include_prompt"] = True
        for name, value in _WITHOUT_EFFECT.items():
            if settings[name] == value:
                del settings[name]
        return settings

    @property
    def reads_tokens(self) -> bool:
        """Whether anything is kept of each token."""
        return bool(self.token_layers or self.attention_layers)

    def token_features(
        self, states: Sequence[int], attention: Sequence[int], max_length: int
    ) -> list[FeatureSpec]:
        """The features along a text's tokens, for the widths of each of `token_layers` and
        `attention_layers`; with the tokens' ids."""
        described: list[tuple[str, tuple[int, ...], str]] = []
        described.append((TOKEN_IDS, (), "token ids of the text"))
        for layer, width in zip(self.token_layers, states, strict=True):
            text = f"hidden states {layer} of each token"
            described.append((TOKEN_STATES.format(layer), (width,), text))
        for layer, width in zip(self.attention_layers, attention, strict=True):
            text = f"queries, keys and values of each token in layer {layer}"
            described.append((ATTENTION.format(layer), (3, width), text))
        return [
            FeatureSpec(
                name=name,
                shape=shape,
                dtype="uint32" if name == TOKEN_IDS else "float16",
                description=text,
                axis=TOKENS,
                max_length=max_length,
            )
            for name, shape, text in (described if self.reads_tokens else ())
        ]


@dataclass(frozen=True, slots=True)
class Resolved:
    """Nothing is left open: the options, the layers behind the pooling, and in which options the
    job differs from the folder."""

    options: EncoderOptions
    layers: "tuple[Layer, ...]"
    notes: tuple[str, ...]


def resolve_options(
    options: EncoderOptions, folder: "EmbeddingFolder | None", longest: int | None = None
) -> Resolved:
    """The options with what a folder declares; `longest`: the tokens of a text that it reads.

    Raises JobError for a prompt that it has not."""
    named = _named_prompt(options, folder)
    if folder is None:
        return Resolved(options, (), ())
    layers = folder.layers
    while layers and layers[-1].normalizes:
        layers = layers[:-1]
    normalizes = layers != folder.layers
    if normalizes and options.dim is not None and "normalize" not in options.model_fields_set:
        # Normalised before truncation, not after, as in sentence-transformers' truncate_dim.
        layers, normalizes = folder.layers, False
    declared: dict[str, Any] = {
        "pooling": _pooling(folder),
        "normalize": normalizes,
        "lowercase": folder.lowercase,
        "prompt": folder.default_prompt,
        "include_prompt": folder.include_prompt,
        "max_length": longest,
    }
    given = {name for name in declared if name in options.model_fields_set} | named.keys()
    found = options.model_copy(
        update={name: value for name, value in declared.items() if name not in given} | named
    )
    notes = (
        f"{name}: is {getattr(found, name)!r}, but the folder declares {value!r}"
        for name, value in declared.items()
        if getattr(found, name) != value and value not in (None, "") and name not in named
    )
    return Resolved(found, layers, tuple(notes))


def _pooling(folder: "EmbeddingFolder") -> Pooling | tuple[StatePooling, ...]:
    if folder.pooling is None:
        return "features"
    return folder.pooling[0] if len(folder.pooling) == 1 else folder.pooling


def _named_prompt(options: EncoderOptions, folder: "EmbeddingFolder | None") -> dict[str, str]:
    name = options.prompt_name
    if name is None:
        return {}
    if "prompt" in options.model_fields_set:
        raise JobError("prompt and prompt_name: name only one")
    prompts = folder.prompts if folder is not None else {}
    if name not in prompts:
        known = ", ".join(prompts) or "none"
        raise JobError(f"prompt_name: {name!r} is not a prompt of the folder; it has {known}")
    return {"prompt": prompts[name]}
