"""Scored choices, against the model itself asked about one answer at a time."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import ArmadaError, JobError
from armada.cache_schemas.keys import example_key
from armada.stages.language.logits import PADDED_NOISE
from armada.stages.precompute.teachers.base import Answers, Example
from armada.stages.precompute.teachers.choices import ChoicesTeacher
from armada.stages.precompute.teachers.choices_options import ChoicesOptions
from pydantic import ValidationError
from scipy.special import log_softmax, softmax
from tiny_language_models import TEXTS, make_causal_lm
from tokenizers.normalizers import Lowercase
from transformers import AutoModelForCausalLM, AutoTokenizer

ANSWERS = (" sea", " the river", " rain and the stars", " a")
"""Of one token and of several."""
TEMPLATE = "Review: {text}\nIt is about"
ROWS = [(text,) for text in TEXTS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    families = ("llama", "gpt2", "gemma2", "mamba")
    return {name: make_causal_lm(root / name, name, padding=7) for name in families}


def loaded(folder: Path, **options: Any) -> ChoicesTeacher:
    given = {"prompt_template": TEMPLATE, "answers": ANSWERS, **options}
    teacher = ChoicesTeacher(str(folder), ChoicesOptions(**given), torch.device("cpu"))
    teacher.load()
    return teacher


def ask(teacher: ChoicesTeacher, rows: Sequence[tuple[str, ...]] = ROWS) -> Answers:
    with torch.inference_mode():
        return teacher.encode([Example(example_key(row), row) for row in rows])


def score(
    folder: Path, prompt: Sequence[int], answer: Sequence[int], words: int | None = None
) -> float:
    """Log-probability of an answer's tokens, from one forward pass of the whole text."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logits = model(ids).logits[0, :, :words].double().numpy()
    log_probs = log_softmax(logits, axis=1)
    begin = len(prompt) - 1
    return float(sum(log_probs[begin + at, token] for at, token in enumerate(answer)))


def textbook(folder: Path, prompts: Sequence[str], answers: Sequence[str] = ANSWERS) -> Any:
    """Scores [P, K] of plain prompts."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = len(tokenizer)
    ids = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    return np.array(
        [
            [score(folder, tokenizer(prompt)["input_ids"], each, words) for each in ids]
            for prompt in prompts
        ]
    )


def written(text: str) -> str:
    return TEMPLATE.replace("{text}", text)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mamba"])
def test_logits_are_the_log_probabilities_of_the_answers(
    folders: dict[str, Path], family: str
) -> None:
    teacher = loaded(folders[family])
    expected = textbook(folders[family], list(map(written, TEXTS)))
    found = ask(teacher).features["logits"]
    np.testing.assert_allclose(found, expected, atol=3e-5)
    assert np.ptp(expected, axis=1).min() > 0.1
    (spec,) = teacher.spec.features
    assert spec.labels == ("sea", "the river", "rain and the stars", "a")


def test_answers_of_one_token_go_on_from_nothing(folders: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    ones = [
        word
        for word in (" sea", " a", " the", " rain")
        if len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1
    ]
    assert len(ones) > 1
    teacher = loaded(folders["llama"], answers=ones)
    read: list[int] = []
    teacher._model.model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    found = ask(teacher, ROWS[:1]).features["logits"]
    expected = textbook(folders["llama"], [written(TEXTS[0])], ones)
    np.testing.assert_allclose(found, expected, atol=3e-5)
    assert len(read) == 1


def test_prompts_of_all_lengths_together(folders: dict[str, Path]) -> None:
    """As on a GPU."""
    teacher = loaded(folders["llama"])
    alone = ask(teacher).features["logits"]
    teacher._find_reader(True, PADDED_NOISE)
    assert teacher._pads_prompts
    np.testing.assert_allclose(ask(teacher).features["logits"], alone, atol=3e-5)


@pytest.mark.parametrize("per", ["token", "byte"])
def test_means_of_tokens_and_bytes(folders: dict[str, Path], per: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    lengths = {
        "token": [len(tokenizer(a, add_special_tokens=False)["input_ids"]) for a in ANSWERS],
        "byte": [len(answer.strip()) for answer in ANSWERS],
    }
    whole = ask(loaded(folders["llama"])).features["logits"]
    found = ask(loaded(folders["llama"], per=per)).features["logits"]
    np.testing.assert_allclose(found, whole / lengths[per], rtol=1e-5)


@pytest.mark.parametrize("end_token", [False, True])
def test_a_chat(folders: dict[str, Path], end_token: bool) -> None:
    options = {"text_format": "chat", "system_prompt": "Be brief.", "end_token": end_token}
    options["user_template"] = TEMPLATE
    answers = ("sea", "rain and the stars")
    teacher = loaded(folders["llama"], **options, answers=answers)
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    expected = []
    for text in TEXTS:
        turns = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": written(text)},
        ]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        behind = "</s>" if end_token else ""
        ids, *after = (
            tokenizer(each, add_special_tokens=False)["input_ids"]
            for each in (prompt, *(answer + behind for answer in answers))
        )
        expected.append([score(folders["llama"], ids, each, len(tokenizer)) for each in after])
    np.testing.assert_allclose(ask(teacher).features["logits"], expected, atol=3e-5)


def test_the_end_of_an_answer_is_scored_on_request(folders: dict[str, Path]) -> None:
    teacher = loaded(folders["llama"], end_token=True)
    ended = [f"{answer}</s>" for answer in ANSWERS]
    expected = textbook(folders["llama"], list(map(written, TEXTS)), ended)
    np.testing.assert_allclose(ask(teacher).features["logits"], expected, atol=3e-5)


def test_calibration_by_texts_without_content(folders: dict[str, Path]) -> None:
    """The softmax is that of Zhao et al.: diag(p_cf)^-1 p, made to sum to 1."""
    texts = ("N/A", "", "[MASK]")
    teacher = loaded(folders["llama"], content_free=texts)
    scores = textbook(folders["llama"], list(map(written, TEXTS)))
    without = softmax(textbook(folders["llama"], list(map(written, texts))), axis=1).mean(axis=0)
    expected = softmax(scores, axis=1) @ np.diag(1 / without)
    expected /= expected.sum(axis=1, keepdims=True)
    found = ask(teacher).features["logits"]
    np.testing.assert_allclose(softmax(found, axis=1), expected, atol=1e-5)
    np.testing.assert_allclose(found, scores - np.log(without), atol=5e-5)


def test_what_answers_have_without_the_text_is_removed(folders: dict[str, Path]) -> None:
    teacher = loaded(folders["llama"], premise="It is about", per="token")
    scores, without = (
        textbook(folders["llama"], prompts)
        for prompts in (list(map(written, TEXTS)), ["It is about"])
    )
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    tokens = [len(tokenizer(a, add_special_tokens=False)["input_ids"]) for a in ANSWERS]
    expected = (scores - without) / tokens
    np.testing.assert_allclose(ask(teacher).features["logits"], expected, atol=5e-5)


QUESTIONS = ("Is it about rain?", "Is it about a bird that sings?", "Are there dogs?")
ASKED = "{text}\n{question}"


@pytest.mark.parametrize("options", [{}, {"content_free": ("N/A", "")}, {"premise": "{question}"}])
def test_aspects_are_log_odds(folders: dict[str, Path], options: dict[str, Any]) -> None:
    answers = (" no", " yes")
    teacher = loaded(
        folders["gpt2"], questions=QUESTIONS, prompt_template=ASKED, answers=answers, **options
    )
    columns = []
    for question in QUESTIONS:
        template = ASKED.replace("{question}", question)
        prompts = [template.replace("{text}", text) for text in TEXTS]
        scores = textbook(folders["gpt2"], prompts, answers)
        if "premise" in options:
            scores -= textbook(folders["gpt2"], [question], answers)
        elif options:
            free = [template.replace("{text}", text) for text in options["content_free"]]
            of_free = textbook(folders["gpt2"], free, answers)
            scores -= np.log(softmax(of_free, axis=1).mean(axis=0))
        columns.append(scores[:, 1] - scores[:, 0])
    found = ask(teacher).features
    assert list(found) == ["aspects"]
    np.testing.assert_allclose(found["aspects"], np.stack(columns, axis=1), atol=5e-5)
    assert teacher.spec.features[0].labels == QUESTIONS


def test_a_critic_gives_the_expected_number(folders: dict[str, Path]) -> None:
    answers, values = (" 1", " 2", " 10"), np.array([1.0, 2.0, 10.0])
    teacher = loaded(folders["llama"], answers=answers, score=True, end_token=True)
    found = ask(teacher).features
    expected = softmax(found["logits"].astype(np.float64), axis=1) @ values
    np.testing.assert_allclose(found["score"][:, 0], expected, rtol=1e-5)
    assert teacher.spec.feature("score").shape == (1,)
    bad = loaded(folders["llama"], answers=(" bad", " good"), score=(-1, 1))
    mild = ask(bad).features
    odds = mild["logits"].astype(np.float64)
    np.testing.assert_allclose(mild["score"], np.tanh((odds[:, 1:] - odds[:, :1]) / 2), atol=1e-6)
    rubric = loaded(
        folders["llama"],
        **{"questions": QUESTIONS, "prompt_template": ASKED, "answers": answers, "score": True},
    )
    assert ask(rubric).features["score"].shape == (len(TEXTS), len(QUESTIONS))


def test_columns_stand_where_the_template_names_them(folders: dict[str, Path]) -> None:
    pair = ("the river {text}", "rain {2}")
    teacher = loaded(folders["llama"], prompt_template="{2} or {1}?")
    expected = textbook(folders["llama"], ["rain {2} or the river {text}?"])
    np.testing.assert_allclose(ask(teacher, [pair]).features["logits"], expected, atol=3e-5)
    with pytest.raises(JobError, match=r"has \{2\}, and a prompt has 1 text columns"):
        ask(teacher, [("one",)])


def test_of_a_long_text_the_template_is_kept(folders: dict[str, Path]) -> None:
    long = "the red bird sings at dawn " * 40
    teacher = loaded(folders["llama"], max_length=48, prompt_template="{1} and {2}: it is about")
    answers = ask(teacher, [(long, "rain falls"), ("a cat", "rain falls")])
    assert answers.truncated.tolist() == [True, False]
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])

    def prompt(most: int) -> str:
        return f"{long[:most]} and rain falls: it is about"

    longest = max(len(tokenizer(a, add_special_tokens=False)["input_ids"]) for a in ANSWERS)
    fitting = [
        most for most in range(10, 200) if len(tokenizer(prompt(most))["input_ids"]) <= 48 - longest
    ]
    expected = textbook(folders["llama"], [prompt(max(fitting))])
    np.testing.assert_allclose(answers.features["logits"][:1], expected, atol=3e-5)
    with pytest.raises(JobError, match=r"max_length: the prompt has \d+ tokens without any text"):
        ask(loaded(folders["llama"], max_length=longest + 2), [(long,)])
    with pytest.raises(JobError, match="max_length: 2 leaves no room"):
        loaded(folders["llama"], max_length=2)


def test_doubtful_answers_are_warned_of(folders: dict[str, Path]) -> None:
    said = " | ".join(loaded(folders["llama"], answers=(" a", " a cat")).notes)
    assert "' a cat' begins with ' a', which is never less likely; set end_token=true" in said
    assert not loaded(folders["llama"], answers=(" a", " a cat"), end_token=True).notes
    merged = loaded(folders["llama"], prompt_template="{text} the r", answers=("iver", " sea"))
    assert "answers: 'iver' behind the prompt has other tokens than alone" in merged.notes[0]
    assert len(merged.notes) == 1


def test_answers_of_the_same_tokens_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["llama"], tmp_path / "lower")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    tokenizer.save_pretrained(folder)
    with pytest.raises(JobError, match="' Sea' and ' sea' have the same tokens"):
        loaded(folder, answers=(" a", " Sea", " sea"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"answers": ("a", "a")}, "repeats one"),
        ({"answers": [False, True]}, "put them in quotes"),
        ({"answers": (" ", "a")}, "answers"),
        ({"names": ("a",)}, "names: are 1, the answers 2"),
        ({"answers": ("yes", " yes")}, "names: ['yes', 'yes'] would be the classes"),
        ({"questions": ("why?",)}, "questions: {question} of prompt_template"),
        ({"prompt_template": "{text} {question}"}, "questions: {question} of prompt_template"),
        ({"prompt_template": "{question}"}, "has no {text}"),
        ({"content_free": ("",), "premise": "It is"}, "name one"),
        ({"score": True}, "score: could not convert string to float: 'no'"),
        ({"score": (1,)}, "score: has 1 numbers for 2 answers"),
        ({"score": (1, float("nan"))}, "not all finite"),
        (
            {"questions": ("a?",), "prompt_template": ASKED, "answers": ("1", "2", "3")},
            "3 answers have no log-odds",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        ChoicesOptions(**options)
    assert said in str(error.value)


def test_numbers_are_words_too() -> None:
    assert ChoicesOptions(answers=[1, 2.5]).answers == ("1", "2.5")


def test_a_model_with_broken_weights_has_no_answer(folders: dict[str, Path]) -> None:
    teacher = loaded(folders["llama"], score=(1, 2, 3, 4))
    teacher._model.lm_head.weight.fill_(torch.nan)
    found = ask(teacher, ROWS[:2]).features
    assert np.isnan(found["logits"]).all()
    assert np.isnan(found["score"]).all()


def test_a_prompt_without_tokens_is_refused(folders: dict[str, Path]) -> None:
    teacher = loaded(folders["gpt2"], prompt_template="{text}")
    teacher._texts._ends = type(teacher._texts._ends)((), ())
    with pytest.raises(ArmadaError, match="its prompt has no tokens"):
        ask(teacher, [("",)])
