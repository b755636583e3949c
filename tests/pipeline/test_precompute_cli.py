"""`armada precompute` and `armada cache`, as people type them."""

import csv
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from armada import open_cache
from armada.cache_schemas.errors import JobError
from armada.cache_schemas.keys import example_key
from armada.cli import main
from armada.pipeline.messages import CountProgress
from command_line import SLOW_TEACHER, CommandLine, wait_until_asked
from hangs import HANG_S
from small_caches import stored_bytes
from tiny_checkpoints import make_bert
from tiny_embeddings import make_embedding_model

WriteCsv = Callable[[str, list[tuple[str, str]]], Path]
PAIRS = [(f"premise {number}", f"so {number % 5}, then") for number in range(150)]


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


@pytest.fixture
def write_csv(tmp_path: Path) -> WriteCsv:
    """Writes pairs as columns `a` and `b`."""

    def write(name: str, pairs: list[tuple[str, str]]) -> Path:
        path = tmp_path / f"{name}.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("a", "b"), *pairs])
        return path

    return write


@pytest.fixture
def words(write_csv: WriteCsv, tmp_path: Path) -> list[Any]:
    """The command of most tests: one small corpus of pairs, hash:16."""
    return [
        *("precompute", "--corpus", write_csv("train", PAIRS[:100])),
        *("--text-column", "a", "--text-column", "b"),
        *("--teacher", "hash:16", "--cache", tmp_path / "cache"),
    ]


def answer(pair: tuple[str, ...], seed: int = 0, dim: int = 16) -> Any:
    """What the hash teacher says, without armada."""
    salt = seed.to_bytes(8, "little")
    hashed = blake2b(example_key(pair), digest_size=8, salt=salt).digest()
    rng = np.random.default_rng(int.from_bytes(hashed, "little") >> 1)
    return rng.standard_normal(dim).astype(np.float32)


def test_the_contract(
    armada: CommandLine, write_csv: WriteCsv, words: list[Any], tmp_path: Path
) -> None:
    second = write_csv("second", PAIRS[80:])
    out = armada.done(*words, "--corpus", second, "--set", "rows_per_shard=64", "--quiet")
    cache = open_cache(tmp_path / "cache")
    assert out.splitlines()[0].startswith(
        "170 rows, 150 unique; 0 already cached, 150 computed in "
    )
    assert out.splitlines()[1] == f"teacher {cache.teacher.fingerprint}"
    assert cache.features == ("embedding",)
    assert len(cache) == 150
    rows = cache.lookup(PAIRS[::-1])
    features = cache["embedding"]
    assert (features.shape, features.dtype) == ((150, 16), np.float32)
    expected = np.stack([answer(pair) for pair in PAIRS[::-1]])
    np.testing.assert_array_equal(features[rows], expected, strict=True)
    np.testing.assert_array_equal(features[int(rows[0])], answer(PAIRS[-1]), strict=True)


def test_a_second_run_asks_nothing(armada: CommandLine, words: list[Any], tmp_path: Path) -> None:
    armada.done(*words)
    before = stored_bytes(tmp_path / "cache")
    assert "100 already cached, 0 computed" in armada.done(*words)
    assert stored_bytes(tmp_path / "cache") == before


def test_a_job_file_gives_way_to_options_and_settings(
    armada: CommandLine, write_csv: WriteCsv, tmp_path: Path
) -> None:
    write_csv("train", PAIRS)
    job = tmp_path / "job.yaml"
    job.write_text(
        f"corpus: {tmp_path}/train.csv\ntext_column: [b]\nteacher: hash:4\nlimit: 3\nseed: 5\n"
        "options: {store_dtype: float16}\nrows_per_shard: 128\n"
    )
    cache = tmp_path / "cache"
    armada.done("precompute", job, "--text-column", "a", "--cache", cache, "--set", "limit=2")
    opened = open_cache(cache)
    assert opened.lookup(["premise 0", "premise 1"]).tolist() == [0, 1]
    assert len(opened) == 2
    assert opened.teacher.rows_per_shard == 128
    assert opened.teacher.spec.settings == {"seed": 5, "store_dtype": "float16"}
    expected = answer(("premise 1",), seed=5, dim=4).astype(np.float16)
    np.testing.assert_array_equal(opened["embedding"][1], expected, strict=True)


def test_a_dry_run_writes_nothing(armada: CommandLine, words: list[Any], tmp_path: Path) -> None:
    before = stored_bytes(tmp_path)
    out = armada.done(*words, "--set", "rows_per_shard=64", "--dry-run")
    assert out.startswith(
        "100 rows, 100 unique; 0 already cached, 100 to compute\n2 shards, 8.0 KiB, "
    )
    assert stored_bytes(tmp_path) == before
    assert not (tmp_path / "cache").exists()
    armada.done(*words)
    before = stored_bytes(tmp_path)
    plan = json.loads(armada.done(*words, "--dry-run", "--json"))
    assert (plan["already_cached"], plan["shards"], plan["bytes"]) == (100, 0, 0)
    assert stored_bytes(tmp_path) == before


def test_what_a_folder_declares_is_shown_and_what_differs_is_told(
    armada: CommandLine, words: list[Any], tmp_path: Path
) -> None:
    texts = [text for pair in PAIRS for text in pair]
    checkpoint = make_bert(tmp_path / "checkpoint", texts)
    prompts = {"query": "premise: "}
    model = make_embedding_model(
        tmp_path / "model", checkpoint, "cls", prompts=prompts, default_prompt="query"
    )
    words = [f"encoder:{model}" if word == "hash:16" else word for word in words]
    planned = armada(*words, "--dry-run")
    assert 'pooling = "cls"; ' in planned.out
    assert 'prompt = "premise: "' in planned.out
    assert planned.err == ""
    result = armada(*words, "--set", "pooling=mean", "--quiet")
    assert result.code == 0
    assert result.err.splitlines() == ["warning: pooling: is 'mean', but the folder declares 'cls'"]
    armada.done("cache", "card", tmp_path / "cache")
    assert "prompt = premise" in (tmp_path / "cache" / "README.md").read_text()


def test_the_bytes_a_dry_run_promises_are_those_written(
    armada: CommandLine, words: list[Any], tmp_path: Path
) -> None:
    plan = json.loads(armada.done(*words, "--set", "rows_per_shard=64", "--dry-run", "--json"))
    armada.done(*words, "--set", "rows_per_shard=64")
    shards = list((tmp_path / "cache").glob("teachers/*/embedding/c/*/0"))
    assert plan["shards"] == len(shards)
    assert plan["bytes"] == sum(path.stat().st_size for path in shards)


def test_results_are_printed_as_json(armada: CommandLine, words: list[Any], tmp_path: Path) -> None:
    report = json.loads(armada.done(*words, "--json"))
    assert report.pop("teacher_seconds") >= 0
    assert report.pop("fidelity") == {}
    assert report == {
        "fingerprint": open_cache(tmp_path / "cache").teacher.fingerprint,
        "rows": 100,
        "unique": 100,
        "already_cached": 0,
        "computed": 100,
        "asked": 100,  # the earlier name
        "requests": None,
        "done_elsewhere": 0,
        "truncated": 0,
        "skipped": [],
    }


def test_progress_says_what_the_device_does(armada: CommandLine, words: list[Any]) -> None:
    device = r"[\d.]+ s of the device, \d+% busy"
    told = rf"precompute: 100/100 rows, [\d.]+ rows/s, {device}, 0\.0 s left\n"
    assert re.fullmatch(told, armada(*words).err)


def test_the_expected_end_is_told_where_it_is_not_near(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "armada"), CountProgress("some", "rows", 10**12) as progress:
        progress.advance(1)
    ends = r"until \w{3} \d\d \w{3}, \d\d:\d\d"
    assert re.search(rf"rows/s, \d+\.\d h left, {ends}$", caplog.messages[-1])


def test_caches_can_be_looked_into(armada: CommandLine, words: list[Any], tmp_path: Path) -> None:
    armada.done(*words, "--set", "corpus_licence=CC0")
    cache = open_cache(tmp_path / "cache")
    listed = armada.done("cache", "ls", tmp_path / "cache")
    for word in (cache.teacher.fingerprint[:12], "hash", "16", "embedding float32[16]", "100"):
        assert f" {word} " in listed
    summary = json.loads(armada.done("cache", "ls", tmp_path / "cache", "--json"))
    inspected = json.loads(armada.done("cache", "inspect", tmp_path / "cache"))
    (commit,) = cache.commits
    size = commit.features["embedding"].bytes + commit.tables["rows"].bytes
    assert [summary[0]["bytes"], inspected["bytes"]] == [size, size]
    assert inspected["teacher"] == cache.teacher.spec.model_dump(mode="json")
    (run,) = inspected["runs"]
    corpus = {"rows": 100, "unique_examples": 100, "licence": "CC0"}
    assert run["corpora"] == [{"name": "train.csv", **corpus}]
    batches = run["batches"]
    assert [batches[name] for name in ("batches", "rows", "tokens", "refused")] == [2, 100, 0, 0]
    assert str(tmp_path) not in json.dumps(inspected)
    by_prefix = armada.done(
        "cache", "inspect", tmp_path / "cache", "--teacher", summary[0]["fingerprint"][:6]
    )
    assert json.loads(by_prefix) == inspected


def test_bad_rows_are_warned_about(
    armada: CommandLine, write_csv: WriteCsv, words: list[Any], tmp_path: Path
) -> None:
    write_csv("train", [("x", "y"), *[("", "z")] * 7])
    assert "row 2: column 'a' is empty (7 such rows)" in armada(*words).error
    assert not (tmp_path / "cache").exists()
    result = armada(*words, "--set", "skip_bad_rows=true", "--quiet")
    assert result.code == 0
    lines = result.err.splitlines()
    assert lines[0] == "warning: 7 rows were skipped"
    assert lines[1].endswith("train.csv row 2: column 'a' is empty")
    assert len(lines) == 6


def test_other_settings_of_a_cached_teacher_are_refused(
    armada: CommandLine, words: list[Any], tmp_path: Path
) -> None:
    armada.done(*words)
    before = stored_bytes(tmp_path / "cache")
    other = [*words, "--set", "seed=1", "--set", "store_dtype=float16"]
    result = armada(*other)
    assert result.code == 2
    for difference in (
        "features.embedding: cached float32[16], requested float16[16]",
        "seed: cached 0, requested 1",
        "store_dtype: cached float32, requested float16",
        "add_teacher=true",
    ):
        assert difference in result.error
    assert stored_bytes(tmp_path / "cache") == before
    armada.done(*other, "--set", "add_teacher=true")
    assert len(json.loads(armada.done("cache", "ls", tmp_path / "cache", "--json"))) == 2
    assert "100 already cached" in armada.done(*words)
    assert "100 already cached" in armada.done(*other)


def test_a_run_that_fails_says_so_with_1(
    armada: CommandLine, words: list[Any], tmp_path: Path
) -> None:
    armada.done(*words)
    (commit,) = (tmp_path / "cache").glob("teachers/*/commits/*.json")
    commit.write_text("{")
    result = armada(*words)
    assert result.code == 1
    assert f"{commit}: document: Invalid JSON" in result.error


def test_debug_shows_where_an_error_came_from(words: list[Any]) -> None:
    with pytest.raises(JobError, match="'limt' is unknown"):
        main(["--debug", *map(str, words), "--set", "limt=3"])


def test_teachers_of_other_packages_are_found(
    armada: CommandLine, words: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(SLOW_TEACHER)
    armada.done(*words, "--set", "teacher=slow:4", "--set", "limit=3")
    cache = open_cache(tmp_path / "cache")
    assert cache.teacher.spec.kind == "slow"
    np.testing.assert_array_equal(cache["embedding"][2], answer(PAIRS[2], dim=4), strict=True)


def test_help_waits_for_no_library() -> None:
    script = (
        "import sys\nfrom armada.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'pyarrow', 'pydantic', 'numpy', 'zarr', 'yaml', 'transformers'}\n"
        "sys.exit(', '.join(heavy & sys.modules.keys()) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert "precompute" in run.stdout


def test_sigterm_keeps_the_answers_that_are_there(
    words: list[Any], start: Any, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    rest = ["--set", "teacher=slow:16", "--set", "rows_per_shard=64", "--set", "batch_size=8"]
    process = start(*words, *rest, "--quiet", journal=journal)
    wait_until_asked(75, journal, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=HANG_S)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("error: stopped by SIGTERM; committed shards are kept")
    assert err.count("\n") == 1
    cache = open_cache(tmp_path / "cache")
    # The batch that was being asked may have been answered just in time.
    assert journal.stat().st_size - len(cache) in (0, 8)
    assert len(cache) >= 72
    np.testing.assert_array_equal(
        cache["embedding"][cache.lookup(PAIRS[:72])], [answer(pair) for pair in PAIRS[:72]]
    )


def test_two_checkpoints_of_one_name_are_told_apart(
    armada: CommandLine, write_parquet: Any, tmp_path: Path
) -> None:
    corpus = write_parquet("texts", {"text": ["a kettle", "a map"]})
    for folder, layers in (("one/model", 1), ("two/model", 2)):
        make_bert(tmp_path / folder, ["a kettle", "a map"], layers=layers)
    words = ("precompute", "--corpus", corpus, "--text-column", "text", "--quiet")
    words = (*words, "--cache", tmp_path / "cache", "--set", "add_teacher=true")
    for folder, pooling in (("one/model", "cls"), ("two/model", "cls"), ("two/model", "mean")):
        teacher = f"encoder:{tmp_path / folder}"
        armada.done(*words, "--teacher", teacher, "--set", f"pooling={pooling}")
    teachers = json.loads(armada.done("cache", "ls", tmp_path / "cache", "--json"))
    told = {teacher["apart"] for teacher in teachers}
    assert len(told) == 3
    assert sorted(each.partition("pooling ")[2] for each in told) == ["cls", "cls", "mean"]
    listed = armada.done("cache", "ls", tmp_path / "cache")
    assert all(f"model, weights {each[8:16]}" in listed for each in told)
    line = armada("cache", "inspect", tmp_path / "cache").error
    assert all(f"(encoder:model, {each})" in line for each in told)
