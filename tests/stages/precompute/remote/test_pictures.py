"""Replies of /images/generations."""

import base64
import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from armada.stages.precompute.remote import pictures
from armada.stages.precompute.remote.pictures import body, read
from armada.stages.precompute.remote.wire import MalformedReplyError

Image = pytest.importorskip("PIL.Image")


def drawn(kind: str = "PNG", size: int = 8) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def reply_of(*files: bytes) -> dict[str, Any]:
    return {"data": [{"b64_json": base64.b64encode(file).decode()} for file in files]}


def huge() -> bytes:
    """A whole PNG of a few kilobytes that says it has 100 million pixels."""
    header = struct.pack(">IIBBBBB", 10_000, 10_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * (1 + 1250) * 10_000)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_reads_pictures_byte_for_byte(kind: str) -> None:
    files = [drawn(kind), drawn(kind, 16)]
    assert read(reply_of(*files), 2) == files


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (reply_of(), "0 of 1 pictures"),
        (reply_of(drawn(), drawn()), "2 of 1 pictures"),
        ({"data": [{"url": "https://host/x.png"}]}, "an address instead of a picture"),
        ({"data": [{}]}, "b64_json is None"),
        ({"data": [{"b64_json": "!"}]}, "not base64"),
        (reply_of(b"<svg/>"), "b64_json is no whole PNG, JPEG, WEBP file"),
        (reply_of(b""), "b64_json is no whole PNG, JPEG, WEBP file"),
        (reply_of(drawn()[:-40]), "b64_json is no whole PNG, JPEG, WEBP file"),
        (reply_of(drawn("GIF")), "b64_json is no whole PNG, JPEG, WEBP file"),
        (reply_of(huge()), "b64_json has more than 67108864 pixels"),
        (None, "reply is None"),
        ({"error": "Busy"}, "reply is an error: 'Busy'"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_refuses_what_is_no_picture(reply: Any, message: str) -> None:
    with pytest.raises(MalformedReplyError, match=message):
        read(reply)


def test_refuses_a_file_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_BYTES", 100)
    with pytest.raises(MalformedReplyError, match="more than 100 bytes"):
        read(reply_of(drawn(size=64)))


def test_asks_for_the_picture_itself() -> None:
    assert body("m", "a bird") == {
        "model": "m",
        "prompt": "a bird",
        "n": 1,
        "response_format": "b64_json",
    }
    asked = body("m", "a bird", "512x512", 2, response_format=False, extra={"seed": 7})
    assert asked == {"model": "m", "prompt": "a bird", "n": 2, "size": "512x512", "seed": 7}
