"""vLLM itself as a teacher, against the teacher `causal_lm` on the same weights in float32.

ARMADA_VLLM_PYTHON is a Python that has vllm; this one, where armada's tests run in its environment.
The model is tiny, unless ARMADA_VLLM_MODEL names the folder of a language model. ARMADA_EMBEDDER is
the folder of a sentence-transformers model, for the embeddings."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import armada
import numpy as np
import pytest
import torch
from armada.cache_schemas.codings import TopKCoding
from armada.cache_schemas.errors import TeacherSourceError
from armada.cache_schemas.keys import example_key
from armada.stages.precompute.engine.options import VLLMOptions
from armada.stages.precompute.engine.process import EngineProcess
from armada.stages.precompute.engine.teacher import VLLMTeacher
from armada.stages.precompute.teachers.base import Answers, Example
from armada.stages.precompute.teachers.causal_lm import CausalLMTeacher
from armada.stages.precompute.teachers.causal_options import CausalLMOptions
from armada.stages.precompute.teachers.choices import ChoicesTeacher
from armada.stages.precompute.teachers.choices_options import ChoicesOptions
from armada.stages.store.codec.top_k import decode_top_k
from hangs import HANG_S
from tiny_language_models import TEXTS, make_causal_lm

PYTHON, MODEL = os.environ.get("ARMADA_VLLM_PYTHON"), os.environ.get("ARMADA_VLLM_MODEL")
EMBEDDER = os.environ.get("ARMADA_EMBEDDER")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="names no Python that has vllm"),
]

CPU = torch.device("cpu")
K, NEW = 8, 6
RUN = {"engine_python": PYTHON, "enforce_eager": True, "gpu_memory_utilization": 0.1}
OF_BOTH = {"text_format": "plain", "dtype": "float32", "top_k": K, "top_k_bits": 16}
SAMPLED = {"generation_temperature": 0.8, "responses_per_prompt": 3}
PAIRS = [(text, other) for text in TEXTS for other in TEXTS if text != other]
EXAMPLES = [Example(example_key(pair), pair) for pair in PAIRS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if MODEL is not None:
        return Path(MODEL)
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    return make_causal_lm(tmp_path_factory.mktemp("model"), **sizes)


def made(folder: Path, **options: Any) -> VLLMTeacher:
    return VLLMTeacher(str(folder), VLLMOptions(**{**RUN, **OF_BOTH, **options}), CPU)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[VLLMTeacher]:
    teacher = made(
        folder, own_log_probs=True, characters=True, max_new_tokens=NEW, generated_top_k=2
    )
    teacher.load()
    yield teacher
    teacher.close()


@pytest.fixture(scope="module")
def answers(engine: VLLMTeacher) -> Answers:
    return engine.encode(EXAMPLES)


@pytest.fixture(scope="module")
def expected(folder: Path) -> Answers:
    options = CausalLMOptions(**OF_BOTH, own_log_probs=True, characters=True, max_new_tokens=NEW)
    teacher = CausalLMTeacher(str(folder), options, CPU)
    teacher.load()
    with torch.inference_mode():
        return teacher.encode(EXAMPLES)


def test_the_same_tokens_and_nearly_the_same_numbers(
    engine: VLLMTeacher, answers: Answers, expected: Answers
) -> None:
    coding = engine.spec.feature("top_k").coding  # type: ignore[union-attr]
    assert isinstance(coding, TopKCoding)
    assert not answers.refused
    assert not answers.invalid
    differences, same = [], []
    for name in ("token_ids", "characters_read"):
        for one, other in zip(answers.features[name], expected.features[name], strict=True):
            np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(
        answers.features["prompt_tokens"], expected.features["prompt_tokens"]
    )
    for one, other in zip(
        answers.features["own_log_probs"], expected.features["own_log_probs"], strict=True
    ):
        np.testing.assert_allclose(one.astype("f4"), other.astype("f4"), rtol=2e-3, atol=2e-3)
    for one, other in zip(answers.features["top_k"], expected.features["top_k"], strict=True):
        mine, theirs = decode_top_k(coding, one), decode_top_k(coding, other)
        same.append((mine.ids_Nk == theirs.ids_Nk).mean())
        differences.append(np.abs(mine.log_probs_Nk - theirs.log_probs_Nk).ravel())
    largest, mean = np.concatenate(differences).max(), np.concatenate(differences).mean()
    print(f"log-probabilities differ by {largest:.2e} at most, {mean:.2e} in the mean")
    print(f"{np.mean(same):.4%} of the {K} most probable tokens are the same, in the same place")
    assert largest < 5e-3
    assert mean < 1e-4
    assert np.mean(same) > 0.99


def test_greedy_responses_are_those_of_the_model(
    engine: VLLMTeacher, answers: Answers, expected: Answers
) -> None:
    pairs = list(
        zip(answers.features["generated_ids"], expected.features["generated_ids"], strict=True)
    )
    same = [np.array_equal(one, other) for one, other in pairs]
    print(f"{np.mean(same):.2%} of the responses are the same")
    assert np.mean(same) > 0.9  # rounding may choose another of two equal tokens
    for row in np.flatnonzero(same):
        np.testing.assert_allclose(
            answers.features["generated_log_probs"][row],
            expected.features["generated_log_probs"][row],
            atol=1e-3,
        )
    coding = engine.spec.feature("generated_top_k").coding  # type: ignore[union-attr]
    assert isinstance(coding, TopKCoding)
    for row, ids in enumerate(answers.features["generated_ids"]):
        best = decode_top_k(coding, answers.features["generated_top_k"][row])
        np.testing.assert_array_equal(best.ids_Nk[:, 0], ids)  # greedy: the most probable one
        text = bytes(answers.features["generated_text"][row]).decode()
        ended = ids[-1] == engine._source.tokenizer.eos_token_id
        assert answers.features["finish"][row] == (1 if ended else 2)
        assert ended or len(ids) == NEW
        assert text == engine._source.tokenizer.decode(ids, skip_special_tokens=True)


def test_sampled_responses_depend_on_seed_and_example(folder: Path) -> None:
    teacher = made(folder, max_new_tokens=NEW, top_k=None, **SAMPLED)
    teacher.load()
    try:
        together, alone = teacher.encode(EXAMPLES[:6]), teacher.encode(EXAMPLES[3:4])
    finally:
        teacher.close()
    ids = together.features["generated_ids"][3]
    np.testing.assert_array_equal(alone.features["generated_ids"][0], ids)
    lengths = together.features["generated_lengths"][3]
    parts = np.split(ids, np.cumsum(lengths)[:-1])
    assert len({tuple(part.tolist()) for part in parts}) > 1
    assert lengths.sum() == len(ids) == len(together.features["generated_log_probs"][3])


def test_own_log_probabilities_alone(folder: Path, answers: Answers) -> None:
    teacher = made(folder, top_k=None, own_log_probs=True)
    teacher.load()
    try:
        found = teacher.encode(EXAMPLES[:3]).features["own_log_probs"]
    finally:
        teacher.close()
    for one, other in zip(found, answers.features["own_log_probs"], strict=False):
        np.testing.assert_allclose(one.astype("f4"), other.astype("f4"), rtol=2e-3, atol=2e-3)


def test_a_stop_string_ends_a_response(folder: Path, engine: VLLMTeacher, answers: Answers) -> None:
    """The text before it is kept, and the tokens up to it."""
    whole = bytes(answers.features["generated_text"][0]).decode()
    stop = whole[len(whole) // 2 :][:2]
    prompt = Example(EXAMPLES[0].key, PAIRS[0][:1])
    teacher = made(folder, max_new_tokens=NEW, top_k=None, stop=(stop,), response_column=False)
    teacher.load()
    try:
        found = teacher.encode([prompt]).features
    finally:
        teacher.close()
    assert bytes(found["generated_text"][0]).decode() == whole.partition(stop)[0]
    count = len(found["generated_ids"][0])
    np.testing.assert_array_equal(
        found["generated_ids"][0], answers.features["generated_ids"][0][:count]
    )
    assert stop in engine._source.tokenizer.decode(found["generated_ids"][0])
    assert found["finish"][0] == 1


def test_a_student_reads_it_as_any_other_teacher(
    folder: Path, tmp_path: Path, engine: VLLMTeacher
) -> None:
    rows = [{"prompt": one, "response": other} for one, other in PAIRS[:12]]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {**RUN, **OF_BOTH}
    columns = ["prompt", "response"]
    report = armada.precompute(
        corpus=str(corpus),
        text_column=columns,
        cache=str(tmp_path / "cache"),
        teacher=f"vllm:{folder}",
        **options,
    )
    assert report.computed == 12
    again = armada.precompute(
        corpus=str(corpus),
        text_column=columns,
        cache=str(tmp_path / "cache"),
        teacher=f"vllm:{folder}",
        **options,
    )
    assert (again.already_cached, again.computed) == (12, 0)
    armada.distill(
        train=str(corpus),
        validation=str(corpus),
        text_column=columns,
        cache=str(tmp_path / "cache"),
        student=str(folder),
        task="language",
        text_format="plain",
        objective="tokens",
        epochs=1,
        output=str(tmp_path / "run"),
        quiet=True,
    )
    assert (tmp_path / "run" / "student").is_dir()


RUNNING = """
import sys, armada
armada.precompute(corpus=sys.argv[1], text_column=["prompt", "response"], cache=sys.argv[2],
    teacher="vllm:" + sys.argv[3], engine_python=sys.argv[4], enforce_eager=True,
    gpu_memory_utilization=0.1, text_format="plain", dtype="float32", top_k=8, rows_per_shard=64,
    max_new_tokens=64)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_a_run_ends_the_engine(
    folder: Path, tmp_path: Path, how: signal.Signals
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    rows = [{"prompt": f"{n} {one}", "response": other} for n in range(60) for one, other in PAIRS]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", RUNNING, str(corpus), str(cache), str(folder), str(PYTHON)]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        _until(lambda: len(list(cache.glob("teachers/*/commits/*"))) > 0 or run.poll() is not None)
        workers = _children(run.pid)
        assert workers
        run.send_signal(how)
        _, told = run.communicate(timeout=HANG_S)
    finally:
        run.kill()
    _until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert run.returncode != 0
    if how != signal.SIGKILL:
        assert "committed shards are kept" in told
    assert 0 < len(armada.open_cache(cache)) < len(rows)


def _children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found + [each for child in found for each in _children(child)]


def _until(true: Any) -> None:
    ends = time.monotonic() + HANG_S
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_an_engine_that_cannot_start_says_why(folder: Path) -> None:
    teacher = made(folder, gpu_memory_utilization=1.0, tokens_per_step=1)
    try:
        with pytest.raises(TeacherSourceError, match=r"vllm: \w+: ") as caught:
            teacher.load()
    finally:
        teacher.close()
    assert "\n" not in str(caught.value)


def test_a_request_that_the_engine_refuses_is_one_texts_matter(folder: Path) -> None:
    teacher = made(folder)
    teacher.load()
    try:
        assert isinstance(teacher._process, EngineProcess)
        sampling = {"prompt_logprobs": K + 1, "max_tokens": 1, "temperature": 0.0}
        refused = teacher._process.ask(
            {"task": "read", "first": 1, "sampling": sampling}, np.array([1, 2, 3], np.int32)
        )
        with pytest.raises(Exception, match="max allowed: 8"):
            refused.result(HANG_S)
        assert not teacher.encode(EXAMPLES[:2]).refused
    finally:
        teacher.close()


@pytest.mark.parametrize(
    "options", [{}, {"per": "token", "content_free": ("N/A", "")}], ids=["plain", "calibrated"]
)
def test_scored_choices_are_those_of_the_model(folder: Path, options: dict[str, Any]) -> None:
    answers = (" sea", " the river", " rain and the stars")
    scored = {"answers": answers, "prompt_template": "Review: {text}\nIt is about", **options}
    teacher = VLLMTeacher(str(folder), VLLMOptions(**RUN, **scored, dtype="float32"), CPU)
    local = ChoicesTeacher(str(folder), ChoicesOptions(**scored), CPU)
    examples = [Example(example_key((text,)), (text,)) for text in TEXTS]
    teacher.load()
    try:
        found = teacher.encode(examples).features["logits"]
    finally:
        teacher.close()
    local.load()
    with torch.inference_mode():
        expected = local.encode(examples).features["logits"]
    difference = np.abs(found - expected)
    print(f"scores differ by {difference.max():.2e} at most, {difference.mean():.2e} in the mean")
    assert difference.max() < 5e-3
    assert np.ptp(expected, axis=1).min() > 0.1


@pytest.mark.skipif(EMBEDDER is None, reason="names no folder of an embedder")
def test_embeddings_are_those_of_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    assert EMBEDDER is not None
    options = VLLMOptions(**RUN, runner="pooling", dtype="float32")
    teacher = VLLMTeacher(EMBEDDER, options, CPU)
    teacher.load()
    texts = [*TEXTS, "a long text " * 200]
    examples = [Example(example_key((text,)), (text,)) for text in texts]
    try:
        answers = teacher.encode(examples)
    finally:
        teacher.close()
    model = SentenceTransformer(EMBEDDER, device="cpu")
    model.max_seq_length = 128
    wanted = model.encode(texts)
    difference = np.abs(answers.features["embedding"] - wanted)
    print(
        f"embeddings differ by {difference.max():.2e} at most, {difference.mean():.2e} in the mean"
    )
    assert difference.max() < 1e-4
    assert answers.truncated.tolist() == [False] * len(TEXTS) + [True]
