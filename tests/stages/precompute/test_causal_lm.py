"""The causal language model as a teacher, against the model itself asked text by text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from armada.cache_schemas.errors import ArmadaError, JobError, TeacherSourceError
from armada.cache_schemas.keys import example_key
from armada.stages.language.logits import is_causal
from armada.stages.precompute.teachers import causal_checkpoint
from armada.stages.precompute.teachers.base import Answers, Example
from armada.stages.precompute.teachers.causal_lm import CausalLMTeacher
from armada.stages.precompute.teachers.causal_options import CausalLMOptions
from armada.stages.precompute.teachers.generation import Sampling, find_cache_name
from armada.stages.store.codec.samples import decode_samples
from armada.stages.store.codec.top_k import decode_top_k
from pydantic import ValidationError
from tiny_checkpoints import make_bert
from tiny_language_models import CHAT, FAMILIES, TEXTS, make_causal_lm, make_chat_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

PADDING = 7
Logits = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: make_causal_lm(root / name, name, padding=PADDING) for name in FAMILIES}


def loaded(folder: Path, **options: Any) -> CausalLMTeacher:
    teacher = CausalLMTeacher(str(folder), CausalLMOptions(**options), torch.device("cpu"))
    teacher.load()
    return teacher


def examples(texts: Sequence[tuple[str, ...]]) -> list[Example]:
    return [Example(example_key(text), text) for text in texts]


ALONE = [(text,) for text in TEXTS]
PAIRS = [("what does it say?", text, text[::-1]) for text in TEXTS]


def ask(teacher: CausalLMTeacher, texts: Sequence[tuple[str, ...]] = ALONE) -> Answers:
    with torch.inference_mode():
        return teacher.encode(examples(texts))


def textbook(folder: Path, ids: Sequence[int], words: int) -> Logits:
    """Logits [T, words] of one text, from the whole model, in double precision afterwards."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model(torch.tensor([list(map(int, ids))])).logits[0]
    return logits[:, :words].double().numpy()


def log_softmax(logits: Logits, temperature: float = 1.0) -> Logits:
    scaled = logits / temperature
    scaled = scaled - scaled.max(axis=-1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_the_model(folders: dict[str, Path], family: str) -> None:
    teacher = loaded(
        folders[family],
        top_k=20,
        top_k_bits=16,
        temperatures=(2.5,),
        dense=True,
        own_log_probs=True,
        hidden_layers=(0, 2),
    )
    answers = ask(teacher)
    coding = teacher.spec.feature("top_k").coding
    words = coding.vocab_size
    for place in range(len(TEXTS)):
        ids = answers.features["token_ids"][place]
        expected = log_softmax(textbook(folders[family], ids, words))[:-1]
        dense = answers.features["dense"][place]
        np.testing.assert_allclose(dense, expected, atol=2e-5)
        own = np.take_along_axis(expected, ids[1:, None].astype(np.int64), axis=1)[:, 0]
        found_own = answers.features["own_log_probs"][place]
        assert found_own.dtype == np.float16
        np.testing.assert_allclose(found_own, own, rtol=1e-3)
        for temperature in (1.0, 2.5):
            found = decode_top_k(coding, answers.features["top_k"][place], temperature)
            tempered = log_softmax(expected, temperature)
            best = np.sort(tempered, axis=1)[:, ::-1][:, :20]
            np.testing.assert_allclose(found.log_probs_Nk, best, atol=2e-3)
            chosen = np.take_along_axis(tempered, found.ids_Nk.astype(np.int64), axis=1)
            np.testing.assert_allclose(chosen, best, atol=2e-5)
            tail = np.log1p(-np.exp(best).sum(axis=1))
            np.testing.assert_allclose(found.log_tail_N, tail, atol=2e-3)
        assert answers.features["hidden"][place].shape == (len(ids) - 1, 2, 32)


def test_hidden_states_are_the_layers(folders: dict[str, Path]) -> None:
    teacher = loaded(folders["llama"], hidden_layers=(1, 2), top_k=None)
    answers = ask(teacher)
    model = AutoModelForCausalLM.from_pretrained(folders["llama"])
    ids = torch.tensor(answers.features["token_ids"][3].astype(np.int64))[None]
    with torch.no_grad():
        states = model.model(ids, output_hidden_states=True).hidden_states
    for place, layer in enumerate((1, 2)):
        found = answers.features["hidden"][3][:, place]
        np.testing.assert_allclose(found, states[layer][0, :-1], atol=1e-5)


def test_a_text_is_answered_alike_in_any_company(folders: dict[str, Path]) -> None:
    options = {"top_k": 9, "samples": 6, "samples_log_probs": True, "dense": True}
    teacher = loaded(folders["opt"], **options)
    buckets = teacher.buckets(examples(ALONE))
    same = [place for place, bucket in enumerate(buckets) if bucket == buckets[0]]
    assert len(same) > 1
    grouped = ask(teacher, [ALONE[place] for place in same][::-1])
    for at, place in enumerate(same[::-1]):
        single = ask(teacher, [ALONE[place]])
        for name, parts in grouped.features.items():
            np.testing.assert_array_equal(parts[at], single.features[name][0])


def test_draws_follow_the_model(folders: dict[str, Path]) -> None:
    samples = 4000
    teacher = loaded(folders["gpt2"], top_k=None, samples=samples)
    answers = ask(teacher, ALONE[:1])
    coding = teacher.spec.feature("samples").coding
    found = decode_samples(coding, answers.features["samples"][0]).ids_NK
    ids = answers.features["token_ids"][0]
    expected = np.exp(log_softmax(textbook(folders["gpt2"], ids, coding.vocab_size)))[:-1]
    for row, probs in zip(found, expected, strict=True):
        counts = np.bincount(row, minlength=coding.vocab_size)
        often = probs * samples >= 5
        observed = [*counts[often], counts[~often].sum()]
        wanted = np.array([*probs[often], probs[~often].sum()]) * samples
        statistic = float((np.square(observed - wanted) / wanted).sum())
        degrees = len(wanted) - 1
        # Ten standard deviations of a chi-squared variable.
        assert statistic < degrees + 10 * np.sqrt(2 * degrees)


def test_log_probabilities_of_draws(folders: dict[str, Path]) -> None:
    teacher = loaded(folders["llama"], top_k=None, samples=8, samples_log_probs=True)
    answers = ask(teacher)
    coding = teacher.spec.feature("samples").coding
    found = decode_samples(coding, answers.features["samples"][1])
    expected = log_softmax(
        textbook(folders["llama"], answers.features["token_ids"][1], coding.vocab_size)
    )[:-1]
    chosen = np.take_along_axis(expected, found.ids_NK.astype(np.int64), axis=1)
    np.testing.assert_allclose(found.log_probs_NK, chosen, atol=1e-3)
    other = ask(loaded(folders["llama"], top_k=None, samples=8, samples_log_probs=True, seed=1))
    assert any(
        not np.array_equal(one, two)
        for one, two in zip(answers.features["samples"], other.features["samples"], strict=True)
    )


@pytest.mark.parametrize("text_format", ["plain", "chat"])
def test_only_the_response_is_answered(folders: dict[str, Path], text_format: str) -> None:
    teacher = loaded(folders["llama"], text_format=text_format, top_k=4)
    answers = ask(teacher, PAIRS)
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    for place, (question, text, response) in enumerate(PAIRS):
        ids = answers.features["token_ids"][place].tolist()
        start = int(answers.features["prompt_tokens"][place])
        shown = {"plain": "<s>{}\n\n{}\n", "chat": "<user>{}\n\n{}</s>\n<assistant>"}[text_format]
        assert tokenizer.decode(ids[:start]) == shown.format(question, text)
        assert tokenizer.decode(ids[start:]) == f"{response}</s>"
        assert len(answers.features["top_k"][place]) == len(ids) - start


def test_texts_that_are_too_long(folders: dict[str, Path]) -> None:
    texts = [("a b", "c" * 30), ("a" * 40, "b"), ("a", "b")]
    teacher = loaded(folders["llama"], text_format="plain", max_length=12, top_k=4)
    answers = ask(teacher, texts)
    assert answers.truncated.tolist() == [True, True, False]
    lengths = [len(ids) for ids in answers.features["token_ids"]]
    assert lengths[:2] == [12, 12]
    assert [len(rows) for rows in answers.features["top_k"]] == [
        length - int(prompt)
        for length, prompt in zip(lengths, answers.features["prompt_tokens"], strict=True)
    ]
    assert len(answers.features["top_k"][1]) == 0


@pytest.mark.parametrize(
    ("family", "cached"),
    [("gpt2", True), ("llama", True), ("mamba", None), ("rwkv", False), ("openai-gpt", False)],
)
def test_greedy_responses_are_those_of_the_library(
    tmp_path: Path, family: str, cached: bool | None
) -> None:
    folder = make_causal_lm(tmp_path, family, padding=PADDING)
    teacher = loaded(folder, text_format="plain", top_k=None, max_new_tokens=9)
    if cached is not None:  # of Mamba it depends on the version of transformers
        assert (find_cache_name(teacher._model) is not None) == cached
    answers = ask(teacher, PAIRS)
    model = AutoModelForCausalLM.from_pretrained(folder)
    for place in range(len(PAIRS)):
        start = int(answers.features["prompt_tokens"][place])
        prompt = torch.tensor(answers.features["token_ids"][place][:start].astype(np.int64))[None]
        expected = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=9,
            do_sample=False,
            suppress_tokens=list(range(320, 320 + PADDING)),
        )[0, start:]
        said = answers.features["generated_ids"][place]
        assert said.tolist() == expected.tolist()
        whole = log_softmax(textbook(folder, [*prompt[0], *said], 320))[start - 1 : -1]
        chosen = np.take_along_axis(whole, said[:, None].astype(np.int64), axis=1)[:, 0]
        np.testing.assert_allclose(
            answers.features["generated_log_probs"][place], chosen, atol=2e-5
        )


def test_drawn_responses_depend_on_their_example_alone(folders: dict[str, Path]) -> None:
    options: dict[str, Any] = {
        "text_format": "plain",
        "top_k": None,
        "max_new_tokens": 7,
        "generation_temperature": 1.5,
        "generation_top_p": 0.9,
    }
    teacher = loaded(folders["llama"], **options)
    together = ask(teacher, PAIRS).features["generated_ids"]
    for place, pair in enumerate(PAIRS):
        alone = ask(teacher, [pair]).features["generated_ids"][0]
        np.testing.assert_array_equal(alone, together[place])
    other = ask(loaded(folders["llama"], **options, seed=3), PAIRS).features["generated_ids"]
    assert any(not np.array_equal(a, b) for a, b in zip(together, other, strict=True))


def test_the_nucleus_holds_the_mass_and_no_more() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(2000, 1)
    uniform = (np.arange(2000) + 0.5) / 2000
    chosen = Sampling(1.0, 0.75).choose(logits, torch.from_numpy(uniform))
    counts = np.bincount(chosen.numpy(), minlength=4)
    np.testing.assert_allclose(counts / 2000, [0.625, 0.375, 0, 0], atol=1e-3)
    assert Sampling(0.0, 1.0).choose(logits[:1], torch.zeros(1)).tolist() == [0]


class Largest(TorchDispatchMode):
    """Remembers the most numbers of float tensors that operations made."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(each, torch.Tensor) and each.is_floating_point():
                self.numel = max(self.numel, each.numel())
        return made


def test_logits_of_all_tokens_are_never_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causal_checkpoint, "CHUNK_BYTES", 4 * 4320 * 4)
    teacher = loaded(make_causal_lm(tmp_path / "model", padding=4000), top_k=5, samples=3)
    with Largest() as largest:
        answers = ask(teacher)
    predicted = sum(map(len, answers.features["top_k"]))
    assert predicted > 60
    # Chunks of four tokens, or states of all texts.
    assert largest.numel <= 4 * 4320


def test_a_batch_of_prompts_alone_has_features_without_rows(folders: dict[str, Path]) -> None:
    """As where `max_length` leaves nothing of any response of the batch."""
    options = {"top_k": 4, "samples": 3, "dense": True, "hidden_layers": (1,)}
    teacher = loaded(folders["llama"], text_format="plain", max_length=3, **options)
    answers = ask(teacher, PAIRS)
    assert all(answers.truncated)
    for name in ("top_k", "samples", "dense", "hidden"):
        feature = teacher.spec.feature(name)
        assert [each.shape for each in answers.features[name]] == [(0, *feature.shape)] * len(PAIRS)
    assert answers.invalid == {}
    assert {one for each in answers.fidelity.values() for one in each} == {None}


def test_logits_that_are_no_numbers_name_their_text(folders: dict[str, Path]) -> None:
    teacher = loaded(folders["llama"], top_k=5)
    table = teacher._model.get_input_embeddings().weight
    word = int(ask(teacher).features["token_ids"][2][1])
    table.data[word] = float("nan")
    answers = ask(teacher)
    hit = [n for n, ids in enumerate(answers.features["token_ids"]) if word in ids]
    assert answers.invalid == dict.fromkeys(hit, "logits")
    assert 0 < len(hit) <= len(TEXTS)


def test_fidelity_is_that_of_each_text(folders: dict[str, Path]) -> None:
    teacher = loaded(folders["llama"], top_k=12, samples=3)
    together = ask(teacher)
    for place, text in enumerate(ALONE):
        alone = ask(teacher, [text]).fidelity
        for name in ("top_k", "samples"):
            one, other = alone[name][0], together.fidelity[name][place]
            assert one is not None
            assert other is not None
            assert (one.tokens, one.bytes_per_token) == (other.tokens, other.bytes_per_token)
    figures = together.fidelity["top_k"][0]
    assert figures is not None
    assert 0 < figures.mean_error < 0.05
    assert 0 < figures.divergence < 1e-3
    assert 0 < figures.mean_tail < 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"top_k": 321}, "top_k: 321 is above the tokenizer's vocabulary of 320"),
        ({"max_length": 129}, "max_length 129: the model takes at most 128 tokens; use fewer"),
        ({"hidden_layers": (3,)}, "hidden_layers: 3 is beyond the model's; from 0 to 2"),
    ],
)
def test_what_the_model_cannot_give_is_refused_before_it_loads(
    folders: dict[str, Path], options: dict[str, Any], told: str
) -> None:
    with pytest.raises(JobError, match=told):
        CausalLMTeacher(str(folders["llama"]), CausalLMOptions(**options), torch.device("cpu"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"top_k": None}, "set at least one"),
        ({"max_new_tokens": 3}, "texts have no prompt"),
        ({"hidden_layers": (1, 1)}, "repeats a layer"),
        ({"prompt_template": "Answer:"}, "all prompts would be the same"),
        ({"top_k_bits": 7}, "5, 6, 8 or 16"),
    ],
)
def test_options_that_contradict(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        CausalLMOptions(**options)


def test_a_chat_needs_a_template_and_two_segments(tmp_path: Path) -> None:
    tokenizer = make_chat_tokenizer(chat_template=None)
    folder = make_causal_lm(tmp_path / "model", tokenizer=tokenizer)
    with pytest.raises(JobError, match="no chat template"):
        loaded(folder, text_format="chat")
    with pytest.raises(JobError, match="examples have one segment"):
        ask(loaded(folder, text_format="plain"))


def test_a_template_that_asks_otherwise_than_it_answers(tmp_path: Path) -> None:
    strange = "{% if add_generation_prompt %}ask{% else %}told{% endif %}"
    tokenizer = make_chat_tokenizer(chat_template=strange)
    folder = make_causal_lm(tmp_path / "model", tokenizer=tokenizer)
    with pytest.raises(JobError, match="the start of the response is unknown"):
        loaded(folder, text_format="chat")


def test_a_template_that_writes_another_response(tmp_path: Path) -> None:
    louder = CHAT.replace("turn['content']", "turn['content']|upper")
    folder = make_causal_lm(tmp_path / "model", tokenizer=make_chat_tokenizer(chat_template=louder))
    with pytest.raises(JobError, match="the chat template changes the response"):
        loaded(folder, text_format="chat")


def test_a_turn_of_a_chat_ends_where_its_template_ends_it(tmp_path: Path) -> None:
    """Its token is not the tokenizer's end-of-sequence token."""
    tokenizer = make_chat_tokenizer(chat_template=CHAT.replace("</s>", "<end>"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    folder = make_causal_lm(tmp_path / "model", tokenizer=tokenizer)
    end = tokenizer.convert_tokens_to_ids("<end>")
    options = {"top_k": None, "max_new_tokens": 4}
    assert end in loaded(folder, text_format="chat", **options)._ends
    assert end not in loaded(folder, text_format="plain", **options)._ends


def test_a_tokenizer_that_is_not_the_models_own(tmp_path: Path) -> None:
    folder = make_causal_lm(tmp_path / "model", padding=-20)
    with pytest.raises(TeacherSourceError, match="has 320 tokens, the model 300"):
        CausalLMTeacher(str(folder), CausalLMOptions(), torch.device("cpu"))


def test_spec_says_who_speaks(folders: dict[str, Path]) -> None:
    one = CausalLMTeacher(str(folders["llama"]), CausalLMOptions(), torch.device("cpu")).spec
    settings = one.settings
    assert settings["vocab_size"] == 320
    assert len(str(settings["tokenizer"])) == 32
    other = CausalLMTeacher(str(folders["gpt2"]), CausalLMOptions(), torch.device("cpu")).spec
    assert other.settings["tokenizer"] == settings["tokenizer"]
    assert other.fingerprint != one.fingerprint
    with pytest.raises(ArmadaError):
        CausalLMTeacher(str(folders["llama"] / "none"), CausalLMOptions(), torch.device("cpu"))


def test_a_model_that_sees_what_it_predicts_is_no_teacher(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = make_bert(tmp_path / "bert", TEXTS)
    assert not is_causal(AutoModelForMaskedLM.from_pretrained(folder))
    for family in FAMILIES:
        assert is_causal(AutoModelForCausalLM.from_pretrained(folders[family]))
    with pytest.raises(TeacherSourceError):
        loaded(folder)
