"""POST /images/generations: pictures made of a text.

Pictures come in the reply itself, as base64. An address to fetch one from is refused: it would be
a request to a machine that the user did not name, and what it leads to may change.
"""

import base64
from collections.abc import Mapping
from typing import Any

from ...pictures import PictureError, open_picture
from .wire import MalformedReplyError, a_list, a_reply, a_text, an_object, malformed, with_extra

MAX_BYTES = 64 * 1024**2
"""Limit of one picture as it is sent."""


def body(
    model: str,
    prompt: str,
    size: str | None = None,
    samples: int = 1,
    response_format: bool = True,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The request for pictures of a text. `size`: such as `512x512`. `response_format`: ask for
    base64; models that never send anything else refuse the field.

    Raises JobError for an extra field that is set already."""
    asked: dict[str, Any] = {"model": model, "prompt": prompt, "n": samples}
    if size is not None:
        asked["size"] = size
    if response_format:
        asked["response_format"] = "b64_json"
    return with_extra(asked, extra or {})


def read(reply: object, count: int = 1) -> list[bytes]:
    """The `count` pictures of a reply, as the files they were sent as: PNG, JPEG or WebP.

    Raises MalformedReplyError for another number of them, and for what is no whole picture of such
    a format, or too large."""
    items = a_list(a_reply(reply).get("data"), "data")
    if len(items) != count:
        raise MalformedReplyError(f"data has {len(items)} of {count} pictures")
    return [
        _picture(an_object(item, f"data[{at}]"), f"data[{at}]") for at, item in enumerate(items)
    ]


def _picture(value: object, name: str) -> bytes:
    item = an_object(value, name)
    if item.get("b64_json") is None and item.get("url") is not None:
        raise MalformedReplyError(
            f"{name} is an address instead of a picture; ask for response_format=b64_json"
        )
    text = a_text(item.get("b64_json"), f"{name}.b64_json")
    if len(text) > MAX_BYTES * 4 // 3 + 4:
        raise MalformedReplyError(f"{name}.b64_json is a picture of more than {MAX_BYTES} bytes")
    try:
        picture = base64.b64decode(text, validate=True)
    except ValueError:
        raise malformed(f"{name}.b64_json", text, "base64") from None
    try:
        open_picture(picture)
    except PictureError as error:
        raise MalformedReplyError(f"{name}.b64_json {error}") from None
    return picture
