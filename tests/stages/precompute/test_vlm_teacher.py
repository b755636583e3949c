"""Models of images and text as teachers, against transformers' own processors and models."""

import io
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_checkpoints
import tiny_diffusion
import tiny_vlms
import torch
from armada.cache_schemas.errors import JobError, TeacherOutputError, TeacherSourceError
from armada.cache_schemas.keys import example_key
from armada.stages.pictures import picture_segment
from armada.stages.precompute.teachers.base import Answers, Example, example_seed
from armada.stages.precompute.teachers.vlm import VlmTeacher
from armada.stages.precompute.teachers.vlm_options import VlmOptions
from PIL import Image
from pydantic import ValidationError

CPU = torch.device("cpu")
TEXTS = ("A red bird sings", "two dogs", "x", "naïve café 🙂", "two dogs sing " * 9)

MakeTeacher = Callable[..., VlmTeacher]


def example(*segments: str) -> Example:
    return Example(example_key(segments), segments)


def picture(seed: int, width: int = 30, height: int = 20) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


PICTURES = [picture(seed, 24 + 8 * seed) for seed in range(len(TEXTS))]
GIVEN = [
    example(picture_segment(png(image)), text) for image, text in zip(PICTURES, TEXTS, strict=True)
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for family in tiny_vlms.FAMILIES:
        tiny_vlms.make_vlm(root / family, family, TEXTS)
    return root


@pytest.fixture
def make(models: Path) -> MakeTeacher:
    def teacher(family: str | Path, load: bool = True, **options: Any) -> VlmTeacher:
        made = VlmTeacher(str(models / family), VlmOptions(**options), CPU)
        if load:
            made.load()
        return made

    return teacher


def ask(teacher: VlmTeacher, examples: list[Example]) -> Answers:
    """As stage 1 does: in batches of one bucket."""
    buckets = np.asarray(teacher.prepare(examples).buckets)
    found: dict[int, Any] = {}
    with torch.inference_mode():
        for bucket in np.unique(buckets):
            rows = np.flatnonzero(buckets == bucket).tolist()
            answers = teacher.encode([examples[row] for row in rows])
            assert not answers.refused
            for at, row in enumerate(rows):
                features = {name: values[at] for name, values in answers.features.items()}
                found[row] = (features, answers.truncated[at])
    ordered = [found[row] for row in range(len(examples))]
    return Answers(
        {name: np.stack([each[0][name] for each in ordered]) for name in ordered[0][0]},
        np.array([each[1] for each in ordered]),
    )


def by_hand(
    folder: Path, texts: tuple[str, ...], pictures: list[Image.Image] | None, **more: Any
) -> list[Any]:
    """The hidden states [T, H] of each layer for each text, by the whole model."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    found = []
    for at, text in enumerate(texts):
        parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if pictures:
            parts.insert(0, {"type": "image", "image": pictures[at]})
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": parts}],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )
        with torch.inference_mode():
            states = model(**inputs, output_hidden_states=True).hidden_states
        found.append([each[0].numpy() for each in states])
    return found


@pytest.mark.parametrize("pictured", [False, True], ids=["a text alone", "with a picture"])
@pytest.mark.parametrize("family", tiny_vlms.FAMILIES)
def test_states_are_those_of_transformers(
    models: Path, make: MakeTeacher, family: str, pictured: bool
) -> None:
    teacher = make(family, picture="given" if pictured else "none", layers=(1,))
    examples = GIVEN if pictured else [example(text) for text in TEXTS]
    answers = ask(teacher, examples)
    states = by_hand(models / family, TEXTS, PICTURES if pictured else None)
    assert not answers.truncated.any()
    assert teacher.spec.features[0].shape == (tiny_vlms.WIDTH,)
    for name, layer in (("pooled", -1), ("layer_1", 1)):
        expected = np.stack([each[layer][-1] for each in states])
        np.testing.assert_allclose(answers.features[name], expected, atol=2e-5)


def test_other_ways_of_pooling(models: Path, make: MakeTeacher) -> None:
    pooled = {"pooling": ("mean", "last"), "picture": "given"}
    found = ask(make("qwen2_vl", **pooled), GIVEN).features["pooled"]
    states = [each[-1] for each in by_hand(models / "qwen2_vl", TEXTS, PICTURES)]
    expected = [np.concatenate([each.mean(axis=0), each[-1]]) for each in states]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    scaled = ask(make("qwen2_vl", normalize=True, **pooled), GIVEN).features["pooled"]
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(scaled, np.array(expected) / lengths, atol=2e-5)


@pytest.mark.parametrize("family", tiny_vlms.FAMILIES)
def test_an_answer_does_not_depend_on_the_batch(make: MakeTeacher, family: str) -> None:
    teacher = make(family, picture="given")
    together = ask(teacher, GIVEN).features["pooled"]
    alone = [ask(teacher, [each]).features["pooled"][0] for each in GIVEN]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("family", tiny_vlms.FAMILIES)
def test_a_batch_read_at_once_agrees_up_to_rounding(make: MakeTeacher, family: str) -> None:
    """As on a GPU: rows of several lengths, pictures of several sizes."""
    teacher = make(family, picture="given")
    prompts, _ = teacher._texts.prompts([(text,) for text in TEXTS], pictured=True)
    with torch.inference_mode():
        pairs = list(zip(prompts, PICTURES, strict=True))
        at_once = teacher._answer(teacher._inputs(pairs))["pooled"]
    np.testing.assert_allclose(at_once, ask(teacher, GIVEN).features["pooled"], atol=1e-4)


def test_a_picture_changes_the_answer_and_the_fingerprint(make: MakeTeacher) -> None:
    alone, pictured = make("llava"), make("llava", picture="given")
    assert alone.spec.fingerprint != pictured.spec.fingerprint
    other = example(picture_segment(png(picture(99))), TEXTS[0])
    answers = ask(pictured, [GIVEN[0], other]).features["pooled"]
    assert np.abs(answers[0] - answers[1]).max() > 1e-3


GENERATED = {"generator_steps": 2, "generator_size": 32, "picture": "generated"}


def test_a_generated_picture_is_read_with_its_text(
    models: Path, make: MakeTeacher, tmp_path: Path
) -> None:
    """The picture is that of the plain pipeline, with the example's own noise."""
    from diffusers import StableDiffusionPipeline

    folder = tiny_diffusion.make_stable_diffusion(tmp_path / "sd")
    plain = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    examples = [example("two dogs"), example("x")]
    drawn = [
        plain(
            *each.segments,
            **{"num_inference_steps": 2, "height": 32, "width": 32},
            generator=torch.Generator().manual_seed(example_seed(0, each.key)),
        ).images[0]
        for each in examples
    ]
    teacher = make("llava", generator=str(folder), **GENERATED)
    states = by_hand(models / "llava", ("two dogs", "x"), drawn)
    expected = np.stack([each[-1][-1] for each in states])
    answers = ask(teacher, examples)
    np.testing.assert_allclose(answers.features["pooled"], expected, atol=2e-5)
    other = make("llava", generator=str(folder), generator_seed=1, load=False, **GENERATED)
    assert other.spec.fingerprint != teacher.spec.fingerprint
    assert teacher.spec.weights.keys() == {"model", "generator"}
    with torch.no_grad():
        teacher._generator._pipeline.vae.decoder.conv_out.weight.fill_(float("nan"))
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.filterwarnings("ignore", "invalid value encountered in cast", RuntimeWarning)
        refused = teacher.encode(examples).refused
    assert list(refused) == [0, 1]
    assert "is not finite" in refused[0]


def test_the_fingerprint_has_what_the_generator_computes_in(models: Path, tmp_path: Path) -> None:
    """By dtype=auto, both need not be the same."""
    generator = tiny_diffusion.make_stable_diffusion(tmp_path / "sd")
    folder = shutil.copytree(models / "llava", tmp_path / "half")
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = config["text_config"]["dtype"] = "bfloat16"
    (folder / "config.json").write_text(json.dumps(config))

    def spec(dtype: str, device: str) -> Any:
        options = VlmOptions(generator=str(generator), dtype=dtype, **GENERATED)
        return VlmTeacher(str(folder), options, torch.device(device)).spec

    auto, half = spec("auto", "cuda"), spec("bfloat16", "cuda")
    assert auto.settings["dtype"] == half.settings["dtype"] == "bfloat16"
    assert auto.settings["generator_dtype"] == "float16"
    assert auto.fingerprint != half.fingerprint
    assert "generator_dtype" not in spec("auto", "cpu").settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"picture": "generated"}, "generator: is not set; picture=generated needs a pipeline"),
        ({"generator_steps": 3}, "generator_steps: is for picture=generated; leave it out"),
    ],
)
def test_a_generator_is_of_generated_pictures(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VlmOptions(**options)


def test_a_plain_prompt_is_the_template(models: Path, make: MakeTeacher) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    template = "<image>\nsay {text}"
    teacher = make("llava", picture="given", chat_template=False, template=template)
    processor = AutoProcessor.from_pretrained(models / "llava")
    inputs = processor(text="<image>\nsay two dogs", images=PICTURES[1], return_tensors="pt")
    model = AutoModelForImageTextToText.from_pretrained(models / "llava").eval()
    with torch.inference_mode():
        states = model(**inputs, output_hidden_states=True).hidden_states[-1]
    found = ask(teacher, [GIVEN[1]]).features["pooled"]
    np.testing.assert_allclose(found, states[:, -1], atol=2e-5)


def test_a_long_text_is_cut_and_the_prompt_is_not(models: Path, make: MakeTeacher) -> None:
    teacher = make("llava", max_length=4)
    tokenizer = teacher._texts._tokenizer
    (long, _), truncated = teacher._texts.prompts([(TEXTS[-1],), ("x",)], pictured=False)
    assert truncated.tolist() == [True, False]
    assert long.endswith("assistant:")
    kept = long.removeprefix("user: ").removesuffix("assistant:").rstrip("\n")
    assert TEXTS[-1].startswith(kept)
    assert len(tokenizer(kept, add_special_tokens=False).input_ids) == 4
    answers = ask(teacher, [example(TEXTS[-1]), example(kept)])
    assert answers.truncated.tolist() == [True, False]
    np.testing.assert_array_equal(*answers.features["pooled"])


@pytest.mark.parametrize(
    ("segments", "reason"),
    [
        (("photo.png", "a bird"), "a name would leave its content out of the key"),
        (("data:image/png;base64,AAAA", "a bird"), "is no whole PNG, JPEG, WEBP file"),
        ((GIVEN[0].segments[0], "see <image>"), "its text has <image>, which stands for a picture"),
    ],
)
def test_what_cannot_be_read_is_refused_and_the_others_answered(
    make: MakeTeacher, segments: tuple[str, ...], reason: str
) -> None:
    teacher = make("llava", picture="given")
    with torch.inference_mode():
        answers = teacher.encode([GIVEN[0], example(*segments), GIVEN[1]])
        nothing = teacher.encode([example(*segments)])
    assert list(answers.refused) == [1]
    assert reason in answers.refused[1]
    rows = answers.features["pooled"][[0, 2]]
    np.testing.assert_array_equal(rows, ask(teacher, GIVEN[:2]).features["pooled"])
    assert list(nothing.refused) == [0]


def test_more_tokens_than_the_model_takes_are_refused(make: MakeTeacher) -> None:
    teacher = make("idefics3", picture="given")
    teacher._texts.positions = 40
    with pytest.raises(TeacherOutputError, match=r"picture and text: \d+ tokens, the model takes"):
        ask(teacher, GIVEN[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (3,)}, "layers: 3 is beyond the model's; from 0 to 2"),
        (
            {"picture": "given", "chat_template": False},
            "template: '{text}' does not say where the picture stands; put the model's <image>",
        ),
        ({"max_length": 5000}, "max_length 5000: the model takes at most 512 tokens"),
    ],
)
def test_bad_options_are_refused_before_loading(
    make: MakeTeacher, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(JobError, match=message.replace("{", r"\{")):
        make("llava", load=False, **options)


def test_a_model_without_chat_template_is_read_plainly(
    models: Path, make: MakeTeacher, tmp_path: Path
) -> None:
    import shutil

    folder = Path(shutil.copytree(models / "llava", tmp_path / "llava"))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(
        JobError, match="chat_template: the model has none; set chat_template=false"
    ):
        make(folder, load=False)
    found = ask(make(folder, chat_template=False), [example("two dogs")])
    assert np.isfinite(found.features["pooled"]).all()


def test_a_model_of_texts_alone_is_refused(make: MakeTeacher, tmp_path: Path) -> None:
    from tiny_language_models import make_causal_lm

    make_causal_lm(tmp_path / "llama", texts=TEXTS)
    with pytest.raises(TeacherSourceError, match="not supported by AutoModelForImageTextToText"):
        make(tmp_path / "llama", load=False)


def test_a_corpus_of_picture_files_is_cached(
    models: Path, tmp_path: Path, make: MakeTeacher, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from armada.stages.store.reading.reader import open_cache
    from command_line import CommandLine

    for row, image in enumerate(PICTURES):
        image.save(tmp_path / f"{row}.png")
    names = [f"{row}.png" for row in range(len(TEXTS))]
    labels = [row % 2 for row in range(len(TEXTS))]
    table = pa.table({"photo": names, "text": TEXTS, "label": labels})
    pq.write_table(table, tmp_path / "rows.parquet")
    command = (
        *("precompute", "--corpus", tmp_path / "rows.parquet", "--cache", tmp_path / "cache"),
        *("--text-column", "picture:photo", "--text-column", "text"),
        *("--teacher", f"vlm:{models / 'qwen2_vl'}", "--set", "picture=given"),
    )
    armada = CommandLine(capsys)
    said = armada.done(*command, "--dry-run")
    assert "5 to compute" in said
    assert "of teacher time" in said
    armada.done(*command)
    keys = [
        example_key((picture_segment((tmp_path / f"{row}.png").read_bytes()), text))
        for row, text in enumerate(TEXTS)
    ]
    cache = open_cache(tmp_path / "cache")
    rows = cache.find(np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16))
    expected = ask(make("qwen2_vl", picture="given"), GIVEN).features["pooled"]
    np.testing.assert_array_equal(cache["pooled"][rows], expected)
    # A student that reads the text alone learns from it.
    tiny_checkpoints.make_bert(tmp_path / "bert", TEXTS)
    columns = '["picture:photo", text]'
    keys = {
        **{"train": tmp_path / "rows.parquet", "validation": tmp_path / "rows.parquet"},
        **{"text_column": "text", "label_column": "label", "num_labels": 2, "epochs": 1},
        **{"student": tmp_path / "bert", "output": tmp_path / "run"},
        "teachers": f"{{pictures: {{cache: {tmp_path / 'cache'}, text_column: {columns}}}}}",
    }
    words = [word for name, value in keys.items() for word in ("--set", f"{name}={value}")]
    armada.done("distill", *words, "--quiet")
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_a_corpus_of_one_column_is_cached(
    models: Path, tmp_path: Path, make: MakeTeacher, capsys: pytest.CaptureFixture[str]
) -> None:
    from armada.stages.store.reading.reader import open_cache
    from command_line import CommandLine

    (tmp_path / "rows.jsonl").write_text('{"text": "two dogs"}')
    CommandLine(capsys).done(
        *("precompute", "--corpus", tmp_path / "rows.jsonl", "--cache", tmp_path / "cache"),
        *("--text-column", "text", "--teacher", f"vlm:{models / 'llava'}"),
    )
    expected = ask(make("llava"), [example("two dogs")]).features["pooled"]
    np.testing.assert_array_equal(open_cache(tmp_path / "cache")["pooled"][:], expected)
