"""`armada demo`: its world, its corpora, its teacher, and (slow) what it finds."""

import colorsys
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from armada.pipeline.demo.world import (
    COLOURS,
    HUES,
    SHAPES,
    SIZES,
    DemoCorpus,
    Scene,
    Word,
    draw_scene,
    picture,
    write_corpus,
)

WORDS = {"colour": COLOURS, "shape": SHAPES}
TASKS = ["colour", "shape"]

Rows = list[tuple[str, str | None, str]]


def read(file: Path) -> Rows:
    table = pq.read_table(file).to_pydict()
    return list(zip(table["text"], table["label"], table["family"], strict=True))


def word_in(text: str, task: str) -> tuple[str, str]:
    """The one word of a caption that the task asks about, and the common word of its family."""
    words = set(text.replace(",", "").split())
    ((word, family),) = [
        (word, family[0]) for family in WORDS[task] for word in family if word in words
    ]
    return word, family


# --- the world


def test_no_word_stands_for_two_things():
    words = [
        word for families in (COLOURS, SHAPES, SIZES) for family in families for word in family
    ]
    assert len(words) == len(set(words))


def scene(colour: int = 0, shape: int = 0, size: int = 1) -> Scene:
    return Scene(Word(colour, 0), Word(shape, 0), Word(size, 0), Word(4, 0), template=0)


@pytest.mark.parametrize("family", range(len(COLOURS)), ids=[words[0] for words in COLOURS])
def test_an_object_has_the_hue_of_its_family(family: int):
    rng = np.random.default_rng(family)
    low, high = HUES[family]
    for _ in range(5):
        pixels = np.asarray(picture(scene(colour=family), rng, 32))
        red, green, blue = (pixels[16, 16] / 255).tolist()  # a circle in the middle
        hue, saturation, _ = colorsys.rgb_to_hsv(red, green, blue)
        degrees = (hue * 360 - low) % 360
        assert degrees <= high - low + 2 or degrees > 358
        assert saturation > 0.7
        assert pixels[0, 0].min() > 220, "the ground is light"


def test_shapes_and_sizes_can_be_told_apart():
    def inked(**kinds: int) -> np.ndarray:
        pixels = np.asarray(picture(scene(**kinds), np.random.default_rng(0), 32))
        return pixels.min(axis=2) < 150

    masks = [inked(shape=shape) for shape in range(len(SHAPES))]
    for i, mask in enumerate(masks):
        assert mask.any()
        assert all((mask != other).mean() > 0.02 for other in masks[:i])
    assert inked(size=1).sum() > 2 * inked(size=0).sum()


def test_all_words_of_a_family_stand_in_the_same_places():
    """Nothing but the word itself differs: captions alone cannot tell families apart."""
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng) for _ in range(20_000)]
    counts = np.zeros((len(COLOURS), len(COLOURS[0]), len(SHAPES)))
    for each in scenes:
        counts[each.colour.family, each.colour.place, each.shape.family] += 1
    expected = len(scenes) / counts.size
    assert np.abs(counts - expected).max() < 6 * np.sqrt(expected)


# --- the corpora


@pytest.fixture(scope="module", params=TASKS)
def corpus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("demo")
    return request.param, write_corpus(folder, request.param, seed=0)


def test_no_caption_of_the_test_is_trained_on(corpus: tuple[str, DemoCorpus]):
    _, files = corpus
    train, test = ([text for text, _, _ in read(file)] for file in (files.train, files.test))
    assert not set(test) & set(train)
    assert len(set(train)) == len(train)
    assert test == [scene.caption for scene in files.test_scenes]


def test_a_student_gets_labels_for_common_words_only(corpus: tuple[str, DemoCorpus]):
    task, files = corpus
    seen = set()
    for text, label, family in read(files.train):
        word, common = word_in(text, task)
        seen.add(word)
        assert family == common
        assert label == (common if word == common else None)
    tested = set()
    for text, label, family in read(files.test):
        word, common = word_in(text, task)
        tested.add(word)
        assert word != common
        assert label == family == common
    # Every word is read in training, most of them without a label.
    assert seen == {word for family in WORDS[task] for word in family}
    assert tested == seen - {family[0] for family in WORDS[task]}


def test_a_seed_is_a_corpus(tmp_path: Path):
    first, again, other = (
        read(write_corpus(tmp_path / name, "colour", seed).train)
        for name, seed in (("first", 5), ("again", 5), ("other", 6))
    )
    assert first == again != other


# --- refusals


def test_a_folder_with_something_in_it_is_refused(armada, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = armada("demo", "--output", tmp_path, "--quick")
    assert result.code == 2
    assert result.error == f"output {tmp_path}: is not empty; choose another folder"


def test_an_unknown_task_is_refused(armada, tmp_path):
    result = armada("demo", "--output", tmp_path / "demo", "--task", "size")
    assert result.code == 2
    assert "job key 'task': 'size'" in result.error
    assert not (tmp_path / "demo").exists()


# --- the demo


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_the_demo_shows_what_distillation_brings(armada, tmp_path, task):
    folder = tmp_path / "demo"
    out = armada.done("demo", "--output", folder, "--quick", "--task", task)
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary) == [
        "undistilled",
        "distilled",
        "shuffled",
        "untrained_teacher",
        "random_aligner",
    ]
    for name, figures in summary.items():
        assert figures["runs"] == [figures["mean"]]
        assert f"{name.replace('_', ' '):18} accuracy {figures['mean']:.3f}\n" in out
    # Six families: guessing is 1/6. One seed is noisier than the three of a whole demo.
    plain = summary["undistilled"]["mean"]
    assert summary["distilled"]["mean"] > plain + 0.5
    for control in ("shuffled", "untrained_teacher"):
        assert abs(summary[control]["mean"] - plain) < 0.2
    # It hands on where the right captions' features lie, so it may be of some use.
    assert summary["random_aligner"]["mean"] < summary["distilled"]["mean"] - 0.3
    assert (folder / "report.html").stat().st_size > 100_000
