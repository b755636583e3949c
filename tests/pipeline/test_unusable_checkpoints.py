"""A checkpoint that cannot be used is refused in one line, and leaves nothing in a cache."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import CommandLine
from unusable_checkpoints import CHANGES, QUANTISED, TEXTS, make_unusable, make_whole

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whole(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rows = "".join(f"{text},{number % 2}\n" for number, text in enumerate(TEXTS))
    (tmp_path / "texts.csv").write_text(f"text,label\n{rows}")
    return tmp_path / "texts.csv"


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["encoder", "causal_lm"])
def test_no_teacher(
    refused: Callable[..., str], whole: Path, corpus: Path, kind: str, change: str
) -> None:
    folder = make_unusable(whole, corpus.with_name("model"), change)
    words = ["precompute", "--corpus", corpus, "--text-column", "text"]
    words += ["--teacher", f"{kind}:{folder}", "--cache", corpus.with_name("cache")]
    told = refused(*words)
    assert CHANGES[change][1] in told
    assert len(told) < 500
    assert str(folder) in told


@pytest.mark.usefixtures("forked_workers")
def test_no_teacher_of_worker_processes(
    refused: Callable[..., str], whole: Path, corpus: Path
) -> None:
    folder = make_unusable(whole, corpus.with_name("model"), "weights are cut")
    words = ["precompute", "--corpus", corpus, "--text-column", "text", "--workers", "1"]
    told = refused(*words, "--teacher", f"encoder:{folder}", "--cache", corpus.with_name("cache"))
    assert "the weights are damaged or incomplete" in told


def test_debug_shows_where_it_came_from(whole: Path, corpus: Path) -> None:
    from armada.cache_schemas.errors import TeacherSourceError
    from armada.cli import main
    from safetensors import SafetensorError

    folder = make_unusable(whole, corpus.with_name("model"), "weights are cut")
    words = ["--debug", "precompute", "--corpus", corpus, "--text-column", "text"]
    words += ["--teacher", f"encoder:{folder}", "--cache", corpus.with_name("cache")]
    with pytest.raises(TeacherSourceError) as raised:
        main([str(word) for word in words])
    assert isinstance(raised.value.__cause__, SafetensorError)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("task", ["classification", "language"])
def test_no_student(
    refused: Callable[..., str], whole: Path, corpus: Path, task: str, change: str
) -> None:
    folder = make_unusable(whole, corpus.with_name("model"), change)
    told = refused(*distill(folder, corpus), "--set", f"task={task}")
    expected = "its weights are quantised" if change in QUANTISED else CHANGES[change][1]
    assert expected in told
    assert len(told) < 500


def distill(student: Path, corpus: Path) -> list[object]:
    words: list[object] = ["distill", "--train", corpus, "--text-column", "text", "--quiet"]
    words += ["--label-column", "label", "--student", student, "--control", "undistilled"]
    return [*words, "--output", corpus.with_name("run"), "--set", "epochs=1"]


def test_a_student_with_more_tokens_than_rows(
    refused: Callable[..., str], whole: Path, corpus: Path
) -> None:
    from transformers import AutoTokenizer

    folder = corpus.with_name("model")
    shutil.copytree(whole, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["sings", "rain"])
    tokenizer.save_pretrained(folder)
    told = refused(*distill(folder, corpus), "--set", "task=classification")
    assert "; resize the model's embeddings, and train" in told


def test_a_tokenizer_with_neither_padding_nor_end(
    armada: CommandLine, checkpoint: Callable[[str], Path], corpus: Path
) -> None:
    """Padding is masked: any token fills rows."""
    from transformers import AutoTokenizer

    folder = corpus.with_name("model")
    shutil.copytree(checkpoint("bert"), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).pad_token is None
    words = ["--corpus", corpus, "--text-column", "text", "--cache", corpus.with_name("cache")]
    armada.done("precompute", *words, "--teacher", f"encoder:{folder}")
    armada.done(*distill(folder, corpus))
