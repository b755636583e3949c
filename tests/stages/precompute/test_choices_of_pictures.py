"""Scored choices of a picture and a text, against the model itself asked about one answer at a
time, which reads the picture again for each."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_vlms
import torch
from armada.cache_schemas.errors import JobError, TeacherOutputError, TeacherSourceError
from armada.cache_schemas.keys import example_key
from armada.stages.pictures import picture_segment
from armada.stages.precompute.teachers.base import Answers, Example
from armada.stages.precompute.teachers.choices import ChoicesTeacher
from armada.stages.precompute.teachers.choices_options import ChoicesOptions
from armada.stages.store.reading.reader import open_cache
from command_line import CommandLine
from PIL import Image
from pydantic import ValidationError
from scipy.special import log_softmax, softmax
from transformers import AutoModelForImageTextToText, AutoProcessor

TEXTS = ("A red bird sings", "two dogs", "x", "two dogs sing " * 9)
ANSWERS = (" dogs", " a red bird", " two dogs sing")
"""Of several tokens, and of as many as others."""


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 24 + 8 * seed, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def segment(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return picture_segment(file.getvalue())


PICTURES = [picture(seed) for seed in range(len(TEXTS))]
ROWS = [(segment(image), text) for image, text in zip(PICTURES, TEXTS, strict=True)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: tiny_vlms.make_vlm(root / name, name, TEXTS) for name in tiny_vlms.FAMILIES}


def loaded(folder: Path, **options: Any) -> ChoicesTeacher:
    given = {"picture": "given", "text_format": "chat", "answers": ANSWERS, **options}
    teacher = ChoicesTeacher(str(folder), ChoicesOptions(**given), torch.device("cpu"))
    teacher.load()
    return teacher


def ask(teacher: ChoicesTeacher, rows: Sequence[tuple[str, ...]] = ROWS) -> Answers:
    examples = [Example(example_key(row), row) for row in rows]
    teacher.check(examples)
    with torch.inference_mode():
        return teacher.encode(examples)


def textbook(
    folder: Path, prompts: Sequence[str], pictures: Sequence[Image.Image], answers: Sequence[str]
) -> Any:
    """Scores [B, K]: prompt and answer are one text, the picture before them."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    words = len(processor.tokenizer)
    rows = []
    for prompt, image in zip(prompts, pictures, strict=True):
        scores = []
        for answer in answers:
            ids = processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
            inputs = dict(processor(text=[prompt], images=[[image]], return_tensors="pt"))
            shape = inputs["input_ids"].shape
            for name, fill in {"input_ids": ids, "attention_mask": [1] * len(ids)}.items():
                inputs[name] = torch.cat([inputs[name], torch.tensor([fill])], dim=1)
            for name in inputs.keys() - {"input_ids", "attention_mask"}:
                if inputs[name].shape == shape:  # kinds of tokens
                    rest = torch.zeros(1, len(ids), dtype=inputs[name].dtype)
                    inputs[name] = torch.cat([inputs[name], rest], dim=1)
            with torch.no_grad():
                logits = model(**inputs).logits[0, :, :words].double().numpy()
            log_probs = log_softmax(logits, axis=1)[shape[1] - 1 :]
            scores.append(sum(log_probs[at, token] for at, token in enumerate(ids)))
        rows.append(scores)
    return np.array(rows)


def in_chat(folder: Path, text: str, *before: dict[str, Any]) -> str:
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": text}]
    turns = [*before, {"role": "user", "content": content}]
    return str(processor.apply_chat_template(turns, add_generation_prompt=True))


@pytest.mark.parametrize("family", tiny_vlms.FAMILIES)
def test_logits_are_the_log_probabilities_of_the_answers(
    folders: dict[str, Path], family: str
) -> None:
    folder = folders[family]
    options = {"user_template": "Of this: {text}?", "system_prompt": "Be brief."}
    teacher = loaded(folder, **options)
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    prompts = [in_chat(folder, f"Of this: {text}?", system) for text in TEXTS]
    expected = textbook(folder, prompts, PICTURES, ANSWERS)
    found = ask(teacher)
    np.testing.assert_allclose(found.features["logits"], expected, atol=5e-5)
    assert np.ptp(expected, axis=0).min() > 0.1
    assert not found.truncated.any()
    alone = np.concatenate([ask(teacher, [row]).features["logits"] for row in ROWS[::-1]])
    np.testing.assert_array_equal(found.features["logits"], alone[::-1])


def test_a_plain_prompt_and_a_picture_alone(folders: dict[str, Path]) -> None:
    folder, template = folders["llava"], "<image>\nIt shows"
    teacher = loaded(folder, text_format="plain", prompt_template=template, per="token")
    rows = [(row[0],) for row in ROWS]
    expected = textbook(folder, [template] * len(rows), PICTURES, ANSWERS)
    lengths = [len(teacher._texts._tokens([answer])[0]) for answer in ANSWERS]
    found = ask(teacher, rows).features["logits"]
    np.testing.assert_allclose(found, expected / lengths, atol=5e-5)


@pytest.mark.parametrize("family", tiny_vlms.FAMILIES)
def test_such_a_model_reads_texts_alone(folders: dict[str, Path], family: str) -> None:
    folder = folders[family]
    teacher = loaded(folder, picture="none", text_format="plain", prompt_template="{text} says")
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    expected = np.zeros((len(TEXTS), len(ANSWERS)))
    for row, text in enumerate(TEXTS):
        prompt = processor.tokenizer(f"{text} says")["input_ids"]
        for at, answer in enumerate(ANSWERS):
            ids = processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + ids])).logits[0].double().numpy()
            log_probs = log_softmax(logits[:, : len(processor.tokenizer)], axis=1)
            places = np.arange(len(ids)) + len(prompt) - 1
            expected[row, at] = log_probs[places, ids].sum()
    rows = [(text,) for text in TEXTS]
    np.testing.assert_allclose(ask(teacher, rows).features["logits"], expected, atol=5e-5)


def test_aspects_and_a_critic(folders: dict[str, Path]) -> None:
    folder, questions = folders["qwen2_vl"], ("Dogs?", "Is it a bird that sings?")
    options = {"user_template": "{text} {question}", "questions": questions, "score": (1, 3)}
    teacher = loaded(folder, answers=("no", "yes"), **options)
    found = ask(teacher, ROWS[:2]).features
    for at, question in enumerate(questions):
        prompts = [in_chat(folder, f"{text} {question}") for text in TEXTS[:2]]
        scores = textbook(folder, prompts, PICTURES[:2], ("no", "yes"))
        np.testing.assert_allclose(found["aspects"][:, at], scores @ [-1, 1], atol=5e-5)
        expected = softmax(scores, axis=1) @ [1, 3]
        np.testing.assert_allclose(found["score"][:, at], expected, atol=5e-5)


def test_of_a_long_text_the_prompt_and_the_picture_are_kept(folders: dict[str, Path]) -> None:
    folder = folders["llava"]
    whole = loaded(folder, user_template="{text}?")
    lengths = [len(of_row[0]) for of_row in whole._texts.read([row[1:] for row in ROWS[:3]]).ids]
    short = loaded(folder, user_template="{text}?", max_length=max(lengths) + whole._texts.longest)
    found = ask(short)
    assert found.truncated.tolist() == [False, False, False, True]
    np.testing.assert_array_equal(found.features["logits"][:3], ask(whole).features["logits"][:3])
    (kept,) = short._texts.read([(TEXTS[-1],)]).texts[0]
    assert kept.endswith("?")
    assert TEXTS[-1].startswith(kept[:-1])
    expected = textbook(folder, [in_chat(folder, kept)], PICTURES[-1:], ANSWERS)
    np.testing.assert_allclose(found.features["logits"][3:], expected, atol=5e-5)


def test_what_cannot_be_read_is_refused_and_the_others_answered(folders: dict[str, Path]) -> None:
    broken = ROWS[0][0][:-40]
    rows = [ROWS[0], (broken, "x"), (ROWS[1][0], "an <image> here"), ("bird.png", "x"), ROWS[1]]
    teacher = loaded(folders["llava"])
    found = ask(teacher, rows)
    assert list(found.refused) == [1, 2, 3]
    assert found.refused[1].startswith("picture: is no")
    assert found.refused[2] == "its text has <image>, which stands for a picture or video"
    assert "is no picture" in found.refused[3]
    logits = found.features["logits"]
    np.testing.assert_array_equal(logits[[0, 4]], ask(teacher, ROWS[:2]).features["logits"])
    assert not logits[1:4].any()
    video = ask(loaded(folders["qwen2_vl"]), [ROWS[0], (ROWS[1][0], "a <|video_pad|>")])
    assert list(video.refused) == [1]
    teacher._positions = 20
    with pytest.raises(TeacherOutputError, match="use smaller pictures"):
        ask(teacher)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"content_free": ("N/A",)}, "content_free: is of texts"),
        ({"premise": "It is"}, "premise: is of texts"),
        ({"end_token": True, "text_format": "chat"}, "end_token: of a chat with a picture"),
        ({"picture": "none", "prompt_template": "It shows"}, "prompt_template: has no {text}"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        ChoicesOptions(**{"picture": "given"} | options)
    assert said in str(error.value)


def test_a_plain_prompt_says_where_the_picture_stands(folders: dict[str, Path]) -> None:
    with pytest.raises(
        JobError, match=r"prompt_template: .* does not say where the picture stands"
    ):
        loaded(folders["llava"], text_format="plain")


def test_texts_alone_have_the_fingerprint_that_they_had() -> None:
    assert "picture" not in ChoicesOptions().settings()
    assert ChoicesOptions(picture="given").settings()["picture"] == "given"


def test_a_model_that_goes_on_otherwise_is_refused(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen2-VL counts positions after a picture by what it remembers of that."""
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

    nothing = property(lambda _: None, lambda *_: None)
    monkeypatch.setattr(Qwen2VLModel, "rope_deltas", nothing, raising=False)
    with pytest.raises(TeacherSourceError, match="goes on from a picture otherwise"):
        loaded(folders["qwen2_vl"])


def test_a_corpus_of_pictures_is_cached(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for row, image in enumerate(PICTURES):
        image.save(tmp_path / f"{row}.png")
    names = [f"{row}.png" for row in range(len(TEXTS))]
    pq.write_table(pa.table({"photo": names, "text": TEXTS}), tmp_path / "rows.parquet")
    answers = '["dogs", "a bird"]'
    command = (
        *("precompute", "--corpus", tmp_path / "rows.parquet", "--cache", tmp_path / "cache"),
        *("--text-column", "picture:photo", "--teacher", f"choices:{folders['idefics3']}"),
        *("--set", "picture=given", "--set", "text_format=chat", "--set", f"answers={answers}"),
        *("--set", "user_template=What is it?"),
    )
    armada = CommandLine(capsys)
    assert "4 to compute" in armada.done(*command, "--dry-run")
    armada.done(*command, "--quiet")
    cache = open_cache(tmp_path / "cache")
    assert cache.feature_spec("logits").labels == ("dogs", "a bird")
    keys = [example_key((picture_segment((tmp_path / name).read_bytes()),)) for name in names]
    rows = cache.find(np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16))
    found = cache["logits"][rows]
    prompt = in_chat(folders["idefics3"], "What is it?")
    expected = textbook(folders["idefics3"], [prompt] * 4, PICTURES, ("dogs", "a bird"))
    np.testing.assert_allclose(found, expected, atol=5e-5)
