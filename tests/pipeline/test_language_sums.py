"""Language models that learn by several objectives from several teachers: of tokens, of texts, of
labels."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import armada
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from armada.cache_schemas.errors import JobError
from armada.pipeline import seed_run
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.jobs import make
from armada.pipeline.terms import terms_of
from cuts import cut_at
from language_processes import PLUG_INS, losses, run, run_in_two_processes, weights
from safetensors.torch import load_file
from scarce_memory import room_for
from tiny_language_models import make_causal_lm
from tiny_runs import TEXTS

pytestmark = pytest.mark.long

Keys = dict[str, Any]


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:  # which no test undoes
        patch.syspath_prepend(PLUG_INS)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """53 texts with labels and hints; two teachers of their tokens, and one of texts with hints."""
    folder = tmp_path_factory.mktemp("sums")
    labels = [place % 3 for place in range(len(TEXTS))]
    hints = [f"hint {place}" for place in range(len(TEXTS))]
    columns = {"text": TEXTS, "label": labels, "hint": hints}
    pq.write_table(pa.table(columns), folder / "train.parquet")
    for name, seed in (("one", 1), ("two", 3), ("student", 2)):
        make_causal_lm(folder / name, "llama", texts=TEXTS, seed=seed)
    asked = {"corpus": str(folder / "train.parquet"), "quiet": True}
    for name in ("one", "two"):
        teacher = {"teacher": f"causal_lm:{folder / name}", "cache": folder / f"tokens-{name}"}
        armada.precompute(**asked, **teacher, text_column="text", top_k=16, samples=4)
    armada.precompute(
        **asked, text_column=["text", "hint"], teacher="hash:6", cache=folder / "hints"
    )
    armada.precompute(**asked, text_column="text", teacher="hash:3", cache=folder / "classes")
    return folder


def job(root: Path, output: Path, **keys: Any) -> Keys:
    return {
        **{"train": str(root / "train.parquet"), "text_column": "text", "task": "language"},
        **{"student": str(root / "student"), "output": str(output), "device": "cpu"},
        **{"epochs": 2, "batch_size": 8, "learning_rate": 2e-3, "logging_steps": 1},
        **{"dropout": 0.0, "report_to": "none", "seed": 3},
        **keys,
    }


def of_many(root: Path) -> Keys:
    """Two teachers of tokens, one of whole texts that has read more than the student, labels."""
    return {
        "label_column": "label",
        "teachers": {
            "one": {"cache": str(root / "tokens-one"), "feature": "top_k"},
            "two": {"cache": str(root / "tokens-two"), "feature": "samples"},
            "hints": {
                **{"cache": str(root / "hints"), "text_column": ["text", "hint"]},
                **{"control": "shuffled"},
            },
        },
        "objectives": [
            {"name": "tokens", "teacher": "one", "divergence": "jsd", "weight": 0.75},
            {"name": "tokens", "teacher": "two", "weight": {"from": 0.0, "to": 1.0}},
            {"name": "armada", "teacher": "hints", "aligner_hidden_size": 8, "weight": 0.5},
            {"name": "hint", "teacher": "hints", "layers": [0, 1, -1]},
        ],
    }


TERMS = (
    *("loss", "tokens-one.language", "tokens-one.distillation", "tokens-two.weight"),
    *("tokens-two.distillation", "armada.manifold", "armada.task", "armada.output"),
    "hint.hint",
)


def test_two_processes_are_one(root: Path, tmp_path: Path, torchrun: Sequence[str]) -> None:
    """To rounding in float64; with batches that are put together, too."""
    accumulated = {"batch_size": 4, "gradient_accumulation": 2}
    plans = {"plain": {}, "accumulated": accumulated}
    jobs = [job(root, tmp_path / f"two {n}", **of_many(root), **p) for n, p in plans.items()]
    run_in_two_processes(torchrun, tmp_path / "plan.json", jobs)
    for name, plan in plans.items():
        run(job(root, tmp_path / name, **of_many(root), **plan))
        for term in TERMS:
            expected = losses(tmp_path / name, term)
            assert len(expected) == 14
            assert np.isfinite(expected).all()
            assert losses(tmp_path / f"two {name}", term) == pytest.approx(expected, rel=4e-7), term
        one, other = weights(tmp_path / name), weights(tmp_path / f"two {name}")
        for key, tensor in one.items():
            torch.testing.assert_close(other[key], tensor, rtol=1e-9, atol=1e-12)


def test_a_batch_that_is_read_in_parts_is_one_that_is_not(root: Path, tmp_path: Path) -> None:
    keys = of_many(root) | {"batch_size": 4, "gradient_accumulation": 2}
    keys["objectives"].pop()  # a hint maps the states of all tokens at once, here as there
    run(job(root, tmp_path / "whole", **keys))
    with room_for(1, begins=200) as refused:
        run(job(root, tmp_path / "parts", **keys, auto_batch_size=True))
    assert refused[-1] == 2
    for term in TERMS[:-1]:
        expected = losses(tmp_path / "whole", term)
        assert losses(tmp_path / "parts", term) == pytest.approx(expected, rel=4e-7), term
    found = weights(tmp_path / "parts")
    for key, tensor in weights(tmp_path / "whole").items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-9, atol=1e-12)


def test_a_cut_run_ends_as_one_that_was_not(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = of_many(root) | {"save_steps": 3, "control": "none"}
    armada.distill(**job(root, tmp_path / "whole", **keys), quiet=True)
    monkeypatch.setattr(seed_run, "append_log", cut_at(11))
    with pytest.raises(KeyboardInterrupt):
        armada.distill(**job(root, tmp_path / "cut", **keys), quiet=True)
    monkeypatch.undo()
    armada.distill(**job(root, tmp_path / "cut", **keys), resume=True, quiet=True)
    for name in ("student/model.safetensors", "aligner/armada.safetensors"):
        one, other = load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name)
        assert all(torch.equal(other[key], tensor) for key, tensor in one.items())
    for term in TERMS:
        assert losses(tmp_path / "cut", term) == losses(tmp_path / "whole", term), term


def test_half_of_a_teacher_twice_is_the_teacher_once(root: Path, tmp_path: Path) -> None:
    """Another route to the same loss, to rounding in float64."""
    teacher = {"cache": str(root / "tokens-one"), "feature": "top_k"}
    once = job(root, tmp_path / "once", **teacher, objective="tokens", alpha=0.3)
    half = {"name": "tokens", "alpha": 0.3, "weight": 0.5}
    twice = job(
        root,
        tmp_path / "twice",
        teachers={"a": teacher, "b": teacher},
        objectives=[half | {"teacher": "a"}, half | {"teacher": "b"}],
    )
    run(once)
    run(twice)
    assert losses(tmp_path / "twice") == pytest.approx(losses(tmp_path / "once"), rel=4e-7)
    one, other = weights(tmp_path / "once"), weights(tmp_path / "twice")
    for key, tensor in one.items():
        torch.testing.assert_close(other[key], tensor, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("objectives", "keys", "terms"),
    [
        (
            [{"name": "tokens", "teacher": "llm"}, {"name": "feature", "teacher": "hints"}],
            {},
            {"tokens.language", "tokens.distillation", "feature.feature"},
        ),
        ([{"name": "feature", "teacher": "hints"}], {}, {"language", "feature"}),
        (
            [{"name": "feature", "teacher": "hints", "weight": 2.0}],
            {"label_column": "label"},
            {"language", "task", "feature.feature"},
        ),
        (
            [{"name": "kd", "teacher": "classes", "feature": "embedding"}],
            {"label_column": "label"},
            {"language", "task", "distillation"},
        ),
    ],
    ids=["tokens and a feature", "a feature", "a feature and labels", "logits of labels"],
)
def test_objectives_go_together(
    root: Path, tmp_path: Path, objectives: list[Keys], keys: Keys, terms: set[str]
) -> None:
    """Each term is logged by name, and moves the weights that it is of."""
    known = {
        "llm": {"cache": str(root / "tokens-one"), "feature": "top_k"},
        "hints": {"cache": str(root / "hints"), "text_column": ["text", "hint"]},
        "classes": {"cache": str(root / "classes")},
    }
    teachers = {each["teacher"]: known[each["teacher"]] for each in objectives}
    given = job(root, tmp_path, teachers=teachers, objectives=objectives, epochs=1, **keys)
    armada.distill(**given, quiet=True)
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert terms <= logged[0].keys()
    first, last = (sum(row[term] for term in terms) for row in (logged[0], logged[6]))
    assert last < first
    heads = load_file(tmp_path / "student" / "heads.safetensors")
    assert any("projection" in name for name in heads) == (objectives[-1]["name"] == "feature")
    assert any(name.startswith("head.") for name in heads) == ("label_column" in keys)


REFUSED: dict[str, tuple[Keys, str]] = {
    "tokens of other columns": (
        {"teachers": {"llm": {"cache": "TOKENS", "feature": "top_k", "text_column": "hint"}}},
        "teacher llm: text_column: a teacher of tokens reads the student's own columns",
    ),
    "shuffled tokens": (
        {"teachers": {"llm": {"cache": "TOKENS", "feature": "top_k", "control": "shuffled"}}},
        "control shuffled: needs a cached feature; objective tokens uses none",
    ),
    "tokens of pictures": (
        {"teachers": {"llm": {"cache": "HINTS"}}},
        "a hash has no token features",
    ),
    "another task": (
        {"task": "classification", "label_column": "label"},
        "objective tokens: is for language models; set task=language",
    ),
    "an option of another": (
        {"objectives": [{"name": "tokens", "beta": 1.0}]},
        "job key 'beta': is not an option of objective tokens",
    ),
    "two ways of comparing": (
        {"objectives": [{"name": "tokens", "cross_tokenizer": True, "divergence": "jsd"}]},
        "divergence jsd: cross_tokenizer compares sorted probabilities",
    ),
}


@pytest.mark.parametrize(("keys", "told"), REFUSED.values(), ids=REFUSED)
def test_refused(root: Path, tmp_path: Path, keys: Keys, told: str) -> None:
    places = {"TOKENS": str(root / "tokens-one"), "HINTS": str(root / "hints")}
    plain = {
        "teachers": {"llm": {"cache": "TOKENS", "feature": "top_k"}},
        "objectives": [{"name": "tokens"}],
    }
    given = plain | keys
    given["teachers"] = {
        name: {key: places.get(str(value), value) for key, value in teacher.items()}
        for name, teacher in given["teachers"].items()
    }
    with pytest.raises(armada.InputError, match=told.replace("(", r"\(")):
        armada.distill(**job(root, tmp_path / "run", **given), quiet=True)
    assert not (tmp_path / "run").exists()


def test_what_can_be_told_from_keys_is_refused_before_anything_is_read() -> None:
    keys = {"train": "none.parquet", "text_column": "text", "student": "none", "output": "none"}
    objectives = [{"name": "tokens", "teacher": "a"}, {"name": "feature", "teacher": "b"}]
    teachers = {"a": {"cache": "a"}, "b": {"cache": "b"}}
    packed = {"task": "language", "packing": "concat"}
    given = make(DistillJob, {**keys, **packed, "teachers": teachers, "objectives": objectives})
    with pytest.raises(JobError, match="objective feature needs one text per row"):
        terms_of(given)
