"""The recipes, and tables for them: the columns and labels of each task, a few rows."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from docs_pages import ROOT

RECIPES = ROOT / "recipes"
FILES = sorted(file.relative_to(ROOT) for file in RECIPES.rglob("*.yaml"))
WRITERS = ("OPT-1.3B", "LLaMA-3B", "LLaMA-7B", "LLaMA-8B")
"""Students that are language models."""

STUDENTS = ("BERT-6L", "BERT-12L", "DeBERTa-v2", "OPT-1.3B", "LLaMA-3B", "LLaMA-7B", "LLaMA-8B")
METRICS = {"cola": "matthews", "mrpc": "f1", "qqp": "f1", "stsb": "pearson"}
"""Of the others: accuracy."""


def keys_of(file: Path) -> dict[str, Any]:
    keys: dict[str, Any] = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))
    return keys


def command_of(keys: dict[str, Any]) -> str:
    """The command that takes a job of such keys."""
    if "negatives" in keys:
        return "mine"
    if {"rules", "generators"} & keys.keys():
        return "corpus"
    return "precompute" if "corpus" in keys else "ablate" if "grid" in keys else "distill"


COMMANDS = {file: command_of(keys_of(file)) for file in FILES}
OTHER_TEACHERS = ("vlm", "video", "audio", "served")
"""Files of each task of NLU, for teachers beside Stable Diffusion."""

PRECOMPUTE, ABLATE, DISTILL = (
    [file for file in FILES if COMMANDS[file] == command]
    for command in ("precompute", "ablate", "distill")
)
RESPONSES = [file for file in FILES if file.parent.name == "responses"]
"""Each reads what another leaves; they have a test of their own."""

PREFERENCES = [file for file in FILES if file.parent.name == "preferences"]
"""So do these."""

RETRIEVAL = [file for file in FILES if file.parent.name == "retrieval"]
"""And these."""

PICTURES = [file for file in FILES if file.parent.name == "pictures"]
"""And these."""

PRECOMPUTE, ABLATE, DISTILL = (
    [file for file in files if file not in (*RESPONSES, *PREFERENCES, *RETRIEVAL, *PICTURES)]
    for files in (PRECOMPUTE, ABLATE, DISTILL)
)
OTHERS = [file for file in PRECOMPUTE if file.stem in OTHER_TEACHERS]
PRECOMPUTE = [file for file in PRECOMPUTE if file not in OTHERS]

# --- tables

WHO = ("a red bird", "the old cook", "two grey geese", "my aunt", "nobody")
WHAT = ("waits", "is late", "crosses the lake", "sings", "has seen it")
TEXTS = [f"{who} {what}" for who in WHO for what in WHAT]

ROWS = 4
"""Of each table."""


@dataclass(frozen=True, slots=True)
class Table:
    """The columns of a task's table beside `id` and `label`, and its labels: so many classes, or
    numbers (0)."""

    texts: tuple[str, ...]
    classes: int
    numbers: tuple[str, ...] = ()


_PAIR = ("text_a", "text_b")
TABLES = {
    "cola": Table(("text", "source", "domain"), 2),
    "sst2": Table(("text",), 2),
    "mrpc": Table(_PAIR, 2),
    "qqp": Table(_PAIR, 2),
    "stsb": Table(_PAIR, 0),
    "mnli": Table(_PAIR, 3),
    "qnli": Table(_PAIR, 2),
    "rte": Table(_PAIR, 2),
    "boolq": Table(_PAIR, 2),
    "cb": Table(_PAIR, 3),
    "copa": Table((*_PAIR, "text_c", "question"), 2),
    "wic": Table((*_PAIR, "word"), 2, ("start_a", "end_a", "start_b", "end_b")),
    "wsc": Table(("text", "span1", "span2"), 2, ("span1_index", "span2_index")),
}


def made_up(task: str, first: int = 0) -> pa.Table:
    """A table of a task: ROWS examples, those from `first` on."""
    shape, places = TABLES[task], range(first, first + ROWS)
    columns: dict[str, Any] = {"id": [f"{task}-{place}" for place in places]}
    for number, name in enumerate(shape.texts):
        columns[name] = [TEXTS[(place + 7 * number) % len(TEXTS)] for place in places]
    columns |= {name: [place % 3 for place in places] for name in shape.numbers}
    columns["label"] = [place % shape.classes if shape.classes else place / 2 for place in places]
    return pa.table(columns)


def write_tables(folder: Path) -> None:
    """FOLDER/TASK/train.parquet and validation.parquet for every task."""
    for task in TABLES:
        (folder / task).mkdir(parents=True)
        pq.write_table(made_up(task), folder / task / "train.parquet")
        pq.write_table(made_up(task, first=ROWS), folder / task / "validation.parquet")


TASKS = tuple(TABLES)


def write_reviews(folder: Path) -> None:
    """FOLDER/rotten_tomatoes: some rows of train.parquet without a label, labelled.parquet and
    validation.parquet."""
    (folder / "rotten_tomatoes").mkdir(parents=True)
    for number, name in enumerate(("train", "labelled", "validation")):
        rows = made_up("sst2", first=ROWS * number)
        if name == "train":
            few = [
                label if row < 2 else None for row, label in enumerate(rows["label"].to_pylist())
            ]
            rows = rows.set_column(rows.column_names.index("label"), "label", [few])
        pq.write_table(rows, folder / "rotten_tomatoes" / f"{name}.parquet")


REASONING = {
    **{"boolq": 2, "piqa": 2, "siqa": 3, "hellaswag": 4},
    **{"winogrande": 2, "arc-e": 5, "arc-c": 5, "obqa": 4},
}
"""Task -> choices, at most."""


def question(task: str, first: int = 0) -> pa.Table:
    """A table of a reasoning task: ROWS questions, those from `first` on."""
    places = range(first, first + ROWS)
    labels = [place % REASONING[task] for place in places]
    return pa.table(
        {
            "id": [f"{task}-{place}" for place in places],
            "prompt": [f"What is it?\nA. {TEXTS[place]}\nB. {TEXTS[-place]}" for place in places],
            "response": ["ABCDE"[label] for label in labels],
            "label": labels,
        }
    )


def instruction(first: int = 0) -> pa.Table:
    """A table of instructions: ROWS of them, some with a context."""
    places = range(first, first + ROWS)
    return pa.table(
        {
            "id": [f"dolly-{place}" for place in places],
            "instruction": [f"Go on: {TEXTS[place]}" for place in places],
            "context": [TEXTS[place] if place % 2 else "" for place in places],
            "response": [TEXTS[-1 - place] for place in places],
        }
    )


def preference(first: int = 0) -> pa.Table:
    """A table of preferences: ROWS prompts with two responses each."""
    places = range(first, first + ROWS)
    return pa.table(
        {
            "prompt": [f"Go on: {TEXTS[place]}" for place in places],
            "chosen": [TEXTS[-1 - place] for place in places],
            "rejected": [f"{TEXTS[place]}, no" for place in places],
        }
    )


def write_language_tables(folder: Path) -> None:
    """FOLDER/reasoning/TASK/*.parquet for every task, FOLDER/instructions/dolly/*.parquet and
    FOLDER/preferences/*.parquet."""
    made: dict[str, Any] = {f"reasoning/{task}": partial(question, task) for task in REASONING}
    made |= {"instructions/dolly": instruction, "preferences": preference}
    for name, table in made.items():
        (folder / name).mkdir(parents=True)
        for number, split in enumerate(("train", "validation", "test")):
            pq.write_table(table(first=ROWS * number), folder / name / f"{split}.parquet")
