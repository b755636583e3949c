"""Responses of the causal language model, prompts of all lengths together: against the library's
own generation, against full passes, and against prompts of one length alone."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import armada
import numpy as np
import pyarrow as pa
import pytest
import torch
from armada.cache_schemas.keys import example_key
from armada.stages.precompute.teachers import generation, key_values
from armada.stages.precompute.teachers.base import Answers, Example
from armada.stages.precompute.teachers.causal_lm import CausalLMTeacher
from armada.stages.precompute.teachers.causal_options import CausalLMOptions
from host_reads import HostReads
from pydantic import ValidationError
from tiny_language_models import POSITIONS, TEXTS, make_causal_lm
from transformers import AutoModelForCausalLM

PADDING = 7
MOST = 9
FAMILIES = {
    **{"gpt2": {}, "opt": {}, "llama": {}, "cohere": {}, "qwen3": {}, "gpt_neox": {}},
    "gemma2": {"sliding_window": 4},
    **{"mixtral": {}, "bloom": {"n_head": 4}},
}
"""Learned, rotary and no positions; windows, experts; heads that share keys and values."""

PROMPTS = [(text, "yes") for text in [*TEXTS, *(text[::-1] for text in TEXTS), "a b", "why"]]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_causal_lm(tmp_path_factory.mktemp("llama"), "llama", padding=PADDING)


def loaded(folder: Path, **options: Any) -> CausalLMTeacher:
    given = {"text_format": "plain", "top_k": None, "max_new_tokens": MOST} | options
    teacher = CausalLMTeacher(str(folder), CausalLMOptions(**given), torch.device("cpu"))
    teacher.load()
    return teacher


def ask(teacher: CausalLMTeacher, texts: Sequence[tuple[str, ...]] = PROMPTS) -> Answers:
    with torch.inference_mode():
        return teacher.encode([Example(example_key(text), text) for text in texts])


def said(answers: Answers, feature: str = "generated_ids") -> list[list[float]]:
    return [each.tolist() for each in answers.features[feature]]


def set_ends(folder: Path, ends: Sequence[int]) -> None:
    file = folder / "generation_config.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps(told | {"eos_token_id": [*ends]}))


def common_tokens(folder: Path) -> list[int]:
    """Tokens that many, but not all, greedy responses have in their middle."""
    counts = Counter(word for one in said(ask(loaded(folder))) for word in set(one[2:5]))
    return [word for word, count in counts.most_common() if count <= len(PROMPTS) // 2][:3]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_responses_are_those_of_the_library(tmp_path: Path, family: str) -> None:
    folder = make_causal_lm(tmp_path, family, padding=PADDING, **FAMILIES[family])
    set_ends(folder, common_tokens(folder))
    teacher = loaded(folder, generation="batched")
    assert teacher._pads_prompts
    answers = ask(teacher)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ended = 0
    for place in range(len(PROMPTS)):
        start = int(answers.features["prompt_tokens"][place])
        prompt = torch.tensor(answers.features["token_ids"][place][:start].astype(np.int64))[None]
        expected = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=MOST,
            do_sample=False,
            suppress_tokens=list(range(320, 320 + PADDING)),
        )[0, start:]
        found = answers.features["generated_ids"][place]
        assert found.tolist() == expected.tolist()
        ended += len(found) < MOST
        with torch.no_grad():
            whole = model(torch.tensor([[*prompt[0], *found.tolist()]])).logits[0, start - 1 : -1]
        chosen = whole[:, :320].double().log_softmax(1)[range(len(found)), found.tolist()]
        log_probs = answers.features["generated_log_probs"][place]
        np.testing.assert_allclose(log_probs, chosen, atol=1e-5)
    assert 0 < ended < len(PROMPTS)


@pytest.mark.parametrize("family", ["mamba", "rwkv", "openai-gpt", "jamba"])
def test_families_that_cannot_be_padded_answer_as_in_exact_mode(
    tmp_path: Path, family: str
) -> None:
    folder = make_causal_lm(tmp_path, family, padding=PADDING)
    teacher = loaded(folder, generation="batched")
    assert not teacher._pads_prompts
    assert said(ask(teacher)) == said(ask(loaded(folder)))


@pytest.mark.parametrize("look_every", [1, 3])
def test_rows_that_ended_are_dropped_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look_every: int
) -> None:
    folder = make_causal_lm(tmp_path, "llama", padding=PADDING)
    set_ends(folder, common_tokens(folder))
    expected = ask(loaded(folder, max_new_tokens=20))
    monkeypatch.setattr(generation, "CPU_LOOK_EVERY", look_every)
    rows: list[int] = []
    go_on = key_values.PaddedReader.go_on

    def noting(self: Any, ids: torch.Tensor) -> torch.Tensor:
        rows.append(len(ids))
        return go_on(self, ids)

    teacher = loaded(folder, max_new_tokens=20, generation="batched")
    monkeypatch.setattr(key_values.PaddedReader, "go_on", noting)
    answers = ask(teacher)
    assert said(answers) == said(expected)
    for one, other in zip(
        *(each.features["generated_log_probs"] for each in (answers, expected)), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert rows == sorted(rows, reverse=True)
    assert len({*rows}) >= 3
    going_on = [sum(len(one) > step for one in said(expected)) for step in range(1, 20)]
    assert sum(rows) < len(PROMPTS) * max(map(len, said(expected)))
    assert all(read >= need for read, need in zip(rows, going_on, strict=False))


def test_nothing_is_read_from_the_device_but_the_ends(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the copy of them is looked at one look later."""
    monkeypatch.setattr(generation, "CPU_LOOK_EVERY", 8)
    sampled = {"generation_temperature": 1.5, "generation_top_p": 0.9, "responses_per_prompt": 2}
    for options in ({"generation": "batched"}, {"generation": "batched", **sampled}, sampled):
        teacher = loaded(llama, max_new_tokens=33, **options)
        batch = teacher.prepare([Example(example_key(text), text) for text in PROMPTS[:6]])
        reads = HostReads()
        with torch.inference_mode(), reads:
            reads.watching = True
            outputs = teacher.start(batch)
            reads.watching = False
            outputs()
        loops = len({*batch.inputs.prompts.tolist()}) if "generation" not in options else 1
        # Of the looks after 8, 16, 24 and 32 tokens each sees what was copied at the one before.
        assert reads.found.total() == 3 * loops, reads.found
        assert {name for name, _ in reads.found} == {"Tensor.numpy"}


def test_sampled_responses_have_their_examples_own_numbers(llama: Path) -> None:
    options = {"generation_temperature": 1.5, "generation_top_p": 0.9}
    exact = ask(loaded(llama, **options))
    batched = loaded(llama, generation="batched", **options)
    together = ask(batched)
    assert said(together) == said(exact)
    for place in range(0, len(PROMPTS), 3):
        assert said(ask(batched, [PROMPTS[place]])) == [said(exact)[place]]
    other = ask(loaded(llama, generation="batched", seed=3, **options))
    assert said(other) != said(together)


def test_what_is_asked_of_texts_is_the_same_beside_responses_to_their_prompts(llama: Path) -> None:
    exact, batched = (
        ask(loaded(llama, top_k=8, hidden_layers=(1,), generation=mode))
        for mode in ("exact", "batched")
    )
    assert said(batched) == said(exact)
    for name in ("token_ids", "top_k", "hidden"):
        for one, other in zip(exact.features[name], batched.features[name], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("mode", ["exact", "batched"])
def test_several_responses_to_a_prompt_follow_the_model(llama: Path, mode: str) -> None:
    count = 1000
    options = {"generation_temperature": 2.0, "max_new_tokens": 2, "generation": mode}
    teacher = loaded(llama, responses_per_prompt=count, **options)
    answers = ask(teacher, PROMPTS[:3])
    lengths = answers.features["generated_lengths"]
    assert lengths.shape == (3, count)
    model = AutoModelForCausalLM.from_pretrained(llama)
    for place in range(3):
        ids = answers.features["generated_ids"][place]
        assert lengths[place].sum() == len(ids)
        responses = np.split(ids, np.cumsum(lengths[place])[:-1])
        start = int(answers.features["prompt_tokens"][place])
        prompt = answers.features["token_ids"][place][:start].astype(np.int64)
        with torch.no_grad():
            logits = model(torch.from_numpy(prompt)[None]).logits[0, -1, :320].double()
        expected = (logits / 2).softmax(0).numpy() * count
        counts = np.bincount([each[0] for each in responses], minlength=320)
        often = expected >= 5
        observed = np.array([*counts[often], counts[~often].sum()])
        wanted = np.array([*expected[often], expected[~often].sum()])
        degrees = len(wanted) - 1
        # Ten standard deviations of a chi-squared variable.
        statistic = (np.square(observed - wanted) / wanted).sum()
        assert statistic < degrees + 10 * np.sqrt(2 * degrees)
    (alone,) = said(ask(loaded(llama, **options), PROMPTS[1:2]))
    first = answers.features["generated_ids"][1][: lengths[1, 0]]
    assert first.tolist() == alone


@pytest.mark.parametrize("family", ["llama", "mamba", "openai-gpt"])
def test_several_responses_are_the_same_however_a_family_keeps_its_states(
    tmp_path: Path, family: str
) -> None:
    folder = make_causal_lm(tmp_path, family, padding=PADDING)
    options = {"generation_temperature": 1.0, "responses_per_prompt": 3}
    answers = ask(loaded(folder, **options))
    model = AutoModelForCausalLM.from_pretrained(folder)
    for place in range(len(PROMPTS)):
        start = int(answers.features["prompt_tokens"][place])
        prompt = answers.features["token_ids"][place][:start].tolist()
        ends = np.cumsum(answers.features["generated_lengths"][place])[:-1]
        parts = [
            np.split(answers.features[f"generated_{name}"][place], ends)
            for name in ("ids", "log_probs")
        ]
        for ids, log_probs in zip(*parts, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *ids.tolist()]])).logits[0, start - 1 : -1]
            chosen = logits[:, :320].double().log_softmax(1)[range(len(ids)), ids.tolist()]
            np.testing.assert_allclose(log_probs, chosen, atol=2e-5)


def test_responses_end_where_the_model_has_no_more_positions(tmp_path: Path) -> None:
    folder = make_causal_lm(tmp_path, "gpt2", padding=PADDING)
    long = ["red bird " * n for n in (15, 18, 20, 22)]
    texts = [*PROMPTS[:4], *((text, "yes") for text in long)]
    answers = ask(loaded(folder, generation="batched", max_new_tokens=60), texts)
    expected = ask(loaded(folder, max_new_tokens=60), texts)
    assert said(answers) == said(expected)
    lengths = [len(one) for one in said(answers)]
    prompts = answers.features["prompt_tokens"]
    assert lengths == np.minimum(60, POSITIONS - prompts.astype(int)).tolist()
    assert len({*lengths}) > 2


def test_a_prompt_that_was_cut_has_no_response(llama: Path) -> None:
    texts = [*PROMPTS[:3], ("red bird " * 40, "yes")]
    sampled = {"generation_temperature": 1.0, "responses_per_prompt": 2}
    answers = ask(loaded(llama, generation="batched", **sampled), texts)
    assert answers.truncated.tolist() == [False, False, False, True]
    assert said(answers)[3] == []
    assert answers.features["generated_lengths"][3].tolist() == [0, 0]
    assert all(said(answers)[:3])


def test_a_broken_prompt_leaves_the_others_alone(llama: Path) -> None:
    teacher = loaded(llama, generation="batched")
    whole = ask(teacher)
    word = int(whole.features["token_ids"][3][2])
    hit = [
        place
        for place, ids in enumerate(whole.features["token_ids"])
        if word in ids[: whole.features["prompt_tokens"][place]]
    ]
    table = teacher._model.get_input_embeddings().weight
    table.data[word] = float("nan")
    answers = ask(teacher)
    assert 0 < len(hit) < len(PROMPTS)
    for place in range(len(PROMPTS)):
        if place in hit:
            assert answers.invalid[place] == "generated_ids"
        elif word not in said(whole)[place]:
            assert said(answers)[place] == said(whole)[place]
            assert place not in answers.invalid


class _Narrow(key_values.PaddedReader):
    """Three prompts fit."""

    begun: list[int]

    def begin(self, prompts: Any, repeats: int, room: int) -> torch.Tensor:
        self.begun.append(len(prompts))
        if len(prompts) > 3:
            raise torch.OutOfMemoryError("made up")
        return super().begin(prompts, repeats, room)


def test_prompts_that_do_not_fit_come_again_in_smaller_batches(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = pa.table({"a": [a for a, _ in PROMPTS], "b": [b for _, b in PROMPTS]})
    given = {"corpus": corpus, "text_column": ["a", "b"], "teacher": f"causal_lm:{llama}"}
    given |= {"text_format": "plain", "top_k": None, "max_new_tokens": MOST, "device": "cpu"}
    armada.precompute(cache=tmp_path / "exact", **given)
    _Narrow.begun = []
    monkeypatch.setattr(key_values, "PaddedReader", _Narrow)
    monkeypatch.setattr(key_values, "reads_padded", lambda *_: True)
    armada.precompute(cache=tmp_path / "batched", generation="batched", **given)
    assert max(_Narrow.begun) > 3
    caches = [armada.open_cache(tmp_path / name) for name in ("exact", "batched")]
    assert len({each.teacher.fingerprint for each in caches}) == 2
    one, other = (
        cache.ragged("generated_ids").gather(cache.lookup(PROMPTS)).parts() for cache in caches
    )
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_buckets_of_prompts_are_full_or_narrow() -> None:
    tokens = np.array([1000, 900, 400, *range(150, 350), *range(150, 350), *[50] * 300, 10])
    buckets = generation.filled(tokens)
    assert (buckets >= tokens).all()
    assert (buckets <= 2 * tokens).all()
    assert buckets[:2].tolist() == [1000, 1000]
    assert buckets[2] == 400
    counts = Counter(buckets.tolist())
    assert counts == {1000: 2, 400: generation.FULL + 1, 221: 144, 50: 300, 10: 1}


def test_the_exact_mode_has_the_fingerprint_it_had(llama: Path) -> None:
    """As of caches from before there was another."""
    plain = loaded(llama).spec
    assert not {"generation", "responses_per_prompt"} & plain.settings.keys()
    assert loaded(llama, generation="exact", responses_per_prompt=1).spec == plain
    batched = loaded(llama, generation="batched").spec
    assert batched.settings == plain.settings | {"generation": "batched"}
    options = CausalLMOptions(text_format="plain", max_new_tokens=3)
    assert options.batches_prompts(torch.device("cuda"))
    assert not options.batches_prompts(torch.device("cpu"))
    assert not CausalLMOptions(generation="batched").batches_prompts(torch.device("cuda"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"responses_per_prompt": 2}, "responses_per_prompt: 2 of no tokens; set max_new_tokens"),
        (
            {"responses_per_prompt": 2, "max_new_tokens": 3, "text_format": "plain"},
            "responses_per_prompt: 2 greedy ones would be the same; set generation_temperature",
        ),
    ],
)
def test_several_responses_are_sampled(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        CausalLMOptions(**options)
