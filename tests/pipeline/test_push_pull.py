"""`armada cache push` and `pull` as people call them, and processes that are killed at it."""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from armada.stages.store.format.manifests import read_commits
from armada.stages.store.reading.reader import open_cache, read_digest
from armada.stages.store.transfer import retries
from command_line import CommandLine, start
from file_server import serving
from hangs import HANG_S
from s3_server import names, new_bucket, objects, strict
from small_caches import numbered_texts, stored_bytes, write_cache
from tenacity import wait_none
from transfers import FOLDER, MANIFEST, OTHER, visible

pytestmark = pytest.mark.long

SHARDS = 16


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "TRIES", 3)
    monkeypatch.setattr(retries, "WAIT", wait_none())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of two teachers, the first with many shards; not to be written to."""
    path = tmp_path_factory.mktemp("source") / "cache"
    texts = [numbered_texts(10 * n, 10 * n + 10) for n in range(SHARDS)]
    write_cache(path, MANIFEST, texts)
    write_cache(path, OTHER, texts[:1])
    return path


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def report(armada: CommandLine, *words: object) -> dict[str, Any]:
    """The JSON that a command printed, and nothing else on standard error."""
    document: dict[str, Any] = json.loads(armada.done("cache", *words, "--json", "--quiet"))
    return document


def test_two_teams(source: Path, armada: CommandLine, tmp_path: Path, write_parquet: Any) -> None:
    there, cache = tmp_path / "there", tmp_path / "cache"
    pushed = report(armada, "push", source, there)
    assert [t["shards"] for t in pushed["teachers"]].count(SHARDS) == 1
    assert pushed["digest"] == read_digest(source)
    corpus = write_parquet("corpus", {"text": [*numbered_texts(95, 103), "never asked"]})
    few = ["--corpus", corpus, "--text-column", "text", "--teacher", MANIFEST.fingerprint[:6]]
    with serving(there) as server:
        result = armada("cache", "pull", server.url, cache, *few, "--feature", "score")
        assert result.code == 0
        assert "2 shards (4 files, " in result.out
        assert "features: score" in result.out
        assert f"{server.url} has digest {read_digest(source)}" in result.out
        assert "features of 8 of the 9 texts of the corpus" in result.err
        planned = report(armada, "pull", server.url, cache, "--dry-run")
        assert planned["dry_run"]
        assert sum(teacher["shards"] for teacher in planned["teachers"]) == SHARDS + 1
        assert [r.shard for r in read_commits(cache, MANIFEST)] == [9, 10]
        expected = ["--expect-digest", read_digest(source)]
        assert report(armada, "pull", server.url, cache, *expected)["digest"] == expected[1]
    assert visible(stored_bytes(cache)) == visible(stored_bytes(source))


def test_a_pull_reads_a_corpus_of_any_encoding(
    source: Path, armada: CommandLine, refused: Callable[..., str], tmp_path: Path
) -> None:
    rows = [*numbered_texts(95, 103), "naïf"]
    csv = tmp_path / "rows.csv"
    csv.write_text("".join(f"{text};1\n" for text in ["text", *rows]), encoding="utf-16-le")
    few = ["--corpus", csv, "--text-column", "text", "--teacher", MANIFEST.fingerprint[:6]]
    words = ["pull", source, tmp_path / "cache", *few]
    assert "set encoding=utf-16-le" in refused("cache", *words)
    assert "set delimiter=';'" in refused("cache", *words, "--encoding=utf-16-le")
    form = ["--encoding", "utf-16-le", "--delimiter", ";"]
    assert report(armada, *words, *form)["texts"] == 9
    assert [r.shard for r in read_commits(tmp_path / "cache", MANIFEST)] == [9, 10]
    other = ["cache", "pull", source, tmp_path / "other"]
    assert "--delimiter: describes the file format of --corpus" in refused(*other, "--delimiter=;")
    assert "'hex': is no encoding of texts" in refused(*other, *few, "--encoding=hex")
    lines = tmp_path / "rows.jsonl"
    lines.write_text('{"text": "x"}\n')
    few = ["--corpus", lines, "--text-column", "text"]
    assert "delimiter '\\t': applies only to .csv" in refused(*other, *few, "--delimiter=tab")


def test_what_is_refused_exits_with_2_and_writes_nothing(
    source: Path, armada: CommandLine, refused: Callable[..., str], tmp_path: Path
) -> None:
    target = tmp_path / "cache"
    assert "its digest is" in refused("cache", "pull", source, target, "--expect-digest", "0" * 64)
    assert "feature 'none'" in refused("cache", "pull", source, target, "--feature", "none")
    assert "is both source and destination" in refused("cache", "pull", source, source)
    assert "is both source and destination" in refused("cache", "push", source, f"file://{source}")
    assert "give both" in refused("cache", "pull", source, target, "--text-column", "text")
    assert "not an armada cache" in refused("cache", "pull", tmp_path, target)
    assert "gcsfs" in refused("cache", "push", source, "gs://bucket/cache")
    options = ["--storage-option", "key: [secret"]
    assert "secret" not in refused("cache", "pull", "s3://bucket/cache", target, *options)
    options = ["--storage-option", "key=[secret"]
    line = refused("cache", "pull", "s3://bucket/cache", target, *options)
    assert line == "--storage-option key: the value is not YAML; quote it"


def test_what_fails_exits_with_1(source: Path, armada: CommandLine, tmp_path: Path) -> None:
    with serving(source) as server:
        url = server.url.replace("//", "//me:secret@")
    result = armada("cache", "pull", url, tmp_path / "cache")
    assert result.code == 1
    assert result.error.startswith(f"{server.url}/index.json: cannot be reached")


def test_a_bucket_that_refuses_is_the_users_matter(
    source: Path, armada: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket = new_bucket("refusing", monkeypatch)
    ways: list[tuple[object, ...]] = [
        ("push", source, f"{bucket}/cache"),
        ("pull", f"{bucket}/cache", tmp_path / "cache"),
        ("ls", f"{bucket}/cache"),
    ]

    def refused(words: str) -> None:
        for way in ways:
            result = armada("cache", *way)
            assert (result.code, result.error.count("\n")) == (2, 0), result
            assert words in result.error, result
            assert "nothing" not in result.error  # the secret key
        assert not (tmp_path / "cache").exists()

    with strict():
        refused(": access is refused (")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    refused(": access is refused (Unable to locate credentials); check the credentials")
    new_bucket("another", monkeypatch)
    ways = [tuple(str(word).replace(bucket, "s3://no-such") for word in way) for way in ways]
    refused("s3://no-such/cache: there is no such bucket; check its name")


def test_ls_and_inspect_of_a_url_read_the_index_alone(
    source: Path, armada: CommandLine, tmp_path: Path
) -> None:
    report(armada, "push", source, tmp_path / "there")
    local = json.loads(armada.done("cache", "ls", source, "--json"))
    with serving(tmp_path / "there") as server:
        assert json.loads(armada.done("cache", "ls", server.url, "--json")) == local
        words = ("--teacher", OTHER.fingerprint[:8])
        there = armada.done("cache", "inspect", server.url, *words)
        assert there == armada.done("cache", "inspect", source, *words)
        assert set(server.asked) == {"index.json"}


def test_ls_says_what_is_missing(source: Path, armada: CommandLine, tmp_path: Path) -> None:
    report(armada, "pull", source, tmp_path / "cache", "--feature", "score")
    listed = json.loads(armada.done("cache", "ls", tmp_path / "cache", "--json"))
    assert [teacher["missing"] for teacher in listed] == [["pooled"], ["pooled"]]
    assert [list(teacher["features"]) for teacher in listed] == [["score"], ["score"]]
    files = [*(tmp_path / "cache").rglob("*.parquet"), *(tmp_path / "cache").rglob("score/c/*")]
    assert sum(t["bytes"] for t in listed) == sum(file.stat().st_size for file in files)
    assert "not here: pooled" in armada.done("cache", "ls", tmp_path / "cache")


def test_a_pull_that_is_killed_leaves_a_cache_and_goes_on(
    source: Path, armada: CommandLine, tmp_path: Path
) -> None:
    there, cache = tmp_path / "there", tmp_path / "cache"
    report(armada, "push", source, there)
    words = ("cache", "pull", "--teacher", MANIFEST.fingerprint, "--jobs", 2)
    with serving(there) as server:
        server.pause_s = 0.02
        process = start(*words, server.url, cache)
        wait_for(lambda: len(list(cache.glob(f"{FOLDER}/commits/*.json"))) > 2, process)
        kill(process)
        opened = open_cache(cache, MANIFEST.fingerprint)
        there_now = [record.shard for record in opened.commits]
        assert 2 < len(there_now) < SHARDS
        for feature in opened.features:
            texts = [t for n in there_now for t in numbered_texts(10 * n, 10 * n + 10)]
            assert len(opened[feature][opened.lookup(texts)]) == len(opened)
        server.pause_s = 0
        server.asked.clear()
        armada.done(*words, server.url, cache, "--quiet")
        assert not any(f"/{shard:06d}.parquet" in n for n in server.asked for shard in there_now)
    expected = visible(stored_bytes(source)).items()
    found = {n: d for n, d in visible(stored_bytes(cache)).items() if "reservations" not in n}
    assert found == {n: d for n, d in expected if OTHER.fingerprint not in n}
    assert not list(cache.rglob("reservations/*"))


def test_a_push_that_is_killed_shows_nothing_and_goes_on(
    source: Path, armada: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = new_bucket("killed", monkeypatch)
    words = ("cache", "push", source, f"{bucket}/cache", "--teacher", MANIFEST.fingerprint)
    process = start(*words, "--jobs", 1)
    wait_for(lambda: any("commits" in name for name in names(bucket)), process)
    kill(process)
    sent = names(bucket)
    assert "cache/index.json" not in sent
    for record in (name for name in sent if "/commits/" in name):
        number = int(Path(record).stem)
        assert f"cache/{FOLDER}/pooled/c/{number}/0" in sent
        assert f"cache/{FOLDER}/tables/rows/{number:06d}.parquet" in sent
    second = json.loads(armada.done(*words, "--json", "--quiet"))
    assert second["teachers"][0]["already_there"] >= 1
    there = {name.removeprefix("cache/"): data for name, data in objects(bucket).items()}
    expected = visible(stored_bytes(source)).items()
    assert visible(there) == {n: d for n, d in expected if OTHER.fingerprint not in n}


def test_a_part_that_was_pulled_takes_no_new_answers(
    source: Path, armada: CommandLine, tmp_path: Path, write_parquet: Any
) -> None:
    made = tmp_path / "made"
    corpus = write_parquet("corpus", {"text": numbered_texts(0, 130)})
    more = write_parquet("more", {"text": numbered_texts(500, 505)})
    words = ["--text-column", "text", "--teacher", "hash:4"]
    small = ["--set", "rows_per_shard=64", "--quiet"]
    armada.done("precompute", "--corpus", corpus, "--cache", made, *words, *small)
    few = write_parquet("few", {"text": numbered_texts(0, 3)})
    armada.done("cache", "pull", made, tmp_path / "part", "--corpus", few, "--text-column", "text")
    armada.done("precompute", "--corpus", more, "--cache", tmp_path / "part", *words, "--quiet")
    assert [c.shard for c in open_cache(tmp_path / "part").commits] == [0, 3]
    shutil.rmtree(tmp_path / "part")
    teacher = open_cache(made).teacher.fingerprint
    part = tmp_path / "part" / "teachers" / teacher / "part.json"
    armada.done("cache", "pull", made, tmp_path / "part")
    part.write_text('{"missing_features": ["embedding"], "next_shard": 3}')
    result = armada("precompute", "--corpus", more, "--cache", tmp_path / "part", *words)
    assert result.code == 2
    assert "without embedding, so nothing can be added" in result.error


@pytest.mark.parametrize("to", ["folder", "s3"])
def test_the_card_goes_along(
    source: Path, armada: CommandLine, tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(source, cache)
    bucket = new_bucket(f"card-{to}", monkeypatch)
    place = str(tmp_path / "there") if to == "folder" else f"{bucket}/there"

    def page() -> bytes:
        if to == "folder":
            return (tmp_path / "there" / "README.md").read_bytes()
        return objects(bucket)["there/README.md"]

    armada.done("cache", "card", cache, "--title", "first")
    report(armada, "push", cache, place)
    assert page() == (cache / "README.md").read_bytes()
    armada.done("cache", "card", cache, "--title", "second")
    report(armada, "push", cache, place)
    assert b"# second" in page()
