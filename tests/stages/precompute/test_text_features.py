"""Text features of CLIP and its kin as `encoder` answers, against transformers' own."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from armada.cache_schemas.errors import JobError, TeacherSourceError
from armada.cache_schemas.keys import example_key
from armada.stages.precompute.teachers.base import Example
from armada.stages.precompute.teachers.encoder import EncoderOptions, EncoderTeacher
from armada.stages.precompute.teachers.open_clip import OpenClipOptions, OpenClipTeacher
from tiny_embeddings import encode, modules, quiet_sentence_transformers
from tiny_text_towers import POSITIONS, PROJECTED, make_text_tower

TEXTS = (
    "a red bird",
    "gulls",
    "two dogs on a pier at noon in the rain",
    "an old clock that nobody has wound for as long as the harbour has been there, or longer",
)
WHOLE = ("clip", "siglip", "siglip2", "metaclip_2", "groupvit", "altclip", "chinese_clip", "clap")
WHOLE += ("blip", "dual")
ALONE = ("clip_text", "siglip_text", "clap_text")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model of that family, made once."""
    root = tmp_path_factory.mktemp("towers")

    def make(name: str) -> Path:
        if not (root / name).exists():
            make_text_tower(root / name, name, TEXTS)
        return root / name

    return make


def teacher(folder: Path, **options: Any) -> EncoderTeacher:
    return EncoderTeacher(str(folder), EncoderOptions(**options), torch.device("cpu"))


def answers(asked: EncoderTeacher) -> npt.NDArray[np.float32]:
    asked.load()
    with torch.inference_mode():
        examples = [Example(example_key((text,)), (text,)) for text in TEXTS]
        return np.concatenate([asked.encode([one]).features["pooled"] for one in examples])


def by_hand(folder: Path, name: str) -> npt.NDArray[Any]:
    """All texts as one batch, as the processors of these models have them padded."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    kinds = {
        "clip_text": "CLIPTextModelWithProjection",
        "clap_text": "ClapTextModelWithProjection",
        "siglip_text": "SiglipTextModel",
    }
    kind = getattr(transformers, kinds.get(name, "AutoModel"))
    model = kind.from_pretrained(folder).eval()
    padding = "max_length" if name.startswith("siglip") else True
    inputs = tokenizer(
        list(TEXTS), padding=padding, truncation=True, max_length=POSITIONS, return_tensors="pt"
    )
    with torch.inference_mode():
        if name in ALONE:
            output = model(**inputs)
            return (output.pooler_output if name == "siglip_text" else output.text_embeds).numpy()
        return model.get_text_features(**inputs).pooler_output.numpy()


@pytest.mark.parametrize("name", [*WHOLE, *ALONE])
def test_features_are_those_of_transformers(model: Callable[[str], Path], name: str) -> None:
    asked = teacher(model(name))
    expected, found = by_hand(model(name), name), answers(asked)
    assert found.shape == (len(TEXTS), PROJECTED)
    assert asked.spec.features[0].shape == (PROJECTED,)
    assert asked.spec.settings["pooling"] == "features"
    assert asked.spec.settings["max_length"] == POSITIONS
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    parts = [part for part, _ in asked._model.named_children()]
    assert not [part for part in parts if part.startswith(("vision", "visual", "audio"))]


def test_features_of_length_1(model: Callable[[str], Path]) -> None:
    expected = by_hand(model("clip"), "clip")
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    scaled = teacher(model("clip"), normalize=True)
    np.testing.assert_allclose(answers(scaled), expected, atol=1e-5)
    assert scaled.spec.fingerprint != teacher(model("clip")).spec.fingerprint


def test_no_bit_depends_on_the_batch(model: Callable[[str], Path]) -> None:
    asked = teacher(model("siglip"))
    assert "padding" not in asked.spec.settings  # every text is as long as the model takes
    alone = answers(asked)
    with torch.inference_mode():
        examples = [Example(example_key((text,)), (text,)) for text in TEXTS]
        together = asked.encode(examples)
    assert together.features["pooled"].tobytes() == alone.tobytes()
    assert together.truncated.tolist() == [False, False, False, True]


def test_a_folder_of_sentence_transformers_holds_one(
    model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    with quiet_sentence_transformers():
        from sentence_transformers import SentenceTransformer

        transformer = modules().Transformer(
            str(_with_processor(model("clip"), tmp_path / "clip")),
            modality_config={
                "text": {"method": "get_text_features", "method_output_name": "pooler_output"}
            },
            module_output_name="sentence_embedding",
        )
        layers = [transformer, modules().Normalize()]
        SentenceTransformer(modules=layers, device="cpu").save(str(folder))
    np.testing.assert_allclose(answers(teacher(folder)), encode(folder, TEXTS), atol=1e-5)


def _with_processor(folder: Path, copy: Path) -> Path:
    """The library reads such models with their image processor alone."""
    from transformers import CLIPImageProcessor

    shutil.copytree(folder, copy)
    CLIPImageProcessor(size=8, crop_size=8).save_pretrained(copy)
    return copy


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("clip", {"pooling": "mean"}, "pooling: a CLIPModel gives its own text features"),
        ("clip", {"layers": (1,)}, "layers: for a CLIPModel, only text features are kept"),
        ("siglip", {"max_length": POSITIONS + 1}, f"max_length .* at most {POSITIONS} tokens"),
    ],
)
def test_options_that_do_not_go_with_them(
    model: Callable[[str], Path], name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(JobError, match=message):
        teacher(model(name), **options)


def test_features_of_each_token_are_refused(model: Callable[[str], Path]) -> None:
    with pytest.raises(TeacherSourceError, match="FlavaModel gives features of each token"):
        teacher(model("flava"))


def test_open_clip_says_who_takes_such_a_folder(model: Callable[[str], Path]) -> None:
    with pytest.raises(TeacherSourceError, match=r"no open_clip_config.json; .* use encoder:"):
        OpenClipTeacher(str(model("clip")), OpenClipOptions(), torch.device("cpu"))
