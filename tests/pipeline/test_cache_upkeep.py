"""`armada cache verify`, `repair` and `rm`, as people type them: nothing damaged stays, and after
`repair` the same `precompute` makes the same bytes again."""

import json
import os
import pty
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from armada.pipeline.caches.upkeep import run_repair
from armada.pipeline.precompute import run_precompute
from armada.pipeline.precompute_job import PrecomputeJob, make_precompute_job
from armada.stages.store.reading.reader import open_cache
from armada.stages.store.transfer.arrivals import Arrivals
from armada.stages.store.upkeep.repair import carry_out, plan_repair
from armada.stages.store.upkeep.survey import survey_cache
from armada.stages.store.upkeep.verify import verify
from armada.stages.store.writing.writer import CacheWriter
from command_line import CommandLine, start
from hangs import HANG_S
from small_caches import keys_of, stored_bytes

TEXTS = 150
"""Two shards of 64 rows and one of 22."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    path.write_text("".join(f'{{"text": "text {number}"}}\n' for number in range(TEXTS)))
    return path


def job(corpus: Path, cache: Path, **keys: object) -> PrecomputeJob:
    given = {"corpus": str(corpus), "text_column": "text", "teacher": "hash:4", "cache": str(cache)}
    return make_precompute_job(given | {"rows_per_shard": 64} | keys)


@pytest.fixture(scope="module")
def made(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with two teachers, made once."""
    path = tmp_path_factory.mktemp("made") / "cache"
    run_precompute(job(corpus, path), quiet=True)
    run_precompute(job(corpus, path, teacher="hash:5", add_teacher=True), quiet=True)
    return path


@pytest.fixture
def cache(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "cache"))


@pytest.fixture
def folder(cache: Path) -> Path:
    """The folder of the teacher hash:4."""
    return next(f.parent for f in cache.glob("teachers/*/teacher.json") if '"4"' in f.read_text())


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0 if path.suffix == ".json" else len(data) // 3] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_content(path: Path) -> None:
    path.write_bytes(b"{}" + bytes(path.stat().st_size - 2))


DAMAGES = [flip, cut, other_content, Path.unlink]

IN_SHARDS = ["embedding/c/1/0", "tables/rows/000001.parquet", "embedding/c/2/0"]
DOCUMENTS = ["zarr.json", "embedding/zarr.json", "../zarr.json", "../../zarr.json"]


@pytest.mark.parametrize("name", [*IN_SHARDS, *DOCUMENTS, "commits/000000.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_repaired_and_asked_again_it_is_the_same_to_the_byte(
    made: Path, cache: Path, folder: Path, corpus: Path, damage: Callable[[Path], None], name: str
) -> None:
    damage(folder / name)
    report = run_repair(cache, quiet=True)
    dropped = {"embedding/c/2/0": 22}.get(name, 64 if name not in DOCUMENTS else 0)
    if name.startswith("commits"):  # how many rows it had cannot be told
        dropped = 0
    assert report.repaired
    assert report.dropped_rows == dropped
    assert run_repair(cache, quiet=True).steps == ()
    computed = run_precompute(job(corpus, cache), quiet=True).computed
    assert computed == (dropped if name[:7] != "commits" else 64)
    assert stored_bytes(cache) == stored_bytes(made)


def test_several_damaged_shards_come_back_as_they_were(
    made: Path, cache: Path, folder: Path, corpus: Path
) -> None:
    flip(folder / "embedding/c/0/0")
    (folder / "tables/rows/000002.parquet").unlink()
    (folder / "embedding/zarr.json").write_text("[" * 100_000)
    report = run_repair(cache, quiet=True)
    assert [(s.action, s.damage.shard) for s in report.steps] == [
        *[("rebuild", None), ("drop", 0), ("drop", 2)]
    ]
    assert len(open_cache(cache, folder.name)) == 64
    assert run_precompute(job(corpus, cache), quiet=True).computed == 64 + 22
    assert stored_bytes(cache) == stored_bytes(made)


def test_a_zarr_document_that_makes_up_a_layout_is_written_anew(
    made: Path, cache: Path, folder: Path
) -> None:
    file = folder / "embedding" / "zarr.json"
    for old, new in (('"little"', '"big"'), ("64,\n", "128,\n"), ("float32", "float16")):
        file.write_text(file.read_text().replace(old, new, 1))
        (step,) = run_repair(cache, quiet=True).steps
        assert (step.action, step.damage.file) == ("rebuild", file)
        assert stored_bytes(cache) == stored_bytes(made)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_lost_manifest_comes_back_with_its_teacher(
    made: Path,
    cache: Path,
    folder: Path,
    corpus: Path,
    armada: CommandLine,
    damage: Callable[[Path], None],
) -> None:
    damage(folder / "teacher.json")
    result = armada("cache", "repair", cache, "--quiet")
    assert result.code == 1  # something is left to do
    assert "run `armada precompute` with the same teacher --set rows_per_shard=64" in result.out
    assert len(open_cache(cache)) == TEXTS  # the other teacher can be read
    other = job(corpus, cache, rows_per_shard=128)
    with pytest.raises(Exception, match="set rows_per_shard=64"):
        run_precompute(other, quiet=True)
    assert run_precompute(job(corpus, cache), quiet=True).computed == 0
    (folder / "teacher.json.damaged").unlink(missing_ok=True)
    assert stored_bytes(cache) == stored_bytes(made)


def linked(file: Path) -> None:
    file.rename(file.with_suffix(".moved"))
    file.symlink_to(file.with_suffix(".moved"))


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        cut,
        linked,
        lambda file: file.write_text("{}"),
        lambda file: file.write_text(""),
    ],
    ids=["lost", "cut", "linked", "of nothing", "empty"],
)
def test_a_damaged_cache_manifest_is_written_anew(
    made: Path, cache: Path, armada: CommandLine, damage: Callable[[Path], None]
) -> None:
    file = cache / "armada.json"
    damage(file)
    assert armada("cache", "ls", cache).code != 0
    assert "written anew: " in armada.done("cache", "repair", cache, "--quiet")
    assert file.read_bytes() == (made / "armada.json").read_bytes()
    assert not file.is_symlink()
    assert armada.done("cache", "repair", cache, "--quiet").startswith("whole")


def test_a_cache_manifest_of_which_no_teacher_tells_is_left(
    cache: Path, armada: CommandLine
) -> None:
    (cache / "armada.json").unlink()
    for manifest in cache.glob("teachers/*/teacher.json"):
        manifest.write_text("{}")
    result = armada("cache", "repair", cache, "--quiet")
    assert (result.code, result.out.count("left as it is: ")) == (1, 1)
    assert not (cache / "armada.json").exists()


def test_a_damaged_run_record_is_removed(cache: Path, folder: Path) -> None:
    (run,) = folder.glob("runs/*.json")
    run.write_text("{")
    run_repair(cache, quiet=True)
    assert not run.exists()
    assert open_cache(cache, folder.name).runs() == []


def test_a_dry_run_changes_nothing(cache: Path, folder: Path, armada: CommandLine) -> None:
    flip(folder / "embedding/c/0/0")
    cut(folder / "embedding/zarr.json")
    before = stored_bytes(cache)
    shown = armada.done("cache", "repair", cache, "--dry-run", "--quiet")
    assert stored_bytes(cache) == before
    assert "would be dropped: teacher" in shown
    assert "would be written anew" in shown
    assert shown.endswith("nothing was changed\n")


def test_repair_says_what_to_run(cache: Path, folder: Path, armada: CommandLine) -> None:
    flip(folder / "embedding/c/0/0")
    shown = armada.done("cache", "repair", cache, "--quiet").splitlines()
    assert shown[0].startswith(f"dropped: teacher {folder.name[:12]} shard 0: embedding/c/0/0: ")
    assert shown[1:] == [
        "1 shard, 64 rows",
        "run `armada precompute` as before, or `armada cache pull`, to have them back:",
        "  teacher hash:4 (computed for texts.jsonl)",
    ]


def test_repair_as_json(cache: Path, folder: Path, armada: CommandLine) -> None:
    flip(folder / "embedding/c/0/0")
    shown = json.loads(armada.done("cache", "repair", cache, "--json", "--quiet"))
    assert (shown["repaired"], shown["dropped_rows"]) == (True, 64)
    (step,) = shown["steps"]
    assert (step["action"], step["damage"]["shard"], step["rows"]) == ("drop", 0, 64)
    assert step["file"] == f"teachers/{folder.name}/commits/000000.json"


def test_repair_of_one_teacher(cache: Path, folder: Path) -> None:
    other = next(f for f in cache.glob("teachers/*/") if f.name != folder.name)
    flip(folder / "embedding/c/0/0")
    flip(other / "embedding/c/0/0")
    assert len(run_repair(cache, other.name[:8], quiet=True).steps) == 1
    assert [s.damage.teacher for s in run_repair(cache, quiet=True).steps] == [folder.name]


def test_what_another_tool_rewrote_is_not_dropped(
    cache: Path, folder: Path, armada: CommandLine
) -> None:
    zarr = pytest.importorskip("zarr")
    values = zarr.open_array(folder / "embedding", mode="r")[...]
    array = zarr.create_array(
        folder / "embedding",
        shape=values.shape,
        dtype=values.dtype,
        shards=(64, 4),
        chunks=(64, 4),
        fill_value=float("nan"),
        overwrite=True,
    )
    array[...] = values
    before = stored_bytes(cache)
    result = armada("cache", "repair", cache, "--quiet")
    assert result.code == 2
    assert "another tool re-wrote this feature" in result.error
    assert stored_bytes(cache) == before
    assert len(open_cache(cache, folder.name)["embedding"][:]) == TEXTS


def test_what_another_has_repaired_meanwhile_is_left(
    corpus: Path, cache: Path, folder: Path, made: Path
) -> None:
    """Two repairs see one damage; the first one drops the shard and it is made again."""
    flip(folder / "embedding/c/0/0")
    (folder / "commits/000001.json").write_text("{")
    survey = survey_cache(cache)
    steps = plan_repair(survey, verify(survey).damages)
    assert [step.action for step in steps] == ["drop", "drop"]
    assert run_repair(cache, quiet=True).repaired
    run_precompute(job(corpus, cache), quiet=True)
    done = carry_out(cache, steps)
    assert [(step.action, step.damage.shard) for step in done] == [("leave", 1), ("leave", 0)]
    assert "another process changed it in the meantime" in done[0].remedy
    assert open_cache(cache, folder.name).keys.shape == (TEXTS, 16)
    assert verify(survey_cache(cache)).damages == ()


def test_what_a_pull_has_filled_up_meanwhile_is_left(cache: Path, folder: Path, made: Path) -> None:
    """The record stays as it was, and the file that was missing has come."""
    file = folder / "embedding/c/1/0"
    file.unlink()
    survey = survey_cache(cache)
    steps = plan_repair(survey, verify(survey).damages)
    assert [step.action for step in steps] == ["drop"]
    shutil.copy(made / file.relative_to(cache), file)
    assert [step.action for step in carry_out(cache, steps)] == ["leave"]
    assert verify(survey_cache(cache)).damages == ()


def test_nothing_is_rebuilt_of_a_teacher_that_is_gone(cache: Path, folder: Path) -> None:
    (folder / "zarr.json").write_text("{")
    survey = survey_cache(cache)
    steps = plan_repair(survey, verify(survey).damages)
    shutil.rmtree(folder)
    carry_out(cache, steps)
    assert not folder.exists()


# verify


def test_verify_of_a_whole_cache(cache: Path, armada: CommandLine) -> None:
    result = armada("cache", "verify", cache)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].startswith("2 teachers, 6 shards, 300 rows, 12 files, ")
    assert lines[-1] == "whole"
    assert "verify: 6/6 shards" in result.err
    digest = json.loads(armada.done("cache", "verify", cache, "--json"))["digest"]
    assert f"digest {digest}" in lines
    for expected in (digest, digest.upper()):
        assert armada("cache", "verify", cache, "--expect-digest", expected).code == 0
    result = armada("cache", "verify", cache, "--expect-digest", "0" * 64, "--quiet")
    assert result.code == 1
    assert f"digest mismatch: expected {'0' * 64}" in result.out
    assert "whole" not in result.out.splitlines()


def test_a_lost_commit_shows_in_the_digest_alone(
    cache: Path, folder: Path, armada: CommandLine
) -> None:
    digest = json.loads(armada.done("cache", "verify", cache, "--json"))["digest"]
    (folder / "commits/000002.json").unlink()
    assert armada("cache", "verify", cache, "--quiet").code == 0
    assert armada("cache", "verify", cache, "--expect-digest", digest, "--quiet").code == 1


def test_verify_of_a_damaged_cache(cache: Path, folder: Path, armada: CommandLine) -> None:
    flip(folder / "embedding/c/0/0")
    (folder / "tables/rows/000002.parquet").unlink()
    result = armada("cache", "verify", cache, "--quiet")
    assert result.code == 1
    lines = result.out.splitlines()
    teacher = f"damaged: teacher {folder.name[:12]}"
    assert lines[0] == (
        f"{teacher} shard 0: embedding/c/0/0: its bytes are not those that were committed "
        "(xxh3_128)"
    )
    assert lines[1] == f"{teacher} shard 2: tables/rows/000002.parquet: is missing"
    assert lines[-1].startswith("damaged: 2 shards, 0 documents; `armada cache repair`")
    assert armada("cache", "verify", cache, "--quick", "--quiet").code == 1
    shown = armada("cache", "verify", cache, "--json", "--quiet")
    assert shown.code == 1
    assert [d["shard"] for d in json.loads(shown.out)["damages"]] == [0, 2]


def test_options_of_verify_that_cannot_be(cache: Path, armada: CommandLine) -> None:
    assert (
        "--quick and --sample" in armada("cache", "verify", cache, "--quick", "--sample", 1).error
    )
    result = armada("cache", "verify", cache, "--expect-digest", "abc")
    assert "is not 64 hexadecimal digits" in result.error
    assert armada("cache", "verify", cache, "--teacher", "zz").code == 2
    assert armada("cache", "verify", cache / "teachers").code == 2


# rm


def test_rm_removes_one_teacher(cache: Path, folder: Path, armada: CommandLine) -> None:
    shown = armada.done("cache", "rm", cache, "--teacher", folder.name[:6], "--yes")
    assert shown == f"removed teacher {folder.name} (hash:4), 150 rows\n"
    assert not folder.exists()
    assert len(open_cache(cache)) == TEXTS
    assert armada("cache", "verify", cache, "--quiet").code == 0


def test_rm_of_a_teacher_without_a_manifest(cache: Path, folder: Path, armada: CommandLine) -> None:
    (folder / "teacher.json").write_text("{")
    armada.done("cache", "rm", cache, "--teacher", folder.name, "--yes")
    assert not folder.exists()


def test_rm_without_a_terminal_asks_for_yes(cache: Path, folder: Path, armada: CommandLine) -> None:
    process = start("cache", "rm", cache, "--teacher", folder.name)
    _, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 2
    assert err.startswith(f"error: teacher {folder.name[:12]} (hash:4), 150 rows, ")
    assert err.endswith("no terminal to confirm on; pass --yes to remove it\n")
    assert err.count("\n") == 1
    assert folder.exists()


@pytest.mark.parametrize(("answer", "gone"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_rm_asks_on_a_terminal(
    cache: Path,
    folder: Path,
    armada: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    gone: bool,
) -> None:
    keyboard, terminal = pty.openpty()
    os.write(keyboard, answer.encode())
    with os.fdopen(terminal, "r") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        result = armada("cache", "rm", cache, "--teacher", folder.name)
    os.close(keyboard)
    assert f"remove teacher {folder.name[:12]} (hash:4), 150 rows" in result.err
    assert result.code == (0 if gone else 2)
    assert folder.exists() is not gone


def test_rm_waits_for_writers(cache: Path, folder: Path, armada: CommandLine) -> None:
    manifest = open_cache(cache, folder.name).teacher
    with CacheWriter(cache, manifest) as writer:
        writer.reserve(keys_of(["new"]))
        result = armada("cache", "rm", cache, "--teacher", folder.name, "--yes")
        assert "1 shard in the making" in result.error
        assert folder.exists()
        armada.done("cache", "rm", cache, "--teacher", folder.name, "--yes", "--force")
    assert not folder.exists()


def test_rm_waits_for_what_arrives(cache: Path, folder: Path, armada: CommandLine) -> None:
    with Arrivals(cache, open_cache(cache, folder.name).teacher):
        result = armada("cache", "rm", cache, "--teacher", folder.name, "--yes")
        assert "shards are arriving; wait until those processes end" in result.error
        assert folder.exists()
    armada.done("cache", "rm", cache, "--teacher", folder.name, "--yes")
    assert not folder.exists()


def test_rm_touches_nothing_outside(cache: Path, folder: Path, armada: CommandLine) -> None:
    """A reservation that was left half made is removed with its folder, unless that is a link."""
    outside = cache.parent / "outside"
    (outside / "new-0").mkdir(parents=True)
    shutil.rmtree(folder / "reservations", ignore_errors=True)
    (folder / "reservations").symlink_to(outside)
    result = armada("cache", "rm", cache, "--teacher", folder.name, "--yes")
    assert "is a symbolic link" in result.error
    assert (outside / "new-0").is_dir()


def test_rm_of_what_is_not_there(cache: Path, armada: CommandLine) -> None:
    assert "is not in the cache" in armada("cache", "rm", cache, "--teacher", "zz", "--yes").error
    both = armada("cache", "rm", cache, "--teacher", "", "--yes")
    assert "is the prefix of several teachers" in both.error


def test_distill_compares_checksums_when_asked(tmp_path: Path, cache: Path, folder: Path) -> None:
    from armada.cache_schemas.errors import DamagedCacheError
    from armada.pipeline.distill_job import DistillJob
    from armada.pipeline.run_data import read_data
    from armada.pipeline.terms import terms_of

    corpus: dict[str, Any] = {"train": str(tmp_path / "t.jsonl"), "text_column": "text"}
    (tmp_path / "t.jsonl").write_text('{"text": "text 3"}\n')
    flip(folder / "embedding/c/0/0")
    for checked in (False, True):
        given = DistillJob(
            **corpus,
            cache=cache,
            teacher=folder.name,
            student="scratch:bert",
            output=tmp_path / "out",
            objective="feature",
            verify_cache=checked,
        )
        data = read_data(given, terms_of(given))
        feature = data.sources["teacher"].feature
        if checked:
            with pytest.raises(DamagedCacheError, match="xxh3_128"):
                feature[0]
        else:
            feature[0]
