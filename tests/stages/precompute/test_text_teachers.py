"""The encoder and classifier teachers, against transformers asked by hand: one text at a time,
without padding, from the same folder."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_checkpoints
import torch
from armada.cache_schemas.errors import InputError, JobError, TeacherOutputError, TeacherSourceError
from armada.cache_schemas.keys import example_key
from armada.stages.precompute.teachers import checkpoint_teacher
from armada.stages.precompute.teachers.base import Answers, Example, PrecisionOptions, Teacher
from armada.stages.precompute.teachers.classifier import ClassifierOptions, ClassifierTeacher
from armada.stages.precompute.teachers.encoder import EncoderOptions, EncoderTeacher
from tiny_language_models import make_causal_lm
from transformers import AutoModel, AutoTokenizer

CPU = torch.device("cpu")
TEXTS = (
    "a ferry leaves at noon",
    "Seven gulls",
    "the old Harbour clock is late again and nobody minds, least of all the gulls on the pier",
    "rain",
    "the baker sells her last loaf before noon",
    "who rang the bell?",
    "late ferry, long queue, cold tea and one more hour on the pier before the rain",
    "gulls rang the clock",
)
LABELS = ("calm", "busy", "stormy")
ENCODERS = ("bert", "roberta", "distilbert", "deberta", "opt", "llama")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint of that name, made once."""
    root = tmp_path_factory.mktemp("checkpoints")

    def make(name: str) -> Path:
        if not (root / name).exists():
            labels = (LABELS,) if name.endswith("classifier") else ()
            getattr(tiny_checkpoints, f"make_{name}")(root / name, TEXTS, *labels)
        return root / name

    return make


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small gain nothing from more, and wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def example(*segments: str) -> Example:
    return Example(example_key(segments), segments)


def encoder(folder: Path, **options: Any) -> EncoderTeacher:
    options = {"max_length": 64} | options
    return EncoderTeacher(str(folder), EncoderOptions(**options), CPU)


def classifier(folder: Path, **options: Any) -> ClassifierTeacher:
    options = {"max_length": 64} | options
    return ClassifierTeacher(str(folder), ClassifierOptions(**options), CPU)


def ask(teacher: Teacher, examples: Sequence[Example]) -> Answers:
    with torch.inference_mode():
        return teacher.encode(examples)


def loaded(teacher: Teacher) -> Teacher:
    teacher.load()
    return teacher


def by_hand(folder: Path, *text: str, auto: str = "AutoModel") -> tuple[Any, Any]:
    """transformers' own answer to one text, or a text and its pair, and its token ids."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = getattr(transformers, auto).from_pretrained(folder).eval()
    inputs = tokenizer(*text, return_tensors="pt")
    if "distilbert" in folder.name:
        del inputs["token_type_ids"]
    with torch.inference_mode():
        return model(**inputs, output_hidden_states=True), inputs["input_ids"]


POOLED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda states: states[0].mean(dim=0),
    "cls": lambda states: states[0, 0],
    "last": lambda states: states[0, -1],
}


@pytest.mark.parametrize("pooling", list(POOLED))
@pytest.mark.parametrize("name", ENCODERS)
def test_pools_the_states_transformers_gives(
    checkpoint: Callable[[str], Path], name: str, pooling: str
) -> None:
    folder = checkpoint(name)
    teacher = loaded(encoder(folder, pooling=pooling, layers=(0, 1)))
    answers = ask(teacher, [example(text) for text in TEXTS]).features
    for row, text in enumerate(TEXTS[:3]):
        output, _ = by_hand(folder, text)
        wanted = {"pooled": output.last_hidden_state, "layer_0": output.hidden_states[0]}
        wanted["layer_1"] = output.hidden_states[1]
        for feature, states in wanted.items():
            expected = POOLED[pooling](states).numpy()
            np.testing.assert_allclose(answers[feature][row], expected, atol=1e-5)


def test_pooler_of_the_model(checkpoint: Callable[[str], Path]) -> None:
    teacher = loaded(encoder(checkpoint("bert"), pooling="pooler", layers=(2,)))
    answers = ask(teacher, [example(text) for text in TEXTS]).features
    output, _ = by_hand(checkpoint("bert"), TEXTS[1])
    np.testing.assert_allclose(answers["pooled"][1], output.pooler_output[0], atol=1e-5)
    np.testing.assert_allclose(answers["layer_2"][1], output.hidden_states[2][0, 0], atol=1e-5)


def test_a_model_of_two_widths(checkpoint: Callable[[str], Path]) -> None:
    """What comes out of OPT's 350 M model is narrower than what goes from layer to layer."""
    folder = checkpoint("opt_350m")
    teacher = loaded(encoder(folder, pooling="last", layers=(0, 1, 2)))
    widths = {feature.name: feature.shape for feature in teacher.spec.features}
    assert widths == {"pooled": (16,), "layer_0": (32,), "layer_1": (32,), "layer_2": (16,)}
    answers = ask(teacher, [example(text) for text in TEXTS]).features
    output, _ = by_hand(folder, TEXTS[1])
    np.testing.assert_allclose(answers["pooled"][1], output.last_hidden_state[0, -1], atol=1e-5)
    for layer in (0, 1, 2):
        expected = output.hidden_states[layer][0, -1]
        np.testing.assert_allclose(answers[f"layer_{layer}"][1], expected, atol=1e-5)


def test_encoder_of_an_encoder_decoder(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer, T5EncoderModel

    whole, half = checkpoint("t5"), shutil.copytree(checkpoint("t5"), tmp_path / "half")
    model = T5EncoderModel.from_pretrained(whole).eval()
    model.save_pretrained(half)
    inputs = AutoTokenizer.from_pretrained(whole)(TEXTS[2], return_tensors="pt")
    with torch.inference_mode():
        expected = model(**inputs).last_hidden_state[0].mean(dim=0)
    for folder in (whole, half):
        teacher = loaded(encoder(folder, max_length=500))
        answers = ask(teacher, [example(text) for text in TEXTS]).features["pooled"]
        np.testing.assert_allclose(answers[2], expected, atol=1e-5)


def test_normalize_scales_every_feature(checkpoint: Callable[[str], Path]) -> None:
    examples = [example(text) for text in TEXTS]
    plain = ask(loaded(encoder(checkpoint("bert"), layers=(1,))), examples).features
    scaled = ask(loaded(encoder(checkpoint("bert"), layers=(1,), normalize=True)), examples)
    for name, values in scaled.features.items():
        lengths = np.linalg.norm(plain[name].astype(np.float64), axis=1, keepdims=True)
        np.testing.assert_allclose(values, plain[name] / lengths, atol=1e-6)


@pytest.mark.parametrize("name", [*ENCODERS, "bert_classifier", "opt_classifier"])
def test_answers_are_the_same_bits_in_any_batch(
    checkpoint: Callable[[str], Path], name: str
) -> None:
    make = classifier if name.endswith("classifier") else encoder
    more = {"pooled": True} if name.endswith("classifier") else {"layers": (1,)}
    teacher = loaded(make(checkpoint(name), **more))
    examples = [example(f"{text} {more}") for text in TEXTS[:4] for more in TEXTS[4:7]]
    answers = {size: _in_buckets(teacher, examples, size) for size in (1, 3, 8)}
    assert answers[1] == answers[3] == answers[8]


def _in_buckets(teacher: Teacher, examples: list[Example], size: int) -> dict[bytes, bytes]:
    """key -> bytes of the answer, asked in batches of at most `size` of one bucket."""
    groups: dict[int, list[Example]] = {}
    for asked, bucket in zip(examples, teacher.buckets(examples), strict=True):
        groups.setdefault(bucket, []).append(asked)
    found = {}
    for group in groups.values():
        for start in range(0, len(group), size):
            batch = group[start : start + size]
            features = ask(teacher, batch).features
            for row, asked in enumerate(batch):
                found[asked.key] = b"".join(values[row].tobytes() for values in features.values())
    return found


@pytest.mark.parametrize(
    ("words", "bucket"),
    [(0, 8), (6, 8), (7, 16), (14, 16), (15, 24), (23, 32), (30, 32), (31, 48), (90, 48)],
)
def test_buckets_are_the_texts_own_length(
    checkpoint: Callable[[str], Path], words: int, bucket: int
) -> None:
    """Two special tokens, rounded up; past `max_length` what is left of the text is."""
    teacher = encoder(checkpoint("bert"), max_length=40)
    assert teacher.buckets([example("gulls " * words), example("rain")]) == [bucket, 8]


def test_buckets_end_where_the_model_does(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint("bert"), tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 20}))
    assert encoder(folder, max_length=18).buckets([example("gulls " * 90)]) == [20]


def test_long_texts_are_cut_and_told(checkpoint: Callable[[str], Path]) -> None:
    teacher = loaded(encoder(checkpoint("bert"), max_length=16, pooling="last"))
    fits, too_long = "gulls " * 14, "gulls " * 15
    answers = ask(teacher, [example(fits), example(too_long), example("rain", too_long)])
    assert answers.truncated.tolist() == [False, True, True]
    # What is cut is the text: the closing token stays, and closes the same tokens as before.
    np.testing.assert_array_equal(answers.features["pooled"][0], answers.features["pooled"][1])


@pytest.mark.parametrize(
    ("segments", "options", "text"),
    [
        (("Seven gulls",), {"lowercase": True}, ("seven gulls",)),
        (("Seven gulls", "rain"), {}, ("Seven gulls", "rain")),
        (("Seven", "Old", "rain"), {"lowercase": True}, ("seven", "old [SEP] rain")),
        (("Seven", "rain"), {"template": "who? {text}"}, ("who? Seven rain",)),
        (("Seven", "rain"), {"template": "Q {text}", "lowercase": True}, ("Q seven rain",)),
    ],
)
def test_how_segments_become_text(
    checkpoint: Callable[[str], Path],
    segments: tuple[str, ...],
    options: dict[str, Any],
    text: tuple[str, ...],
) -> None:
    teacher = loaded(encoder(checkpoint("bert"), **options))
    answer = ask(teacher, [example("rain"), example(*segments)]).features["pooled"][1]
    output, _ = by_hand(checkpoint("bert"), *text)
    np.testing.assert_allclose(answer, output.last_hidden_state[0].mean(dim=0), atol=1e-5)


def test_classifier_gives_logits_with_names(checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint("bert_classifier")
    teacher = loaded(classifier(folder))
    assert [(f.name, f.shape, f.labels) for f in teacher.spec.features] == [
        ("logits", (3,), LABELS)
    ]
    answers = ask(teacher, [example(text, "rain") for text in TEXTS]).features["logits"]
    for row, text in enumerate(TEXTS[:3]):
        output, _ = by_hand(folder, text, "rain", auto="AutoModelForSequenceClassification")
        np.testing.assert_allclose(answers[row], output.logits[0], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "head"), [("bert_classifier", "classifier"), ("opt_classifier", "score")]
)
def test_logits_follow_from_pooled(checkpoint: Callable[[str], Path], name: str, head: str) -> None:
    from transformers import AutoModelForSequenceClassification

    teacher = loaded(classifier(checkpoint(name), pooled=True))
    answers = ask(teacher, [example(text) for text in TEXTS]).features
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint(name))
    with torch.inference_mode():
        again = model.get_submodule(head)(torch.from_numpy(answers["pooled"]))
    np.testing.assert_allclose(answers["logits"], again, atol=1e-5)
    output, _ = by_hand(checkpoint(name), TEXTS[1], auto="AutoModelForSequenceClassification")
    np.testing.assert_allclose(answers["logits"][1], output.logits[0], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "compute", "stored"),
    [
        ({}, "float32", "float32"),
        ({"dtype": "bfloat16"}, "bfloat16", "float16"),
        ({"dtype": "float16", "store_dtype": "float32"}, "float16", "float32"),
        ({"store_dtype": "float16"}, "float32", "float16"),
    ],
)
def test_types_are_resolved_in_the_spec(
    checkpoint: Callable[[str], Path], options: dict[str, str], compute: str, stored: str
) -> None:
    teacher = encoder(checkpoint("bert"), layers=(1,), **options)
    settings = teacher.spec.settings
    assert (settings["dtype"], settings["store_dtype"]) == (compute, stored)
    assert {feature.dtype for feature in teacher.spec.features} == {stored}
    answers = ask(loaded(teacher), [example(TEXTS[0])]).features
    assert {values.dtype.name for values in answers.values()} == {stored}
    output, _ = by_hand(checkpoint("bert"), TEXTS[0])
    expected = output.last_hidden_state[0].mean(dim=0)
    np.testing.assert_allclose(answers["pooled"][0], expected, atol=0.05)


def test_what_float16_cannot_hold_is_infinite() -> None:
    values = PrecisionOptions(store_dtype="float16").precision().cast(torch.tensor([1e5, 1.0]))
    assert values.tolist() == [np.inf, 1.0]


def test_fingerprint_is_of_the_content(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    here = encoder(checkpoint("bert")).spec
    copy = shutil.copytree(checkpoint("bert"), tmp_path / "elsewhere")
    (copy / "checkpoint-5").mkdir()
    (copy / "checkpoint-5" / "trainer_state.json").write_text("{}")
    there = encoder(copy, revision="v2").spec
    assert (here.name, there.name) == ("bert", "elsewhere")
    assert here.fingerprint == there.fingerprint
    assert encoder(copy, normalize=True).spec.fingerprint != here.fingerprint
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.1}))
    assert encoder(copy).spec.fingerprint != here.fingerprint


def test_load_is_quiet_and_freezes(
    checkpoint: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    teacher = encoder(checkpoint("bert_classifier"))  # an encoder: the head is not used
    teacher.load()
    assert capfd.readouterr() == ("", "")
    assert not teacher._model.training
    assert not any(weight.requires_grad for weight in teacher._model.parameters())


Damage = Callable[[Path], object]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: "),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no .*safetensors"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "merge it"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "pickled",
        ),
    ],
)
def test_refuses_incomplete_folders(
    checkpoint: Callable[[str], Path], tmp_path: Path, damage: Damage, message: str
) -> None:
    folder = shutil.copytree(checkpoint("bert"), tmp_path / "model")
    damage(folder)
    with pytest.raises(TeacherSourceError, match=message) as caught:
        encoder(folder)
    assert "\n" not in str(caught.value)


def test_refuses_damaged_weights(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("bert"), tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(TeacherSourceError, match="model"):
        encoder(folder).load()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bert", {"layers": (1, 3)}, "layers: 3 is beyond .* 0 to 2"),
        ("distilbert", {"pooling": "pooler"}, "DistilBertModel has no pooler; choose"),
        ("bert", {"max_length": 65}, "max_length 65: .* at most"),
        ("roberta", {"max_length": 65}, "max_length 65: .* at most"),
        ("bert", {"max_length": 3}, "max_length 3: .* at least 4"),
    ],
)
def test_refuses_options_the_model_cannot_follow(
    checkpoint: Callable[[str], Path], name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(JobError, match=message):
        encoder(checkpoint(name), **options)


@pytest.mark.parametrize("options", [{"layers": (-1,)}, {"layers": (1, 1)}, {"poling": "cls"}])
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"layers|poling"):
        EncoderOptions(**options)


def test_refuses_weights_that_would_be_random(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(TeacherSourceError, match=r"lack classifier\.bias, classifier\.weight"):
        classifier(checkpoint("bert")).load()

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(checkpoint("bert"), tmp_path / "headless")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("pooler")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    encoder(folder, pooling="mean").load()  # the pooler is not asked
    with pytest.raises(TeacherSourceError, match=r"lack pooler\.dense\.bias"):
        encoder(folder, pooling="pooler").load()


@pytest.mark.parametrize("words", [1, 6], ids=["5 tokens of padding", "none by its own bucket"])
def test_refuses_models_that_do_not_heed_a_mask(
    checkpoint: Callable[[str], Path], words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_teacher, "PROBE", "gulls " * words)
    with pytest.raises(TeacherSourceError, match=r"FNetModel gives other outputs .* \(pooled"):
        encoder(checkpoint("fnet")).load()


def test_refuses_models_of_another_kind(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        encoder(tmp_path / "nothing")
    folder = shutil.copytree(checkpoint("bert"), tmp_path / "vision")
    (folder / "config.json").write_text(json.dumps({"model_type": "vit_mae"}))
    with pytest.raises(TeacherSourceError, match="'vit_mae' is not supported by AutoModelForSeq"):
        classifier(folder)


def test_refuses_texts_without_a_token_and_foreign_tokens(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint("bert"), tmp_path / "model")
    document = json.loads((folder / "tokenizer.json").read_text())
    document["model"]["vocab"]["zeppelin"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(document | {"post_processor": None}))
    teacher = loaded(encoder(folder))
    with pytest.raises(TeacherOutputError, match="has no token"):
        ask(teacher, [example("rain"), example(" ")])
    with pytest.raises(TeacherOutputError, match="token 5000 is beyond"):
        ask(teacher, [example("zeppelin")])


def test_widths_are_those_that_come_out(tmp_path: Path) -> None:
    """OPT's 350 M model: layers of 1024 numbers, which leave as 512."""
    folder = make_causal_lm(tmp_path, "opt", texts=TEXTS, word_embed_proj_dim=16)
    teacher = encoder(folder, layers=(0, 1))
    assert [spec.shape for spec in teacher.spec.features] == [(16,), (32,), (32,)]
    teacher.load()
    found = ask(teacher, [example(TEXTS[0])]).features
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        said = model(**tokenizer(TEXTS[0], return_tensors="pt"), output_hidden_states=True)
    np.testing.assert_allclose(found["pooled"][0], said.last_hidden_state[0].mean(0), atol=1e-5)
    np.testing.assert_allclose(found["layer_1"][0], said.hidden_states[1][0].mean(0), atol=1e-5)
