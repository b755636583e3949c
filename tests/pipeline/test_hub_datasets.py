"""Corpora from a hub, by the `datasets` library, and tables in memory, from Python."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import armada
import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from armada.cache_schemas.errors import OutputError
from hub_server import hub
from tiny_runs import TEXTS, VALIDATION_TEXTS, class_labels

pytestmark = pytest.mark.long

NAME = "team/texts"
CORE_ONLY, NOTHING_HIDDEN = Path(__file__).parents[1] / "core_only.py", ""


def table(texts: list[str]) -> pa.Table:
    return pa.table({"text": texts, "label": class_labels(len(texts)), "id": map(str, texts)})


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A hub with a data set of two splits."""
    folder = tmp_path_factory.mktemp("hub") / "texts"
    (folder / "data").mkdir(parents=True)
    for split, texts in (("train", TEXTS), ("test", VALIDATION_TEXTS)):
        pq.write_table(table(texts), folder / "data" / f"{split}-00000-of-00001.parquet")
    with hub({f"datasets/{NAME}": folder}, revision="main") as (address, _):
        yield address


def asked(address: str, home: Path, *sources: str) -> list[dict[str, Any]]:
    """How `precompute` of each source ended, one after another in a process that sees this hub."""
    words = ["precompute", "--text-column", "text", "--teacher", "hash:4", "--json", "--quiet"]
    words += ["--cache", str(home / "cache")]
    done = subprocess.run(
        [sys.executable, CORE_ONLY, NOTHING_HIDDEN],
        input=json.dumps([[*words, "--corpus", source] for source in sources]),
        env=os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(home / "hf")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    results: list[dict[str, Any]] = json.loads(done.stdout)
    return results


def test_a_split_of_a_data_set_of_the_hub(address: str, tmp_path: Path) -> None:
    (done,) = asked(address, tmp_path, f"hf-dataset:{NAME}?split=test")
    assert done["code"] == 0, done["err"]
    assert json.loads(done["out"])["rows"] == len(VALIDATION_TEXTS)
    cache = armada.open_cache(tmp_path / "cache")
    assert len(cache.lookup(VALIDATION_TEXTS)) == len(VALIDATION_TEXTS)


REFUSED = {
    "": "has several splits (train, test); name one: 'hf-dataset:team/texts?split=train'",
    "?split=tests": "Should be one of",
    "?split=train&revision=v9": "v9",
    "?split=train&config=x": "'config' is not a parameter; choose from split, name, revision",
}


@pytest.fixture(scope="module")
def refusals(address: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    sources = [f"hf-dataset:{NAME}{query}" for query in REFUSED]
    ended = asked(address, tmp_path_factory.mktemp("refused"), *sources)
    return dict(zip(REFUSED, ended, strict=True))


@pytest.mark.parametrize(("query", "message"), REFUSED.items(), ids=REFUSED)
def test_what_the_hub_does_not_have_is_one_line(
    refusals: dict[str, Any], query: str, message: str
) -> None:
    done = refusals[query]
    assert (done["code"], done["out"]) == (2, "")
    shown = query.replace("config=x", "config=***")  # what is not known to be harmless is a secret
    assert done["err"].startswith(f"error: corpus hf-dataset:{NAME}{shown}: ")
    assert message in done["err"]
    assert done["err"].count("\n") == 1


def test_tables_in_memory_teach_as_files_do(distill_bench: Any, tmp_path: Path) -> None:
    train, validation = (
        table(TEXTS),
        datasets.Dataset.from_dict(table(VALIDATION_TEXTS).to_pydict()),
    )
    asked = armada.precompute(
        corpus=train, text_column="text", teacher="hash:6", cache=tmp_path / "cache"
    )
    assert asked.unique == len(TEXTS)
    keys = {
        **{"text_column": "text", "label_column": "label", "cache": tmp_path / "cache"},
        **{"student": str(distill_bench.student), "epochs": 1, "device": "cpu"},
    }
    files = {name: tmp_path / f"{name}.parquet" for name in ("train", "validation")}
    pq.write_table(train, files["train"])
    pq.write_table(table(VALIDATION_TEXTS), files["validation"])
    there = armada.distill(**keys, **files, output=tmp_path / "files")
    in_memory = {"train": train, "validation": [validation]}
    here = armada.distill(**keys, **in_memory, output=tmp_path / "memory")
    assert here["validation"] == there["validation"]
    figures = armada.evaluate(student=tmp_path / "memory", corpus=validation)
    np.testing.assert_allclose(figures["metrics"]["accuracy"], here["validation"]["accuracy"])
    # A run goes on with the same rows, not with others.
    job = yaml.safe_load((tmp_path / "memory" / "job.yaml").read_text())
    assert job["train"] == [f"table of {len(TEXTS)} rows"]
    (tmp_path / "memory" / "metrics.json").unlink()
    others = {"train": train.take(list(range(len(TEXTS)))[::-1]), "validation": validation}
    with pytest.raises(OutputError, match="train_digest"):
        armada.distill(**keys, **others, output=tmp_path / "memory", resume=True)
