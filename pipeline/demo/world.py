"""A small visual world: scenes of one object, pictures of them, captions about them.

Words come in families: crimson is a red, a disc is a circle. A caption takes any word of a family;
a picture shows what all words of a family share. So pictures show which words belong together, and
captions alone do not: every word of a family stands in the same places of the same sentences.

The demo's corpora are captions only, labelled by the family of one word. A training caption has a
label if its word is the common one of its family. The test set is of other captions, all with the
other words. Nothing in either text says that crimson is a red.
"""

import colorsys
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

Words = tuple[str, ...]

COLOURS: tuple[Words, ...] = (
    ("red", "crimson", "scarlet", "ruby", "cherry"),
    ("orange", "tangerine", "apricot", "amber", "rust"),
    ("yellow", "lemon", "golden", "canary", "mustard"),
    ("green", "emerald", "jade", "olive", "mint"),
    ("blue", "navy", "cobalt", "sapphire", "azure"),
    ("purple", "violet", "lilac", "plum", "mauve"),
)
"""Families of words; the first word of each is the common one."""

HUES = ((-10, 8), (22, 32), (50, 60), (100, 140), (210, 240), (270, 295))
"""Range of hues of each colour family, in degrees."""

SHAPES: tuple[Words, ...] = (
    ("circle", "disc", "ball", "orb"),
    ("square", "box", "block", "tile"),
    ("triangle", "wedge", "pyramid", "cone"),
    ("ring", "hoop", "loop", "band"),
    ("star", "asterisk", "spark", "burst"),
    ("cross", "plus", "junction", "crossing"),
)

SIZES: tuple[Words, ...] = (("small", "little", "tiny"), ("large", "big", "huge"))
RADII = (0.14, 0.26)
"""Radii of small and large objects, as shares of the image width."""

PLACES: tuple[Words, ...] = (("left",), ("right",), ("top",), ("bottom",), ("middle",))
CENTRES = ((0.3, 0.5), (0.7, 0.5), (0.5, 0.3), (0.5, 0.7), (0.5, 0.5))

TEMPLATES = (
    "a {size} {colour} {shape} at the {place}",
    "a {colour} {shape}, {size}, at the {place}",
    "at the {place} there is a {size} {colour} {shape}",
    "one {size} {shape}, {colour}, at the {place}",
)

_OVERSAMPLING = 4

TRAIN_CAPTIONS = 1_500
TEST_CAPTIONS = 400

Task = Literal["colour", "shape"]


@dataclass(frozen=True, slots=True)
class Word:
    """A word by its family and its index there; 0 is the common word."""

    family: int
    place: int

    @property
    def common(self) -> bool:
        """Whether it is the one that stands for its family."""
        return self.place == 0


@dataclass(frozen=True, slots=True)
class Scene:
    """One object and the words that a caption has for it."""

    colour: Word
    shape: Word
    size: Word
    place: Word
    template: int

    @property
    def caption(self) -> str:
        """Caption of the image."""
        text = TEMPLATES[self.template].format(
            colour=COLOURS[self.colour.family][self.colour.place],
            shape=SHAPES[self.shape.family][self.shape.place],
            size=SIZES[self.size.family][self.size.place],
            place=PLACES[self.place.family][self.place.place],
        )
        return re.sub(r"\ba (?=[aeiou])", "an ", text)


def draw_scene(rng: np.random.Generator) -> Scene:
    """A scene at random, all words of a family alike."""
    colour, shape, size, place = (_word(rng, kind) for kind in (COLOURS, SHAPES, SIZES, PLACES))
    return Scene(colour, shape, size, place, int(rng.integers(len(TEMPLATES))))


def _word(rng: np.random.Generator, families: tuple[Words, ...]) -> Word:
    family = int(rng.integers(len(families)))
    return Word(family, int(rng.integers(len(families[family]))))


def picture(scene: Scene, rng: np.random.Generator, pixels: int) -> "Image":
    """An RGB picture of a scene, `pixels` wide and high; shade, size and place vary a little."""
    from PIL import Image, ImageDraw

    side = pixels * _OVERSAMPLING
    image = Image.new("RGB", (side, side), tuple(int(v) for v in rng.integers(225, 256, 3)))
    radius = RADII[scene.size.family] * side * rng.uniform(0.9, 1.1)
    x, y = (centre * side + rng.normal() * side * 0.025 for centre in CENTRES[scene.place.family])
    _SHAPES[scene.shape.family](ImageDraw.Draw(image), x, y, radius, _shade(scene, rng))
    return image.resize((pixels, pixels), Image.Resampling.BOX)


Colour = tuple[int, int, int]


def _shade(scene: Scene, rng: np.random.Generator) -> Colour:
    low, high = HUES[scene.colour.family]
    hue = rng.uniform(low, high) % 360 / 360
    red, green, blue = colorsys.hsv_to_rgb(hue, rng.uniform(0.75, 1), rng.uniform(0.75, 1))
    return int(255 * red), int(255 * green), int(255 * blue)


def _circle(draw: "ImageDraw", x: float, y: float, r: float, colour: Colour) -> None:
    draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def _square(draw: "ImageDraw", x: float, y: float, r: float, colour: Colour) -> None:
    draw.rectangle((x - r, y - r, x + r, y + r), fill=colour)


def _triangle(draw: "ImageDraw", x: float, y: float, r: float, colour: Colour) -> None:
    draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colour)


def _ring(draw: "ImageDraw", x: float, y: float, r: float, colour: Colour) -> None:
    draw.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=max(2, int(r * 0.35)))


def _star(draw: "ImageDraw", x: float, y: float, r: float, colour: Colour) -> None:
    corners = []
    for corner in range(10):
        reach, angle = r * (0.4 if corner % 2 else 1), corner * math.pi / 5
        corners.append((x + math.sin(angle) * reach, y - math.cos(angle) * reach))
    draw.polygon(corners, fill=colour)


def _cross(draw: "ImageDraw", x: float, y: float, r: float, colour: Colour) -> None:
    width = r * 0.35
    draw.rectangle((x - r, y - width, x + r, y + width), fill=colour)
    draw.rectangle((x - width, y - r, x + width, y + r), fill=colour)


_SHAPES = (_circle, _square, _triangle, _ring, _star, _cross)


@dataclass(frozen=True, slots=True)
class DemoCorpus:
    """Parquet files with columns `text`, `label` (the name of a family, or none) and, for pictures
    of what was learned, `family`, which no student sees; and the scenes of the test."""

    train: Path
    test: Path
    test_scenes: tuple[Scene, ...]


def write_corpus(folder: Path, task: Task, seed: int) -> DemoCorpus:
    """Draw captions, each one once, and write both files: no text of one is in the other."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 0])
    scenes: dict[str, Scene] = {}
    test: dict[str, Scene] = {}
    while len(test) < TEST_CAPTIONS:
        scene = draw_scene(rng)
        if not _word_of(scene, task).common:
            test[scene.caption] = scene
    while len(scenes) < TRAIN_CAPTIONS:
        scene = draw_scene(rng)
        if scene.caption not in test:
            scenes[scene.caption] = scene
    return DemoCorpus(
        train=_write(folder / "train.parquet", list(scenes.values()), task, all_labels=False),
        test=_write(folder / "test.parquet", list(test.values()), task, all_labels=True),
        test_scenes=tuple(test.values()),
    )


def _word_of(scene: Scene, task: Task) -> Word:
    """The word that a task classifies."""
    return scene.colour if task == "colour" else scene.shape


def _write(file: Path, scenes: list[Scene], task: Task, all_labels: bool) -> Path:
    families = COLOURS if task == "colour" else SHAPES
    words = [_word_of(scene, task) for scene in scenes]
    names = [families[word.family][0] for word in words]
    labels = [
        name if all_labels or word.common else None for name, word in zip(names, words, strict=True)
    ]
    texts = [scene.caption for scene in scenes]
    pq.write_table(pa.table({"text": texts, "label": labels, "family": names}), file)
    return file
