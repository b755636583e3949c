"""Every recipe loads; together they are what the paper has. `test_recipes_runs.py` runs them."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from armada.cache_schemas.errors import JobError
from armada.pipeline.ablation.job import make_ablation
from armada.pipeline.corpora.job import CorpusJob
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.jobs import make
from armada.pipeline.precompute_job import make_precompute_job, teacher_options
from armada.pipeline.retrieval.mine_job import MineJob
from docs_pages import ROOT, blocks
from recipes_material import (
    ABLATE,
    COMMANDS,
    DISTILL,
    FILES,
    METRICS,
    OTHER_TEACHERS,
    PRECOMPUTE,
    REASONING,
    RECIPES,
    RESPONSES,
    STUDENTS,
    TABLES,
    TASKS,
    WRITERS,
    command_of,
    keys_of,
    made_up,
    question,
)


def load(keys: dict[str, Any]) -> None:
    """Make the job that the keys are of."""
    if command_of(keys) == "precompute":
        made = make_precompute_job(keys)
        make(teacher_options(made.teacher), made.options)
    elif command_of(keys) == "mine":
        make(MineJob, keys)
    elif command_of(keys) == "corpus":
        make(CorpusJob, keys)
    elif command_of(keys) == "ablate":
        make_ablation(keys)
    else:
        make(DistillJob, keys)


# --- what is there


def of_kind(kind: str, tasks: Iterable[str] = REASONING) -> list[Path]:
    return [Path("recipes", kind, task) for task in tasks]


def test_every_task_has_its_files() -> None:
    assert (len(TASKS), len(REASONING)) == (13, 8)
    folders = {Path("recipes", "instructions"), *of_kind("nlu", TASKS), *of_kind("reasoning")}
    for folder in folders:
        others = (*OTHER_TEACHERS, "teachers") if folder.parent.name == "nlu" else ()
        assert {f for f in FILES if f.parent == folder} == {
            folder / f"{name}.yaml" for name in ("students", "teacher", *others)
        }
    assert {f.parent for f in PRECOMPUTE if f.name == "teacher.yaml"} == folders
    words = {f.name for f in FILES if f.parent.name == "words"}
    assert words == {
        f"{name}{part}.yaml" for name in ("obqa", "dolly") for part in ("", "-students")
    }
    assert {Path(f"recipes/controls/{task}.yaml") for task in ("cola", "rte")} <= set(ABLATE)
    assert len([f for f in PRECOMPUTE if f.parent.name == "teachers"]) == 3
    assert len(DISTILL) == 1
    assert {f.stem for f in RESPONSES} == {"samples", "best", "tokens", "student"}


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
def test_other_teachers_read_the_same_texts(task: str) -> None:
    teacher, *others = (
        keys_of(Path("recipes", "nlu", task, f"{name}.yaml"))
        for name in ("teacher", *OTHER_TEACHERS)
    )
    for name, other in zip(OTHER_TEACHERS, others, strict=True):
        assert {key: other[key] for key in ("corpus", "text_column")} == {
            key: teacher[key] for key in ("corpus", "text_column")
        }
        assert other["cache"] == f"caches/{task}-{name}"


@pytest.mark.parametrize("task", TASKS)
def test_one_student_learns_from_each_of_the_teachers(task: str) -> None:
    """With all else as in the file of all students, and once without a teacher."""
    folder = Path("recipes", "nlu", task)
    students, teachers = keys_of(folder / "students.yaml"), keys_of(folder / "teachers.yaml")
    shared = students.keys() - {"grid", "cache", "output"}
    assert {key: teachers[key] for key in shared} == {key: students[key] for key in shared}
    jobs = [run.job for run in make_ablation(teachers).runs if not run.seed]
    caches = [str(job.cache) for job in jobs if job.control == "none"]
    every = {keys_of(folder / f"{name}.yaml")["cache"] for name in ("teacher", *OTHER_TEACHERS)}
    assert len(caches) == len(every) == 5
    assert set(caches) == every
    assert [job.control for job in jobs][len(caches) :] == ["undistilled"]


@pytest.mark.parametrize("task", TASKS)
def test_every_student_is_there_with_and_without_a_teacher(task: str) -> None:
    grid = keys_of(Path("recipes", "nlu", task, "students.yaml"))["grid"]
    assert tuple(one["name"] for one in grid) == STUDENTS
    assert {tuple(one["control"]) for one in grid} == {("none", "undistilled")}
    adapted = [one["name"] for one in grid if one.get("lora_rank") == 8]
    assert adapted == [name for name in STUDENTS if name.startswith("LLaMA")]


@pytest.mark.parametrize("folder", [*of_kind("reasoning"), Path("recipes/instructions")], ids=str)
def test_students_that_write_belong_to_their_teacher(folder: Path) -> None:
    teacher, students = keys_of(folder / "teacher.yaml"), keys_of(folder / "students.yaml")
    for key in ("text_column", "cache"):
        assert students[key] == teacher[key]
    assert students["train"] == teacher["corpus"]
    assert students.get("num_labels", 0) == REASONING.get(folder.name, 0)
    assert tuple(one["name"] for one in students["grid"]) == WRITERS
    assert {tuple(one["control"]) for one in students["grid"]} == {("none", "undistilled")}
    assert {run.job.lora_rank for run in make_ablation(students).runs} == {8}


@pytest.mark.parametrize("name", ["obqa", "dolly"])
def test_students_of_words_are_written_to_as_their_teacher_was(name: str) -> None:
    words = keys_of(Path("recipes/words", f"{name}.yaml"))
    students = keys_of(Path("recipes/words", f"{name}-students.yaml"))
    kind = Path("recipes/instructions" if name == "dolly" else "recipes/reasoning/obqa")
    pictures = keys_of(kind / "students.yaml")
    for key in ("text_column", "text_format", "prompt_template", "max_length"):
        assert words[key] == students[key] == pictures[key]
    assert students["train"] == words["corpus"] == pictures["train"]
    jobs = [run.job for run in make_ablation(students).runs]
    caches = {str(keys.cache) for job in jobs for keys in job.all_teachers.values()}
    assert caches == {words["cache"], pictures["cache"]}
    tokens = [keys for job in jobs for keys in job.all_objectives if keys.name == "tokens"]
    assert {keys.options["token_temperature"] for keys in tokens} <= set(words["temperatures"])


OF_A_TASK = {"train", "validation", "corpus", "text_column", "cache", "output", "rows_per_shard"}
OF_A_TASK |= {"task", "num_labels", "metric"}


@pytest.mark.parametrize(
    ("kind", "count", "name"),
    [
        *(
            (kind, count, f"{name}.yaml")
            for kind, count in (("nlu", 13), ("reasoning", 8))
            for name in ("teacher", "students")
        ),
        ("nlu", 13, "teachers.yaml"),
        *(("nlu", 13, f"{name}.yaml") for name in OTHER_TEACHERS),
    ],
)
def test_tasks_differ_in_nothing_else(kind: str, count: int, name: str) -> None:
    """So a run of one stands for all."""
    own = OF_A_TASK | ({"grid"} if name == "teachers.yaml" else set())  # caches of the task
    alike = [
        {key: value for key, value in keys_of(file).items() if key not in own}
        for file in FILES
        if file.name == name and file.parent.parent.name == kind
    ]
    assert len(alike) == count
    assert all(each == alike[0] for each in alike)


def test_the_controls_are_the_papers() -> None:
    for file in ABLATE:
        if file.parent.name == "controls" and file.stem in TASKS:
            runs = [run.job for run in make_ablation(keys_of(file)).runs]
            names = {job.control.partition("=")[0] for job in runs}
            assert names == {"none", "undistilled", "random-aligner", "shuffled", "noise"}
            for weight in ("alpha", "beta", "gamma"):
                assert 0 in {job.options[weight] for job in runs}


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


def asked(source: str, split: str, **keys: str) -> Any:
    """A few rows as the published tables of questions have them."""
    from datasets import Dataset

    assert split in ("train", "validation")
    known = {
        "google/boolq": {"question": "is it", "passage": "it is", "answer": True},
        "ybisk/piqa": {"goal": "to go", "sol1": "run", "sol2": "sit", "label": 0},
        "lighteval/siqa": {
            **{"context": "he ran", "question": "why?", "label": "3"},
            **{f"answer{letter}": f"for {letter}" for letter in "ABC"},
        },
        "Rowan/hellaswag": {"ctx": "he ran", "endings": list("wxyz"), "label": "2", "ind": 7},
        "allenai/winogrande": {
            "sentence": "_ ran",
            "option1": "he",
            "option2": "it",
            "answer": "1",
        },
        "databricks/databricks-dolly-15k": {
            **{"instruction": "say it", "context": "", "response": "it", "category": "qa"}
        },
    }
    choices = {"text": list("wxyz"), "label": list("1234"), "other": list("wxyz")}
    arc = {"question": "what?", "choices": choices, "answerKey": "2"}
    row = known.get(source) or (arc if "arc" in source else arc | {"question_stem": "which?"})
    rows = 1200 if "dolly" in source else 3
    return Dataset.from_list([row | {"source": f"{source} {n}"} for n in range(rows)])


def test_the_other_script_brings_questions_and_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (script,) = [b for b in blocks(README) if b.file == "language-data.py"]
    monkeypatch.setattr("datasets.load_dataset", asked)
    monkeypatch.chdir(tmp_path)
    exec(compile(script.code, "language-data.py", "exec"), {})
    right = {"boolq": "B", "piqa": "A", "siqa": "C", "hellaswag": "C", "winogrande": "A"}
    for task in REASONING:
        for split in ("train", "validation"):
            table = pq.read_table(Path("data", "reasoning", task, f"{split}.parquet"))
            assert set(table.column_names) == set(question(task).column_names)
            first = table.to_pylist()[0]
            letter = right.get(task, "B")
            assert (first["response"], first["label"]) == (letter, "ABCDE".index(letter))
            assert first["prompt"].count("\n") >= 2
            assert f"\n{letter}. " in first["prompt"]
    sizes = [
        len(pq.read_table(Path("data", "instructions", "dolly", f"{split}.parquet")))
        for split in ("train", "validation", "test")
    ]
    assert sizes == [200, 500, 500]


def test_the_script_of_reviews_leaves_few_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import Dataset

    def reviews(source: str, split: str) -> Any:
        rows = range(300 if split == "train" else 5)
        return Dataset.from_list([{"text": f"{split} {row}", "label": row % 2} for row in rows])

    (script,) = [b for b in blocks(README) if b.file == "reviews.py"]
    monkeypatch.setattr("datasets.load_dataset", reviews)
    monkeypatch.chdir(tmp_path)
    exec(compile(script.code, "reviews.py", "exec"), {})
    job = make_ablation(keys_of(Path("recipes/choices/rotten-tomatoes-students.yaml"))).runs[0].job
    whole, labelled, held_out = (
        pq.read_table(file)
        for file in (job.train[0], "data/rotten_tomatoes/labelled.parquet", job.validation[0])
    )
    assert {"id", "text", "label"} == set(whole.column_names)
    assert (len(whole), whole["label"].null_count, len(held_out)) == (300, 200, 5)
    assert labelled["text"].to_pylist() == whole["text"].to_pylist()[:100]
    assert labelled["label"].to_pylist() == whole["label"].to_pylist()[:100]


def test_every_recipe_is_listed_and_what_is_listed_is_there() -> None:
    paths = {str(f.relative_to("recipes")).replace(f"/{f.parent.name}/", "/TASK/") for f in FILES}
    of_tasks = ("nlu", "reasoning")
    singles = {str(f.relative_to("recipes")) for f in FILES if f.parent.parent.name not in of_tasks}
    listed = set(re.findall(r"`([\w/-]+\.yaml)`", README)) - {"students.yaml"}
    assert listed == singles | {path for path in paths if "TASK" in path}
    texts = [README, *((ROOT / file).read_text(encoding="utf-8") for file in FILES)]
    named = {name for text in texts for name in re.findall(r"recipes/[\w/-]+\.\w+", text)}
    assert [name for name in named if not (ROOT / name).is_file()] == []
    links = re.findall(r"\]\((?!http)(\S+?)\)", README)
    assert [link for link in links if not (RECIPES / link).is_file()] == []


def test_every_reasoning_task_is_listed_with_its_choices() -> None:
    for task, choices in REASONING.items():
        assert re.search(rf"^\|.* `{task}`.* \| {choices} \|$", README, re.MULTILINE)


def test_every_task_is_listed_with_its_metric() -> None:
    words = {"matthews": "Matthews", "f1": "F1", "pearson": "Pearson", "accuracy": "accuracy"}
    for task, shape in TABLES.items():
        metric = words[METRICS.get(task, "accuracy")]
        classes = shape.classes or "numbers"
        assert re.search(rf"^\| `{task}` \| {metric}.* \| {classes}.* \|", README, re.MULTILINE)
