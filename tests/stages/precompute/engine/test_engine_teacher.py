"""The teacher `vllm` up to its engine: options, fingerprint, requests, and what answers become.

Tables of answers are made by transformers from a tiny model, in the worker's form; vLLM itself is
in `test_vllm.py`."""

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armada.cache_schemas.codings import TopKCoding
from armada.cache_schemas.errors import JobError, MissingExtraError, TeacherSourceError
from armada.cache_schemas.keys import example_key
from armada.stages.precompute.engine.options import VLLMOptions
from armada.stages.precompute.engine.source import EngineSource, Found, Request
from armada.stages.precompute.engine.teacher import VLLMTeacher, gpu_name
from armada.stages.precompute.engine.tokens import TokenTask
from armada.stages.precompute.teachers.base import Answers, Example, example_seed
from armada.stages.precompute.teachers.causal_lm import CausalLMTeacher
from armada.stages.precompute.teachers.causal_options import CausalLMOptions
from armada.stages.store.codec.top_k import decode_top_k
from pydantic import ValidationError
from tiny_language_models import POSITIONS, TEXTS, make_causal_lm

CPU = torch.device("cpu")
PAIRS = list(pairwise(TEXTS))
EXAMPLES = [Example(example_key(pair), pair) for pair in PAIRS]
OF_BOTH: dict[str, Any] = {"text_format": "plain", "top_k": 5, "top_k_bits": 16, "max_length": 40}
NEW = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_causal_lm(tmp_path_factory.mktemp("model"))


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """This Python, with what pip writes down of a distribution called vllm."""
    noted = tmp_path / "vllm-0.33.0.dist-info"
    noted.mkdir()
    (noted / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.33.0\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return sys.executable


def task(folder: Path, **options: Any) -> TokenTask:
    return TokenTask(EngineSource(str(folder), None), VLLMOptions(**{**OF_BOTH, **options}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": None}, "top_k, own_log_probs, max_new_tokens, answers: set at least"),
        ({"max_new_tokens": 4}, "texts have no prompt"),
        ({"generated_top_k": 4}, "generated_top_k: is of no tokens; set max_new_tokens"),
        (
            {"max_new_tokens": 4, "text_format": "plain", "responses_per_prompt": 2},
            "2 greedy ones would be the same",
        ),
        ({"store_dtype": "float16"}, "store_dtype: is for runner=pooling; leave it out"),
        ({"runner": "pooling", "top_k": 4}, "top_k: is for runner=generate; leave it out"),
        ({"gpu_memory_utilization": 1.5}, "less than or equal to 1"),
        ({"samples": 4}, "samples"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VLLMOptions(**options)


def test_a_package_that_is_missing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = "armada.cache_schemas.extras.find_spec"
    monkeypatch.setattr(found, lambda name: None)
    with pytest.raises(
        MissingExtraError, match=r"^teacher vllm needs vllm: pip install 'armada-kd\[vllm\]'$"
    ):
        VLLMTeacher(str(folder), VLLMOptions(), CPU)


def test_its_features_are_those_of_causal_lm(folder: Path, python: str) -> None:
    asked = {**OF_BOTH, "own_log_probs": True, "characters": True, "max_new_tokens": NEW}
    options = VLLMOptions(engine_python=python, **asked)
    spec = VLLMTeacher(str(folder), options, CPU).spec
    expected = CausalLMTeacher(str(folder), CausalLMOptions(**asked), CPU).spec
    assert spec.weights == expected.weights
    assert spec.vocab_digest == expected.vocab_digest
    for feature in expected.features:
        mine = spec.feature(feature.name)
        assert mine is not None
        assert mine.model_dump(exclude={"description"}) == feature.model_dump(
            exclude={"description"}
        )
    assert {each.name for each in spec.features} == {each.name for each in expected.features} | {
        "generated_text",
        "finish",
    }
    for name in ("tokenizer", "vocab_size", "max_length", "text_format", "prompt_template"):
        assert spec.settings[name] == expected.settings[name]


def test_the_fingerprint_is_of_answers_alone(folder: Path, python: str, tmp_path: Path) -> None:
    def made(**options: Any) -> str:
        given = VLLMOptions(engine_python=python, **{**OF_BOTH, **options})
        return VLLMTeacher(str(folder), given, CPU).spec.fingerprint

    before = made()
    assert before == made(
        tensor_parallel_size=2, gpu_memory_utilization=0.5, tokens_per_step=64, enforce_eager=True
    )
    assert len({before, made(dtype="bfloat16"), made(seed=1), made(top_k=6)}) == 4
    (tmp_path / "vllm-0.33.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: vllm\nVersion: 0.33.1\n"
    )
    assert made() != before


def test_limits_of_the_model_are_the_engines(folder: Path) -> None:
    with pytest.raises(JobError, match=f"at most {POSITIONS - 1} tokens"):
        task(folder, max_length=POSITIONS)
    longest = task(folder, max_length=POSITIONS - 1, max_new_tokens=NEW)
    assert longest.engine()["max_model_len"] == POSITIONS
    assert task(folder).engine()["max_model_len"] == 41
    assert task(folder, max_new_tokens=9).engine()["max_model_len"] == 49
    assert task(folder, max_new_tokens=9, generated_top_k=7).engine()["max_logprobs"] == 7
    with pytest.raises(JobError, match="generated_top_k: 100000 is above the tokenizer's"):
        task(folder, max_new_tokens=9, generated_top_k=100_000)


def test_a_pickle_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(TeacherSourceError, match="pickled"):
        EngineSource(str(tmp_path), None)


def test_what_is_asked_for(folder: Path) -> None:
    one = task(folder, max_new_tokens=NEW, generation_temperature=0.5, responses_per_prompt=2)
    texts = one.read(EXAMPLES)
    for row, (reading, continuing) in enumerate(one.requests(texts, EXAMPLES)):
        prompt = int(texts.prompts[row])
        np.testing.assert_array_equal(reading.ids, texts.of(row))
        np.testing.assert_array_equal(continuing.ids, texts.of(row)[:prompt])
        assert reading.arguments["first"] == prompt
        assert reading.arguments["sampling"]["prompt_logprobs"] == 5
        sampling = continuing.arguments["sampling"]
        assert sampling["seed"] == example_seed(0, EXAMPLES[row].key) % 2**62
        assert (sampling["n"], sampling["max_tokens"], sampling["logprobs"]) == (2, NEW, 0)
    # A prompt without a response to be read, and one that leaves no room.
    assert one.requests(one.read([Example(b"", ("a " * 100, "b"))]), [EXAMPLES[0]]) == [[]]


def table(model: Any, request: Request, first: int, k: int) -> dict[str, np.ndarray[Any, Any]]:
    """What the worker sends of the tokens from `first` on, by transformers."""
    ids = torch.from_numpy(request.ids.astype(np.int64))
    with torch.inference_mode():
        log_probs = model(ids[None]).logits[0, first - 1 : -1].log_softmax(-1)
    own = ids[first:, None]
    best = log_probs.topk(k)
    return {
        "ids": torch.cat([own, best.indices], 1).int().numpy(),
        "log_probs": torch.cat([log_probs.gather(1, own), best.values], 1).numpy(),
    }


def read(folder: Path, one: TokenTask, examples: Sequence[Example], k: int) -> Answers:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    texts = one.read(examples)
    found = [
        Found({each.task: table(model, each, each.arguments["first"], k) for each in requests})
        for requests in one.requests(texts, examples)
    ]
    return one.answers(texts, found)


def test_answers_are_those_of_causal_lm(folder: Path) -> None:
    answers = read(folder, task(folder, own_log_probs=True), EXAMPLES, 5)
    options = CausalLMOptions(**OF_BOTH, own_log_probs=True)
    teacher = CausalLMTeacher(str(folder), options, CPU)
    teacher.load()
    with torch.inference_mode():
        expected = teacher.encode(EXAMPLES)
    coding = teacher.spec.feature("top_k").coding  # type: ignore[union-attr]
    assert isinstance(coding, TopKCoding)
    for row in range(len(EXAMPLES)):
        for name in ("token_ids", "prompt_tokens"):
            np.testing.assert_array_equal(answers.features[name][row], expected.features[name][row])
        np.testing.assert_allclose(
            answers.features["own_log_probs"][row],
            expected.features["own_log_probs"][row],
            rtol=1e-3,
        )
        mine = decode_top_k(coding, answers.features["top_k"][row])
        theirs = decode_top_k(coding, expected.features["top_k"][row])
        np.testing.assert_array_equal(mine.ids_Nk, theirs.ids_Nk)
        np.testing.assert_allclose(mine.log_probs_Nk, theirs.log_probs_Nk, atol=2e-3)
        np.testing.assert_allclose(mine.log_tail_N, theirs.log_tail_N, atol=2e-3)
        assert answers.fidelity["top_k"][row] is not None


def test_tokens_that_the_tokenizer_lacks_are_absent(tmp_path: Path) -> None:
    folder = make_causal_lm(tmp_path / "model", padding=40)
    one = task(folder, top_k=5)
    answers = read(folder, one, EXAMPLES, 5)
    vocabulary = len(one._tokenizer)
    coding = TopKCoding(k=5, vocab_size=vocabulary, bits=16)
    beyond = 0
    for rows in answers.features["top_k"]:
        found = decode_top_k(coding, rows)
        assert (found.ids_Nk < vocabulary).all()
        absent = found.log_probs_Nk == -np.inf
        beyond += int(absent.sum())
        assert (np.diff(absent.astype(int), axis=1) >= 0).all()  # absent ones come last
    assert beyond


def response(ids: Sequence[int]) -> dict[str, np.ndarray[Any, Any]]:
    tokens = np.array(ids, np.int32)[:, None]
    return {
        "ids": np.hstack([tokens, tokens, tokens + 1]),
        "log_probs": np.tile(np.log(np.float32([0.5, 0.5, 0.25])), (len(ids), 1)),
    }


def test_responses_are_kept_as_text_and_tokens(folder: Path) -> None:
    one = task(
        folder,
        top_k=None,
        max_new_tokens=NEW,
        responses_per_prompt=2,
        generation_temperature=1.0,
        generated_top_k=2,
    )
    words = one._tokenizer(" the red", add_special_tokens=False)["input_ids"]
    ids = [*words, one._tokenizer.eos_token_id, *words[:1]]
    arrays = {"counts": np.array([len(ids) - 1, 1]), **response(ids)}
    texts = one.read(EXAMPLES[:3])
    found = [Found({"continue": arrays}, ["stop", "length"]), Found(), Found(refused="too long")]
    answers = one.answers(texts, found)
    features = answers.features
    assert answers.refused == {2: "too long"}
    assert features["generated_ids"][0].tolist() == ids
    assert features["generated_lengths"].tolist() == [[len(ids) - 1, 1], [0, 0], [0, 0]]
    assert features["finish"].tolist() == [[1, 2], [0, 0], [0, 0]]
    spoken = one._tokenizer.decode(words), one._tokenizer.decode(words[:1])
    assert bytes(features["generated_text"][0]).decode() == "".join(spoken)
    assert features["generated_text_lengths"][0].tolist() == [len(each) for each in spoken]
    np.testing.assert_allclose(features["generated_log_probs"][0], np.log(0.5))
    coding = TopKCoding(k=2, vocab_size=len(one._tokenizer), bits=16)
    best = decode_top_k(coding, features["generated_top_k"][0])
    assert best.ids_Nk[:, 0].tolist() == ids


def test_a_response_with_a_token_of_nobodys_is_refused(folder: Path) -> None:
    one = task(folder, top_k=None, max_new_tokens=NEW)
    beyond = len(one._tokenizer)
    arrays = {"counts": np.array([1]), "ids": np.array([[beyond]]), "log_probs": np.zeros((1, 1))}
    answers = one.answers(one.read(EXAMPLES[:1]), [Found({"continue": arrays}, ["length"])])
    assert answers.refused == {
        0: f"its response has token {beyond}, which the tokenizer does not have"
    }


def test_logits_that_are_no_numbers_are_told(folder: Path) -> None:
    one = task(folder)
    texts = one.read(EXAMPLES[:1])
    count = int(texts.predicted[0])
    arrays = {"ids": np.zeros((count, 6), "i4"), "log_probs": np.full((count, 6), np.nan, "f4")}
    answers = one.answers(texts, [Found({"read": arrays})])
    assert answers.invalid == {0: "logits"}


@pytest.mark.parametrize(
    ("device", "visible", "name"),
    [
        ("cpu", None, None),
        ("cuda", "2,3", None),
        ("cuda:1", None, "1"),
        ("cuda:1", "2, GPU-abc", "GPU-abc"),
    ],
)
def test_a_device_with_a_number_is_the_engines_only_one(
    device: str, visible: str | None, name: str | None
) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert gpu_name(torch.device(device), environment) == name
