"""Grids and reports of students that are language models."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from armada.cache_schemas.errors import JobError
from armada.pipeline.ablation.job import make_ablation
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.findings.findings import find
from armada.pipeline.findings.runs import find_runs
from command_line import CommandLine
from tiny_language_models import TEXTS, make_causal_lm

JOB: dict[str, Any] = {
    **{"train": "texts.parquet", "validation": "texts.parquet", "text_column": "text"},
    **{"cache": "cache", "student": "student", "task": "language", "objective": "tokens"},
    **{"feature": "top_k", "epochs": 1, "output": "runs"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ablation")
    make_causal_lm(root / "teacher")
    make_causal_lm(root / "student", seed=1)
    pq.write_table(pa.table({"text": TEXTS, "label": [0, 1] * 3}), root / "texts.parquet")
    return root


@pytest.fixture
def armada(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> CommandLine:
    monkeypatch.chdir(folder)
    made = CommandLine(capsys)
    words = ("--text-column", "text", "--teacher", "causal_lm:teacher", "--cache", "cache")
    made.done("precompute", "--corpus", "texts.parquet", *words)
    return made


def write_job(**changes: Any) -> str:
    Path("job.yaml").write_text(yaml.safe_dump(JOB | changes, sort_keys=False))
    return "job.yaml"


def test_what_a_student_of_words_depends_on_makes_a_cell() -> None:
    grid = [
        {"control": ["none", "undistilled"]},
        {"alpha": [0.0, 0.9], "divergence": ["forward_kl", "reverse_kl"]},
        {"lora_rank": [2]},
    ]
    assert len(make_ablation(JOB | {"grid": grid}).runs) == 2 + 4 + 1


@pytest.mark.parametrize("key", ["alpha", "divergence", "token_temperature", "tail"])
def test_a_student_without_a_teacher_reads_nothing_of_one(key: str, armada: CommandLine) -> None:
    values = {"divergence": ["jsd", "reverse_kl"], "tail": ["bucket", "renormalised"]}
    grid = {"control": ["undistilled"], key: values.get(key, [0.25, 0.5])}
    refused = armada("ablate", write_job(grid=grid), "--dry-run")
    assert refused.code == 2
    assert f"are the same student, which reads no '{key}'" in refused.err


def test_a_plan_reads_the_teachers_words(armada: CommandLine) -> None:
    grid = {"control": ["none", "undistilled"]}
    cells = json.loads(armada.done("ablate", write_job(grid=grid), "--dry-run", "--json"))
    assert [cell["train_examples"] for cell in cells] == [6, 6]
    refused = armada("ablate", write_job(grid=grid, feature="samples"), "--dry-run")
    assert refused.code == 2
    assert (
        "job key 'feature': 'samples' is not a token feature; the teacher has top_k" in refused.err
    )


def test_a_report_compares_language_models(armada: CommandLine) -> None:
    ask = ("--corpus", "texts.parquet", "--text-column", "text", "--teacher", "hash:8")
    armada.done("precompute", *ask, "--cache", "pictures")
    beside = {
        **{"cache": None, "feature": None, "objective": None},
        "teachers": {
            "llm": {"cache": "cache", "feature": "top_k"},
            "pictures": {"cache": "pictures"},
        },
        "objectives": [
            {"name": "tokens", "teacher": "llm"},
            {"name": "armada", "teacher": "pictures", "aligner_hidden_size": 8},
        ],
    }
    for name, changes in (
        ("taught", {}),
        ("untaught", {"control": "undistilled"}),
        ("both", beside),
    ):
        job = write_job(output=f"done/{name}", **changes)
        armada.done("distill", job, "--quiet")
    (study,) = find(find_runs([Path("done")]).runs).studies
    assert [row.base is not None for row in study.rows] == [False, True, True]
    result = armada("report", "done", "--out", "report.html")
    assert result.code == 0
    assert "plots need classification students" in result.err
    page = Path("report.html").read_text(encoding="utf-8")
    assert "undistilled" in page
    assert "loss" in page


def test_columns_of_the_printed_table_are_under_their_names(armada: CommandLine) -> None:
    from armada.pipeline.findings.table import _conditions

    class Study:
        title, metric, rows = "title", "loss", ()

    table = _conditions(Study())  # type: ignore[arg-type]
    assert [str(column.header) for column in table.columns][2:] == ["improvement", "p", "runs"]


@pytest.mark.parametrize("setting", ["responses=generated", "packing=concat", "divergence=jsd"])
def test_keys_of_words_are_refused_where_nobody_reads_them(
    armada: CommandLine, setting: str
) -> None:
    words = ("--train", "texts.parquet", "--text-column", "text", "--label-column", "label")
    student = ("--student", "scratch:bert", "--control", "undistilled", "--output", "bert")
    refused = armada("distill", *words, *student, "--set", setting)
    assert refused.code == 2
    assert re.search(f"job key '{setting.split('=')[0]}': is for language models", refused.err)


def test_an_undistilled_student_is_checked_too(armada: CommandLine) -> None:
    words = ("--train", "texts.parquet", "--text-column", "text", "--set", "task=language")
    student = ("--student", "scratch:llama", "--control", "undistilled", "--output", "scratch")
    refused = armada("distill", *words, *student, "--set", "lora_rank=4")
    assert refused.code == 2
    assert "a student from scratch has no pretrained weights to adapt" in refused.err


def test_keys_of_earlier_releases_name_a_teacher_of_tokens_beside_that_of_a_feature(
    caplog: pytest.LogCaptureFixture,
) -> None:
    earlier: dict[str, Any] = JOB | {
        **{"objective": "armada", "token_cache": "words", "token_feature": "samples"},
        **{"feature": "embedding", "alpha": 0.25, "beta": 3.0, "token_temperature": 2.0},
        **{"verify_cache": True, "expect_digest": "0" * 64},
    }
    found = DistillJob(**earlier)
    assert "deprecated, removed in the next release" in caplog.text
    plain = {k: v for k, v in JOB.items() if k not in ("cache", "feature", "objective")}
    pictures = {"cache": "cache", "feature": "embedding", "expect_digest": "0" * 64}
    words = {"cache": "words", "feature": "samples", "control": "none"}
    now = plain | {
        "teachers": {
            "teacher": pictures | {"verify_cache": True},
            "tokens": words | {"verify_cache": True},
        },
        "objectives": [
            {"name": "tokens", "teacher": "tokens", "alpha": 0.25, "token_temperature": 2.0},
            {"name": "armada", "teacher": "teacher", "alpha": 0.25, "beta": 3.0},
        ],
    }
    assert found.model_dump(mode="json") == DistillJob(**now).model_dump(mode="json")
    far = DistillJob(**earlier | {"token_cache": "https://me:secret@example.org/words"})
    assert "secret" not in far.model_dump_json()
    with pytest.raises(JobError, match="name both in `teachers`"):
        DistillJob(**JOB | {"token_cache": "words"})
