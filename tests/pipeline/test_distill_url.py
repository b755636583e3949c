"""`armada distill` straight from a URL: the same student, and each shard fetched once."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from armada.cache_schemas.errors import JobError
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.jobs import make
from armada.stages.store.reading.reader import read_digest
from armada.stages.store.transfer import retries
from armada.stages.store.transfer.mirror import default_mirror
from command_line import CommandLine
from file_server import serving
from s3_server import new_bucket
from tenacity import wait_none
from tiny_runs import TEXTS
from transfers import send, serve_ready

JOB = {"train": "train", "text_column": "text", "student": "s", "output": "o"}


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(retries, "TRIES", 2)
    monkeypatch.setattr(retries, "WAIT", wait_none())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


@pytest.fixture(scope="module")
def served(distill_bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bench's cache with an index."""
    return serve_ready(distill_bench.cache, tmp_path_factory.mktemp("served") / "cache")


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def features_asked(asked: list[str]) -> list[str]:
    return sorted(name for name in asked if "/c/" in name)


def test_the_same_student_as_from_a_local_cache(
    distill_bench: Any, served: Path, armada: CommandLine, tmp_path: Path
) -> None:
    local, remote, again = (tmp_path / name for name in ("local", "remote", "again"))
    here = {"teacher": distill_bench.made_up[:8]}
    more = ("--set", "feature=embedding", "--set", "logging_steps=1")
    armada.done(*distill_bench.words(local, *more, **here))
    with serving(served) as server:
        url = server.url.replace("//", "//me:secret@")
        words = distill_bench.words(remote, *more, **here, cache=url)
        armada.done(*words)
        folder = f"teachers/{distill_bench.made_up}/embedding/c"
        assert features_asked(server.asked) == [f"{folder}/0/0", f"{folder}/1/0"]
        assert len(server.asked) == len(set(server.asked)) == 1 + 2 + 2
        server.asked.clear()
        armada.done(*distill_bench.words(again, *more, **here, cache=url))
        assert server.asked == ["index.json"]
    assert losses(remote) == losses(local) == losses(again)
    assert json.loads((remote / "run.json").read_text())["cache_digest"] == read_digest(served)
    assert json.loads((local / "run.json").read_text())["cache_digest"] == read_digest(served)
    assert yaml.safe_load((remote / "job.yaml").read_text())["cache"] == server.url
    for file in (*remote.rglob("*"), *(tmp_path / "user").rglob("*")):
        assert not file.is_file() or b"secret" not in file.read_bytes(), file
    assert default_mirror(server.url).is_dir()


def test_from_s3_with_features_to_validate_by(
    distill_bench: Any,
    armada: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_parquet: Any,
) -> None:
    bucket = new_bucket("distill", monkeypatch)
    send(distill_bench.cache, bucket)
    mirror = tmp_path / "mirror"
    words = distill_bench.words(
        tmp_path / "run",
        *("--set", f"mirror={mirror}", "--set", "mirror_limit=1MiB"),
        *("--set", "placement=streamed", "--objective", "feature"),
        validation=write_parquet("validation", {"text": TEXTS[:7]}),
        label_column=None,
        cache=bucket,
    )
    armada.done(*words)
    assert len(list(mirror.glob("teachers/*/*/c/*/0"))) == 1
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["validation"]


def test_a_run_that_cannot_fit_is_refused_before_it_begins(
    distill_bench: Any, served: Path, armada: CommandLine, tmp_path: Path
) -> None:
    with serving(served) as server:
        words = distill_bench.words(tmp_path / "run", "--set", "mirror_limit=1kB", cache=server.url)
        result = armada(*words)
        assert features_asked(server.asked) == []
    assert result.code == 2
    assert "mirror_limit is 1000; raise it, or train on fewer texts" in result.error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("remote", [True, False])
def test_only_the_expected_cache_is_learned_from(
    remote: bool, distill_bench: Any, served: Path, armada: CommandLine, tmp_path: Path
) -> None:
    with serving(served) as server:
        cache = server.url if remote else distill_bench.cache
        digest = ("--set", f"expect_digest={'a' * 64}")
        result = armada(*distill_bench.words(tmp_path / "run", *digest, cache=cache))
        assert set(server.asked) <= {"index.json"}
    assert result.code == 2
    assert f"{cache}: its digest is {read_digest(served)}, not {'a' * 64}" in result.error
    assert not (tmp_path / "user").exists()


def test_texts_that_were_never_asked_about_are_named(
    distill_bench: Any, served: Path, armada: CommandLine, tmp_path: Path, write_parquet: Any
) -> None:
    train = write_parquet("train", {"text": [*TEXTS[:3], "new"], "label": [0, 1, 2, 1]})
    with serving(served) as server:
        words = distill_bench.words(tmp_path / "run", cache=server.url, train=train)
        result = armada(*words)
        assert features_asked(server.asked) == []
    assert result.code == 2
    assert "1 of 4 rows are not in the cache" in result.error


def test_damage_on_the_way_ends_the_run(
    distill_bench: Any, served: Path, armada: CommandLine, tmp_path: Path
) -> None:
    with serving(served) as server:
        name = f"teachers/{distill_bench.hash}/embedding/c/0/0"
        server.faults = {name: "flip"}
        result = armada(*distill_bench.words(tmp_path / "run", cache=server.url))
    assert result.code == 1
    assert f"{server.url}/{name}: arrived damaged" in result.error


@pytest.mark.parametrize(
    ("text", "number"),
    [("50GiB", 50 * 2**30), ("2.5 kB", 2500), ("7", 7), (9, 9), ("1 tb", 10**12)],
)
def test_numbers_of_bytes(text: object, number: int) -> None:
    assert make(DistillJob, JOB | {"cache": "c", "mirror_limit": text}).mirror_limit == number


@pytest.mark.parametrize("text", ["much", "-1", "0", "GiB"])
def test_what_is_no_number_of_bytes(text: str) -> None:
    with pytest.raises(JobError, match=r"job key 'mirror_limit': "):
        make(DistillJob, JOB | {"cache": "c", "mirror_limit": text})


@pytest.mark.parametrize(
    ("given", "cache"),
    [("a/b", Path("a/b")), ("file:///a/b", Path("/a/b")), ("s3://a/b", "s3://a/b")],
)
def test_a_cache_is_a_folder_or_a_url(given: str, cache: object) -> None:
    job = make(DistillJob, JOB | {"cache": given})
    assert job.cache == cache
    assert isinstance(job.cache, str) == isinstance(cache, str)
    assert job.model_dump(mode="json")["cache"] == str(cache)
