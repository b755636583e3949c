"""Students that embed on tasks of MTEB, which are made up here: nothing is fetched. The package is
no part of what tests install (`pip install -e '.[mteb]'`)."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import armada as library
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import CommandLine
from scipy.stats import spearmanr
from tiny_checkpoints import make_bert
from tiny_embeddings import encode
from tiny_runs import freeze_dropout, sentences

mteb = pytest.importorskip("mteb", reason="mteb is not installed")
abstasks = pytest.importorskip("mteb.abstasks")

ONE, OTHER = sentences(0, 20), sentences(200, 220)
SCORES = np.random.default_rng(0).random(20).round(3).tolist()


def metadata(name: str, kind: str, score: str) -> Any:
    return mteb.TaskMetadata(
        name=name,
        type=kind,
        main_score=score,
        description="Made-up sentences.",
        reference=None,
        dataset={"path": "none", "revision": "1"},
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        date=("2026-01-01", "2026-01-02"),
        domains=["Written"],
        task_subtypes=[],
        license="cc0-1.0",
        annotations_creators="derived",
        dialect=[],
        sample_creation="created",
        bibtex_citation="",
    )


class MadeUpPairs(abstasks.AbsTaskSTS):
    metadata = metadata("MadeUpPairs", "STS", "cosine_spearman")

    def load_data(self, **_: Any) -> None:
        from datasets import Dataset, DatasetDict

        columns = {"sentence1": ONE, "sentence2": OTHER, "score": SCORES}
        self.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
        self.data_loaded = True


class MadeUpSearch(abstasks.AbsTaskRetrieval):
    metadata = metadata("MadeUpSearch", "Retrieval", "ndcg_at_10")

    def load_data(self, **_: Any) -> None:
        from datasets import Dataset
        from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData

        numbers = range(len(ONE))
        queries = [{"id": f"q{n}", "text": ONE[n]} for n in numbers]
        passages = [{"id": f"p{n}", "text": OTHER[n], "title": ""} for n in numbers]
        split = RetrievalSplitData(
            queries=Dataset.from_list(queries),
            corpus=Dataset.from_list(passages),
            relevant_docs={f"q{n}": {f"p{n}": 1} for n in numbers},
            top_ranked=None,
        )
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


@pytest.fixture(autouse=True)
def tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks of this file are known to mteb by their names."""
    registry = sys.modules["mteb.get_tasks"]._TASKS_REGISTRY
    for task in (MadeUpPairs, MadeUpSearch):
        monkeypatch.setitem(registry, task.metadata.name, task)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of two prompts and two seeds, and one without prompts."""
    folder = tmp_path_factory.mktemp("mteb")
    pq.write_table(pa.table({"query": ONE, "positive": OTHER}), folder / "pairs.parquet")
    freeze_dropout(make_bert(folder / "student", [*ONE, *OTHER]))
    keys = {
        **{"train": folder / "pairs.parquet", "text_column": ["query", "positive"]},
        **{"student": folder / "student", "task": "embedding", "objective": "contrastive"},
        **{"device": "cpu", "epochs": 1, "batch_size": 10, "report_to": "none", "quiet": True},
    }
    prompts = {"query_prompt": "the cook ", "passage_prompt": "a sailor ", "seed": [0, 1]}
    library.distill(**keys, **prompts, output=folder / "prompts")
    library.distill(**keys, output=folder / "plain")
    library.distill(**keys, passage_tower="own", passage_student_layers=1, output=folder / "towers")
    return folder


def cosines(one: Any, other: Any) -> Any:
    one, other = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (one, other))
    return one @ other.T


def ndcg(similarity: Any) -> float:
    """Of one relevant passage for each query, that of its own number."""
    own = np.diag(similarity)
    ranks = (similarity > own[:, None]).sum(1)
    return float(np.mean(np.where(ranks < 10, 1 / np.log2(ranks + 2), 0)))


def test_scores_are_those_of_the_folder(armada: CommandLine, runs: Path) -> None:
    """Each seed is measured; prompts are those of queries and passages, and of pairs the one that
    is named."""
    words = ["evaluate", runs / "prompts", "--set", "mteb=[MadeUpPairs, MadeUpSearch]"]
    words += ["--set", "prompt_name=document"]
    found = json.loads(armada.done(*words, "--json"))
    told = {name: task["main_score"] for name, task in found["tasks"].items()}
    assert told == {"MadeUpPairs": "cosine_spearman", "MadeUpSearch": "ndcg_at_10"}
    for seed in (0, 1):
        student = runs / "prompts" / f"seed-{seed}" / "student"
        one, other = (encode(student, each, prompt_name="document") for each in (ONE, OTHER))
        expected = spearmanr(np.diag(cosines(one, other)), SCORES).statistic
        assert found["metrics"]["MadeUpPairs"]["runs"][seed] == pytest.approx(expected, abs=1e-5)
        queries = encode(student, ONE, prompt_name="query")
        expected = ndcg(cosines(queries, other))
        assert found["metrics"]["MadeUpSearch"]["runs"][seed] == pytest.approx(expected, abs=1e-5)
    printed = armada.done(*words)
    assert printed.startswith("2 tasks of MTEB, each by its main score\n")
    assert "MadeUpSearch" in printed


def test_tasks_of_a_student_without_prompts(armada: CommandLine, runs: Path) -> None:
    words = ["evaluate", runs / "plain", "--set", "mteb=[MadeUpPairs]", "--json"]
    found = json.loads(armada.done(*words))["metrics"]
    one, other = (encode(runs / "plain" / "student", each) for each in (ONE, OTHER))
    expected = spearmanr(np.diag(cosines(one, other)), SCORES).statistic
    assert found == {"MadeUpPairs": pytest.approx(expected, abs=1e-5)}


def test_queries_and_passages_have_towers(armada: CommandLine, runs: Path) -> None:
    words = ["evaluate", runs / "towers", "--set", "mteb=[MadeUpSearch]", "--json"]
    found = json.loads(armada.done(*words))["metrics"]
    towers = (runs / "towers" / "student" / name for name in ("query", "document"))
    one, other = (encode(tower, each) for tower, each in zip(towers, (ONE, OTHER), strict=True))
    assert found == {"MadeUpSearch": pytest.approx(ndcg(cosines(one, other)), abs=1e-5)}
    refused = armada("evaluate", runs / "towers", "--set", "mteb=[MadeUpSearch, MadeUpPairs]")
    assert refused.error.startswith("mteb 'MadeUpPairs': its texts are neither queries nor ")


def test_a_folder_that_would_be_pooled_otherwise(
    armada: CommandLine, runs: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs / "plain" / "student", tmp_path / "student")
    (tmp_path / "student" / "modules.json").unlink()
    result = armada("evaluate", tmp_path / "student", "--set", "mteb=[MadeUpPairs]")
    assert (result.code, "holds no modules.json" in result.error) == (2, True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["mteb=[MadeUpPears]"], "mteb 'MadeUpPears': is no task of mteb: "),
        (["mteb=[MadeUpPairs]"], "prompt_name is missing: "),
        (["mteb=[]"], "mteb"),
        (["mteb=[MadeUpPairs]", "similarity=dot"], "similarity: not with mteb; leave out"),
        (["mteb=[MadeUpPairs]", "beir=."], "corpus, beir, mteb: name one of them"),
    ],
)
def test_what_is_refused(
    armada: CommandLine, runs: Path, settings: list[str], message: str
) -> None:
    given = [word for setting in settings for word in ("--set", setting)]
    result = armada("evaluate", runs / "prompts", *given)
    assert result.code == 2
    assert message in result.error
