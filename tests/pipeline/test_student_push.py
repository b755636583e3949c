"""`push_to_hub`: a trained student goes to a repository of its own, or is kept and said to be."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import armada
import pytest
from armada.cache_schemas.errors import InputError
from armada.pipeline.ablation.job import make_ablation
from armada.stages.store.transfer import retries
from command_line import CommandLine
from hub_repository import WRITER, LoopbackHub, error, hub_of_repositories
from small_caches import stored_bytes
from tenacity import wait_none

WORDS = ("--push-to-hub", "team/student")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    monkeypatch.setattr(retries, "WAIT", wait_none())
    with hub_of_repositories(monkeypatch) as state:
        yield state


def test_the_whole_folder_in_one_commit(
    hub: LoopbackHub, distill_bench: Any, armada: CommandLine, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    result = armada(*distill_bench.words(run, *WORDS))
    assert result.code == 0, result.err
    assert "hf://team/student: created a private model repository" in result.err
    assert "student uploaded to hf://team/student" in result.err
    assert hub.commits_made == 1
    assert hub.repositories["model", "team/student"].private
    sent = hub.files("team/student", "model")
    assert {n: d for n, d in sent.items() if n != ".gitattributes"} == stored_bytes(run / "student")
    assert WRITER.encode() not in b"".join(stored_bytes(run).values())


def test_from_python(hub: LoopbackHub, distill_bench: Any, tmp_path: Path) -> None:
    armada.distill(
        **{"train": distill_bench.train, "text_column": "text", "label_column": "label"},
        **{"cache": distill_bench.cache, "teacher": distill_bench.hash, "output": tmp_path / "run"},
        **{"student": distill_bench.student, "epochs": 1, "aligner_hidden_size": 8},
        push_to_hub="team/student",
    )
    assert "model.safetensors" in hub.files("team/student", "model")


def test_a_student_that_does_not_arrive_is_kept_and_sent_later(
    hub: LoopbackHub, distill_bench: Any, armada: CommandLine, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    hub.faults = [("POST .*/commit/", [error(403, "no space left in team")])]
    result = armada(*distill_bench.words(run, *WORDS))
    assert result.code == 1
    line = result.err.splitlines()[-1]
    assert line.startswith(f"error: student {run}/student: is trained and written, but was not")
    assert "no space left in team" in line
    assert f"`hf upload team/student {run}/student --private`" in line
    before = stored_bytes(run)
    assert "metrics.json" in before
    armada.done(*distill_bench.words(run, *WORDS, "--resume"))
    assert stored_bytes(run) == before
    assert "model.safetensors" in hub.files("team/student", "model")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--push-to-hub", "student"), "'student' is not USER/NAME"),
        (("--push-to-hub", "team/a/b"), "'team/a/b' is not USER/NAME"),
        (("--push-to-hub", "team/a--b"), "hf://team/a--b: "),
        ((*WORDS, "--set", "seed=[0, 1]"), "the students of 2 seeds do not fit in one repository"),
    ],
)
def test_what_is_wrong_is_said_before_training(
    words: tuple[str, ...],
    said: str,
    hub: LoopbackHub,
    distill_bench: Any,
    refused: Callable[..., str],
    tmp_path: Path,
) -> None:
    assert said in refused(*distill_bench.words(tmp_path / "run", *words))
    assert hub.asked == []


def test_no_token(
    hub: LoopbackHub,
    distill_bench: Any,
    refused: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    line = refused(*distill_bench.words(tmp_path / "run", *WORDS))
    assert "needs a token that may write; run `hf auth login`, or set HF_TOKEN" in line


def test_not_in_a_grid(distill_bench: Any, tmp_path: Path) -> None:
    keys = {"train": str(distill_bench.train), "text_column": "text", "label_column": "label"}
    keys |= {"cache": str(distill_bench.cache), "student": str(distill_bench.student)}
    keys |= {"output": str(tmp_path / "a"), "push_to_hub": "team/student"}
    with pytest.raises(InputError, match="one repository cannot hold the students of many runs"):
        make_ablation(keys | {"grid": {"beta": [0.5, 1.0]}})
