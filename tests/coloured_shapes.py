"""A world of coloured shapes: pictures drawn here, and captions that say what they show.

Even a CLIP with random weights has embeddings of pictures that colour and shape decide, so that a
student of captions can be aligned to them."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

COLOURS = ("red", "lime", "blue", "yellow", "white")
SHAPES = ("circle", "square", "bar", "frame")
CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
CAPTIONS = ("a {}", "there is a {} here", "the picture shows a {}", "{}, on dark")
SIZE = 24


def drawn(name: str, seed: int) -> bytes:
    """A picture of a class, a little to the side and larger or smaller, on a noisy ground, as a PNG
    file: no two are equal."""
    colour, shape = name.split()
    drawn_from = np.random.default_rng([CLASSES.index(name), seed])
    noise = drawn_from.integers(0, 40, (SIZE, SIZE, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = drawn_from.integers(2, 5, 4).tolist()
    right, bottom = SIZE - right, SIZE - bottom
    box = (left, top, right, bottom)
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "square":
        draw.rectangle(box, fill=colour)
    elif shape == "frame":
        draw.rectangle(box, outline=colour, width=3)
    else:
        middle = (top + bottom) // 2
        draw.rectangle((left, middle - 3, right, middle + 3), fill=colour)
    file = BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def write_shapes(file: Path, seeds: Sequence[int], captions: int = 1) -> None:
    """For each class and seed a picture, in `captions` rows with different captions each; columns
    `photo`, `caption`, `label`."""
    rows = [
        {
            "photo": drawn(name, seed),
            "caption": CAPTIONS[(seed + at) % len(CAPTIONS)].format(name),
            "label": name,
        }
        for seed in seeds
        for name in CLASSES
        for at in range(captions)
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)
