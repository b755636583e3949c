"""POST /embeddings: one vector for each text.

Numbers come as JSON, or as base64 of little-endian float32, a quarter of the bytes. Not every
server knows the second, and some send it unasked: both are read, whichever was asked for. Numbers
of JSON are rounded to float32, which is what the other form is.

Dialects that are read besides: a bare list of items (llama.cpp's own /embeddings), a bare list of
vectors (TEI's own /embed), and a vector in a list of one (llama.cpp, where it pools).

Shapes: N texts, D dimensions.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .wire import MalformedReplyError, a_list, a_reply, in_order, malformed, with_extra

Float32 = npt.NDArray[np.float32]
Encoding = Literal["float", "base64"]


def body(
    model: str,
    texts: Sequence[str],
    dimensions: int | None = None,
    encoding: Encoding = "float",
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The request for embeddings of some texts. `dimensions`: shortened by the server, for models
    that were trained for it."""
    asked: dict[str, Any] = {"model": model, "input": list(texts), "encoding_format": encoding}
    if dimensions is not None:
        asked["dimensions"] = dimensions
    return with_extra(asked, extra or {})


def read(reply: object, count: int) -> Float32:
    """Embeddings [N, D] in the order of the texts, of which there were `count`, one or more.

    Raises MalformedReplyError for missing, duplicated or unknown items, for different dimensions,
    for an empty vector, and for numbers that are not finite in float32."""
    vectors = [_vector(value, f"data[{at}]") for at, value in enumerate(_values(reply, count))]
    dims = {len(vector) for vector in vectors}
    if len(dims) > 1:
        raise MalformedReplyError(
            f"data has embeddings of {min(dims)} and of {max(dims)} dimensions"
        )
    return np.stack(vectors)


def _values(reply: object, count: int) -> list[Any]:
    """The embeddings as the wire has them, in order."""
    items = a_list(reply if isinstance(reply, list) else a_reply(reply).get("data"), "data")
    if items and all(isinstance(item, list) for item in items):
        if len(items) != count:
            raise MalformedReplyError(f"reply has {len(items)} of {count} embeddings")
        return items
    return [item.get("embedding") for item in in_order(items, "data", count, "embeddings")]


def _vector(value: object, name: str) -> Float32:
    vector = _decoded(value, name) if isinstance(value, str) else _numbers(value, name)
    if not len(vector):
        raise malformed(f"{name}.embedding", value, "a vector: it is empty")
    if not np.isfinite(vector).all():
        at = int(np.flatnonzero(~np.isfinite(vector))[0])
        raise malformed(f"{name}.embedding[{at}]", vector[at], "a finite float32")
    return vector


def _decoded(text: str, name: str) -> Float32:
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)
    except ValueError:
        raise malformed(f"{name}.embedding", text, "base64 of float32") from None


def _numbers(value: object, name: str) -> Float32:
    numbers = a_list(value, f"{name}.embedding")
    if len(numbers) == 1 and isinstance(numbers[0], list):
        numbers = numbers[0]
    # A look at the types alone: NumPy would take strings and true for numbers, and null for NaN.
    strange = {type(number) for number in numbers} - {float, int}
    if list in strange:
        raise MalformedReplyError(
            f"{name}.embedding has a vector for each token: start the server with pooling"
        )
    if strange:
        at = next(at for at, number in enumerate(numbers) if type(number) in strange)
        raise malformed(f"{name}.embedding[{at}]", numbers[at], "a number")
    try:
        with np.errstate(over="ignore"):
            return np.array(numbers, np.float64).astype(np.float32)
    except OverflowError:
        raise malformed(f"{name}.embedding", "a number", "a finite float32") from None
