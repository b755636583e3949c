"""Options of a teacher that embeds pictures: retrieved ones, or the examples themselves."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ....cache_schemas.teachers import SettingValue
from .options import PrecisionOptions, TextOptions

_OF_RETRIEVAL = ("pictures", "neighbours", "max_length", "template", "lowercase")


class ClipImageOptions(PrecisionOptions, TextOptions):
    """Options of the teacher `clip_image`."""

    earlier: ClassVar[Mapping[str, SettingValue]] = {"picture": "retrieved"}

    picture: Literal["retrieved", "given"] = Field(
        default="retrieved",
        description="retrieved: of the folder `pictures`, for each text; given: the example is a "
        "picture itself, of a column picture:COLUMN",
    )
    revision: str | None = Field(
        default=None, description="branch, tag or commit of a hub id; none is the main branch"
    )
    max_length: int | None = Field(
        default=None, ge=1, description="maximum tokens of a text; default: the model's"
    )
    pictures: str = Field(
        default="", description="folder of the pictures (PNG, JPEG, WebP), with its sub-folders"
    )
    neighbours: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="pictures retrieved for a text; image_embedding is the mean of theirs",
    )
    normalize: bool = Field(
        default=True, description="scale the embedding of each picture to length 1"
    )

    @model_validator(mode="after")
    def _retrieves_by_texts(self) -> "ClipImageOptions":
        given = [name for name in _OF_RETRIEVAL if name in self.model_fields_set]
        if self.picture == "given" and given:
            raise ValueError(f"{given[0]}: is for picture=retrieved; leave it out")
        return self

    def settings(self) -> dict[str, SettingValue]:
        """The settings in the fingerprint: those of texts and of a folder where it retrieves."""
        settings = super().settings()
        if self.picture == "given":
            settings = {k: v for k, v in settings.items() if k not in _OF_RETRIEVAL}
        return settings
