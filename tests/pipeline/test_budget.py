"""`precompute` with a budget: which texts are computed, what is written down, what is refused."""

import json
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from armada import open_cache
from armada.cache_schemas.keys import example_key
from armada.stages.choosing import in_random_order, k_center
from command_line import CommandLine

COUNT = 60
TEXTS = [f"{n} otters by the river" for n in range(COUNT)]
LABELS = ["rare" if n < 6 else "often" for n in range(COUNT)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Sixty texts, and twenty of them once more."""
    file = tmp_path / "texts.jsonl"
    rows = [
        {"text": text, "label": label, "score": n / 7}
        for n, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *rows[:20]]))
    return file


@pytest.fixture
def words(corpus: Path, tmp_path: Path) -> Callable[..., list[object]]:
    """`precompute` with settings."""

    def words(*settings: str, teacher: str = "hash:6") -> list[object]:
        given = [word for setting in settings for word in ("--set", setting)]
        named = ["--corpus", corpus, "--text-column", "text", "--teacher", teacher]
        return ["precompute", *named, "--cache", tmp_path / "cache", *given]

    return words


def cached(folder: Path, teacher: str | None = None) -> set[int]:
    """Which of the texts are in a cache."""
    rows = open_cache(folder, teacher=teacher).find(
        np.frombuffer(b"".join(example_key((text,)) for text in TEXTS), np.uint8).reshape(-1, 16)
    )
    return set(np.flatnonzero(rows >= 0).tolist())


def test_a_larger_budget_goes_on_from_a_smaller_one(
    armada: CommandLine, words: Callable[..., list[object]], tmp_path: Path
) -> None:
    plan = json.loads(armada.done(*words("budget=10"), "--dry-run", "--json"))
    assert (plan["rows"], plan["unique"]) == (10, 10)
    assert plan["budget"]["chosen"] == 10
    assert plan["budget"]["of"] == COUNT
    result = armada(*words("budget=10"))
    assert "budget: 10 of 60 distinct texts, random, seed 0" in result.err
    first = cached(tmp_path / "cache")
    keys = open_cache(tmp_path / "cache").keys
    assert len(first) == 10
    report = json.loads(armada.done(*words("budget=0.5"), "--json"))
    assert (report["already_cached"], report["computed"]) == (10, 20)
    second = cached(tmp_path / "cache")
    assert first < second
    every = np.array([list(example_key((text,))) for text in TEXTS], dtype=np.uint8)
    assert second == set(in_random_order(every, 0)[:30].tolist())
    # What was chosen is in the record of the run that chose it.
    runs = {run.budget.chosen: run.budget for run in open_cache(tmp_path / "cache").runs()}
    assert runs.keys() == {10, 30}
    assert (runs[10].rule, runs[10].seed, runs[10].of) == ("random", 0, COUNT)
    ordered = b"".join(sorted(key.tobytes() for key in keys))
    assert runs[10].keys_digest == blake2b(ordered, digest_size=16).hexdigest()


def test_parts_share_a_budget(
    armada: CommandLine, words: Callable[..., list[object]], tmp_path: Path
) -> None:
    for part in ("1/2", "2/2"):
        report = json.loads(armada.done(*words("budget=11"), "--part", part, "--json"))
        assert report["unique"] in (5, 6)
        assert report["computed"] == report["unique"]
    assert len(cached(tmp_path / "cache")) == 11


def test_a_budget_balanced_by_class(
    armada: CommandLine, words: Callable[..., list[object]], tmp_path: Path
) -> None:
    armada.done(*words("budget=20", "budget_rule=balanced", "label_column=label"))
    chosen = cached(tmp_path / "cache")
    assert len(chosen) == 20
    assert chosen > set(range(6))  # all of the rare class: there are but six
    (run,) = open_cache(tmp_path / "cache").runs()
    assert run.budget.based_on == "column label"
    armada.done("cache", "card", tmp_path / "cache")
    card = (tmp_path / "cache" / "README.md").read_text()
    assert "20 of 60 distinct texts, balanced by column label, seed 0" in card


def test_a_budget_by_distances_of_another_teacher(
    armada: CommandLine, words: Callable[..., list[object]], tmp_path: Path
) -> None:
    armada.done(*words(teacher="hash:4"))
    other = open_cache(tmp_path / "cache")
    fingerprint = other.teacher.fingerprint
    (feature,) = other.features
    by = f"budget_feature={fingerprint[:8]}/{feature}"
    report = json.loads(
        armada.done(*words("budget=12", "budget_rule=k-center", by, "add_teacher=true"), "--json")
    )
    rows = other.lookup(TEXTS)
    every = np.array([list(example_key((text,))) for text in TEXTS], dtype=np.uint8)
    expected = k_center(other[feature].gather(rows), 12, in_random_order(every, 0))
    assert cached(tmp_path / "cache", report["fingerprint"]) == set(expected.tolist())
    more = words("budget=20", "budget_rule=k-center", by, "add_teacher=true")
    assert json.loads(armada.done(*more, "--json"))["already_cached"] == 12


def test_a_budget_by_the_uncertainty_of_a_student(
    armada: CommandLine, words: Callable[..., list[object]], corpus: Path, tmp_path: Path
) -> None:
    armada.done(*words("budget=20"))
    student = ["--student", "scratch:bert", "--set", "student_hidden_size=16", "--set", "epochs=1"]
    armada.done(
        *("distill", "--train", corpus, "--text-column", "text", "--label-column", "label"),
        *("--cache", tmp_path / "cache", "--output", tmp_path / "run", *student),
        *("--set", "missing=without_teacher"),
    )
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert sum(metrics["answered_examples"].values()) in range(20, 41)  # of texts, some twice
    file = tmp_path / "predicted.parquet"
    predict = ["predict", tmp_path / "run", "--corpus", corpus, "--output", file]
    armada.done(*predict)
    rule = ("budget_rule=uncertainty", f"budget_predictions={file}")
    report = json.loads(
        armada.done(*words("budget=5", *rule, "seed=1", "add_teacher=true"), "--json")
    )
    found = pq.read_table(file)["probabilities"].to_pylist()[:COUNT]
    entropy = [-sum(p * np.log(p) for p in row) for row in found]
    chosen = cached(tmp_path / "cache", report["fingerprint"])
    assert len(chosen) == 5
    rest = [entropy[row] for row in range(COUNT) if row not in chosen]
    assert min(entropy[row] for row in chosen) >= max(rest) - 1e-6


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["budget=61"], "budget 61: the corpus has 60 distinct texts"),
        (["budget=0"], "budget"),
        (["budget=1.5"], "1.5 is neither a whole number of texts nor a share below 1"),
        (["budget_rule=balanced"], "'budget_rule': is for a budget, and none is set"),
        (["budget=9", "budget_rule=best"], "budget_rule"),
        (["budget=9", "budget_rule=balanced"], "job key 'label_column' is missing"),
        (["budget=9", "label_column=label"], "'label_column': is for budget_rule=balanced"),
        (["budget=9", "budget_rule=balanced", "label_column=score"], "numbers, not classes"),
        (["budget=9", "budget_rule=balanced", "label_column=none"], "no column 'none'"),
        (["budget=9", "budget_rule=k-center"], "job key 'budget_feature' is missing"),
        (["budget=9", "budget_rule=k-center", "budget_feature=embedding"], "budget_feature"),
        (["budget=9", "budget_rule=k-center", "budget_feature=abc/x"], "there is no such folder"),
        (["budget=9", "budget_rule=uncertainty"], "job key 'budget_predictions' is missing"),
        (
            ["budget=9", "budget_rule=uncertainty", "budget_predictions=nowhere"],
            "nowhere: is no file; write one with `armada predict",
        ),
    ],
)
def test_what_is_refused(
    refused: Callable[..., str],
    words: Callable[..., list[object]],
    settings: list[str],
    reason: str,
) -> None:
    assert reason in refused(*words(*settings))


def test_an_embedding_that_is_not_there(
    armada: CommandLine, words: Callable[..., list[object]], tmp_path: Path
) -> None:
    armada.done(*words("budget=30", teacher="hash:4"))
    other = open_cache(tmp_path / "cache")
    rule = ["budget=9", "budget_rule=k-means++", "add_teacher=true"]
    for feature, reason in (
        (other.features[0], "30 of 60 distinct texts have no"),
        ("hidden", "has no feature 'hidden' of whole texts"),
    ):
        result = armada(*words(*rule, f"budget_feature={other.teacher.fingerprint[:6]}/{feature}"))
        assert result.code == 2
        assert reason in result.error


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"row": range(1, 81), "score": [0.5] * 80}, "no column 'probabilities'"),
        ({"row": range(2, 82), "probabilities": [[0.5, 0.5]] * 80}, "are not the 80 of the corpus"),
        ({"row": [1], "probabilities": [[0.5, 0.5]]}, "holds 1 rows"),
        ({"row": range(1, 81), "probabilities": [[0.5], *[[0.5, 0.5]] * 79]}, "not one list"),
    ],
)
def test_predictions_that_are_none(
    refused: Callable[..., str],
    words: Callable[..., list[object]],
    tmp_path: Path,
    columns: dict[str, object],
    reason: str,
) -> None:
    file = tmp_path / "predicted.parquet"
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), file)
    rule = ("budget_rule=uncertainty", f"budget_predictions={file}")
    assert reason in refused(*words("budget=5", *rule))
