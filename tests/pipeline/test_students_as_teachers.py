"""What a run left teaches the next."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from armada import load_student, open_cache
from armada.pipeline.distill import run_distill
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.jobs import make
from armada.stages.store.codec.top_k import decode_top_k
from command_line import CommandLine
from scipy.special import softmax
from tiny_language_models import make_causal_lm
from tiny_runs import TEXTS

Run = Callable[..., Path]


@pytest.fixture
def teach(armada: CommandLine, distill_bench: Any, tmp_path: Path) -> Callable[..., Any]:
    """The cache of a run's student on the texts of training."""

    def ask(source: object, *more: object, columns: tuple[str, ...] = ("text",)) -> Any:
        named = sum((("--text-column", column) for column in columns), ())
        corpus = ("precompute", "--corpus", distill_bench.train, *named)
        teacher = ("--teacher", f"student:{source}", "--cache", tmp_path / "next", "--quiet")
        armada.done(*corpus, *teacher, *more)
        return open_cache(tmp_path / "next")

    return ask


def test_a_chain(
    armada: CommandLine, distill_bench: Any, teach: Callable[..., Any], tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    armada.done(*distill_bench.words(first, label_column="name"))
    cache = teach(first)
    spec = cache.teacher.spec
    assert (spec.kind, spec.settings["max_length"]) == ("student", 64)
    assert cache.feature_spec("logits").labels == ("high", "low", "middle")
    said = load_student(first).predict(TEXTS)
    expected = [each["probabilities"] for each in said]
    logits = cache["logits"][cache.lookup(TEXTS)]
    np.testing.assert_allclose(softmax(logits, axis=1), expected, atol=1e-5)
    next_job = {"cache": tmp_path / "next", "teacher": None, "objective": "kd"}
    armada.done(*distill_bench.words(second, label_column="name", **next_job))
    assert load_student(second).classes == ("high", "low", "middle")
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(first, moved)
    shutil.rmtree(first)
    assert len(teach(moved)) == len(cache), "the teacher is the same in another place"


@pytest.mark.parametrize("pooling", ["auto", "cls", "pooler"])
@pytest.mark.parametrize("label_column", ["name", "score"])
def test_classifiers_and_regressors(
    armada: CommandLine,
    distill_bench: Any,
    teach: Callable[..., Any],
    tmp_path: Path,
    pooling: str,
    label_column: str,
) -> None:
    words = distill_bench.words(tmp_path / "run", label_column=label_column)
    # With seed 0, the ReLU behind one of the scores is 0 for all texts.
    settings = (f"pooling={pooling}", "max_length=12", "seed=1")
    armada.done(*words, *sum((("--set", setting) for setting in settings), ()))
    cache = teach(tmp_path / "run")
    rows, said = cache.lookup(TEXTS), load_student(tmp_path / "run").predict(TEXTS)
    if label_column == "score":
        scores = [each["score"] for each in said]
        assert np.ptp(scores) > 0
        np.testing.assert_allclose(cache["score"][rows][:, 0], scores, atol=1e-5)
    else:
        found = softmax(cache["logits"][rows], axis=1)
        np.testing.assert_allclose(found, [each["probabilities"] for each in said], atol=1e-5)
    assert cache.teacher.spec.settings["max_length"] == 12


def test_an_embedding_model(
    armada: CommandLine, distill_bench: Any, teach: Callable[..., Any], tmp_path: Path
) -> None:
    changes = {"label_column": None, "objective": "feature", "validation": None}
    words = distill_bench.words(tmp_path / "run", **changes)
    armada.done(*words, "--set", "pooling=mean")
    cache = teach(tmp_path / "run")
    said = [each["embedding"] for each in load_student(tmp_path / "run").predict(TEXTS)]
    np.testing.assert_allclose(cache["pooled"][cache.lookup(TEXTS)], said, atol=1e-5)
    assert cache.feature_spec("pooled").shape == (6,)


def test_a_language_model_with_texts_as_in_training(
    distill_bench: Any, teach: Callable[..., Any], tmp_path: Path
) -> None:
    model = make_causal_lm(tmp_path / "model", texts=TEXTS)
    keys = {
        **{"train": str(distill_bench.train), "text_column": ["a", "c"], "task": "language"},
        **{"student": str(model), "output": str(tmp_path / "run"), "control": "undistilled"},
        **{"text_format": "plain", "prompt_template": "{text} - ", "max_length": 40, "epochs": 1},
    }
    run_distill(make(DistillJob, keys), quiet=True)
    columns = ("a", "c")
    cache = teach(tmp_path / "run", "--set", "top_k=5", columns=columns)
    settings = cache.teacher.spec.settings
    assert (settings["prompt_template"], settings["max_length"]) == ("{text} - ", 40)
    assert settings["text_format"] == "plain"
    (row,) = cache.lookup([(TEXTS[0], f"{TEXTS[0]} indeed")])
    coding = cache.feature_spec("top_k").coding
    found = decode_top_k(coding, cache.ragged("top_k")[int(row)], 1.0)
    student = load_student(tmp_path / "run")
    ids = cache.ragged("token_ids")[int(row)].astype(np.int64)
    text = student.tokenizer.decode(ids, skip_special_tokens=True)
    assert text == f"{TEXTS[0]} - {TEXTS[0]} indeed"
    import torch

    with torch.no_grad():
        logits = student(torch.from_numpy(ids)[None], torch.ones(1, len(ids)))[0]
    predicted = logits[-1 - len(found.ids_Nk) : -1].log_softmax(1).topk(5)
    np.testing.assert_array_equal(found.ids_Nk[:, 0], predicted.indices[:, 0])
    np.testing.assert_allclose(found.log_probs_Nk, predicted.values, atol=0.1)


def test_what_is_refused(armada: CommandLine, distill_bench: Any, tmp_path: Path) -> None:
    def refused(source: object, *more: object) -> str:
        corpus = ("precompute", "--corpus", distill_bench.train, "--text-column", "text")
        words = (*corpus, "--teacher", f"student:{source}", "--cache", tmp_path / "next", *more)
        result = armada(*words)
        assert result.code == 2, result
        assert not (tmp_path / "next").exists()
        return result.error

    run = tmp_path / "run"
    armada.done(*distill_bench.words(run, "--set", "epochs=1"))
    assert "holds neither armada_student.json nor" in refused(distill_bench.student)
    assert "top_k: student" in refused(run, "--set", "top_k=4")
    assert "reads 1 (text)" in refused(run, "--text-column", "b")
    card = run / "student" / "armada_student.json"
    card.write_text("{}")
    assert "armada_student.json" in refused(run)
