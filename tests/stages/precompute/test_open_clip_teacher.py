"""The open_clip teacher, against open_clip's own model and tokenizer from the same files."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from armada.cache_schemas.errors import TeacherSourceError
from armada.cache_schemas.keys import example_key
from armada.stages.precompute.teachers import open_clip as open_clip_teacher
from armada.stages.precompute.teachers.base import Answers, Example
from armada.stages.precompute.teachers.open_clip import OpenClipOptions, OpenClipTeacher
from armada.stages.tokenizing import long_texts
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoints import clip_config, make_open_clip, make_tokenizer

TEXTS = ["a kettle on the stove", "Two dogs", "rain over the long bridge, early", "", "an oak"]
LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
"""Fourteen tokens: with the two special ones, exactly the context of 16."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_open_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A named architecture of open_clip's, as small as the folder's."""
    path = tmp_path_factory.mktemp("configs") / "tiny-clip.json"
    path.write_text(json.dumps(clip_config()))
    open_clip.add_model_config(path)
    return path.stem


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small gain nothing from more, and wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def teacher(source: str | Path, **options: Any) -> OpenClipTeacher:
    return OpenClipTeacher(str(source), OpenClipOptions(**options), torch.device("cpu"))


def ask(asked: OpenClipTeacher, texts: list[str]) -> Answers:
    if not hasattr(asked, "_model"):
        asked.load()
    with torch.inference_mode():
        return asked.encode([Example(example_key(text), (text,)) for text in texts])


def by_hand(folder: Path, texts: list[str], normalize: bool) -> np.ndarray:
    model = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True).eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    with torch.inference_mode():
        return model.encode_text(tokens, normalize=normalize).numpy()


@pytest.mark.parametrize("normalize", [True, False])
def test_embeds_as_open_clip_does(folder: Path, normalize: bool) -> None:
    asked = teacher(folder, normalize=normalize)
    assert [(f.name, f.shape, f.dtype) for f in asked.spec.features] == [
        ("embedding", (24,), "float32")
    ]
    answers = ask(asked, [*TEXTS, LONG + " fifteen"])
    expected = by_hand(folder, [*TEXTS, LONG + " fifteen"], normalize)
    np.testing.assert_allclose(answers.features["embedding"], expected, atol=1e-5)


@pytest.mark.parametrize(
    "more",
    [
        {"custom_text": True},
        {"custom_text": True, "text": {"proj_type": "none"}},
        {"custom_text": True, "text": {"no_causal_mask": True, "proj_bias": True}},
    ],
)
def test_other_text_towers(tmp_path: Path, more: dict[str, Any]) -> None:
    folder = make_open_clip(tmp_path / "tiny", **more)
    asked = teacher(folder)
    answers = ask(asked, TEXTS).features["embedding"]
    assert answers.shape[1:] == asked.spec.features[0].shape
    np.testing.assert_allclose(answers, by_hand(folder, TEXTS, True), atol=1e-5)


def test_captioning_models_have_a_text_tower_too(tmp_path: Path) -> None:
    decoder = {"context_length": 15, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    folder = make_open_clip(
        tmp_path / "tiny",
        context=15,
        custom_text=True,
        text={"embed_cls": True, "output_tokens": True},
        vision_cfg=clip_config()["vision_cfg"]
        | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        multimodal_cfg=decoder | {"attn_pooler_heads": 2},
    )
    asked = teacher(folder)
    answers = ask(asked, TEXTS).features["embedding"]
    np.testing.assert_allclose(answers, by_hand(folder, TEXTS, True), atol=1e-5)
    assert not hasattr(asked._model, "text_decoder")


def test_answers_are_the_same_bits_in_any_batch(folder: Path) -> None:
    asked = teacher(folder)
    texts = [f"{text} {more}" for text in TEXTS[:3] for more in TEXTS]
    together = {
        size: np.concatenate(
            [
                ask(asked, texts[start : start + size]).features["embedding"]
                for start in range(0, len(texts), size)
            ]
        )
        for size in (1, 3, 8)
    }
    assert together[1].tobytes() == together[3].tobytes() == together[8].tobytes()


def test_long_texts_are_told(folder: Path) -> None:
    texts = ["an oak", LONG, LONG + " fifteen", "!" * 14, "! " * 15]
    assert ask(teacher(folder), texts).truncated.tolist() == [False, False, True, False, True]


FRAGMENTS = (
    "the|a kettle| |  |\n|&amp;amp;lt;|&nbsp;|don't|'ve|â€™|ﬁ|é|12|!?|<end_of_text>|<start|日本|_|İ"
)
pieces = st.sampled_from(FRAGMENTS.split("|"))


@pytest.fixture(scope="module")
def readers(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Teachers with open_clip's own tokenizer and with one of the folder, and that tokenizer."""
    words = make_tokenizer([*TEXTS, LONG], model_max_length=16)
    more = {"text": {"pool_type": "last", "tokenizer_kwargs": {"clean": "canonicalize"}}}
    other = make_open_clip(tmp_path_factory.mktemp("hf") / "tiny", tokenizer=words, **more)
    places = {"own": folder, "of the folder": other}
    return {
        name: (teacher(place), open_clip.get_tokenizer(f"local-dir:{place}"))
        for name, place in places.items()
    }


@pytest.mark.parametrize("reader", ["own", "of the folder"])
@given(parts=st.lists(pieces | st.text(max_size=3), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_very_long_texts_are_read_as_if_they_were_whole(
    readers: dict[str, Any], reader: str, parts: list[str]
) -> None:
    asked, tokenizer = readers[reader]
    text = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        for module in (open_clip_teacher, long_texts):
            patch.setattr(module, "LONG", 1)
        patch.setattr(long_texts, "TRIED", 1)
        cut = asked._texts([Example(example_key(text), (text,))])
    ids = asked._reads_clean(cut)
    assert ids.tolist() == tokenizer([text]).tolist()
    whole = [tokenizer.clean_fn(text)]
    assert (asked._counts(cut, ids)[0] > 16) == (asked._counts(whole, ids)[0] > 16)


@pytest.mark.parametrize("reader", ["own", "of the folder"])
def test_very_long_texts_are_cut(readers: dict[str, Any], reader: str) -> None:
    text = f"{LONG} " * 1000
    (cut,) = readers[reader][0]._texts([Example(example_key(text), (text,))])
    assert len(cut) < 1000


def test_tokenizer_of_the_folder(tmp_path: Path) -> None:
    tokenizer = make_tokenizer([*TEXTS, LONG], model_max_length=16)
    folder = make_open_clip(
        tmp_path / "tiny",
        tokenizer=tokenizer,
        text={"pool_type": "last", "tokenizer_kwargs": {"clean": "canonicalize"}},
    )
    asked = teacher(folder)
    answers = ask(asked, [*TEXTS, LONG, LONG + " one"])
    expected = by_hand(folder, [*TEXTS, LONG, LONG + " one"], True)
    np.testing.assert_allclose(answers.features["embedding"], expected, atol=1e-5)
    assert answers.truncated.tolist() == [False] * 6 + [True]
    assert set(asked.spec.weights) == {"config", "model", "tokenizer"}
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TeacherSourceError, match="tokenizer"):
        teacher(folder)


def test_prompt(folder: Path) -> None:
    asked = teacher(folder, template="Photo: {text}", lowercase=True)
    answers = ask(asked, ["An oak"]).features["embedding"]
    expected = ask(teacher(folder), ["Photo: an oak"]).features["embedding"]
    np.testing.assert_array_equal(answers, expected)


@pytest.mark.parametrize(
    ("dtype", "stored"), [("auto", "float32"), ("float16", "float16"), ("bfloat16", "float16")]
)
def test_types_are_resolved_in_the_spec(folder: Path, dtype: str, stored: str) -> None:
    asked = teacher(folder, dtype=dtype)
    assert asked.spec.settings["store_dtype"] == stored
    assert asked.spec.settings["dtype"] == ("float32" if dtype == "auto" else dtype)
    answers = ask(asked, TEXTS).features["embedding"]
    assert answers.dtype.name == stored
    np.testing.assert_allclose(answers, by_hand(folder, TEXTS, True), atol=0.05)


def test_keeps_the_text_tower_alone_and_quietly(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    handlers = list(logging.root.handlers)
    asked = teacher(folder)
    asked.load()
    assert capfd.readouterr() == ("", "")
    assert logging.root.handlers == handlers
    assert logging.root.isEnabledFor(logging.WARNING)
    names = [name for name, weight in asked._model.named_parameters()]
    assert not any(name.startswith("visual") for name in names)
    assert not any(weight.requires_grad for weight in asked._model.parameters())
    assert not asked._model.training


def test_named_architecture_with_a_weight_file(folder: Path, architecture: str) -> None:
    file = folder / "open_clip_model.safetensors"
    asked = teacher(architecture, weights=str(file))
    assert asked.spec.name == "tiny-clip:open_clip_model.safetensors"
    expected = by_hand(folder, TEXTS, True)
    np.testing.assert_allclose(ask(asked, TEXTS).features["embedding"], expected, atol=1e-5)
    # The same model, wherever it lies and however it was named.
    assert asked.spec.fingerprint == teacher(folder).spec.fingerprint


def test_pretrained_tag_is_fetched_as_safetensors(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for = []

    def fetch(repository: str, file: str, *, revision: str | None) -> str:
        asked_for.append((repository, file, revision))
        return str(folder / "open_clip_model.safetensors")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    asked = teacher("ViT-B-32", weights="laion2b_s34b_b79k", revision="main")
    assert asked_for == [
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "open_clip_model.safetensors", "main")
    ]
    assert asked.spec.name == "ViT-B-32:laion2b_s34b_b79k"
    assert asked.spec.features[0].shape == (512,)


def test_refuses_a_tag_that_is_a_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    from open_clip import pretrained

    tag = {"url": "https://example.org/weights.pt"}
    monkeypatch.setitem(pretrained._PRETRAINED["ViT-B-32"], "mine", tag)
    with pytest.raises(TeacherSourceError, match="mine of ViT-B-32 is published as a pickle only"):
        teacher("ViT-B-32", weights="mine")


def test_hub_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(repository: str, *, revision: str | None, **patterns: list[str]) -> str:
        assert (repository, revision) == ("team/tiny", "v1")
        assert set(patterns) == {"allow_patterns", "ignore_patterns"}
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    asked = teacher("hf-hub:team/tiny", revision="v1")
    assert asked.spec.name == "team/tiny@v1"
    assert asked.spec.fingerprint == teacher(folder).spec.fingerprint


@pytest.mark.parametrize(
    ("source", "weights", "message"),
    [
        ("ViT-B-32", None, "architecture without weights; name .* laion2b_s34b_b79k"),
        ("ViT-B-32", "laion2b_s34b_b79", "neither .* did you mean 'laion2b_s34b_b79k'"),
        ("ViT-B-32", "openai", "trained with quick_gelu True.*ViT-B-32-quickgelu"),
        ("ViT-B-32", "model.pt", "pickled"),
        ("ViT-B-32", "nowhere.safetensors", "no such file"),
        ("ViT-B-23", "openai", "'ViT-B-23' is none .* did you mean 'ViT-B-32'"),
        ("team/tiny", None, "neither a folder, nor hf-hub:"),
    ],
)
def test_refuses_names_that_lead_to_no_safe_weights(
    source: str, weights: str | None, message: str
) -> None:
    with pytest.raises(TeacherSourceError, match=message) as caught:
        teacher(source, weights=weights)
    assert "\n" not in str(caught.value)


def _pickle_only(folder: Path) -> None:
    (folder / "open_clip_model.safetensors").rename(folder / "open_clip_pytorch_model.bin")


def _two_weights(folder: Path) -> None:
    shutil.copy(folder / "open_clip_model.safetensors", folder / "a.safetensors")
    (folder / "open_clip_model.safetensors").rename(folder / "b.safetensors")


def _unknown_setting(folder: Path) -> None:
    config = clip_config()
    config["text_cfg"]["from_the_future"] = True
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))


def _random_tokens(folder: Path) -> None:
    config = clip_config()
    config["text_cfg"]["tokenizer_kwargs"] = {"reduction_mask": "random"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))


def _config(text: str) -> Any:
    return lambda folder: (folder / "open_clip_config.json").write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "open_clip_config.json").unlink(), "no open_clip_config.json"),
        (_config("{"), "not JSON with a model_cfg"),
        (_config('{"model_cfg": {"embed_dim": 8, "vision_cfg": {}}}'), "lacks text_cfg"),
        (_unknown_setting, "from_the_future"),
        (_random_tokens, "'random' drops tokens"),
        (lambda folder: (folder / "open_clip_model.safetensors").unlink(), "holds no .*weights"),
        (_pickle_only, "pickled"),
        (_two_weights, "several weights"),
    ],
)
def test_refuses_incomplete_folders(
    folder: Path, tmp_path: Path, damage: Any, message: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    damage(copy)
    with pytest.raises(TeacherSourceError, match=message):
        teacher(copy)


def test_refuses_weights_that_would_be_random(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(folder, tmp_path / "model")
    weights = load_file(copy / "open_clip_model.safetensors")
    del weights["text_projection"]
    save_file(weights, copy / "open_clip_model.safetensors")
    with pytest.raises(TeacherSourceError, match="text_projection") as caught:
        teacher(copy).load()
    assert "\n" not in str(caught.value)


def test_weights_go_with_an_architecture_only(folder: Path) -> None:
    with pytest.raises(TeacherSourceError, match="needs the name of an architecture"):
        teacher(folder, weights="laion2b_s34b_b79k")
