"""Prompts alone, answered by a causal language model: the responses, their text and their ends."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from armada.cache_schemas.errors import JobError
from armada.cache_schemas.keys import example_key
from armada.stages.precompute.teachers.base import Answers, Example
from armada.stages.precompute.teachers.causal_lm import CausalLMTeacher
from armada.stages.precompute.teachers.causal_options import CausalLMOptions
from armada.stages.precompute.teachers.response_parts import part_of_response
from armada.stages.store.reading.reader import open_cache
from command_line import CommandLine
from pydantic import ValidationError
from tiny_language_models import TEXTS, make_causal_lm, make_chat_tokenizer
from transformers import AutoTokenizer

MOST = 9
PROMPTS = [*TEXTS, "a b", "why"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_causal_lm(tmp_path_factory.mktemp("llama"))


def ask(folder: Path, texts: list[tuple[str, ...]], **options: Any) -> Answers:
    given = {"text_format": "plain", "max_new_tokens": MOST} | options
    teacher = CausalLMTeacher(str(folder), CausalLMOptions(**given), torch.device("cpu"))
    teacher.load()
    with torch.inference_mode():
        return teacher.encode([Example(example_key(PROMPTS[0]), text) for text in texts])


def alone(folder: Path, **options: Any) -> Answers:
    return ask(folder, [(prompt,) for prompt in PROMPTS], response_column=False, **options)


def texts_of(answers: Answers) -> list[str]:
    return [bytes(text).decode() for text in answers.features["generated_text"]]


def ids_of(answers: Answers) -> list[list[int]]:
    return [each.tolist() for each in answers.features["generated_ids"]]


@pytest.mark.parametrize("generation", ["exact", "batched"])
@pytest.mark.parametrize("text_format", ["plain", "chat"])
def test_a_prompt_has_the_response_that_it_has_beside_a_given_one(
    llama: Path, text_format: str, generation: str
) -> None:
    sampled = {"generation_temperature": 1.0, "responses_per_prompt": 2, "generation": generation}
    found = alone(llama, text_format=text_format, **sampled)
    pairs = [(prompt, "yes") for prompt in PROMPTS]
    beside = ask(llama, pairs, text_format=text_format, top_k=None, **sampled)
    assert ids_of(found) == ids_of(beside)
    tokenizer = AutoTokenizer.from_pretrained(llama)
    for place, text in enumerate(texts_of(found)):
        ids = np.split(found.features["generated_ids"][place], [_lengths(found)[place, 0]])
        wanted = [tokenizer.decode(each, skip_special_tokens=True) for each in ids]
        assert text == "".join(wanted)
        sizes = found.features["generated_text_lengths"][place].tolist()
        assert sizes == [len(each.encode()) for each in wanted]
        ended = [1 if each[-1] == tokenizer.eos_token_id else 2 for each in ids]
        assert found.features["finish"][place].tolist() == ended
        prompt = beside.features["prompt_tokens"][place]
        assert found.features["prompt_tokens"][place] == prompt
        given = beside.features["token_ids"][place][:prompt].tolist()
        assert found.features["token_ids"][place].tolist() == given


def _lengths(answers: Answers) -> Any:
    return answers.features["generated_lengths"]


def test_a_stop_string_ends_a_response_and_is_not_in_its_text(llama: Path) -> None:
    whole = alone(llama)
    stop = texts_of(whole)[0][3:5]
    found = alone(llama, stop=(stop,))
    assert found.features["finish"][0].tolist() == [1]
    shortened = 0
    tokenizer = AutoTokenizer.from_pretrained(llama)
    for place, (text, before) in enumerate(zip(texts_of(found), texts_of(whole), strict=True)):
        assert text == before.partition(stop)[0]
        ids, all_ids = ids_of(found)[place], ids_of(whole)[place]
        assert ids == all_ids[: len(ids)]
        if stop in before:
            assert stop in tokenizer.decode(ids)
            assert stop not in tokenizer.decode(ids[:-1])
            shortened += len(ids) < len(all_ids)
        log_probs = found.features["generated_log_probs"][place]
        np.testing.assert_array_equal(
            log_probs, whole.features["generated_log_probs"][place][: len(ids)]
        )
    assert shortened


def test_thoughts_are_cut() -> None:
    tokenizer = make_chat_tokenizer()

    def part(text: str, *stops: str) -> tuple[str, str]:
        ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.uint32)
        found = part_of_response(tokenizer.decode, ids, stops, cuts_thoughts=True)
        return found.text, tokenizer.decode(ids[found.start : found.stop])

    assert part("let me see</think>\n\na red bird") == ("a red bird", "a red bird")
    assert part("let me see</think>\n\na red bird. no", ".")[0] == "a red bird"
    for whole in ("let me see", "let me see</think>\n\n"):
        assert part(whole) == (whole, whole)


def test_options_that_do_not_go_together_are_refused() -> None:
    for options, told in (
        ({"response_column": False}, "set max_new_tokens"),
        ({"response_column": False, "max_new_tokens": 3, "top_k": 8}, "nothing but responses"),
        ({"stop": ("x",)}, "of no generated response"),
    ):
        with pytest.raises(ValidationError, match=told):
            CausalLMOptions(text_format="plain", **options)


def test_a_corpus_of_prompts(
    tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    armada = CommandLine(capsys)
    prompts, chats = tmp_path / "prompts.jsonl", tmp_path / "chats.parquet"
    prompts.write_text("".join(json.dumps({"prompt": each}) + "\n" for each in PROMPTS))
    turns = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    pq.write_table(pa.table({"messages": turns}), chats)

    def words(corpus: Path, column: str, *more: str) -> list[object]:
        return [
            *("precompute", "--corpus", corpus, "--text-column", column, "--set"),
            *("text_format=chat", "--set", f"max_new_tokens={MOST}", *more, "--teacher"),
            *(f"causal_lm:{llama}", "--cache", tmp_path / column),
        ]

    refused = armada(*words(prompts, "prompt"))
    assert refused.code == 2
    assert "prompts alone are answered with response_column=false" in refused.error
    said = []
    for corpus, column in ((prompts, "prompt"), (chats, "messages")):
        armada.done(*words(corpus, column, "--set", "response_column=false"))
        cache = open_cache(tmp_path / column)
        assert len(cache) == len(PROMPTS)
        text = cache.ragged("generated_text").gather(np.arange(len(cache)))
        said.append(sorted(bytes(part) for part in text.parts()))
    assert said[0] == said[1]


def test_a_template_chooses_among_the_columns_of_a_row(llama: Path) -> None:
    columns = [(prompt, "unread", prompt[::-1]) for prompt in PROMPTS]
    asks = {"response_column": False, "top_k": None}
    found = ask(llama, columns, prompt_template="{1}: {3}?", **asks)
    written = [(f"{first}: {third}?",) for first, _, third in columns]
    wanted = ask(llama, written, prompt_template="{text}", **asks)
    assert texts_of(found) == texts_of(wanted)
    chats = ask(llama, columns, text_format="chat", user_template="{1}: {3}?", **asks)
    wanted = ask(llama, written, text_format="chat", **asks)
    assert texts_of(chats) == texts_of(wanted)
    with pytest.raises(JobError, match=r"has \{4\}, and a prompt has 3 text columns; use \{1\}"):
        ask(llama, columns, prompt_template="{4}", **asks)
