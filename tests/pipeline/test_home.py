"""`~` means a home in every path that a command takes, and never a folder of that name."""

from pathlib import Path
from typing import Any

import armada
import pytest
from armada.cache_schemas.errors import JobError
from armada.cache_schemas.locations import expand_home
from armada.stages.store.reading.reader import open_cache
from command_line import CommandLine

TEXT = ("--text-column", "text")
LABELLED = (*TEXT, "--label-column", "label")


@pytest.fixture
def home(distill_bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with corpora and a student; commands run in an empty folder beside it."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    for name in ("train", "validation"):
        file = getattr(distill_bench, name)
        (home / file.name).write_bytes(file.read_bytes())
    (home / "student").symlink_to(distill_bench.student)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    return home


def test_every_command_writes_to_the_home(home: Path, armada: CommandLine) -> None:
    job = "corpus: ~/train.parquet\ntext_column: text\nteacher: hash:4\ncache: ~/cache\n"
    (home / "job.yaml").write_text(job)
    armada.done("precompute", "~/job.yaml")
    encoder = ("--teacher", "encoder:~/student", "--set", "cache=~/encoded")
    armada.done("precompute", "--corpus", "~/train.parquet", *TEXT, *encoder)
    armada.done("cache", "ls", "~/cache")
    armada.done("cache", "inspect", "~/cache")
    armada.done("cache", "verify", "~/cache")
    armada.done("cache", "repair", "~/cache")
    armada.done("cache", "gc", "~/cache")
    armada.done("cache", "card", "~/cache", "--output", "~/card.md")
    exported = ("--output", "~/exported", "--format", "npy")
    armada.done("cache", "export", "~/cache", "--corpus", "~/train.parquet", *TEXT, *exported)
    imported = ("~/exported/features_embedding.npy", "--name", "again", *TEXT)
    armada.done("cache", "import", "~/imported", *imported, "--corpus", "~/train.parquet")
    armada.done("cache", "push", "~/cache", "~/pushed")
    armada.done("cache", "pull", "~/pushed", "~/pulled")
    armada.done("cache", "merge", "~/merged", "~/pulled", "~/encoded")
    corpora = ("--train", "~/train.parquet", "--validation", "~/validation.parquet", *LABELLED)
    small = ("--set", "epochs=1", "--quiet", "--student", "~/student")
    armada.done("distill", *corpora, "--cache", "~/cache", *small, "--output", "~/run")
    armada.done("evaluate", "~/run", "--corpus", "~/validation.parquet")
    armada.done("report", "~/run", "--out", "~/report.html", "--quiet")
    written = ("card.md", "exported", "imported", "merged/teachers", "run/metrics.json")
    for name in (*written, "pulled/teachers", "encoded/teachers", "report.html"):
        assert (home / name).exists(), name
    assert list(Path.cwd().iterdir()) == []


def test_a_cache_in_the_home_opens_from_python(home: Path, armada: CommandLine) -> None:
    words = ("--corpus", "~/train.parquet", *TEXT, "--teacher", "hash:4", "--cache", "~/cache")
    armada.done("precompute", *words)
    assert len(open_cache("~/cache")) == len(open_cache(home / "cache")) > 0


def test_every_path_of_a_call_from_python_may_be_a_path(home: Path) -> None:
    train, student, cache = Path("~/train.parquet"), Path("~/student"), Path("~/cache")
    armada.precompute(corpus=train, text_column="text", teacher="hash:4", cache=cache)
    keys = {"text_column": "text", "label_column": "label", "epochs": 1}
    armada.distill(train=[train], cache=cache, student=student, output=Path("~/run"), **keys)
    told = armada.evaluate(student=Path("~/run"), corpus=Path("~/validation.parquet"))
    assert told["examples"] > 0
    assert (home / "run" / "metrics.json").exists()
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("key", ["corpus", "cache", "teacher"])
def test_a_user_that_nobody_knows_is_refused(home: Path, armada: CommandLine, key: str) -> None:
    keys = {"corpus": "~/train.parquet", "text_column": "text", "cache": "~/cache"}
    keys |= {"teacher": "hash:4", key: "encoder:~nobody-x/a" if key == "teacher" else "~nobody-x/a"}
    words = [word for name, value in keys.items() for word in ("--set", f"{name}={value}")]
    result = armada("precompute", *words)
    assert result.code == 2
    assert "~nobody-x/a: there is no user ~nobody-x" in result.error
    assert list(Path.cwd().iterdir()) == []


def test_only_the_start_of_a_path_is_a_home(home: Path) -> None:
    assert expand_home("~/a~b/~") == f"{home}/a~b/~"
    assert expand_home("./~/a") == "./~/a"
    assert expand_home("s3://bucket/~a") == "s3://bucket/~a"
    with pytest.raises(JobError, match=r"write \./~\$x\.csv"):
        expand_home("~$x.csv")
