"""Options of a teacher that answers a text with a picture of a folder."""

from pydantic import Field

from .options import PrecisionOptions, TextOptions


class ClipImageOptions(PrecisionOptions, TextOptions):
    """Options of the teacher `clip_image`."""

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
