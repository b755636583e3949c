"""The recipes of retrieval, one after another, in small: tiny models that lie where commands are
started, under the names of the hub."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from armada.stages.store.reading.reader import open_cache
from command_line import CommandLine
from docs_pages import blocks
from recipes_material import RECIPES, RETRIEVAL, keys_of
from tiny_checkpoints import make_bert, make_bert_classifier
from tiny_embeddings import make_cross_encoder, make_embedding_model, modules
from tiny_runs import sentences

QUERIES, PASSAGES = 12, 40


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With data, and tiny models; commands are started there."""
    asked, said = sentences(0, QUERIES), sentences(200, 200 + PASSAGES)
    texts = [*asked, *said]
    folder = tmp_path / "data" / "msmarco"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"text": said}), folder / "passages.parquet")
    for name, rows in (("train", slice(0, 8)), ("validation", slice(8, QUERIES))):
        pairs = {"query": asked[rows], "positive": said[rows]}
        pq.write_table(pa.table(pairs), folder / f"{name}.parquet")
    checkpoint = make_bert(tmp_path / "bert", texts, layers=4)
    bge = tmp_path / "BAAI" / "bge-base-en-v1.5"
    make_embedding_model(bge, checkpoint, layers=[modules().Normalize()])
    shutil.copytree(bge, tmp_path / "thenlper" / "gte-base")
    reranker = make_bert_classifier(tmp_path / "scorer", texts, ["relevant"])
    make_cross_encoder(tmp_path / "cross-encoder" / "ms-marco-MiniLM-L6-v2", reranker)
    shutil.copytree(RECIPES, tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


def test_from_passages_to_retrievers(place: Path, armada: CommandLine) -> None:
    """In the order that the first recipe prints."""
    first = RECIPES / "retrieval" / "passages.yaml"
    lines = [line[6:] for line in first.read_text().splitlines() if line.startswith("#     ")]
    commands = [line.split() for line in lines]
    assert [Path(command[2]) for command in commands[:-1]] == [
        Path("recipes", "retrieval", f"{name}.yaml")
        for name in ("passages", "queries", "negatives", "pairs", "scores", "students")
    ]
    for command in commands[:-2]:
        short = ("--set", "max_length=32") if command[1] == "precompute" else ()
        armada.done(*command[1:], "--quiet", *short)
    hard = pq.read_table("data/msmarco/hard.parquet")
    assert hard.column_names == ["query", "positive", *(f"negative_{n}" for n in range(1, 5))]
    short = [f"--set={key}" for key in ("seed=0", "epochs=1", "batch_size=4", "max_length=32")]
    armada.done(*commands[-2][1:], "--quiet", *short)
    runs = sorted(Path("runs/retrieval").glob("*/seed-0/metrics.json"))
    grid = keys_of(Path("recipes/retrieval/students.yaml"))["grid"]
    assert len(runs) == len(grid) == 7
    for run in runs:
        assert 0 <= json.loads(run.read_text())["validation"]["ndcg@10"] <= 1


def test_teachers_without_a_prompt(place: Path, armada: CommandLine) -> None:
    """Queries and passages in one cache."""
    short = ("--quiet", "--set", "max_length=32")
    armada.done("precompute", "recipes/retrieval/gte.yaml", *short)
    armada.done(
        *("precompute", "recipes/retrieval/gte.yaml", "--corpus", "data/msmarco/train.parquet"),
        *("--text-column", "query", *short),
    )
    assert len(open_cache(Path("caches/msmarco-gte")).keys) == PASSAGES + 8


def test_each_names_the_command_that_reads_it() -> None:
    for file in RETRIEVAL:
        assert yaml.safe_load(Path(RECIPES.parent, file).read_text())
    assert {file.stem for file in RETRIEVAL} == {
        *("passages", "queries", "negatives", "pairs", "scores", "students", "gte", "qwen3"),
    }


def test_the_script_brings_pairs_and_passages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import Dataset

    def published(source: str, name: str, split: str) -> Any:
        assert (source, name) == ("microsoft/ms_marco", "v1.1")
        rows = 3 if split == "train" else 2
        return Dataset.from_list(
            [
                {
                    "query": f"{split} {row}",
                    "passages": {
                        "is_selected": [0, int(row != 1)],
                        "passage_text": [f"other {row}", f"{split} answer {row}"],
                    },
                }
                for row in range(rows)
            ]
        )

    readme = (RECIPES / "README.md").read_text(encoding="utf-8")
    (script,) = [block for block in blocks(readme) if block.file == "msmarco.py"]
    monkeypatch.setattr("datasets.load_dataset", published)
    monkeypatch.chdir(tmp_path)
    exec(compile(script.code, "msmarco.py", "exec"), {})
    folder = Path("data", "msmarco")
    train = pq.read_table(folder / "train.parquet").to_pydict()
    assert train["query"] == ["train 0", "train 2"]  # one has no selected passage
    assert train["positive"] == ["train answer 0", "train answer 2"]
    passages = pq.read_table(folder / "passages.parquet")["text"].to_pylist()
    assert len(passages) == len(set(passages))
    assert {"other 0", "train answer 1", "validation answer 0"} <= set(passages)
    assert len(os.listdir(folder)) == 3
