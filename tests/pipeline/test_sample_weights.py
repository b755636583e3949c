"""Weights of the rows of a corpus: losses of language models are weighted means. Of several
processes: `test_preferences_cli.py`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import armada as library
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from armada.cache_schemas.errors import ArmadaError
from armada.pipeline.findings.findings import find
from armada.pipeline.findings.runs import find_runs
from armada.pipeline.labelled_corpus import LabelledCorpus
from armada.stages.corpus.corpus import read_corpus
from language_processes import losses, run, weights
from tiny_language_models import make_causal_lm
from tiny_runs import TEXTS

pytestmark = pytest.mark.long

Keys = dict[str, Any]
ROWS = 13
WEIGHTS = [0.0 if row % 5 == 2 else 0.5 + row % 3 for row in range(ROWS)]


def write(file: Path, rows: Sequence[int], given: Sequence[Any]) -> None:
    texts = [TEXTS[row] for row in rows]
    label = [row % 2 for row in rows]
    columns = {"text": texts, "label": label, "weight": given, "name": ["x"] * len(rows)}
    pq.write_table(pa.table(columns), file)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    write(folder / "train.parquet", range(ROWS), WEIGHTS)
    write(folder / "ones.parquet", range(ROWS), [1] * ROWS)
    kept = [row for row in range(ROWS) if WEIGHTS[row]]
    write(folder / "kept.parquet", kept, [WEIGHTS[row] for row in kept])
    for name, seed in (("teacher", 1), ("student", 2)):
        make_causal_lm(folder / name, texts=TEXTS, seed=seed)
    library.precompute(
        corpus=str(folder / "train.parquet"),
        text_column="text",
        teacher=f"causal_lm:{folder / 'teacher'}",
        cache=folder / "cache",
        top_k=8,
        temperatures=[1.0, 2.0],
        quiet=True,
    )
    return folder


def job(root: Path, output: Path, train: str = "train", **keys: Any) -> Keys:
    return {
        **{"train": str(root / f"{train}.parquet"), "text_column": "text", "task": "language"},
        **{"student": str(root / "student"), "output": str(output), "device": "cpu"},
        **{"cache": str(root / "cache"), "objective": "tokens", "token_temperature": 2.0},
        **{"weight_column": "weight", "epochs": 2, "batch_size": ROWS, "learning_rate": 2e-3},
        **{"logging_steps": 1, "report_to": "none", "seed": 3},
        **keys,
    }


def same(one: Path, other: Path) -> bool:
    pairs = zip(weights(one).values(), weights(other).values(), strict=True)
    return losses(one) == losses(other) and all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("packing", ["none", "document_mask"])
def test_weights_of_1_change_no_bit(root: Path, tmp_path: Path, packing: str) -> None:
    keys = {"batch_size": 4, "packing": packing, "max_length": 40, "gradient_accumulation": 2}
    library.distill(**job(root, tmp_path / "ones", "ones", **keys))
    library.distill(**job(root, tmp_path / "none", "ones", **keys, weight_column=None))
    assert same(tmp_path / "ones", tmp_path / "none")
    library.distill(**job(root, tmp_path / "other", **keys))
    assert not same(tmp_path / "ones", tmp_path / "other")


def test_a_weight_of_0_leaves_a_row_out(root: Path, tmp_path: Path) -> None:
    """To rounding in float64; and what counts is how weights compare."""
    for train in ("train", "kept"):
        run(job(root, tmp_path / train, train))
    expected = losses(tmp_path / "kept")
    assert losses(tmp_path / "train") == pytest.approx(expected, rel=1e-7)
    write(tmp_path / "larger.parquet", range(ROWS), [2.0**900 * each for each in WEIGHTS])
    run(job(tmp_path, tmp_path / "larger", "larger") | of_root(root))
    assert losses(tmp_path / "larger") == losses(tmp_path / "train")


def test_runs_with_and_without_weights_are_compared(root: Path, tmp_path: Path) -> None:
    """They are on the same rows; other weights of the same name are other settings."""
    other = tmp_path / "train.parquet"
    write(other, range(ROWS), WEIGHTS[::-1])
    trains = {"weighted": root / "train.parquet", "otherwise": other, "plain": other}
    for name, train in trains.items():
        column = None if name == "plain" else "weight"
        keys = job(root, tmp_path / "runs" / name, epochs=1, weight_column=column)
        library.distill(**keys | {"train": str(train), "validation": str(root / "kept.parquet")})
    (study,) = find(find_runs((tmp_path / "runs",)).runs).studies
    assert len(study.rows) == 3


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([2**60 + 1, 0, 3 * 2**60], [0.5, 0, 1.5]),
        ([1e308, 1e308, 5e307], [1e308 / 2.0**1023, 1e308 / 2.0**1023, 5e307 / 2.0**1023]),
        ([5e-324, 0.0, 5e-324], [1, 0, 1]),
        ([1, 1, 1], [1, 1, 1]),
        ([0, 0, 0], [0, 0, 0]),
    ],
)
def test_weights_of_any_size(tmp_path: Path, given: list[float], expected: list[float]) -> None:
    file = tmp_path / "train.parquet"
    write(file, range(3), given)
    corpus = read_corpus((str(file),), ["text"], weight_column="weight")
    weights = LabelledCorpus(corpus, np.zeros(3)).row_weights
    assert weights is not None
    assert weights.tolist() == expected


def of_root(root: Path) -> Keys:
    return {"student": str(root / "student"), "cache": str(root / "cache")}


REFUSED: dict[str, tuple[list[Any] | None, Keys, str]] = {
    "below 0": ([1, -2, -3], {}, "row 2: weight -2 of column 'weight' is not a number of 0 or"),
    "not a number": ([1.0, 2.0, float("nan")], {}, "row 3: weight nan of column 'weight'"),
    "without end": ([1.0, float("inf"), 1.0], {}, "row 2: weight inf of column 'weight'"),
    "missing": ([1.0, None, 1.0], {}, "row 2: column 'weight' is null"),
    "all 0": ([0, 0, 0], {}, "weight_column 'weight': all weights are 0, so nothing is learned"),
    "text": (None, {"weight_column": "name"}, "weight_column 'name' holds string, not numbers"),
    "no column": (None, {"weight_column": "w"}, "no column 'w'"),
    "labels": (
        None,
        {"task": "classification", "objective": "kd", "label_column": "label"},
        "weight_column: is for language models; set task=language",
    ),
    "whole texts": (
        None,
        {"objective": "armada", "label_column": "label"},
        "weight_column 'weight': objective armada compares whole texts",
    ),
}


@pytest.mark.parametrize(("given", "keys", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(
    root: Path, tmp_path: Path, given: list[Any] | None, keys: Keys, message: str
) -> None:
    whole = job(root, tmp_path / "run", **{"token_temperature": 1.0, **keys})
    if given is not None:
        write(tmp_path / "train.parquet", range(3), given)
        whole["train"] = str(tmp_path / "train.parquet")
    if "objective" in keys:
        del whole["token_temperature"]
    with pytest.raises(ArmadaError) as caught:
        library.distill(**whole)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_bad_weights_are_skipped_and_listed(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    lines = [f'"{text}",{weight}' for text, weight in zip(TEXTS, (1, -1, 0.5, ""), strict=False)]
    file.write_text("text,weight\n" + "\n".join(lines) + "\n")
    keys = {"objective": "undistilled", "cache": None, "skip_bad_rows": True}
    whole = job(root, tmp_path / "run", **keys) | {"train": str(file)}
    del whole["token_temperature"]
    found = library.distill(**whole)
    assert [each.split(": ", 1)[1] for each in found["skipped_rows"]] == [
        "weight -1 of column 'weight' is not a number of 0 or more",
        "column 'weight' is null",
    ]
