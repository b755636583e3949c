"""A world of coloured shapes: pictures drawn here, and captions that say what they show.

Even a CLIP with random weights has embeddings of pictures that colour and shape decide, so that a
student of captions can be aligned to them."""

import random
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

COLOURS = ("red", "lime", "blue", "yellow", "white")
SHAPES = ("circle", "square", "bar", "frame")
CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
CAPTIONS = ("a {}", "there is a {} here", "the picture shows a {}", "{}, on black")
SIZE = 24


def drawn(name: str, seed: int) -> bytes:
    """A picture of a class, a little to the side and larger or smaller, as a PNG file."""
    colour, shape = name.split()
    draw_random = random.Random(f"{name} {seed}")
    image = Image.new("RGB", (SIZE, SIZE), "black")
    draw = ImageDraw.Draw(image)
    left, top = (draw_random.randint(2, 4) for _ in range(2))
    right, bottom = (SIZE - draw_random.randint(2, 4) for _ in range(2))
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
