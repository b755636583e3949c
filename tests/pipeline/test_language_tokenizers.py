"""Teachers and students whose tokenizers have the same words, and other settings or files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from armada.cache_schemas.teachers import TeacherSpec
from armada.stages.language.tokens import tokenizer_digest, vocab_digest
from command_line import CommandLine
from safetensors.torch import load_file
from tiny_language_models import TEXTS, make_causal_lm, make_chat_tokenizer
from transformers import AutoTokenizer


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, its cache, and a student with the teacher's tokenizer."""
    from armada.cli import main

    root = tmp_path_factory.mktemp("tokenizers")
    pq.write_table(pa.table({"text": list(TEXTS)}), root / "train.parquet")
    make_causal_lm(root / "teacher")
    make_causal_lm(root / "student", seed=3, padding=8)
    with pytest.raises(SystemExit) as ended:
        main(words(root, "precompute", teacher=f"causal_lm:{root / 'teacher'}"))
    assert ended.value.code == 0
    return root


def words(root: Path, command: str, **keys: object) -> list[str]:
    settings = [part for name, value in keys.items() for part in ("--set", f"{name}={value}")]
    files = {"precompute": "--corpus", "distill": "--train"}
    texts = [files[command], str(root / "train.parquet"), "--text-column", "text"]
    return [command, *texts, "--cache", str(root / "cache"), "--quiet", *settings]


def distilled(root: Path, output: Path, student: Path, **keys: object) -> list[str]:
    given = {"task": "language", "objective": "tokens", "epochs": 1, "batch_size": 4} | keys
    return words(root, "distill", student=student, output=output, **given)


def refused(armada: CommandLine, *command: object) -> str:
    result = armada(*command)
    assert result.code == 2, result
    return result.error


def settings_of(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def other_pad(folder: Path) -> None:
    settings_of(folder, pad_token="</s>")


def added_pad(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<fill>"})
    tokenizer.save_pretrained(folder)


def added_words(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<tool>", "<call>"])
    tokenizer.save_pretrained(folder)


def merges_as_strings(folder: Path) -> None:
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
    path.write_text(json.dumps(document))


def other_unknown(folder: Path) -> None:
    settings_of(folder, unk_token="<pad>")


@pytest.mark.parametrize(
    "change", [other_pad, added_pad, added_words, merges_as_strings, other_unknown]
)
def test_the_same_words_under_other_settings(
    bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], None]
) -> None:
    student = Path(shutil.copytree(bench / "student", tmp_path / "student"))
    change(student)
    armada = CommandLine(capsys)
    armada.done(*distilled(bench, tmp_path / "same", bench / "student"))
    armada.done(*distilled(bench, tmp_path / "run", student))
    learned = [load_file(tmp_path / run / "student/model.safetensors") for run in ("same", "run")]
    for name, tensor in learned[0].items():
        assert torch.equal(tensor, learned[1][name]), name


def test_another_end_of_texts_is_named(
    bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = Path(shutil.copytree(bench / "student", tmp_path / "student"))
    settings_of(student, eos_token="<pad>")
    armada = CommandLine(capsys)
    told = refused(armada, *distilled(bench, tmp_path / "run", student))
    assert "they end in '</s>' for the teacher and '<pad>' for the student" in told
    assert "make the teacher's the student's eos_token" in told
    settings_of(student, eos_token="</s>")
    armada.done(*distilled(bench, tmp_path / "run", student))


def test_another_start_of_texts_is_named(
    bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = Path(shutil.copytree(bench / "student", tmp_path / "student"))
    path = student / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    armada = CommandLine(capsys)
    told = refused(armada, *distilled(bench, tmp_path / "run", student))
    assert "they begin with '<s>' for the teacher" in told
    assert "the teacher's tokenizer.json" in told


def test_the_same_words_split_otherwise(
    bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = Path(shutil.copytree(bench / "student", tmp_path / "student"))
    path = student / "tokenizer.json"
    document = json.loads(path.read_text())
    document["pre_tokenizer"]["add_prefix_space"] = True
    path.write_text(json.dumps(document))
    armada = CommandLine(capsys)
    assert "tokenization has changed" in refused(
        armada, *distilled(bench, tmp_path / "run", student)
    )


def test_a_word_more_of_the_teacher_is_another_tokenizer() -> None:
    """Ids that the student has no word for; words beyond the teacher's do not count."""
    one, more = make_chat_tokenizer(), make_chat_tokenizer()
    more.add_tokens(["<new>"])
    count = len(one)
    assert vocab_digest(one) == vocab_digest(more, count) == vocab_digest(one, count)
    assert vocab_digest(more) != vocab_digest(one, len(more))
    assert tokenizer_digest(one) != tokenizer_digest(more)


def test_a_cache_that_does_not_tell_its_words(
    bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As earlier versions wrote it: the same tokenizer opens it, the fingerprint is what it was."""
    root = Path(shutil.copytree(bench, tmp_path / "old"))
    (path,) = root.glob("cache/teachers/*/teacher.json")
    document = json.loads(path.read_text())
    assert document["spec"].pop("vocab_digest")
    assert (
        TeacherSpec.model_validate_json(json.dumps(document["spec"])).fingerprint
        == document["fingerprint"]
    )
    path.write_text(json.dumps(document))
    armada = CommandLine(capsys)
    armada.done(*words(root, "precompute", teacher=f"causal_lm:{bench / 'teacher'}"))
    armada.done(*distilled(root, tmp_path / "run", root / "student"))
    added_pad(root / "student")
    told = refused(armada, *distilled(root, tmp_path / "other", root / "student"))
    assert "their tokens differ" in told
