"""Pictures retrieved for texts by CLIP's two towers, against transformers and open_clip by hand."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tiny_checkpoints
import tiny_diffusion
import tiny_text_towers
import torch
from armada.cache_schemas.errors import JobError, TeacherSourceError
from armada.cache_schemas.keys import example_key
from armada.stages.pictures import picture_segment
from armada.stages.precompute.teachers import picture_index
from armada.stages.precompute.teachers.base import Example
from armada.stages.precompute.teachers.clip_image import ClipImageTeacher
from armada.stages.precompute.teachers.clip_image_options import ClipImageOptions
from PIL import Image
from pydantic import ValidationError

CPU = torch.device("cpu")
TEXTS = ("A red bird sings", "two dogs", "x", "two dogs sing and a red bird waits")
MakeTeacher = Callable[..., ClipImageTeacher]


def example(*segments: str) -> Example:
    return Example(example_key(segments), segments)


EXAMPLES = [example(text) for text in TEXTS]


@pytest.fixture(autouse=True)
def _user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("ARMADA_REMEMBER_DIGESTS", raising=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import SiglipImageProcessor

    root = tmp_path_factory.mktemp("models")
    tiny_text_towers.make_clip_of_pictures(root / "clip", TEXTS)
    processor = SiglipImageProcessor(size={"height": 8, "width": 8})
    tiny_checkpoints.make_bert(root / "bert", TEXTS)
    for name in ("siglip_pair", "siglip"):
        tiny_text_towers.make_text_tower(root / name, name, TEXTS)
        processor.save_pretrained(root / name)
    tiny_checkpoints.make_open_clip(root / "open_clip")
    return root


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for seed in range(40):
        pixels = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), dtype=np.uint8)
        name = f"more/{seed}.PNG" if seed % 2 else f"{seed}.png"
        Image.fromarray(pixels).save(folder / name, format="PNG")
    (folder / "same.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "notes.txt").write_text("not one of them")
    return folder


@pytest.fixture
def make(models: Path, pictures: Path) -> MakeTeacher:
    def teacher(name: str = "clip", load: bool = True, **options: Any) -> ClipImageTeacher:
        given = ClipImageOptions(**{"pictures": str(pictures)} | options)
        made = ClipImageTeacher(str(models / name), given, CPU)
        if load:
            made.load()
        return made

    return teacher


def ask(teacher: ClipImageTeacher, examples: list[Example]) -> dict[str, npt.NDArray[Any]]:
    """One by one."""
    with torch.inference_mode():
        rows = [teacher.encode([each]).features for each in examples]
    return {name: np.concatenate([np.asarray(row[name]) for row in rows]) for name in rows[0]}


def unit(rows: torch.Tensor) -> npt.NDArray[Any]:
    return np.asarray(torch.nn.functional.normalize(rows.float(), dim=-1))


@torch.inference_mode()
def by_transformers(folder: Path, files: list[Path]) -> tuple[Any, Any]:
    """Embeddings of the texts and the pictures, of length 1."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    padding = {"padding": "max_length"} if "siglip_pair" in folder.name else {}
    texts = [
        model.get_text_features(
            **tokenizer([text], return_tensors="pt", max_length=24, truncation=True, **padding)
        ).pooler_output
        for text in TEXTS
    ]
    opened = [Image.open(file).convert("RGB") for file in files]
    pixels = AutoImageProcessor.from_pretrained(folder)(opened, return_tensors="pt")
    return unit(torch.cat(texts)), unit(model.get_image_features(**pixels).pooler_output)


@torch.inference_mode()
def by_open_clip(folder: Path, files: list[Path]) -> tuple[Any, Any]:
    import open_clip

    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    pixels = torch.stack([transform(Image.open(file)) for file in files])
    model.eval()
    return unit(model.encode_text(tokenizer(list(TEXTS)))), unit(model.encode_image(pixels))


@pytest.mark.parametrize("name", ["clip", "siglip_pair", "open_clip"])
def test_the_nearest_pictures_are_retrieved(
    models: Path, pictures: Path, make: MakeTeacher, name: str
) -> None:
    found = ask(make(name, neighbours=3), EXAMPLES)
    files = [*pictures.glob("*.png"), *pictures.glob("more/*")]
    files.remove(pictures / "same.png")
    by_hand = by_open_clip if name == "open_clip" else by_transformers
    texts, images = by_hand(models / name, files)
    similarities = texts.astype("f8") @ images.astype("f8").T
    nearest = np.argsort(-similarities, axis=1)[:, :3]
    np.testing.assert_allclose(
        found["similarities"], np.take_along_axis(similarities, nearest, 1), atol=1e-5
    )
    digests = [[hashlib.sha256(files[at].read_bytes()).digest()[:16] for at in r] for r in nearest]
    assert [[bytes(each) for each in row] for row in found["picture_ids"]] == digests
    np.testing.assert_allclose(found["image_embedding"], images[nearest].mean(axis=1), atol=1e-5)


def test_answers_do_not_depend_on_the_batch(make: MakeTeacher) -> None:
    teacher = make("siglip_pair", neighbours=2)  # which has one bucket
    alone = ask(teacher, EXAMPLES)
    with torch.inference_mode():
        together = teacher.encode(EXAMPLES).features
    for name, rows in alone.items():
        np.testing.assert_array_equal(rows, together[name])


def test_pictures_are_embedded_once(make: MakeTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ask(make(), EXAMPLES)
    with monkeypatch.context() as patched:
        patched.setattr(picture_index, "_embedded", None)  # would fail
        again = ask(make(), EXAMPLES)
        unscaled = ask(make(normalize=False), EXAMPLES)
    for name, rows in first.items():
        np.testing.assert_array_equal(rows, again[name])
    assert np.abs(unscaled["image_embedding"] - first["image_embedding"]).max() > 1e-3
    monkeypatch.setenv("ARMADA_REMEMBER_DIGESTS", "0")
    np.testing.assert_array_equal(ask(make(), EXAMPLES)["similarities"], first["similarities"])


def test_the_fingerprint_is_of_what_pictures_show(
    pictures: Path, tmp_path: Path, make: MakeTeacher
) -> None:
    import shutil

    moved = Path(shutil.copytree(pictures, tmp_path / "moved"))
    (moved / "0.png").rename(moved / "renamed.png")
    one = make(load=False).spec.fingerprint
    assert make(load=False, pictures=str(moved)).spec.fingerprint == one
    (moved / "2.png").unlink()
    assert make(load=False, pictures=str(moved)).spec.fingerprint != one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pictures": ""}, "pictures: name the folder of pictures; for those of the corpus"),
        ({"pictures": "/nowhere"}, "pictures /nowhere: holds no pictures"),
        ({"neighbours": 41}, "neighbours: 41, but the folder holds 40 distinct pictures"),
        ({"name": "siglip"}, "texts have 20 numbers and pictures 12, which cannot be compared"),
        ({"name": "bert"}, "gives no features of texts in the space of pictures"),
    ],
)
def test_bad_jobs_are_refused_before_loading(
    make: MakeTeacher, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((JobError, TeacherSourceError), match=message):
        make(load=False, **options)


def test_a_damaged_picture_is_named(pictures: Path, make: MakeTeacher) -> None:
    file = pictures / "more" / "3.PNG"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(TeacherSourceError, match=r"more/3.PNG: is no whole PNG.*; remove it"):
        make()


@pytest.fixture
def given(models: Path) -> MakeTeacher:
    def teacher(name: str = "clip", **options: Any) -> ClipImageTeacher:
        chosen = ClipImageOptions(picture="given", **options)
        return ClipImageTeacher(str(models / name), chosen, CPU)

    return teacher


def examples_of(files: list[Path]) -> list[Example]:
    return [example(picture_segment(file.read_bytes())) for file in files]


@pytest.mark.parametrize("name", ["clip", "siglip_pair", "open_clip"])
def test_a_given_picture_is_embedded_itself(
    models: Path, pictures: Path, given: MakeTeacher, name: str
) -> None:
    files = sorted(pictures.glob("*.png"))[:5]
    teacher = given(name)
    assert [feature.name for feature in teacher.spec.features] == ["image_embedding"]
    teacher.load()
    found = ask(teacher, examples_of(files))["image_embedding"]
    by_hand = by_open_clip if name == "open_clip" else by_transformers
    np.testing.assert_allclose(found, by_hand(models / name, files)[1], atol=1e-5)
    unscaled = given(name, normalize=False)
    unscaled.load()
    longer = ask(unscaled, examples_of(files))["image_embedding"]
    assert np.abs(np.linalg.norm(longer, axis=1) - 1).min() > 1e-3
    np.testing.assert_allclose(
        longer / np.linalg.norm(longer, axis=1, keepdims=True), found, atol=1e-5
    )


def test_an_encoder_of_pictures_alone_embeds_them_too(pictures: Path, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModel

    tiny_diffusion.make_vit(tmp_path / "vit")
    teacher = ClipImageTeacher(str(tmp_path / "vit"), ClipImageOptions(picture="given"), CPU)
    teacher.load()
    files = sorted(pictures.glob("*.png"))[:3]
    found = ask(teacher, examples_of(files))["image_embedding"]
    opened = [Image.open(file).convert("RGB") for file in files]
    pixels = AutoImageProcessor.from_pretrained(tmp_path / "vit")(opened, return_tensors="pt")
    with torch.inference_mode():
        output = AutoModel.from_pretrained(tmp_path / "vit").eval()(**pixels)
    np.testing.assert_allclose(found, unit(output.pooler_output), atol=1e-5)


def test_settings_of_given_pictures_are_no_settings_of_texts(given: MakeTeacher) -> None:
    """And caches of retrieved pictures keep the fingerprints that they had."""
    settings = given().spec.settings
    assert settings["picture"] == "given"
    assert not settings.keys() & {"pictures", "neighbours", "template", "lowercase", "max_length"}
    assert "picture" not in ClipImageOptions(pictures="photos").settings()


@pytest.mark.parametrize(
    "options",
    [{"pictures": "p"}, {"neighbours": 2}, {"template": "a {text}"}, {"max_length": 9}],
)
def test_options_of_texts_are_refused_beside_given_pictures(options: dict[str, Any]) -> None:
    name = next(iter(options))
    with pytest.raises(ValidationError, match=f"{name}: is for picture=retrieved; leave it out"):
        ClipImageOptions(picture="given", **options)


def test_other_segments_than_expected_are_refused(
    pictures: Path, make: MakeTeacher, given: MakeTeacher
) -> None:
    (picture,) = examples_of([pictures / "0.png"])
    with pytest.raises(JobError, match="an example has 2 segments; name one column, as picture:"):
        given().check([example(*picture.segments, "a bird")])
    with pytest.raises(JobError, match=r"'a bird' is none; name the column as picture:COLUMN"):
        given().check([example("a bird")])
    with pytest.raises(JobError, match=r"names a column of pictures.*set picture=given"):
        make(load=False).check([picture])


def test_a_damaged_given_picture_is_refused_and_others_are_not(
    pictures: Path, given: MakeTeacher
) -> None:
    sound, other = examples_of([pictures / "0.png", pictures / "2.png"])
    damaged = example(picture_segment((pictures / "4.png").read_bytes()[:-40]))
    teacher = given()
    teacher.load()
    with torch.inference_mode():
        answers = teacher.encode([sound, damaged, other])
        alone = teacher.encode([damaged])
    assert answers.refused == {1: "the picture is no whole PNG, JPEG, WEBP file"}
    assert alone.refused.keys() == {0}
    rows = np.asarray(answers.features["image_embedding"])
    np.testing.assert_array_equal(rows[[0, 2]], ask(teacher, [sound, other])["image_embedding"])


def test_what_only_looks_like_a_picture(pictures: Path, make: MakeTeacher) -> None:
    known = make(load=False).spec.weights["pictures"]
    (pictures / "folder.png").mkdir()
    assert make(load=False).spec.weights["pictures"] == known
    (pictures / "lost.png").symlink_to(pictures / "nowhere")
    with pytest.raises(TeacherSourceError, match=r"lost\.png: No such file or directory; remove"):
        make(load=False)
