"""What is secret of a URL is in no file that is left behind and in no line that is said."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from armada.cache_schemas.errors import CorpusError, shown_url
from armada.pipeline.precompute_job import make_precompute_job
from armada.stages.store.transfer import retries
from command_line import CommandLine
from file_server import serving
from hangs import HANG_S
from tenacity import wait_none
from transfers import serve_ready

SECRET = "hunter2hunter2"
SHOWN = {
    f"see s3://me:{SECRET}@host/a@b, now": "see s3://host/a@b, now",
    f"s3://key:{SECRET[:4]}/{SECRET}@bucket/x": "s3://bucket/x",
    f"https://{SECRET}@h/x": "https://h/x",
    f"https://u:{SECRET}@h/x,https://v:{SECRET}@h/y": "https://h/x,https://h/y",
    f"https://h/x.csv?token={SECRET}: cannot be read": "https://h/x.csv?token=***: cannot be read",
    f"'https://h/x?split=train&sig={SECRET}'": "'https://h/x?split=train&sig=***'",
    f"see (https://h/x?{SECRET}).": "see (https://h/x?***).",
    f"simplecache::https://u:{SECRET}@h/y": "simplecache::https://h/y",
    "https://h:8000/data@v2/x": "https://h:8000/data@v2/x",
    "hf://datasets/me/name@main/x": "hf://datasets/me/name@main/x",
    "mail me@home, //a@b, folder?split=train": "mail me@home, //a@b, folder?split=train",
}


@pytest.mark.parametrize(("text", "shown"), SHOWN.items(), ids=range(len(SHOWN)))
def test_what_is_secret_of_a_url_is_not_shown(text: str, shown: str) -> None:
    assert shown_url(text) == shown
    assert str(CorpusError(text)) == shown


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(retries, "TRIES", 2)
    monkeypatch.setattr(retries, "WAIT", wait_none())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


@pytest.fixture
def url(distill_bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the bench's corpora and cache, its URL with a password."""
    folder = tmp_path_factory.mktemp("served")
    serve_ready(distill_bench.cache, folder / "cache")
    for file in (distill_bench.train, distill_bench.validation):
        (folder / file.name).write_bytes(file.read_bytes())
    with serving(folder) as server:
        yield server.url.replace("//", f"//me:{SECRET}@")


def secret_corpora(url: str) -> dict[str, str]:
    parameters = f"?X-Amz-Signature={SECRET}"
    return {name: f"{url}/{name}.parquet{parameters}" for name in ("train", "validation")}


def refuse_secrets(folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []


def test_a_run_leaves_no_password_behind(
    distill_bench: Any, url: str, armada: CommandLine, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = distill_bench.words(run, cache=f"{url}/cache", **secret_corpora(url))
    said = [armada(*words)]
    assert said[0].code == 0, said[0].err
    resolved = yaml.safe_load((run / "job.yaml").read_text())
    assert resolved["train"][0].endswith("/train.parquet?X-Amz-Signature=***")
    # The same job with another password is the same job; another file is another one.
    said.append(armada(*words, "--resume"))
    other = distill_bench.words(run, "--resume", cache=f"{url}/cache", train=f"{url}/other.parquet")
    said.append(armada(*other))
    assert [each.code for each in said] == [0, 0, 2]
    said.append(armada("report", run, "--out", tmp_path / "report.html"))
    assert said[-1].code == 0
    assert "train.parquet, validated on" in (tmp_path / "report.html").read_text()
    refuse_secrets(tmp_path)
    assert not any(SECRET in each.out + each.err for each in said)


@pytest.mark.usefixtures("forked_workers")
def test_an_ablation_and_its_workers_leave_no_password_behind(
    distill_bench: Any, url: str, armada: CommandLine, tmp_path: Path
) -> None:
    keys = {
        **secret_corpora(url),
        "cache": f"{url}/cache",
        "teacher": distill_bench.hash,
        "student": distill_bench.student,
        **{"text_column": "text", "label_column": "label", "epochs": 1, "workers": 1},
        "grid": "{alpha: [0.5]}",
    }
    settings = [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    result = armada("ablate", "--output", tmp_path / "runs", "--quiet", *settings)
    assert result.code == 0, result.err
    assert (tmp_path / "runs" / "ablation.yaml").is_file()
    refuse_secrets(tmp_path)
    assert SECRET not in result.out + result.err


def test_a_cache_and_its_card_name_no_password(
    url: str, armada: CommandLine, tmp_path: Path
) -> None:
    source = secret_corpora(url)["train"]
    words = ("precompute", "--corpus", source, "--text-column", "text", "--teacher", "hash:4")
    said = [armada(*words, "--cache", tmp_path / "cache")]
    said.append(armada("cache", "card", tmp_path / "cache"))
    said.append(armada("cache", "inspect", tmp_path / "cache"))
    assert [each.code for each in said] == [0, 0, 0]
    assert "train.parquet" in said[-1].out
    refuse_secrets(tmp_path)
    assert not any(SECRET in each.out + each.err for each in said)


@pytest.mark.parametrize("more", [(), ("--debug",)], ids=["one line", "traceback"])
@pytest.mark.parametrize(
    "what", ["no such file", "no Parquet", "no server", "no protocol", "no bucket"]
)
def test_what_fails_is_told_without_the_password(
    url: str, commands: Path, tmp_path: Path, what: str, more: tuple[str, ...]
) -> None:
    source = {
        "no such file": f"{url}/absent.csv?token={SECRET}",
        "no Parquet": f"{url}/cache/armada.json?sig={SECRET}",
        "no server": f"http://me:{SECRET}@127.0.0.1:9/a.csv?token={SECRET}",
        "no protocol": f"nothing://me:{SECRET}@host/a.csv",
        "no bucket": f"s3://me:{SECRET}@bucket/a.csv",  # which the library quotes in part
    }[what]
    words = ["precompute", "--corpus", source, "--text-column", "text", "--teacher", "hash:4"]
    done = subprocess.run(
        [commands / "armada", *more, *words, "--cache", str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == (1 if more else 2)
    assert done.stderr.startswith("Traceback" if more else "error: corpus ")
    assert SECRET not in done.stdout + done.stderr


def test_an_address_of_a_scheduler_is_told_without_the_password(
    armada: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text("text\na\n")
    words = ("precompute", "--corpus", tmp_path / "a.csv", "--text-column", "text")
    more = ("--teacher", "hash:4", "--cache", tmp_path / "cache")
    result = armada(*words, *more, "--dask", f"tcp://me:{SECRET}@127.0.0.1:1")
    assert result.code == 2
    assert "invalid address" in result.err
    assert SECRET not in result.err


def test_a_parameter_that_a_hub_does_not_know_is_not_quoted(
    armada: CommandLine, tmp_path: Path
) -> None:
    source = f"hf-dataset:team/texts?split=train&token={SECRET}"
    words = ("precompute", "--corpus", source, "--text-column", "text", "--teacher", "hash:4")
    result = armada(*words, "--cache", tmp_path / "cache")
    assert result.code == 2
    assert "'token' is not a parameter" in result.err
    assert SECRET not in result.err


def test_a_job_shows_no_password_where_it_is_printed() -> None:
    """As Dask's workers print what they could not do."""
    keys = {"corpus": f"https://me:{SECRET}@h/x", "text_column": "text", "teacher": "hash:4"}
    job = make_precompute_job(keys | {"cache": "cache", "dask": f"tcp://me:{SECRET}@host:8786"})
    assert SECRET in job.corpus[0]
    assert SECRET not in f"{job!r} {job} {job.model_dump_json()}"


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("report", "run", "--out", "URL"), "out"),
        (("report", "URL"), "runs"),
        (("predict", "run", "--corpus", "a.csv", "--output", "URL"), "output"),
        (("evaluate", "URL", "--corpus", "a.csv"), "student"),
        (("precompute", "URL"), "job file"),
    ],
    ids=["page", "run", "predictions", "student", "job file"],
)
def test_a_url_is_no_path_of_this_machine(
    armada: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    what: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"https://me:{SECRET}@host/x.jsonl?token={SECRET}"
    result = armada(*(url if word == "URL" else word for word in words))
    assert result.code == 2
    assert result.error.startswith(f"{what} https://host/x.jsonl?token=***: looks like a URL")
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_written_into_a_folder_named_like_a_url(
    distill_bench: Any, armada: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = armada(*distill_bench.words(f"https://me:{SECRET}@host/run"))
    assert result.code == 2
    assert result.error.startswith("output https://host/run: looks like a URL")
    assert list(tmp_path.iterdir()) == []
