"""`armada cache derive`: features of a cached feature, as teachers that work as others do."""

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from armada import open_cache
from armada.cache_schemas.features import FeatureSpec
from armada.stages.deriving import read_table
from armada.stages.store.format.manifests import list_teachers
from armada.stages.store.writing.writer import CacheWriter
from command_line import CommandLine
from small_caches import answer, keys_of, make_manifest, numbered_texts, stored_bytes, write_cache

SPECS = (
    FeatureSpec(name="pooled", shape=(7,), dtype="float16"),
    FeatureSpec(name="logits", shape=(3,), dtype="float32", labels=("a", "b", "c")),
    FeatureSpec(name="ids", shape=(2,), dtype="uint8"),
)
FAR = FeatureSpec(name="far", shape=(2,), dtype="float32")
TEXTS = numbered_texts(0, 300)
CLASSES = np.arange(300) % 3
SHARDS = [TEXTS[:128], TEXTS[128:256], TEXTS[256:]]
OPTIONS: dict[str, list[str]] = {
    "class-means": [],
    "moments": [],
    "pca": ["--components", "3"],
    "clusters": ["--clusters", "4"],
}

Write = Callable[..., str]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parent") / "cache"
    write_cache(path, make_manifest(SPECS), SHARDS)
    return path


@pytest.fixture
def cache(parent: Path, tmp_path: Path) -> Path:
    """A cache of its own."""
    shutil.copytree(parent, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def corpus(write_parquet: Write) -> str:
    """The texts, backwards, the first twice, the last without a label."""
    texts = [*TEXTS[::-1], TEXTS[0], "text 1"]
    labels: list[int | None] = [*CLASSES[::-1].tolist(), 0, 1]
    labels[0] = None
    return write_parquet("corpus", {"text": texts, "label": labels})


def words(rule: str, cache: Path, corpus: str, *more: object) -> list[Any]:
    feature = ["--feature", "logits" if rule == "moments" else "pooled"]
    start = ["cache", "derive", cache, "--rule", rule, *feature, *OPTIONS[rule], "--quiet"]
    if rule == "class-means":
        start += ["--corpus", corpus, "--text-column", "text", "--label-column", "label"]
    return [*start, *more]


def derived(cache: Path) -> str:
    """Fingerprint of the derived teacher."""
    (found,) = [t.fingerprint for t in list_teachers(cache) if t.spec.kind == "derived"]
    return found


ROWS = answer(SPECS[0], TEXTS).astype(np.float64)
LOGITS = answer(SPECS[1], TEXTS).astype(np.float64)


@pytest.mark.parametrize("rule", OPTIONS)
def test_what_is_derived(
    armada: CommandLine, parent: Path, corpus: str, tmp_path: Path, rule: str
) -> None:
    result = armada(*words(rule, parent, corpus, "--output", tmp_path / "out", "--json"))
    assert result.code == 0, result.err
    said = json.loads(result.out)
    found = open_cache(tmp_path / "out")
    parents = open_cache(parent).teacher.fingerprint
    settings = found.teacher.spec.settings
    assert (found.teacher.spec.kind, settings["parent"], settings["rule"]) == (
        "derived",
        parents,
        rule,
    )
    assert said["fingerprint"] == found.teacher.fingerprint
    if rule == "class-means":
        assert (said["texts"], said["table"], said["unlabelled"]) == (299, 3, 1)
        assert "1 texts have no label" in result.err
        means = [ROWS[:-1][CLASSES[:-1] == number].mean(axis=0) for number in range(3)]
        texts = found.lookup(TEXTS[:-1])
        np.testing.assert_allclose(
            found["class_mean"][texts], np.stack(means)[CLASSES[:-1]], rtol=1e-6
        )
        np.testing.assert_allclose(
            read_table(found, "class_mean", ["0", "1", "2"]), means, rtol=1e-6
        )
        assert TEXTS[-1] not in found
        assert settings["classes"] == ("0", "1", "2")
    elif rule == "moments":
        logits = found["logits"][found.lookup(TEXTS)]
        np.testing.assert_allclose(logits, (LOGITS - LOGITS.mean(0)) / LOGITS.std(0), atol=1e-5)
        moments = read_table(found, "logits", ["mean", "deviation"])
        np.testing.assert_allclose(moments, [LOGITS.mean(0), LOGITS.std(0)], rtol=1e-6)
        assert found.feature_spec("logits").labels == ("a", "b", "c")
    elif rule == "pca":
        components = found["components"][found.lookup(TEXTS)].astype(np.float64)
        singular = np.linalg.svd(ROWS - ROWS.mean(0))[1]
        np.testing.assert_allclose((components**2).sum(0), singular[:3] ** 2, rtol=1e-5)
        assert "explained_variance [0." in found.feature_spec("components").description
    else:
        near = found["logits"][found.lookup(TEXTS)]
        np.testing.assert_array_equal(near.argmax(1), found["cluster"][found.lookup(TEXTS)])
        assert set(found["cluster"][:].tolist()) == {0, 1, 2, 3}
        assert said["found"]["converged"]


@pytest.mark.parametrize("rule", OPTIONS)
def test_the_same_bytes_whatever_the_shards(
    armada: CommandLine, parent: Path, corpus: str, tmp_path: Path, rule: str
) -> None:
    mixed = [TEXTS[index] for index in np.random.default_rng(0).permutation(300)]
    shards = [mixed[start:end] for start, end in pairwise([0, 9, 70, 130, 190, 250, 300])]
    write_cache(tmp_path / "other", make_manifest(SPECS, 64), shards)
    small = ("--set", "rows_per_shard=64")
    for name, source in (("one", parent), ("two", tmp_path / "other")):
        armada.done(*words(rule, source, corpus, *small, "--output", tmp_path / name))
    assert stored_bytes(tmp_path / "one") == stored_bytes(tmp_path / "two")
    # What is there is kept; a shard that was lost comes back as it was.
    expected = stored_bytes(tmp_path / "one")
    again = armada.done(*words(rule, parent, corpus, *small, "--output", tmp_path / "one"))
    assert " 0 written" in again
    folder = tmp_path / "one" / "teachers" / derived(tmp_path / "one")
    (folder / "commits" / "000001.json").unlink()
    assert " 64 written" in armada.done(
        *words(rule, parent, corpus, *small, "--output", tmp_path / "one")
    )
    assert stored_bytes(tmp_path / "one") == expected


def test_it_is_a_teacher_like_others(
    armada: CommandLine, cache: Path, corpus: str, tmp_path: Path
) -> None:
    for rule in OPTIONS:
        armada.done(*words(rule, cache, corpus))
    listed = armada.done("cache", "ls", cache)
    assert listed.count("derived") == 4
    armada.done("cache", "verify", cache)
    armada.done("cache", "card", cache)
    assert "class-means of pooled" in (cache / "README.md").read_text()
    armada.done("cache", "push", cache, tmp_path / "remote", "--quiet")
    armada.done("cache", "pull", tmp_path / "remote", tmp_path / "pulled", "--quiet")
    armada.done("cache", "verify", tmp_path / "pulled")
    armada.done("cache", "merge", tmp_path / "merged", cache, "--quiet")
    digests = {
        armada.done("cache", "verify", each).split()[-1]
        for each in (cache, tmp_path / "pulled", tmp_path / "merged")
    }
    assert len(digests) == 1
    (means,) = [
        t.fingerprint for t in list_teachers(cache) if t.spec.settings.get("rule") == "class-means"
    ]
    where = ["--corpus", corpus, "--text-column", "text", "--label-column", "label"]
    out = [
        "--output",
        tmp_path / "exported",
        "--teacher",
        means[:8],
        "--quiet",
        "--format",
        "parquet",
    ]
    armada.done("cache", "export", cache, *where, *out, "--skip-bad-rows")
    table = pq.read_table(tmp_path / "exported")
    assert len(table) == 301


def test_a_feature_of_a_derived_teacher(armada: CommandLine, cache: Path, corpus: str) -> None:
    """Rows of statistics are no texts."""
    armada.done(*words("moments", cache, corpus))
    first = derived(cache)
    said = armada.done(
        *("cache", "derive", cache, "--rule", "pca", "--components", 2, "--teacher", first[:9]),
        *("--quiet", "--json"),
    )
    assert json.loads(said)["texts"] == 300
    assert len(list_teachers(cache)) == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rule", "pca"], "rule=pca: job key 'components' is missing"),
        (["--rule", "clusters"], "rule=clusters: job key 'clusters' is missing"),
        (["--rule", "class-means"], "rule=class-means: job key 'label_column' is missing"),
        (
            ["--rule", "class-means", "--label-column", "label"],
            "rule=class-means: job key 'corpus' is missing (texts with labels)",
        ),
        (["--rule", "moments", "--components", "3"], "job key 'components': is for rule=pca"),
        (["--rule", "pca", "--components", "0"], "greater than or equal to 1"),
        (["--rule", "moments", "--set", "centred=false"], "'centred': is for rule=pca; leave"),
        (["--rule", "clusters", "--clusters", "1"], "greater than or equal to 2"),
        (["--rule", "pca", "--components", "2", "--set", "seed=1"], "is for rule=clusters"),
        (["--rule", "median"], "'median'"),
        ([], "job key 'rule' is missing"),
        (["--rule", "moments", "--corpus", "x.csv"], "'text_column' is missing; a corpus needs"),
        (["--rule", "moments", "--feature", "ids"], "'ids' is not one of numbers of whole texts"),
        (["--rule", "pca", "--components", "2"], "'feature': is missing; teacher"),
        (["--rule", "pca", "--components", "4", "--feature", "logits"], "there are at most 3"),
        (["--rule", "clusters", "--clusters", "301", "--feature", "logits"], "of 300 distinct"),
        (["--rule", "moments", "--teacher", "dead"], "is not in the cache"),
    ],
)
def test_what_is_refused(
    refused: Callable[..., str], parent: Path, more: list[str], message: str
) -> None:
    assert message in refused("cache", "derive", parent, *more, "--quiet")


def test_texts_that_are_not_cached_or_have_two_classes(
    armada: CommandLine,
    refused: Callable[..., str],
    parent: Path,
    write_parquet: Write,
    tmp_path: Path,
) -> None:
    def on(*more: object) -> list[object]:
        start = ["cache", "derive", parent, "--rule", "class-means", "--feature", "pooled"]
        labelled = ["--text-column", "text", "--label-column", "label", "--quiet"]
        return [*start, *labelled, "--output", tmp_path / "out", *more]

    absent = write_parquet("absent", {"text": ["text 1", "nowhere"], "label": [0, 1]})
    assert "1 of 2 rows are not in the cache" in refused(*on("--corpus", absent))
    torn = write_parquet(
        "torn", {"text": ["text 1", "text 2", "text 3", "text 1"], "label": [0, 1, 0, 1]}
    )
    said = refused(*on("--corpus", torn))
    assert "its text has another label in another row (2 such rows)" in said
    result = armada(*on("--corpus", torn, "--skip-bad-rows", "--json"))
    assert json.loads(result.out)["texts"] == 2
    assert "has several labels" in result.err
    numbers = write_parquet("numbers", {"text": ["text 1", "text 2"], "label": [0.5, 1.5]})
    assert "holds numbers, not classes" in refused(*on("--corpus", numbers))


def test_a_part_is_refused(
    armada: CommandLine,
    refused: Callable[..., str],
    parent: Path,
    write_parquet: Write,
    tmp_path: Path,
) -> None:
    some = write_parquet("some", {"text": TEXTS[:5]})
    where = ["--corpus", some, "--text-column", "text"]
    armada.done("cache", "pull", parent, tmp_path / "part", *where, "--quiet")
    rule = ["--rule", "pca", "--components", "2", "--feature", "pooled", "--quiet"]
    said = refused("cache", "derive", tmp_path / "part", *rule)
    assert "lacks 2 of 3 shards of teacher" in said
    assert "pull the rest, or name the texts with --corpus" in said
    out = ["--output", tmp_path / "out"]
    armada.done("cache", "derive", tmp_path / "part", *rule, *where, *out)
    assert len(open_cache(tmp_path / "out")) == 5


def test_numbers_beyond_a_small_dtype(armada: CommandLine, tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "cache", make_manifest([FAR])) as writer:
        rows = np.arange(140, dtype=np.float32).reshape(70, 2) * 1e4
        writer.commit(keys_of(TEXTS[:70]), {"far": rows}, np.zeros(70, dtype=bool))
    command = ["cache", "derive", tmp_path / "cache", "--rule", "clusters", "--clusters", 2]
    result = armada(*command, "--quiet", "--set", "store_dtype=float16")
    assert result.code == 2
    assert "store_dtype float16: too small for the numbers of 'logits', of up to" in result.error


@pytest.mark.parametrize("rule", ["class-means", "pca"])
def test_students_learn_from_it(
    armada: CommandLine, distill_bench: Any, tmp_path: Path, rule: str
) -> None:
    where = ["--corpus", distill_bench.train, "--text-column", "text"]
    labels = ["--label-column", "label"] if rule == "class-means" else []
    armada.done(
        *("cache", "derive", distill_bench.cache, "--teacher", distill_bench.made_up[:9]),
        *("--rule", rule, "--feature", "embedding", *OPTIONS[rule], *where, *labels),
        *("--output", tmp_path / "derived", "--quiet"),
    )
    found = derived(tmp_path / "derived")
    armada.done(
        *distill_bench.words(
            tmp_path / "run", cache=tmp_path / "derived", teacher=found[:8], objective="feature"
        ),
        *("--set", "epochs=1"),
    )
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["teacher"]["kind"] == "derived"
