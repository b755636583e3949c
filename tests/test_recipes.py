"""Every recipe loads; together they are what the paper has. `test_recipes_runs.py` runs them."""

import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from armada.cache_schemas.errors import JobError
from armada.pipeline.ablation.job import make_ablation
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.jobs import make
from armada.pipeline.precompute_job import make_precompute_job, teacher_options
from docs_pages import ROOT, blocks
from recipes_material import (
    ABLATE,
    COMMANDS,
    DISTILL,
    FILES,
    METRICS,
    PRECOMPUTE,
    RECIPES,
    STUDENTS,
    TABLES,
    TASKS,
    command_of,
    keys_of,
    made_up,
)


def load(keys: dict[str, Any]) -> None:
    """Make the job that the keys are of."""
    if command_of(keys) == "precompute":
        made = make_precompute_job(keys)
        make(teacher_options(made.teacher), made.options)
    elif command_of(keys) == "ablate":
        make_ablation(keys)
    else:
        make(DistillJob, keys)


# --- what is there


def test_every_task_has_its_files() -> None:
    assert len(TASKS) == 13
    for task in TASKS:
        folder = Path("recipes", "nlu", task)
        assert {f for f in FILES if f.parent == folder} == {
            folder / "students.yaml",
            folder / "teacher.yaml",
        }
    assert sorted(f.parent.name for f in PRECOMPUTE if f.name == "teacher.yaml") == sorted(TASKS)
    assert {Path(f"recipes/controls/{task}.yaml") for task in ("cola", "rte")} <= set(ABLATE)
    assert len([f for f in PRECOMPUTE if f.parent.name == "teachers"]) == 3
    assert len(DISTILL) == 1


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_recipe_loads_and_has_no_other_keys(file: Path) -> None:
    load(keys_of(file))
    with pytest.raises(JobError, match="colour"):
        load(keys_of(file) | {"colour": "red"})


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_recipe_names_itself_and_fits_a_page(file: Path) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert f"{COMMANDS[file]} {file}" in text
    assert len(text.splitlines()) <= 100
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("task", TASKS)
def test_students_and_teacher_belong_together(task: str) -> None:
    teacher, students = (
        keys_of(Path("recipes", "nlu", task, f"{name}.yaml")) for name in ("teacher", "students")
    )
    for key in ("text_column", "cache"):
        assert students[key] == teacher[key]
    assert students["train"] == teacher["corpus"] == f"data/{task}/train.parquet"
    assert students["output"] == f"runs/{task}"
    assert students["metric"] == METRICS.get(task, "accuracy")
    assert students.get("num_labels", 0) == TABLES[task].classes


@pytest.mark.parametrize("task", TASKS)
def test_every_student_is_there_with_and_without_a_teacher(task: str) -> None:
    grid = keys_of(Path("recipes", "nlu", task, "students.yaml"))["grid"]
    assert tuple(one["name"] for one in grid) == STUDENTS
    assert {tuple(one["control"]) for one in grid} == {("none", "undistilled")}


OF_A_TASK = {"train", "validation", "corpus", "text_column", "cache", "output", "rows_per_shard"}
OF_A_TASK |= {"task", "num_labels", "metric"}


@pytest.mark.parametrize("name", ["teacher.yaml", "students.yaml"])
def test_tasks_differ_in_nothing_else(name: str) -> None:
    """So a run of one stands for all."""
    alike = [
        {key: value for key, value in keys_of(file).items() if key not in OF_A_TASK}
        for file in FILES
        if file.name == name
    ]
    assert len(alike) == 13
    assert all(each == alike[0] for each in alike)


def test_the_controls_are_the_papers() -> None:
    for file in ABLATE:
        if file.parent.name == "controls":
            runs = [run.job for run in make_ablation(keys_of(file)).runs]
            names = {job.control.partition("=")[0] for job in runs}
            assert names == {"none", "undistilled", "random-aligner", "shuffled", "noise"}
            for weight in ("alpha", "beta", "gamma"):
                assert 0 in {getattr(job, weight) for job in runs}


# --- the README

README = (RECIPES / "README.md").read_text(encoding="utf-8")
PAIRS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "boolq": ("question", "passage"),
    "cb": ("premise", "hypothesis"),
    "copa": ("premise", "choice1", "choice2", "question"),
    "wic": ("word", "sentence1", "sentence2"),
    "wsc": ("text", "span1_text", "span2_text"),
}
"""The text columns of the published tables; of the others: sentence1, sentence2."""


def published(source: str, task: str, split: str) -> Any:
    """A table with the columns of the published one, in place of a download."""
    from datasets import Dataset

    superglue = task in ("boolq", "cb", "copa", "wic", "wsc")
    assert source == ("aps/super_glue" if superglue else "nyu-mll/glue")
    assert split in ("train", "validation_matched" if task == "mnli" else "validation")
    texts = PAIRS.get(task, ("sentence1", "sentence2"))
    columns: dict[str, Any] = {name: [f"{name} of {row}" for row in range(3)] for name in texts}
    return Dataset.from_dict(columns | {"label": made_up(task)["label"][:3], "idx": [0, 1, 2]})


def test_the_script_brings_tables_with_the_columns_of_the_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (script,) = [b for b in blocks(README) if b.file == "data.py"]
    monkeypatch.setattr("datasets.load_dataset", published)
    monkeypatch.chdir(tmp_path)
    exec(compile(script.code, "data.py", "exec"), {})
    for task in TASKS:
        job = make_ablation(keys_of(Path("recipes", "nlu", task, "students.yaml"))).runs[0].job
        for file in (*job.train, *job.validation):
            table = pq.read_table(file)
            wanted = {"id", "label", *job.text_column}
            assert wanted <= set(table.column_names) <= {*made_up(task).column_names}
            assert table.schema.field("label").type == made_up(task).schema.field("label").type


def test_every_recipe_is_listed_and_what_is_listed_is_there() -> None:
    paths = {str(f.relative_to("recipes")).replace(f"/{f.parent.name}/", "/TASK/") for f in FILES}
    singles = {str(f.relative_to("recipes")) for f in FILES if f.parent.parent.name != "nlu"}
    listed = set(re.findall(r"`([\w/-]+\.yaml)`", README)) - {"students.yaml"}
    assert listed == singles | {path for path in paths if "TASK" in path}
    texts = [README, *((ROOT / file).read_text(encoding="utf-8") for file in FILES)]
    named = {name for text in texts for name in re.findall(r"recipes/[\w/-]+\.\w+", text)}
    assert [name for name in named if not (ROOT / name).is_file()] == []
    links = re.findall(r"\]\((?!http)(\S+?)\)", README)
    assert [link for link in links if not (RECIPES / link).is_file()] == []


def test_every_task_is_listed_with_its_metric() -> None:
    words = {"matthews": "Matthews", "f1": "F1", "pearson": "Pearson", "accuracy": "accuracy"}
    for task, shape in TABLES.items():
        metric = words[METRICS.get(task, "accuracy")]
        classes = shape.classes or "numbers"
        assert re.search(rf"^\| `{task}` \| {metric}.* \| {classes}.* \|", README, re.MULTILINE)
