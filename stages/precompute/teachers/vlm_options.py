"""Options of models of images and text."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ....cache_schemas.teachers import SettingValue
from ...language.prompt_templates import TEXT, numbers_of, one_text
from ...pooling import StatePooling
from .options import TokenizedOptions, distinct_layers, one_is_no_list


class VlmOptions(TokenizedOptions):
    """Options of the teacher `vlm`."""

    picture: Literal["none", "given", "generated"] = Field(
        default="none",
        description="given: the first segment of an example is a picture, the others its text; "
        "generated: a picture of the text, by generator",
    )
    generator: str = Field(
        default="", description="text-to-image pipeline of diffusers: a folder or hub id"
    )
    generator_steps: int = Field(default=20, ge=1, description="its denoising steps")
    generator_guidance: float = Field(default=7.5, ge=0, description="its classifier-free guidance")
    generator_size: int = Field(default=512, ge=8, description="height and width of its pictures")
    generator_seed: int = Field(default=0, ge=0, lt=2**63, description="seed of its noise")
    chat_template: bool = Field(
        default=True,
        description="make the text a user's turn, and begin the answer, by the model's own chat "
        "template; false: the text alone; with a picture, template then says where that stands",
    )
    pooling: StatePooling | tuple[StatePooling, ...] = Field(
        default="last",
        description="how token states become one vector: last (in a decoder it has seen all "
        "others), mean, cls (the first), max, mean_sqrt_len_tokens or weightedmean, a picture's "
        "tokens included; a list is concatenated",
    )
    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(),
        description="hidden layers to keep as well, as features layer_0 (embeddings), layer_1, "
        "..., pooled the same way",
    )
    normalize: bool = Field(default=False, description="scale every feature to length 1")
    max_length: int | None = Field(
        default=None,
        ge=1,
        description="maximum tokens of a text, longer ones are truncated; those of the chat "
        "template and of a picture come on top; default 128",
    )

    _one_is_no_list = field_validator("pooling")(one_is_no_list)
    _differ = field_validator("layers")(distinct_layers)

    @model_validator(mode="after")
    def _generates_by_a_generator(self) -> "VlmOptions":
        given = [name for name in self.model_fields_set if name.startswith("generator")]
        if self.picture == "generated" and not self.generator:
            raise ValueError("generator: is not set; picture=generated needs a pipeline")
        if self.picture != "generated" and given:
            raise ValueError(f"{min(given)}: is for picture=generated; leave it out")
        return self

    def settings(self) -> dict[str, SettingValue]:
        """The settings in the fingerprint: the generator's where there is one, which is known by
        its digest."""
        generates = self.picture == "generated"
        return {
            name: value
            for name, value in super().settings().items()
            if not name.startswith("generator") or (generates and name != "generator")
        }

    @property
    def modes(self) -> tuple[StatePooling, ...]:
        """The ways of pooling, side by side."""
        return self.pooling if isinstance(self.pooling, tuple) else (self.pooling,)

    def parts(self, segments: Sequence[str]) -> list[str]:
        """The texts of an example that the template is filled with: all as one, or each."""
        own = [segment.lower() for segment in segments] if self.lowercase else [*segments]
        return own if numbers_of(self.template) else [one_text(TEXT, own)]
