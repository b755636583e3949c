"""The way in: `python -m armada`, `--version`, shell completion, what is said and how loudly."""

import logging
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from armada import __version__
from command_line import CommandLine

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "zarr", "pyarrow", "numpy"}


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


def own_process(*words: str, **environment: str) -> str:
    """What `python -m armada` prints."""
    return subprocess.run(
        [sys.executable, "-P", *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Ten texts, one of them twice."""
    path = tmp_path / "texts.csv"
    path.write_text("text\n" + "".join(f"number {n % 9}\n" for n in range(10)))
    return path


def precompute(corpus: Path, cache: Path) -> tuple[object, ...]:
    options = ("--corpus", corpus, "--text-column", "text", "--teacher", "hash:4", "--cache", cache)
    return "precompute", *options


def test_the_package_is_a_command_and_says_its_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert own_process("-m", "armada", "--version") == f"armada {__version__}\n"
    assert __version__ == project["version"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_get_a_script_of_completion(shell: str) -> None:
    script = own_process("-m", "armada", _ARMADA_COMPLETE=f"source_{shell}")
    assert "_ARMADA_COMPLETE=complete_" in script


def test_words_are_completed_without_waiting_for_torch() -> None:
    code = (
        "import atexit, sys; from armada.cli import main\n"
        f"atexit.register(lambda: print('heavy', sorted({HEAVY} & set(sys.modules))))\n"
        "main([])"
    )
    words = {"COMP_WORDS": "armada dist", "COMP_CWORD": "1"}
    printed = own_process("-c", code, _ARMADA_COMPLETE="complete_bash", **words)
    assert printed.splitlines() == ["distill", "heavy []"]


def test_progress_is_information(armada: CommandLine, corpus: Path, tmp_path: Path) -> None:
    done = armada(*precompute(corpus, tmp_path / "cache"))
    assert done.err.startswith("precompute: 9/9 rows, ")
    quieter = armada("--log-level", "warning", *precompute(corpus, tmp_path / "other"))
    assert quieter.code == 0
    assert quieter.err == ""
    assert quieter.out


def test_warnings_can_be_left_out_and_errors_cannot(
    armada: CommandLine, corpus: Path, tmp_path: Path
) -> None:
    with corpus.open("a") as file:
        file.write('""\n')
    leave_out = ("--set", "skip_bad_rows=true", "--quiet")
    words = (*precompute(corpus, tmp_path / "cache"), *leave_out)
    assert armada(*words).err.startswith("warning: 1 rows were skipped\nwarning:   ")
    assert armada("--log-level", "error", *words).err == ""
    refused = armada("--log-level", "error", "precompute", "--teacher", "hash:4")
    assert refused.code == 2
    assert refused.error.startswith("job key 'corpus' is missing")


def test_debug_tells_of_each_shard(armada: CommandLine, corpus: Path, tmp_path: Path) -> None:
    done = armada("--log-level", "debug", *precompute(corpus, tmp_path / "cache"))
    assert done.err.startswith("debug: shard 0: 9 rows in ")


def test_a_level_that_does_not_exist_is_refused(armada: CommandLine) -> None:
    refused = armada("--log-level", "loud", "demo")
    assert refused.code == 2
    assert "'loud' is not one of" in refused.err


def test_the_logger_is_as_it_was_when_a_command_has_ended(armada: CommandLine) -> None:
    logger = logging.getLogger("armada")
    before = logger.level, logger.propagate, list(logger.handlers)
    armada("--log-level", "debug", "precompute")
    assert (logger.level, logger.propagate, logger.handlers) == before
