"""The recipes of text towers, one after another, in small: coloured shapes, and tiny models that
lie where commands are started, under the names of the hub."""

import json
import shutil
from pathlib import Path

import pytest
from armada.stages.store.reading.reader import open_cache
from coloured_shapes import CAPTIONS, CLASSES, SIZE, write_shapes
from command_line import CommandLine
from recipes_material import PICTURES, RECIPES
from tiny_checkpoints import make_bert
from tiny_embeddings import make_embedding_model
from tiny_text_towers import make_clip_of_pictures


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With data, and tiny models; commands are started there."""
    captions = [caption.format(name) for caption in CAPTIONS for name in CLASSES]
    folder = tmp_path / "data" / "captions"
    folder.mkdir(parents=True)
    write_shapes(folder / "train.parquet", range(6))
    write_shapes(folder / "validation.parquet", [100], captions=2)
    make_clip_of_pictures(tmp_path / "openai" / "clip-vit-large-patch14", captions, SIZE)
    checkpoint = make_bert(tmp_path / "bert", captions, layers=4)
    make_embedding_model(tmp_path / "sentence-transformers" / "all-MiniLM-L6-v2", checkpoint)
    shutil.copytree(RECIPES, tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_from_pictures_to_text_towers(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order that the first recipe prints; students of other captions' pictures find none."""
    armada = CommandLine(capsys)
    first = RECIPES / "pictures" / "photos.yaml"
    lines = [line[6:] for line in first.read_text().splitlines() if line.startswith("#     ")]
    commands = [line.split() for line in lines]
    recipes = [Path("recipes", "pictures", f"{n}.yaml") for n in ("photos", "captions", "students")]
    assert [Path(command[2]) for command in commands[:-1]] == recipes
    assert {*recipes} == {*PICTURES}
    for command in commands[:2]:
        armada.done(*command[1:], "--quiet")
    assert len(open_cache(Path("caches/captions-photos")).keys) == 7 * len(CLASSES)
    own = {"seed": 0, "epochs": 12, "batch_size": 32, "learning_rate": 3e-3, "max_length": 24}
    armada.done(*commands[2][1:], "--quiet", *(f"--set={key}={own[key]}" for key in own))
    found = {}
    for run in Path("runs/pictures").glob("*/seed-0/metrics.json"):
        found[run.parts[2]] = json.loads(run.read_text())["validation"]["ndcg@10"]
    control = found.pop("pictures-of-other-captions")
    assert control < 0.4
    assert len(found) == 3
    assert min(found.values()) > 0.45
