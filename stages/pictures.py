"""Pictures as segments of examples: a data URL, `data:image/png;base64,...`.

A key is a hash of segments, so a picture whose bytes are the segment is part of the key: another
picture under the same name is another example. The bytes are those of the file, as they are.
"""

import base64
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

PREFIX = "data:image/"
FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 8192 * 8192
"""More are refused before they are unpacked: a small file may hold any number of them."""

_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}


class PictureError(ValueError):
    """Not a picture that can be read; the message is a predicate about it."""


def picture_segment(file: bytes) -> str:
    """The segment of a PNG, JPEG or WebP file. Raises PictureError for anything else."""
    kind = next((kind for start, kind in _SIGNATURES.items() if file.startswith(start)), None)
    if file[:4] == b"RIFF" and file[8:12] == b"WEBP":
        kind = "webp"
    if kind is None:
        raise PictureError(f"is no {', '.join(FORMATS)} file")
    return f"{PREFIX}{kind};base64,{base64.b64encode(file).decode('ascii')}"


def read_picture(segment: str) -> "Image":
    """The picture of a segment: RGB, upright. Raises PictureError."""
    head, comma, encoded = segment.partition(";base64,")
    if not (comma and head.startswith(PREFIX)):
        raise PictureError(
            f"{segment!r:.60} is no picture, and a name would leave its content out of the key; "
            "name the column as picture:COLUMN"
        )
    try:
        file = base64.b64decode(encoded, validate=True)
    except ValueError:
        raise PictureError("is no base64") from None
    return open_picture(file)


def png_file(picture: "Image") -> bytes:
    """A picture as a PNG file."""
    file = BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def open_picture(file: bytes) -> "Image":
    """The picture of a PNG, JPEG or WebP file: RGB, upright. Raises PictureError."""
    from PIL import Image, ImageOps

    try:
        with Image.open(BytesIO(file), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise PictureError(f"has more than {MAX_PIXELS} pixels")
            return ImageOps.exif_transpose(image).convert("RGB")
    # Pillow raises errors of many kinds for what is broken.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as cause:
        if isinstance(cause, PictureError):
            raise
        raise PictureError(f"is no whole {', '.join(FORMATS)} file") from cause
