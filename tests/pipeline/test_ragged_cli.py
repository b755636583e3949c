"""A teacher that answers each word of a text, by the command line: asked, cut, gone on with,
checked, shared, described."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from armada import open_cache
from armada.cache_schemas.keys import example_key
from armada.stages.precompute.teachers.base import example_seed
from command_line import CommandLine

TEXTS = [" ".join([f"n{n}", *(f"w{(n * k) % 17}" for k in range(n % 23))]) for n in range(300)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "texts.parquet"
    pq.write_table(pa.table({"text": TEXTS, "id": list(map(str, range(300)))}), path)
    return path


def asked(corpus: Path, cache: Path, *more: str) -> list[object]:
    return [
        "precompute",
        *("--teacher", "hash_words:4", "--corpus", corpus, "--text-column", "text"),
        *("--cache", cache, "--set", "rows_per_shard=64", "--set", "max_words=20", *more),
    ]


def check(cache: Path, texts: list[str]) -> None:
    """Whether each text has a row of numbers for each of its first 20 words."""
    opened = open_cache(cache)
    rows = opened.lookup(texts)
    words = opened.ragged("words").gather(rows)
    sizes = opened.ragged("word_bytes").gather(rows)
    for text, found, bytes_each in zip(texts, words.parts(), sizes.parts(), strict=True):
        expected = [
            np.random.default_rng(example_seed(0, example_key(word))).standard_normal(4)
            for word in text.split()[:20]
        ]
        np.testing.assert_array_equal(found, np.asarray(expected, dtype=np.float32))
        assert bytes_each.tolist() == [len(word) for word in text.split()[:20]]


def test_every_word_is_answered_and_a_cut_run_goes_on(
    armada: CommandLine, corpus: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    armada.done(*asked(corpus, cache, "--set", "limit=100"))
    planned = armada.done(*asked(corpus, cache, "--dry-run"))
    assert "200 to compute" in planned
    armada.done(*asked(corpus, cache))
    check(cache, TEXTS)
    listed = armada.done("cache", "ls", cache)
    assert "x words" in listed
    assert "300" in armada.done("cache", "verify", cache)


def test_a_corpus_in_another_order_makes_the_same_answers(
    armada: CommandLine, corpus: Path, tmp_path: Path
) -> None:
    turned = tmp_path / "turned.parquet"
    pq.write_table(pa.table({"text": TEXTS[::-1]}), turned)
    armada.done(*asked(turned, tmp_path / "cache", "--set", "batch_size=7"))
    check(tmp_path / "cache", TEXTS)


def test_pushed_pulled_merged_and_described(
    armada: CommandLine, corpus: Path, tmp_path: Path
) -> None:
    cache, there, back = tmp_path / "cache", tmp_path / "there", tmp_path / "back"
    armada.done(*asked(corpus, cache))
    armada.done("cache", "push", cache, there.as_uri())
    armada.done("cache", "pull", there.as_uri(), back, "--feature", "words")
    opened = open_cache(back)
    assert opened.features == ("words",)
    assert opened.ragged("words")[0].shape[1:] == (4,)
    armada.done("cache", "merge", tmp_path / "all", cache)
    check(tmp_path / "all", TEXTS)
    card = armada.done("cache", "card", cache) + (cache / "README.md").read_text()
    assert "4, for each of its words" in card
    assert 'cache.ragged("words")' in card


def test_what_reads_one_row_an_example_says_so(
    armada: CommandLine, refused: Callable[..., str], corpus: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    armada.done(*asked(corpus, cache))
    export = [
        "cache",
        "export",
        cache,
        "--format",
        "npy",
        "--corpus",
        corpus,
        "--text-column",
        "text",
    ]
    assert "several entries for each example" in refused(*export, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()
