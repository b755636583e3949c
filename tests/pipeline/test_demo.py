"""`armada demo`: its corpus, and (slow) what it finds."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from armada.pipeline.demo_corpus import FAMILIES, write_demo_corpus

COMMON = {words[0] for words in FAMILIES}
FAMILY = {word: family for family, words in enumerate(FAMILIES) for word in words}

Rows = list[tuple[str, int | None]]


def read(file: Path) -> Rows:
    table = pq.read_table(file).to_pydict()
    return list(zip(table["text"], table["label"], strict=True))


def colour(text: str) -> str:
    """The one colour word of a caption."""
    (word,) = FAMILY.keys() & set(text.split())
    return word


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Rows, Rows, Rows]:
    """Taught, train and test."""
    files = write_demo_corpus(tmp_path_factory.mktemp("demo"), seed=0)
    return read(files.taught), read(files.train), read(files.test)


def test_no_caption_of_the_test_is_trained_on(corpora):
    taught, train, test = ({text for text, _ in rows} for rows in corpora)
    assert not test & train
    assert taught == train
    assert [len(texts) for texts in (taught, train, test)] == [len(rows) for rows in corpora]


def test_a_student_gets_labels_for_common_words_only(corpora):
    _, train, test = corpora
    for text, label in train:
        assert label == (FAMILY[colour(text)] if colour(text) in COMMON else None)
    for text, label in test:
        assert colour(text) not in COMMON
        assert label == FAMILY[colour(text)]
    # Every rare word is read in training, though without a label, and tested.
    rare = FAMILY.keys() - COMMON
    assert {colour(text) for text, label in train if label is None} == rare
    assert {colour(text) for text, _ in test} == rare


def test_the_teacher_is_taught_all_words(corpora):
    taught, _, _ = corpora
    assert all(label == FAMILY[colour(text)] for text, label in taught)
    assert {colour(text) for text, _ in taught} == FAMILY.keys()


def test_a_seed_is_a_corpus(tmp_path, corpora):
    again = write_demo_corpus(tmp_path / "again", seed=0)
    other = write_demo_corpus(tmp_path / "other", seed=1)
    assert read(again.train) == corpora[1]
    assert read(other.train) != corpora[1]


def test_a_folder_with_something_in_it_is_refused(armada, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = armada("demo", "--output", tmp_path, "--quick")
    assert result.code == 2
    assert result.error == f"output {tmp_path}: is not an empty folder; choose another"


@pytest.mark.slow
def test_the_demo_shows_what_distillation_brings(armada, tmp_path):
    out = armada.done("demo", "--output", tmp_path / "demo", "--quick")
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary.keys() == {"undistilled", "distilled", "shuffled"}
    for name, figures in summary.items():
        assert figures["runs"] == [figures["mean"]]
        assert f"{name:12} accuracy {figures['mean']:.3f} ± " in out
    # Four families: guessing is 0.25. Only features of the right captions say what a rare word is.
    assert summary["distilled"]["mean"] > 0.9
    assert summary["undistilled"]["mean"] < 0.7
    assert summary["shuffled"]["mean"] < 0.7
