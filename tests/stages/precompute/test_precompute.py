"""Stage 1 with teachers that count what they are asked, run out of memory, or answer badly."""

import resource
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from armada.cache_schemas.errors import RunError, StorageError, TeacherOutputError
from armada.cache_schemas.features import FeatureSpec
from armada.stages.corpus.corpus import read_corpus
from armada.stages.precompute.ahead import make_examples
from armada.stages.precompute.precompute import _Storing, probe
from armada.stages.precompute.ranks import Ranks
from armada.stages.precompute.shard_buffer import ShardBuffer
from armada.stages.precompute.teachers.base import Answers, Example, Examples
from armada.stages.store.reading.reader import Cache
from small_caches import stored_bytes
from spying_teacher import HUGE, NAN, Bench, SpyingTeacher, WriteParquet, code


@pytest.fixture
def bench(write_parquet: WriteParquet, tmp_path: Path) -> Bench:
    return Bench(write_parquet, tmp_path / "cache")


def texts_of(start: int, stop: int) -> list[str]:
    """Texts of one to five words."""
    return [" ".join([f"text{i}", *["word"] * (i * 7 % 5)]) for i in range(start, stop)]


def check_answers(cache: Cache, texts: list[str]) -> None:
    """The cache holds the right answer to each text."""
    rows = cache.lookup(texts)
    codes = np.stack([code(Example(key, ())) for key in cache.keys[rows]]).astype(np.float16)
    np.testing.assert_array_equal(cache["code"][rows], codes, strict=True)
    words = np.array([len(text.split()) for text in texts], dtype=np.float32)
    np.testing.assert_array_equal(cache["words"][rows], words, strict=True)


def test_each_text_is_asked_once(bench: Bench) -> None:
    teacher = SpyingTeacher()
    texts = texts_of(0, 100)
    bench.ask(teacher, texts + texts[:30], texts[50:] + texts[:10])
    assert sorted(teacher.texts) == sorted(texts)
    assert bench.advanced == 100
    assert [shard for shard, _ in bench.commits] == [0, 1]
    check_answers(bench.cache, texts)
    np.testing.assert_array_equal(bench.cache.lookup(texts), np.arange(100))


def test_a_second_corpus_asks_only_what_is_new(bench: Bench) -> None:
    bench.ask(SpyingTeacher(), texts_of(0, 100))
    again = SpyingTeacher()
    bench.ask(again, texts_of(50, 150))
    assert sorted(again.texts) == sorted(texts_of(100, 150))
    third = SpyingTeacher()
    bench.ask(third, texts_of(0, 150))
    assert third.asked == []
    check_answers(bench.cache, texts_of(0, 150))


@pytest.fixture
def one_by_one(write_parquet: WriteParquet, tmp_path: Path) -> dict[str, bytes]:
    """The bytes of a cache of 150 texts, asked one after another."""
    bench = Bench(write_parquet, tmp_path / "one by one")
    bench.ask(SpyingTeacher(), texts_of(0, 150), batch_size=1)
    return stored_bytes(bench.path)


@pytest.mark.parametrize("batch_size", [7, 64, 1000])
def test_bytes_do_not_depend_on_the_batch_size(
    bench: Bench, one_by_one: dict[str, bytes], batch_size: int
) -> None:
    bench.ask(SpyingTeacher(), texts_of(0, 150), batch_size=batch_size)
    assert stored_bytes(bench.path) == one_by_one


def test_answers_do_not_depend_on_the_order_of_rows(bench: Bench) -> None:
    texts = texts_of(0, 150)
    bench.ask(SpyingTeacher(), texts[::-1])
    check_answers(bench.cache, texts)


def test_a_batch_is_of_one_bucket_and_the_longest_come_first(bench: Bench) -> None:
    teacher = SpyingTeacher()
    bench.ask(teacher, texts_of(0, 60), batch_size=5)
    lengths = [{len(text.split()) for text in batch} for batch in teacher.asked]
    assert all(len(of_batch) == 1 for of_batch in lengths)
    order = [max(of_batch) for of_batch in lengths]
    assert order == sorted(order, reverse=True)
    assert {len(batch) for batch in teacher.asked} == {5, 2}  # twelve of each length


def test_out_of_memory_halves_the_batch_and_goes_on(
    bench: Bench, one_by_one: dict[str, bytes]
) -> None:
    teacher = SpyingTeacher(fits=3)
    bench.ask(teacher, texts_of(0, 150), batch_size=64)
    assert max(len(batch) for batch in teacher.asked) <= 3
    assert sorted(teacher.texts) == sorted(texts_of(0, 150))
    assert stored_bytes(bench.path) == one_by_one


def test_an_example_that_does_not_fit_alone_ends_the_run(bench: Bench) -> None:
    with pytest.raises(RunError, match="a single example does not fit"):
        bench.ask(SpyingTeacher(fits=0), texts_of(0, 10))
    assert len(bench.cache) == 0


class Unheard(Ranks):
    """The first of two processes, of which the other is not there."""

    def say_batch(self, examples: Sequence[Example]) -> None:
        pass


def test_no_smaller_batch_is_tried_while_other_processes_wait_for_one(bench: Bench) -> None:
    with pytest.raises(RunError, match=r"a batch of 8 texts does not fit.*smaller batch_size"):
        bench.ask(SpyingTeacher(fits=3), texts_of(0, 64 * 5), ranks=Unheard(count=2))


BAD = pytest.mark.parametrize(("bad", "feature"), [(NAN, "words"), (HUGE, "code")])


@BAD
def test_answers_that_are_not_finite_end_the_run(bench: Bench, bad: str, feature: str) -> None:
    texts = texts_of(0, 150)
    texts[70] = f"{bad} here"
    with pytest.raises(TeacherOutputError) as caught:
        bench.ask(SpyingTeacher(), texts[:60], texts[60:], batch_size=4)
    where = str(bench.path.parent / "corpus1.parquet row 11")
    assert f"{where}: the teacher's {feature!r} is not finite for '{bad} here'" in str(caught.value)
    # Whatever else was computed is kept: all of the first shard, the others of the batch, and those
    # that the teacher had begun when its outputs came.
    kept = bench.cache
    assert 64 < bench.advanced + 3 <= len(kept) <= bench.advanced + 3 + _Storing._MOST * 4
    rest = SpyingTeacher()
    texts[70] = "mended"
    bench.ask(rest, texts)
    assert len(rest.texts) == 150 - len(kept)
    check_answers(bench.cache, texts)


@BAD
def test_answers_that_are_not_finite_can_be_left_out(bench: Bench, bad: str, feature: str) -> None:
    texts = texts_of(0, 150)
    places = [3, 70, 71]
    for place in places:
        texts[place] = f"{bad} {place}"
    bench.ask(SpyingTeacher(), texts, skip_bad_rows=True)
    path = bench.path.parent / "corpus0.parquet"
    assert sorted(bench.skipped) == sorted(
        f"{path} row {place + 1}: the teacher's {feature!r} is not finite for '{bad} {place}'"
        for place in places
    )
    good = [text for place, text in enumerate(texts) if place not in places]
    assert len(bench.cache) == len(good) == 147
    assert bench.advanced == 150
    check_answers(bench.cache, good)


def test_truncated_texts_are_counted(bench: Bench) -> None:
    texts = texts_of(0, 100)
    bench.ask(SpyingTeacher(), texts)
    long = [len(text) > 15 for text in texts]
    assert bench.commits == [(0, sum(long[:64])), (1, sum(long[64:]))]
    assert bench.cache.table("rows", {"truncated": pa.bool_()})["truncated"].to_pylist() == long


def test_an_error_in_the_middle_keeps_what_was_answered(bench: Bench) -> None:
    texts = texts_of(0, 100)
    teacher = SpyingTeacher(breaks_at=texts[90])
    with pytest.raises(ValueError, match="the teacher broke"):
        bench.ask(teacher, texts)
    assert 64 < len(bench.cache) == len(teacher.texts) < 100
    rest = SpyingTeacher()
    bench.ask(rest, texts)
    assert sorted(rest.texts + teacher.texts) == sorted(texts)
    check_answers(bench.cache, texts)


def test_a_disk_that_refuses_ends_the_run(bench: Bench) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Filling(SpyingTeacher):
        """Lets no file grow any more once the first shard is there."""

        def encode(self, examples: Sequence[Example]) -> Answers:
            if len(self.texts) >= 64:
                while not bench.commits:
                    time.sleep(0.001)
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
            return super().encode(examples)

    try:
        with pytest.raises(StorageError, match="code/c/1/0: the disk is full"):
            bench.ask(Filling(), texts_of(0, 200))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(bench.cache) == 64
    bench.ask(SpyingTeacher(), texts_of(0, 200))
    check_answers(bench.cache, texts_of(0, 200))


def test_images_are_kept_beside_their_rows(bench: Bench) -> None:
    texts = texts_of(0, 70)
    texts[5] = f"{NAN} 5"
    bench.ask(SpyingTeacher(images=True), texts, skip_bad_rows=True)
    del texts[5]
    images = bench.cache.table("images", {"png": pa.binary()})["png"].to_pylist()
    assert images == [text.encode() for text in texts]
    check_answers(bench.cache, texts)


def test_segments_are_asked_as_they_are(write_parquet: WriteParquet) -> None:
    path = write_parquet("pairs", {"a": ["ab", "a"], "b": ["c", "bc"]})
    corpus = read_corpus([path], ["a", "b"])
    examples = make_examples(corpus, corpus.keys(), np.array([1, 0]))
    assert [example.segments for example in examples] == [("a", "bc"), ("ab", "c")]
    assert [example.key for example in examples] == [corpus.keys()[row].tobytes() for row in (1, 0)]


def test_examples_are_made_as_they_are_asked_for() -> None:
    keys = np.random.default_rng(0).integers(0, 256, (5, 16), dtype=np.uint8)
    texts = [(f"text {number}", "more") for number in range(5)]
    plain = [Example(key.tobytes(), text) for key, text in zip(keys, texts, strict=True)]
    examples = Examples(keys, texts)
    assert list(examples) == [examples[number] for number in range(5)] == plain
    assert list(examples[1:4][::-1]) == plain[3:0:-1]
    assert examples[-1] == plain[-1]
    assert plain[2] in examples
    some = examples.take(np.array([4, 0, 3])).take(np.array([2, 0]))
    assert len(some) == 2
    assert list(some) == [plain[3], plain[4]]
    with pytest.raises(IndexError):
        examples[5]


def test_what_is_not_finite_is_found_in_any_type() -> None:
    """All numbers of half precision; in float32 and integers, some."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    cases = {
        "float16": (halves, np.isfinite(halves)),
        "float32": (
            np.float32([1, np.inf, -np.inf, np.nan]),
            np.array([True, False, False, False]),
        ),
        "uint8": (np.uint8([0, 255]), np.array([True, True])),
    }
    for dtype, (values, finite) in cases.items():
        rows = np.arange(len(values))
        spec = FeatureSpec(name="code", shape=(1,), dtype=dtype)
        buffer = ShardBuffer(np.zeros((len(values), 16), np.uint8), [spec])
        answers = Answers({"code": values[:, None]}, np.zeros(len(values), dtype=bool))
        assert sorted(buffer.put(rows, answers)) == rows[~finite].tolist()
        kept = buffer.finished().features["code"]
        assert np.array_equal(kept[:, 0], values[finite])


def test_a_probe_warms_up_and_measures() -> None:
    teacher = SpyingTeacher()
    examples = [Example(bytes([i] * 16), ("a word",)) for i in range(9)]
    assert probe(teacher, examples).seconds > 0
    assert [len(batch) for batch in teacher.asked] == [9, 9]
