"""Folders of sentence-transformers as encoder teachers, against that library on the same folder."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tiny_checkpoints
import torch
from armada.cache_schemas.errors import JobError, TeacherSourceError
from armada.cache_schemas.keys import example_key
from armada.stages.precompute.teachers.base import Example
from armada.stages.precompute.teachers.encoder import EncoderOptions, EncoderTeacher
from tiny_embeddings import as_older, dense, encode, make_embedding_model, modules

TEXTS = (
    "a ferry leaves at noon",
    "Seven gulls",
    "the old Harbour clock is late again and nobody minds, least of all the gulls on the pier",
    "rain",
    "who rang the bell? the gulls rang it, said the clock, and then they left for the noon ferry",
)
MODES = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
WIDTH = 32


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint of that name, made once."""
    root = tmp_path_factory.mktemp("checkpoints")

    def make(name: str) -> Path:
        if not (root / name).exists():
            getattr(tiny_checkpoints, f"make_{name}")(root / name, TEXTS)
        return root / name

    return make


@pytest.fixture
def model(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A folder of sentence-transformers from a tiny checkpoint of that name."""

    def make(name: str = "bert", *words: Any, **settings: Any) -> Path:
        return make_embedding_model(tmp_path / "model", checkpoint(name), *words, **settings)

    return make


def teacher(folder: Path, **options: Any) -> EncoderTeacher:
    return EncoderTeacher(str(folder), EncoderOptions(**options), torch.device("cpu"))


def answers(
    asked: EncoderTeacher, texts: tuple[str, ...] = TEXTS, name: str = "pooled"
) -> npt.NDArray[np.float32]:
    """Each text by itself, in its own bucket."""
    asked.load()
    with torch.inference_mode():
        examples = [Example(example_key((text,)), (text,)) for text in texts]
        return np.concatenate([asked.encode([one]).features[name] for one in examples])


def agrees(folder: Path, expected: npt.NDArray[Any], **options: Any) -> EncoderTeacher:
    asked = teacher(folder, **options)
    found = answers(asked)
    assert np.abs(found).max() > 0.05
    np.testing.assert_allclose(found, expected, atol=2e-5)
    (pooled,) = asked.spec.features
    assert pooled.shape == found.shape[1:]
    return asked


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("mode", [*MODES, ("cls", "mean"), MODES])
def test_every_pooling(
    model: Callable[..., Path], mode: str | tuple[str, ...], older: bool
) -> None:
    folder = model("bert", mode)
    if older:
        as_older(folder)
    asked = agrees(folder, encode(folder, TEXTS))
    assert asked.spec.features[0].shape == (WIDTH * (1 if isinstance(mode, str) else len(mode)),)
    assert asked.notes == ()


def test_cls_and_length_1_as_bge_has_them(model: Callable[..., Path]) -> None:
    folder = model("bert", "cls", [modules().Normalize()], max_length=12)
    settings = agrees(folder, encode(folder, TEXTS)).spec.settings
    assert (settings["pooling"], settings["normalize"], settings["max_length"]) == ("cls", True, 12)
    assert "modules" not in settings


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_the_last_token_of_a_decoder_that_pads_on_the_left(
    model: Callable[..., Path], name: str
) -> None:
    folder = model(
        name,
        "lasttoken",
        [modules().Normalize()],
        padding_side="left",
        prompts={"query": "Instruct: find gulls\nQuery:", "document": ""},
    )
    assert agrees(folder, encode(folder, TEXTS)).spec.settings["pooling"] == "last"
    asked = agrees(folder, encode(folder, TEXTS, prompt_name="query"), prompt_name="query")
    assert asked.spec.settings["prompt"] == "Instruct: find gulls\nQuery:"
    assert asked.spec.fingerprint != teacher(folder).spec.fingerprint


def test_the_weighted_mean_of_a_decoder(model: Callable[..., Path]) -> None:
    folder = model("llama", "weightedmean")
    agrees(folder, encode(folder, TEXTS))


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_prompts_are_read_and_pooled_as_declared(
    model: Callable[..., Path], mode: str, include: bool
) -> None:
    prompts = {"passage": "the clock: ", "other": "rain: "}
    folder = model("bert", mode, include_prompt=include, prompts=prompts, default_prompt="passage")
    asked = agrees(folder, encode(folder, TEXTS))
    assert asked.spec.settings["prompt"] == "the clock: "
    assert asked.spec.settings.get("include_prompt", True) is include
    other = agrees(folder, encode(folder, TEXTS, prompt="gulls "), prompt="gulls ")
    assert other.notes == ("prompt: is 'gulls ', but the folder declares 'the clock: '",)
    agrees(folder, encode(folder, TEXTS, prompt=""), prompt="")


def test_layers_behind_the_pooling(model: Callable[..., Path]) -> None:
    torch.manual_seed(5)
    norm = modules().LayerNorm(24)
    torch.nn.init.normal_(norm.norm.weight)
    layers = [
        dense(WIDTH, 24, torch.nn.Tanh()),
        modules().Dropout(0.5),
        norm,
        modules().Normalize(),
        dense(24, 24, torch.nn.GELU(), bias=False, use_residual=True),
        dense(24, 10, torch.nn.Identity(), use_residual=True),
        modules().Normalize(),
    ]
    folder = model("bert", "cls", layers)
    asked = agrees(folder, encode(folder, TEXTS))
    assert asked.spec.settings["normalize"] is True
    assert asked.spec.settings["modules"] == (
        "Dense 32 to 24, Tanh",
        "LayerNorm",
        "Normalize",
        "Dense 24 to 24, GELU",
        "Dense 24 to 10, Identity",
    )
    assert set(asked.spec.weights) == {"model", "modules"}
    other = shutil.copytree(folder, folder.with_name("other"))
    weights = other / "2_Dense" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert teacher(other).spec.fingerprint != asked.spec.fingerprint


def test_layers_change_no_bit_of_an_answer_in_another_batch(model: Callable[..., Path]) -> None:
    folder = model("bert", "mean", [dense(WIDTH, 40, torch.nn.Tanh())])
    asked = teacher(folder)
    asked.load()
    examples = [Example(example_key((text,)), (text,)) for text in TEXTS if len(text) < 24]
    with torch.inference_mode():
        together = asked.encode(examples).features["pooled"]
        alone = [asked.encode([one]).features["pooled"][0] for one in examples]
    assert together.tobytes() == np.stack(alone).tobytes()


def test_lower_case_is_the_tokenizers(model: Callable[..., Path]) -> None:
    """Prompts too; newer releases save it within the tokenizer."""
    newer = model("bert", "mean", lowercase=True, prompts={"p": "RAIN "}, default_prompt="p")
    agrees(newer, encode(newer, TEXTS))
    shutil.rmtree(newer)
    folder = as_older(model("bert", "mean"), lowercase=True)
    expected = encode(folder, TEXTS)
    assert agrees(folder, expected).spec.settings["lowercase"] is True
    assert np.abs(answers(teacher(folder, lowercase=False)) - expected).max() > 0.01


def test_long_texts_are_read_as_far_as_declared(
    model: Callable[..., Path], checkpoint: Callable[[str], Path]
) -> None:
    folder = as_older(model("bert", "mean"), max_length=9)
    long = (*TEXTS, "gulls " * 200)
    np.testing.assert_allclose(answers(teacher(folder), long), encode(folder, long), atol=2e-5)
    assert teacher(folder).spec.settings["max_length"] == 9
    whole = as_older(folder, max_length=None)
    np.testing.assert_allclose(answers(teacher(whole), long), encode(whole, long), atol=2e-5)
    assert teacher(whole).spec.settings["max_length"] == tiny_checkpoints.POSITIONS


@pytest.mark.parametrize("normalized", [False, True])
def test_embeddings_are_cut(model: Callable[..., Path], normalized: bool) -> None:
    folder = model("bert", "mean", [modules().Normalize()] if normalized else [])
    asked = agrees(folder, encode(folder, TEXTS, cut=5), dim=5)
    again = agrees(
        folder,
        encode(folder, TEXTS, cut=5, normalize_embeddings=True),
        dim=5,
        normalize=True,
    )
    prints = {asked.spec.fingerprint, again.spec.fingerprint, teacher(folder).spec.fingerprint}
    assert len(prints) == 3
    with pytest.raises(JobError, match="dim: 33 is more than the 32"):
        teacher(folder, dim=33)


def test_options_of_the_job_win_and_are_told(
    model: Callable[..., Path], checkpoint: Callable[[str], Path]
) -> None:
    folder = model("bert", "cls", [modules().Normalize()], max_length=12)
    plain = teacher(checkpoint("bert"))
    asked = teacher(folder, pooling="mean", normalize=False, max_length=64, lowercase=False)
    np.testing.assert_array_equal(answers(asked), answers(plain))
    assert asked.spec.settings == plain.spec.settings | {"max_length": 64}
    assert asked.notes == (
        "pooling: is 'mean', but the folder declares 'cls'",
        "normalize: is False, but the folder declares True",
        "max_length: is 64, but the folder declares 12",
    )
    assert teacher(folder, pooling="cls", normalize=True, max_length=12).notes == ()


def test_other_folders_keep_their_fingerprints(checkpoint: Callable[[str], Path]) -> None:
    """The settings that an encoder had before there were any declared ones."""
    made = teacher(checkpoint("bert"), padding="multiples_of_16")
    assert dict(made.spec.settings) == {
        "dtype": "float32",
        "layers": (),
        "lowercase": False,
        "max_length": 64,
        "normalize": False,
        "pooling": "mean",
        "revision": None,
        "store_dtype": "float32",
        "template": "{text}",
    }


def test_poolings_and_prompts_of_other_folders(checkpoint: Callable[[str], Path]) -> None:
    """sentence-transformers pools such a folder by the mean."""
    folder = checkpoint("bert")
    agrees(folder, encode(folder, TEXTS, prompt="rain "), prompt="rain ")
    both = answers(teacher(folder, pooling=["cls", "max"]))
    np.testing.assert_array_equal(both[:, :WIDTH], answers(teacher(folder, pooling="cls")))
    np.testing.assert_array_equal(both[:, WIDTH:], answers(teacher(folder, pooling="max")))
    with pytest.raises(JobError, match=r"prompt_name: 'query' .* it has none"):
        teacher(folder, prompt_name="query")


def test_a_transformer_in_a_folder_of_its_own(model: Callable[..., Path]) -> None:
    folder = as_older(model("bert", "max"), max_length=12)
    expected = encode(folder, TEXTS)
    own = folder / "0_Transformer"
    own.mkdir()
    for file in folder.glob("*"):
        if file.is_file() and file.name not in (
            "modules.json",
            "config_sentence_transformers.json",
        ):
            file.rename(own / file.name)
    (own / "sentence_bert_config.json").rename(own / "sentence_roberta_config.json")
    _edit(folder / "modules.json", lambda modules: modules[0].update(path="0_Transformer"))
    np.testing.assert_allclose(encode(folder, TEXTS), expected, atol=2e-5)
    agrees(folder, expected)


def test_the_encoder_of_an_encoder_decoder(model: Callable[..., Path]) -> None:
    folder = model("t5", "mean", [dense(WIDTH, 8, torch.nn.Identity(), bias=False)], max_length=32)
    agrees(folder, encode(folder, TEXTS))


def test_a_cross_encoder_is_a_plain_folder(
    model: Callable[..., Path], checkpoint: Callable[[str], Path]
) -> None:
    folder = model("bert", "cls")
    config = folder / "config_sentence_transformers.json"
    _edit(config, lambda document: document.update(model_type="CrossEncoder"))
    np.testing.assert_array_equal(answers(teacher(folder)), answers(teacher(checkpoint("bert"))))


def _edit(file: Path, change: Callable[[Any], object]) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def _of_dense(**values: Any) -> Callable[[Path], None]:
    return lambda folder: _edit(folder / "2_Dense" / "config.json", lambda d: d.update(values))


def _of_modules(place: int, **values: Any) -> Callable[[Path], None]:
    return lambda folder: _edit(folder / "modules.json", lambda m: m[place].update(values))


def _of_text(**values: Any) -> Callable[[Path], None]:
    file = "sentence_bert_config.json"
    return lambda folder: _edit(folder / file, lambda d: d.update(values))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            _of_modules(1, type="sentence_transformers.models.WordWeights"),
            "WordWeights is not known",
        ),
        (_of_modules(1, type="custom_code.Pooling"), "custom_code.Pooling is custom code"),
        (_of_modules(1, path="../1_Pooling"), "is outside the folder"),
        (_of_modules(1, path="/1_Pooling"), "is outside the folder"),
        (_of_modules(1, type="sentence_transformers.models.Normalize"), "holds Transformer, Norm"),
        (lambda folder: (folder / "modules.json").write_text("[{}]"), "is not a list of modules"),
        (
            lambda folder: (folder / "1_Pooling" / "config.json").write_text("[]"),
            "not a JSON object",
        ),
        (
            _of_dense(activation_function="os.system"),
            "'os.system' is not an activation of torch.nn",
        ),
        (
            _of_dense(activation_function="torch.nn.modules.activation.MultiheadAttention"),
            "not an act",
        ),
        (_of_dense(activation_function="torch.nn.Linear"), "is not an activation of torch.nn"),
        (_of_dense(in_features=5), "takes 5 inputs, but gets 32"),
        (_of_dense(out_features=0), "out_features"),
        (_of_dense(module_input_name="token_embeddings"), "only layers of the pooled embedding"),
        (_of_text(processor_kwargs={"add_eos_token": True}), "processor_kwargs sets add_eos_token"),
        (_of_text(max_seq_length=-1), "max_seq_length -1 is no length"),
        (_of_text(transformer_task="fill-mask"), "needs other inputs"),
        (
            lambda folder: _edit(
                folder / "config_sentence_transformers.json",
                lambda d: d.update(default_prompt_name="query?"),
            ),
            "default_prompt_name 'query\\?' is not one",
        ),
        (
            lambda folder: _edit(
                folder / "1_Pooling" / "config.json", lambda d: d.update(pooling_mode="median")
            ),
            "pooling_mode 'median' is not known",
        ),
    ],
)
def test_what_is_not_known_is_one_line(
    model: Callable[..., Path], damage: Callable[[Path], object], message: str
) -> None:
    folder = model("bert", "mean", [dense(WIDTH, 8, torch.nn.Tanh())])
    damage(folder)
    with pytest.raises(TeacherSourceError, match=message) as caught:
        teacher(folder)
    assert "\n" not in str(caught.value)


def test_weights_of_layers_are_safetensors_and_whole(model: Callable[..., Path]) -> None:
    folder = model("bert", "mean", [dense(WIDTH, 8, torch.nn.Tanh())])
    weights = folder / "2_Dense" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-5])
    with pytest.raises(TeacherSourceError, match=r"2_Dense: model.safetensors: "):
        teacher(folder).load()
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(TeacherSourceError, match="pickled"):
        teacher(folder).load()


def test_prompts_that_leave_no_room(model: Callable[..., Path]) -> None:
    folder = model("bert", "mean", include_prompt=False, max_length=12)
    with pytest.raises(JobError, match="prompt: its 41 tokens leave no room for text"):
        teacher(folder, prompt="rain " * 40)
    with pytest.raises(JobError, match="prompt and prompt_name: name only one"):
        teacher(folder, prompt="rain ", prompt_name="query")


@pytest.mark.slow
@pytest.mark.skipif("ARMADA_REAL_MODELS" not in os.environ, reason="real weights are not at hand")
def test_minilm_is_what_sentence_transformers_says_it_is() -> None:
    folder = Path(os.environ["ARMADA_REAL_MODELS"]) / "minilm"
    texts = (*TEXTS, *(f"{text} {TEXTS[2]}" * 20 for text in TEXTS))
    found, expected = answers(teacher(folder), texts), encode(folder, texts)
    print(f"largest difference {np.abs(found - expected).max():.2g}")
    np.testing.assert_allclose(found, expected, atol=1e-5)
