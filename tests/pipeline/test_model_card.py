"""The card of a student: what a hub reads in its head, and code that opens what was trained."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import CommandLine
from huggingface_hub import ModelCard
from tiny_language_models import make_causal_lm

SEGMENTS = ("--text-column", "b", "--text-column", "c")
"""Beside the first, `text`."""

KINDS: dict[str, tuple[tuple[str, ...], dict[str, object], str, str]] = {
    "names": (("--label-column", "name"), {}, "text-classification", "transformers"),
    "two segments": (
        ("--text-column", "b"),
        {"cache": None},
        "text-classification",
        "transformers",
    ),
    "three segments": (SEGMENTS, {"cache": None}, "text-classification", "armada"),
    "pooled": (("--set", "pooling=mean"), {}, "text-classification", "armada"),
    "feature": (("--objective", "feature"), {}, "text-classification", "transformers"),
    "pooled feature": (
        ("--objective", "feature", "--set", "pooling=mean"),
        {},
        "text-classification",
        "armada",
    ),
    "scores": (("--label-column", "score"), {}, "text-classification", "transformers"),
    "adapters": (("--set", "lora_rank=2"), {}, "text-classification", "peft"),
    "pooled adapters": (
        ("--set", "pooling=mean", "--set", "lora_rank=2"),
        {},
        "text-classification",
        "armada",
    ),
    "feature, adapters": (
        ("--objective", "feature", "--set", "lora_rank=2"),
        {},
        "text-classification",
        "peft",
    ),
}
"""Options, changes of the job; task and library in the card."""


def train(armada: CommandLine, bench: Any, output: Path, *more: str, **changes: object) -> Path:
    """The folder of a student, trained for an epoch."""
    if changes.get("cache", 0) is None:
        more, changes = (*more, "--control", "undistilled"), changes | {"teacher": None}
    armada.done(*bench.words(output, "--set", "epochs=1", *more, **changes))
    return output / "student"


def head_and_snippet(student: Path) -> tuple[Any, str]:
    """What `huggingface_hub` reads of a card, and its code; fails if a table is empty."""
    card = ModelCard.load(student / "README.md")
    assert not re.search(r"\| --- \|\n(?!\|)", card.text), card.text
    assert str(student) not in card.content
    (snippet,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    return card.data, snippet


def run(snippet: str, student: Path) -> Any:
    """The value of a snippet's last line, where `folder` is the student's."""
    *lines, last = snippet.strip().splitlines()
    names: dict[str, Any] = {"folder": str(student)}
    exec("\n".join(lines), names)
    return eval(last, names)


@pytest.mark.parametrize(("more", "changes", "task", "library"), KINDS.values(), ids=KINDS)
def test_a_card_says_how_good_a_student_is_and_opens_it(
    armada: CommandLine,
    distill_bench: Any,
    tmp_path: Path,
    more: tuple[str, ...],
    changes: dict[str, object],
    task: str,
    library: str,
) -> None:
    student = train(armada, distill_bench, tmp_path / "mine", *more, **changes)
    head, snippet = head_and_snippet(student)
    assert (head.pipeline_tag, head.library_name) == (task, library)
    assert {"armada", "knowledge-distillation"} <= set(head.tags)
    assert head.base_model is None  # a folder of this machine
    assert head.model_name == "mine"
    measured = json.loads((tmp_path / "mine" / "metrics.json").read_text())["validation"]
    found = {each.metric_name: each.metric_value for each in head.eval_results}
    assert found == pytest.approx(measured)
    assert {each.dataset_name for each in head.eval_results} == {"validation.parquet"}
    types = {each.metric_name: each.metric_type for each in head.eval_results}
    assert types.get("matthews", "matthews_correlation") == "matthews_correlation"
    said = run(snippet, student)
    one = said if isinstance(said, dict) else said[0]
    assert one.keys() == ({"label", "score"} if library != "armada" else {"class", "probabilities"})
    assert ("lora" in head.tags) == ("lora_rank=2" in more)


def test_without_a_validation_set_there_is_no_table(
    armada: CommandLine, distill_bench: Any, tmp_path: Path
) -> None:
    student = train(armada, distill_bench, tmp_path / "run", validation=None)
    head, _ = head_and_snippet(student)
    assert head.eval_results is None
    text = (student / "README.md").read_text()
    assert "trained without a validation set: nothing has been measured" in text
    assert "|" not in text


@pytest.mark.parametrize("more", [(), ("--set", "lora_rank=2")], ids=["whole", "adapters"])
def test_students_of_features_are_embeddings(
    armada: CommandLine, distill_bench: Any, tmp_path: Path, more: tuple[str, ...]
) -> None:
    words = ("--objective", "feature", "--set", "label_column=null", *more)
    student = train(armada, distill_bench, tmp_path / "run", *words, validation=None)
    head, snippet = head_and_snippet(student)
    if (student / "modules.json").exists():
        assert (head.pipeline_tag, head.library_name) == (
            "sentence-similarity",
            "sentence-transformers",
        )
        assert run(snippet, student).shape == (1, 6)
    else:
        assert (head.pipeline_tag, head.library_name) == ("feature-extraction", "armada")
        assert run(snippet, student)[0]["embedding"].shape == (6,)


@pytest.fixture
def language(armada: CommandLine, tmp_path: Path) -> Callable[..., Path]:
    """The folder of a student that is a language model, trained with some keys."""
    words = ["red", "bird", "sings", "at", "dawn"]
    pq.write_table(pa.table({"q": words, "a": words[::-1]}), tmp_path / "train.parquet")
    make_causal_lm(tmp_path / "base", "llama")

    def trained(*columns: str, **keys: object) -> Path:
        given = {"task": "language", "control": "undistilled", "epochs": 1} | keys
        settings = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
        named = [word for column in columns for word in ("--text-column", column)]
        words = ("--train", tmp_path / "train.parquet", *named, "--student", tmp_path / "base")
        armada.done("distill", *words, *settings, "--output", tmp_path / "run", "--quiet")
        return tmp_path / "run" / "student"

    return trained


def test_language_models_say_more(language: Callable[..., Path]) -> None:
    student = language("q")
    head, snippet = head_and_snippet(student)
    assert (head.pipeline_tag, head.library_name) == ("text-generation", "transformers")
    assert run(snippet, student)[0]["generated_text"].startswith("a text")
    assert "5 examples, `q` -> the next token" in (student / "README.md").read_text()


def test_adapters_are_put_on_their_model(language: Callable[..., Path]) -> None:
    student = language("q", "a", text_format="plain", lora_rank=2)
    head, snippet = head_and_snippet(student)
    assert (head.pipeline_tag, head.library_name) == ("text-generation", "peft")
    assert "lora" in head.tags
    assert run(snippet, student)[0]["generated_text"].startswith("a text")
    assert "load_student" in (student / "README.md").read_text()


def test_licence_and_language_are_those_of_the_base(
    armada: CommandLine, distill_bench: Any, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    import shutil

    base = tmp_path / "base"
    shutil.copytree(checkpoint("bert"), base)
    head = "license: apache-2.0\nlanguage: [en, de]\nbase_model: team/tiny"
    (base / "README.md").write_text(f"---\n{head}\n---\n\n# Base\n")
    student = train(armada, distill_bench, tmp_path / "run", student=base)
    found, _ = head_and_snippet(student)
    assert (found.license, found.language) == ("apache-2.0", ["en", "de"])
    assert found.base_model == "team/tiny"  # what the folder says that it came from
    assert found.base_model_relation == "finetune"
    lora = ("--set", "lora_rank=2")
    student = train(armada, distill_bench, tmp_path / "adapted", *lora, student=base)
    found, _ = head_and_snippet(student)
    assert (found.base_model, found.base_model_relation) == ("team/tiny", "adapter")
    (base / "README.md").write_text("---\nlicense: [\n---\n")  # a broken one says nothing
    student = train(armada, distill_bench, tmp_path / "again", student=base)
    assert head_and_snippet(student)[0].license is None
