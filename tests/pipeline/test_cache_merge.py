"""`armada cache merge`, as people type it: which teachers go where, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from armada import open_cache
from armada.cache_schemas.errors import CacheError
from armada.cache_schemas.features import FeatureSpec
from armada.cache_schemas.manifest import CacheManifest, TeacherManifest
from armada.stages.store.format.manifests import list_teachers
from command_line import CommandLine
from small_caches import (
    TWO_FEATURES,
    answer,
    make_manifest,
    numbered_texts,
    stored_bytes,
    write_cache,
)

TEXTS = numbered_texts(0, 150)
ONE, OTHER = make_manifest(seed=1), make_manifest(seed=2)


def extending(base: TeacherManifest, name: str) -> TeacherManifest:
    """A teacher that adds one feature to another."""
    feature = FeatureSpec(name=name, shape=(3,), dtype="float32")
    spec = base.spec.model_copy(update={"features": (feature,)})
    return TeacherManifest(
        fingerprint=spec.fingerprint_extending(base.fingerprint),
        rows_per_shard=64,
        spec=spec,
        extends=base.fingerprint,
    )


def test_all_teachers_of_all_sources_are_joined(armada: CommandLine, tmp_path: Path) -> None:
    write_cache(tmp_path / "a", ONE, [TEXTS[:100]])
    write_cache(tmp_path / "b", ONE, [TEXTS[80:]])
    write_cache(tmp_path / "b", OTHER, [TEXTS[:10]])
    words = ["cache", "merge", tmp_path / "to", tmp_path / "a", tmp_path / "b"]
    result = armada(*words)
    assert result.code == 0
    first, second = result.out.splitlines()
    assert first.startswith(f"teacher {ONE.fingerprint[:12]} (made_up:made up): 150 of 170 rows ")
    assert "copied into 2 shards, 20 already there" in first
    assert "10 of 10 rows copied into 1 shard, 0 already there" in second
    assert "170/170 rows" in result.err
    for manifest, texts in ((ONE, TEXTS), (OTHER, TEXTS[:10])):
        cache = open_cache(tmp_path / "to", manifest.fingerprint)
        rows = cache.lookup(texts)
        assert sorted(rows) == list(range(len(texts)))
        for spec in TWO_FEATURES:
            np.testing.assert_array_equal(cache[spec.name][rows], answer(spec, texts))
    again = json.loads(armada.done(*words, "--json", "--quiet"))
    assert [(teacher["copied"], teacher["already_there"]) for teacher in again] == [
        (0, 170),
        (0, 10),
    ]


def test_one_teacher_can_be_chosen(armada: CommandLine, tmp_path: Path) -> None:
    write_cache(tmp_path / "a", ONE, [TEXTS[:10]])
    write_cache(tmp_path / "a", OTHER, [TEXTS[:20]])
    words = ["cache", "merge", tmp_path / "to", tmp_path / "a", "--quiet"]
    armada.done(*words, "--teacher", OTHER.fingerprint[:6])
    assert [known.fingerprint for known in list_teachers(tmp_path / "to")] == [OTHER.fingerprint]


def test_features_that_were_added_come_with_their_teacher(
    armada: CommandLine, tmp_path: Path
) -> None:
    added = extending(ONE, "layer")
    write_cache(tmp_path / "a", ONE, [TEXTS[:70]])
    write_cache(tmp_path / "a", added, [TEXTS[20:60]])
    write_cache(tmp_path / "a", OTHER, [TEXTS[:20]])
    words = ["cache", "merge", tmp_path / "to", tmp_path / "a", "--quiet"]
    armada.done(*words, "--teacher", ONE.fingerprint)
    assert len(list_teachers(tmp_path / "to")) == 2
    cache = open_cache(tmp_path / "to")
    assert cache.features == ("pooled", "score", "layer")
    rows = cache.lookup(TEXTS[30:40])
    layer = added.spec.features[0]
    np.testing.assert_array_equal(cache["layer"][rows], answer(layer, TEXTS[30:40]))


def test_rows_per_shard_of_the_destination_stay(armada: CommandLine, tmp_path: Path) -> None:
    write_cache(tmp_path / "to", make_manifest(rows_per_shard=64, seed=1), [TEXTS[:3]])
    write_cache(tmp_path / "a", make_manifest(rows_per_shard=192, seed=1), [TEXTS])
    armada.done("cache", "merge", tmp_path / "to", tmp_path / "a", "--quiet")
    cache = open_cache(tmp_path / "to")
    assert cache.teacher.rows_per_shard == 64
    assert [commit.rows for commit in cache.commits] == [3, 64, 64, 19]


REFUSALS: dict[str, tuple[list[str], str]] = {
    "itself": (["a", "a"], "a: is the destination itself"),
    "itself by another way": (["a", "to/../a"], "a: is the destination itself"),
    "no cache": (["to", "a", "."], ": holds no armada.json; this is not an armada cache"),
    "not into a file": (["note.txt", "a"], "note.txt: is a file, and so it holds no armada.json"),
    "an unknown teacher": (["to", "a", "--teacher=zz"], "teacher 'zz': is not in the cache"),
    "no teacher": (["to", "empty"], "empty: no shard is committed yet"),
}


@pytest.mark.parametrize(("words", "told"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_merged_is_refused(
    refused: Callable[..., str], tmp_path: Path, words: list[str], told: str
) -> None:
    write_cache(tmp_path / "a", ONE, [TEXTS[:3]])
    (tmp_path / "to").mkdir()
    (tmp_path / "note.txt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "armada.json").write_bytes(CacheManifest().to_json())
    paths = [word if word.startswith("--") else tmp_path / word for word in words]
    assert told in refused("cache", "merge", *paths, "--quiet")


@pytest.mark.parametrize("url", ["https://me:secret@host/a", "s3://me:secret@host/a"])
def test_a_url_keeps_its_slashes_and_shows_no_password(
    refused: Callable[..., str], tmp_path: Path, url: str
) -> None:
    shown = url.replace("me:secret@", "")
    line = refused("cache", "merge", tmp_path / "to", url, "--quiet")
    assert line == f"source {shown}: looks like a URL; name a local file or folder"
    assert f"source {shown}: looks" in refused("cache", "import", tmp_path / "to", url)


def test_a_source_may_be_a_file_url(armada: CommandLine, tmp_path: Path) -> None:
    write_cache(tmp_path / "a", ONE, [TEXTS[:10]])
    armada.done("cache", "merge", tmp_path / "to", f"file://{tmp_path / 'a'}", "--quiet")
    assert len(open_cache(tmp_path / "to")) == 10


FILE_AS_CACHE = {
    **dict.fromkeys(("ls", "inspect", "verify", "repair", "gc", "card"), ()),
    "rm": ("--teacher", "ab", "--yes"),
    "push": ("there",),
    "merge": ("cache",),
    "export": (
        "--corpus",
        "rows.csv",
        "--text-column",
        "text",
        "--format",
        "parquet",
        "--output=a",
    ),
    "import": ("a.npy", "--name=x", "--corpus=rows.csv", "--text-column=text", "--ids=ids"),
}


@pytest.mark.parametrize("command", FILE_AS_CACHE)
def test_a_file_is_no_cache_and_said_to_be_a_file(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_cache(tmp_path / "cache", ONE, [TEXTS[:3]])
    (tmp_path / "rows.csv").write_text("text,id\nx,a\n")
    (tmp_path / "ids").write_text("a\n")
    np.save(tmp_path / "a.npy", np.zeros((1, 3), np.float32))
    more = FILE_AS_CACHE[command]
    if command == "import":
        more += ("--set", "id_column=id", "--feature=embedding", "--declare", "model=x")
    line = refused("cache", command, "rows.csv", *more)
    assert line.startswith("cache rows.csv: is a file, and so it holds no armada.json;"), line
    with pytest.raises(CacheError, match=r"rows\.csv: is a file.*name the folder of one"):
        open_cache("rows.csv")


def test_a_source_is_not_written_to(armada: CommandLine, tmp_path: Path) -> None:
    write_cache(tmp_path / "a", ONE, [TEXTS[:10]])
    before = stored_bytes(tmp_path / "a")
    armada.done("cache", "merge", tmp_path / "to", tmp_path / "a", "--quiet")
    assert stored_bytes(tmp_path / "a") == before
