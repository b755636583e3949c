"""Options of the teachers, which are settings of a fingerprint unless they say otherwise.

Nothing here and in the other files of options imports torch: a job is parsed, and refused, before a
run loads anything heavy.

`Precision` has the dtypes in which a teacher computes and in which its features are stored. 'auto'
is resolved before the spec is made, so a fingerprint names the type that was used.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ....cache_schemas.codings import Temperature
from ....cache_schemas.features import StoredDtype
from ....cache_schemas.teachers import SettingValue
from ...embeddings.prompts import PromptName
from ...language.prompt_templates import TEXT, one_text
from ...matrix_products import MatmulPrecision

if TYPE_CHECKING:
    import torch

_LOGGER = logging.getLogger("armada")


class TeacherOptions(BaseModel):
    """Options of one kind of teacher. All of them enter the fingerprint, but for those `of_a_run`
    or where `settings` is overridden. Every field has a default and a description."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    renamed: ClassVar[Mapping[str, str]] = {}
    """Options of an earlier release, and what they are called now: taken, with a warning."""
    earlier: ClassVar[Mapping[str, SettingValue]] = {}
    """Options that earlier releases did not have -> the value with which features are as they were
    then. With that value an option is in no fingerprint, and a cache of theirs goes on with it."""
    templates: ClassVar[frozenset[str]] = frozenset()
    """Options that are templates of prompts, in which text columns may be named
    (`language/prompt_templates.py`)."""
    placeholders: ClassVar[Mapping[str, str]] = {}
    """An option -> the name in templates that stands for something of it, where it is set, and for
    no column."""
    of_a_run: ClassVar[frozenset[str]] = frozenset()
    """Options that choose how a run computes, not what: they are no settings."""

    @model_validator(mode="before")
    @classmethod
    def _of_an_earlier_release(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        for old, new in cls.renamed.items():
            if old in given and new in given:
                raise ValueError(
                    f"{old}: deprecated name of {new}, and both are given; leave it out"
                )
            if old in given:
                _LOGGER.warning(f"{old}: deprecated, removed in the next release; use {new}")
        return {cls.renamed.get(name, name): value for name, value in given.items()}

    def settings(self) -> dict[str, SettingValue]:
        """The settings in the fingerprint."""
        settings = self.model_dump(mode="python", exclude=set(self.of_a_run))
        return {k: v for k, v in settings.items() if (k, v) not in self.earlier.items()}

    @property
    def is_divided(self) -> bool:
        """Whether several processes compute each batch together."""
        return False


def distinct_layers(layers: tuple[int, ...]) -> tuple[int, ...]:
    """A validator: no layer is named twice."""
    if len(set(layers)) != len(layers):
        raise ValueError(f"{list(layers)} repeats a layer; name each once")
    return layers


def one_is_no_list(pooling: Any) -> Any:
    """A validator: a pooling alone is the same as a list of it."""
    if pooling == ():
        raise ValueError("is empty; name one")
    return pooling[0] if isinstance(pooling, tuple) and len(pooling) == 1 else pooling


class TextOptions(TeacherOptions):
    """How the segments of an example become one text."""

    templates: ClassVar[frozenset[str]] = frozenset({"template"})

    template: str = Field(
        default=TEXT,
        description="prompt; {text} is the segments joined by a space; or {1}, {2}, ..., or names "
        "of columns, are single ones",
    )
    lowercase: bool = Field(default=False, description="lower-case the segments")

    def text(self, segments: Sequence[str]) -> str:
        """The text of one example."""
        own = [segment.lower() for segment in segments] if self.lowercase else segments
        return one_text(self.template, own)


ComputeDtype = Literal["float32", "float16", "bfloat16"]
HALF_PRECISION: Mapping[str, ComputeDtype] = {
    "torch.float16": "float16",
    "torch.bfloat16": "bfloat16",
}
"""A dtype of saved weights -> the one to compute in; of all others it is float32."""


@dataclass(frozen=True, slots=True)
class Precision:
    """The types of one teacher, nothing left to choose."""

    compute: ComputeDtype
    stored: StoredDtype

    def settings(self) -> dict[str, str]:
        """The resolved values of 'auto', for the spec."""
        return {"dtype": self.compute, "store_dtype": self.stored}

    @property
    def torch_dtype(self) -> "torch.dtype":
        """The type of the model's weights and activations."""
        import torch

        dtype: torch.dtype = getattr(torch, self.compute)
        return dtype

    def cast(self, values: "torch.Tensor") -> "torch.Tensor":
        """`values` as they are kept, on their device. A number too large for float16 becomes
        infinite."""
        return values.half() if self.stored == "float16" else values.float()


class PrecisionOptions(TeacherOptions):
    """Options of teachers that compute with torch."""

    matmul_precision: MatmulPrecision = Field(
        default="highest",
        description="of float32 matrix products: highest is float32; high and medium are faster on "
        "some GPUs, with fewer bits (TF32, bfloat16), and give other features",
    )

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto",
        description="dtype the model computes in; auto is float32 on a CPU, elsewhere the dtype "
        "that a transformers checkpoint was saved in",
    )
    store_dtype: Literal["auto", "float32", "float16"] = Field(
        default="auto",
        description="dtype of stored features; auto is float16 if the model computes in half "
        "precision, else float32",
    )

    def settings(self) -> dict[str, SettingValue]:
        """The settings in the fingerprint: `matmul_precision` where it is not that of releases
        without it."""
        settings = super().settings()
        if self.matmul_precision == "highest":
            del settings["matmul_precision"]
        return settings

    def precision(
        self,
        device: "torch.device | None" = None,
        saved: "torch.dtype | None" = None,
        quantised: bool = False,
    ) -> Precision:
        """The types with 'auto' resolved, of weights `saved` in a dtype. A large model in float32
        neither fits a GPU nor is what its authors run; a CPU computes in float32 fastest. Quantised
        weights are for the dtype that they were saved with, on any device."""
        compute: ComputeDtype = "float32" if self.dtype == "auto" else self.dtype
        as_saved = quantised or not (device is None or device.type == "cpu")
        if self.dtype == "auto" and as_saved:
            compute = HALF_PRECISION.get(str(saved), compute)
        if self.store_dtype != "auto":
            return Precision(compute, self.store_dtype)
        return Precision(compute, "float32" if compute == "float32" else "float16")


class CheckpointOptions(PrecisionOptions):
    """Options of teachers that are checkpoints of transformers."""

    of_a_run: ClassVar[frozenset[str]] = frozenset({"device_map", "tensor_parallel"})

    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = Field(
        default=None,
        description="for a model that is larger than one GPU: spread its layers over all visible "
        "GPUs as accelerate does, and over this machine's memory what is left; changes no setting",
    )
    tensor_parallel: bool = Field(
        default=False,
        description="for a model that is larger than one GPU: divide its weights among the "
        "processes of torchrun, which compute each batch together; changes no setting",
    )

    @model_validator(mode="after")
    def _is_placed_in_one_way(self) -> Self:
        if self.device_map and self.tensor_parallel:
            raise ValueError("device_map and tensor_parallel: name only one")
        return self

    @property
    def is_divided(self) -> bool:
        """See TeacherOptions."""
        return self.tensor_parallel


Padding = Literal["growing_steps", "multiples_of_16"]


class PaddingOptions(CheckpointOptions):
    """Options of teachers that pad texts."""

    earlier: ClassVar[Mapping[str, SettingValue]] = {"padding": "multiples_of_16"}

    padding: Padding = Field(
        default="growing_steps",
        description="lengths that texts are padded to, of which the last bits of features depend: "
        "growing_steps are multiples of 8 up to 32 tokens, of 16 up to 128, and eighths of the "
        "power of two below beyond; multiples_of_16 is what earlier releases had, and what a cache "
        "of theirs is continued with",
    )


class TokenizedOptions(PaddingOptions, TextOptions):
    """Options of teachers that read tokens.

    With the default template an example of one segment is a text, of two a text and its pair, of
    more a text and, as its pair, the others joined by the separator token. Any other template
    makes one text of all segments. `lowercase` applies to the segments, not to the template.
    """

    revision: str | None = Field(
        default=None, description="branch, tag or commit of a hub id; none is the main branch"
    )
    max_length: int | None = Field(
        default=None,
        ge=1,
        description="maximum tokens per example, longer ones are truncated; default 128, or the "
        "model's maximum if that is less",
    )

    @property
    def prefix(self) -> str:
        """Prefix of every text, or of the first one of a pair."""
        return ""


class ClassifierOptions(TokenizedOptions):
    """Options of the teacher `classifier`."""

    pooled: bool = Field(
        default=False,
        description="also store the input of the last linear layer, as feature pooled",
    )


class CrossEncoderOptions(ClassifierOptions):
    """Options of the teacher `cross_encoder`."""

    max_length: int | None = Field(
        default=None,
        ge=1,
        description="maximum tokens of a pair, longer ones are truncated; default: as declared, or "
        "the model's maximum, 512 if it has none",
    )
    activation: str | None = Field(
        default=None,
        description="activation of torch.nn behind the score: Identity, Sigmoid, ...; default: as "
        "declared, else Sigmoid for one score and Identity for several classes",
    )


class StudentOptions(CheckpointOptions):
    """Options of the teacher `student`. Others are as in training."""

    revision: str | None = Field(
        default=None, description="branch, tag or commit of a hub id; none is the main branch"
    )
    max_length: int | None = Field(
        default=None, ge=2, description="maximum tokens per example; default: as in training"
    )
    top_k: int = Field(
        default=64,
        ge=1,
        description="of a language model: most probable tokens to keep of each predicted token",
    )
    temperatures: tuple[Temperature, ...] = Field(
        default=(1.0,),
        description="of a language model: temperatures at which the mass outside of top_k is kept",
    )
    prompt_name: PromptName | None = Field(
        default=None,
        description="of an embedding model that reads queries and passages behind different "
        "prompts: which the texts are, query or document (a passage)",
    )


class OpenClipOptions(PrecisionOptions, TextOptions):
    """Options of the teacher `open_clip`."""

    revision: str | None = Field(
        default=None, description="branch, tag or commit of a hub id; none is the main branch"
    )
    weights: str | None = Field(
        default=None,
        description="with the name of an architecture: a safetensors file, or a pretrained tag of "
        "open_clip",
    )
    normalize: bool = Field(default=True, description="scale the embedding to length 1")


class HashOptions(TeacherOptions):
    """Options of the teacher `hash`."""

    seed: int = Field(default=0, ge=0, lt=2**63, description="seed of the outputs")
    store_dtype: StoredDtype = Field(default="float32", description="dtype of stored features")


class HashWordsOptions(HashOptions):
    """Options of the teacher `hash_words`."""

    max_words: int = Field(default=512, ge=1, le=65_536, description="maximum words per text")
