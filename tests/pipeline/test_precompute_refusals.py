"""Everything that a job can get wrong is said in one line, before anything is written."""

from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine

REFUSED: dict[str, tuple[list[str], str]] = {
    "unknown key": (
        ["--set", "limt=3"],
        "teacher hash key 'limt' is unknown; did you mean 'limit'?",
    ),
    "option of another teacher": (
        ["--set", "lora=x"],
        "teacher hash key 'lora' is unknown; keys are",
    ),
    "no value": (["--set", "limit"], "--set limit: is not KEY=VALUE"),
    "no key": (["--set", "=3"], "--set =3: is not KEY=VALUE"),
    "no YAML": (["--set", "limit={"], "--set limit={: the value is not YAML"),
    "limit": (
        ["--set", "limit=0"],
        "job key 'limit': 0: Input should be greater than or equal to 1",
    ),
    "batch size": (
        ["--set", "batch_size=many"],
        "job key 'batch_size': 'many': Input should be a valid",
    ),
    "rows per shard": (
        ["--set", "rows_per_shard=100"],
        "'rows_per_shard': 100: Input should be a multiple",
    ),
    "options": (["--set", "options=3"], "job key 'options': 3: Input should be a valid dictionary"),
    "keys of options": (
        ["--set", "options={1: 2}"],
        "job key 'options': 1: Input should be a valid string",
    ),
    "corpus": (["--set", "corpus=3"], "job key 'corpus': 3: Input should be a valid tuple"),
    "teacher option": (
        ["--set", "seed=-1"],
        "teacher hash key 'seed': -1: Input should be greater",
    ),
    "no kind of teacher": (["--teacher", "hash"], "job key 'teacher': 'hash': is not KIND:SOURCE"),
    "a hub id": (["--teacher", "org/name"], "KIND:SOURCE; did you mean encoder:org/name?"),
    "a URL": (["--teacher", "https://host/a"], "is a URL, not KIND:SOURCE, such as encoder:FOLDER"),
    "weights at a URL": (
        ["--teacher", "encoder:https://me:secret@host/a"],
        "source https://host/a: looks like a URL; name a local folder",
    ),
    "pipeline at a URL": (["--teacher", "diffusers:hf://a/b"], "source hf://a/b: looks like a URL"),
    "no codec of texts": (["--set", "encoding=rot13"], "'rot13': is no encoding of texts; name"),
    "no codec": (
        ["--set", "encoding=latn-1"],
        "is not an encoding known to Python; did you mean latin1?",
    ),
    "no encoding": (["--set", "encoding=''"], "is not an encoding known to Python; try utf-8"),
    "no source": (["--teacher", "hash:"], "job key 'teacher': 'hash:': is not KIND:SOURCE"),
    "unknown teacher": (
        ["--teacher", "hsh:16"],
        "teacher 'hsh' is unknown; did you mean 'hash'? known are",
    ),
    "width of hash": (
        ["--teacher", "hash:wide"],
        "teacher hash:wide: 'wide' is not a width from 1 to",
    ),
    "device": (["--set", "device=gpu7"], "job key 'device': 'gpu7' cannot be used here"),
    "column": (["--text-column", "sentense"], "no column 'sentense'; did you mean 'sentence'?"),
    "id column": (["--set", "id_column=idx"], "no column 'idx'; it has"),
    "corpus file": (["--corpus", "absent.csv"], "corpus absent.csv: cannot be read: "),
    "kind of file": (["--corpus", "rows.txt"], "corpus rows.txt: unknown kind of file"),
    "cache is a file": (["--cache", "rows.csv"], "cache rows.csv: is a file, and so it holds no"),
    "cache is full": (
        ["--cache", "."],
        "cache .: holds no armada.json; this is not an armada cache",
    ),
    "job file": (["absent.yaml"], "job file absent.yaml: cannot be read: "),
    "job is no mapping": (["list.yaml"], "job file list.yaml: is not a mapping"),
    "job is no YAML": (["broken.yaml"], "job file broken.yaml: cannot be read: "),
    "job is no text": (["bytes.yaml"], "job file bytes.yaml: cannot be read: "),
}


@pytest.fixture
def armada(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> CommandLine:
    """The command line in a folder with a corpus and some files that are no jobs."""
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("sentence,label\nx,1\n")
    Path("list.yaml").write_text("- corpus\n- rows.csv\n")
    Path("broken.yaml").write_text("corpus: {rows.csv\ntext_column: a: b\n")
    Path("bytes.yaml").write_bytes(b"\xff\xfe\x00")
    return CommandLine(capsys)


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_one_line_and_2(
    armada: CommandLine, tmp_path: Path, change: list[str], message: str
) -> None:
    defaults = {
        "--corpus": "rows.csv",
        "--text-column": "sentence",
        "--teacher": "hash:16",
        "--cache": "cache",
    }
    kept = [
        word for name, value in defaults.items() if name not in change for word in (name, value)
    ]
    before = sorted(tmp_path.iterdir())
    result = armada("precompute", *kept, *change)
    assert result.code == 2
    assert message in result.error
    assert "Traceback" not in result.err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["corpus", "text-column", "teacher", "cache"])
def test_missing_keys_are_named_with_their_meaning(armada: CommandLine, name: str) -> None:
    given: dict[str, Any] = {
        "corpus": "rows.csv",
        "text-column": "sentence",
        "teacher": "hash:16",
        "cache": "cache",
    }
    del given[name]
    result = armada("precompute", *(w for key, value in given.items() for w in (f"--{key}", value)))
    assert result.code == 2
    assert result.error.startswith(f"job key '{name.replace('-', '_')}' is missing (")


@pytest.mark.parametrize(
    "words",
    [["cache", "ls", "absent"], ["cache", "inspect", "rows.csv"], ["cache", "inspect", "."]],
    ids=" ".join,
)
def test_what_is_no_cache_cannot_be_looked_into(armada: CommandLine, words: list[str]) -> None:
    result = armada(*words)
    assert result.code == 2
    assert "holds no armada.json" in result.error


@pytest.mark.parametrize("words", [["precompte"], ["precompute", "--corpsu", "x"], ["cache", "ls"]])
def test_words_that_are_no_command_are_2(armada: CommandLine, words: list[str]) -> None:
    result = armada(*words)
    assert result.code == 2
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    "words",
    [
        ("precompute", "--corpus", "rows.csv", "--text-column", "sentence", "--teacher", "hash:16",
         "--cache", "s3://bucket/cache"),
        ("cache", "verify", "s3:/bucket/cache"),
        ("cache", "pull", "published", "https://host/cache"),
    ],
    ids=["precompute", "verify", "pull"],
)  # fmt: skip
def test_a_url_is_no_folder_of_this_machine(
    armada: CommandLine, tmp_path: Path, words: tuple[str, ...]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = armada(*words)
    assert result.code == 2
    assert "looks like a URL; name a local folder" in result.error
    assert sorted(tmp_path.rglob("*")) == before
