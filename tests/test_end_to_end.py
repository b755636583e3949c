"""Both stages on text as people have it: every kind of teacher into one cache, students from each.

The texts are real ones where there are any: real_texts.py.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_checkpoints
import tiny_diffusion
from armada.pipeline.precompute import run_precompute
from armada.pipeline.precompute_job import make_precompute_job
from armada.pipeline.precompute_plan import PrecomputeReport
from armada.stages.precompute.teachers import TEACHERS
from armada.stages.store.reading.reader import list_teachers, open_cache
from command_line import CommandLine, start
from hangs import HANG_S
from real_texts import ROWS, Columns, inferences, read_corpus, reviews

pytestmark = pytest.mark.long

FIRST, SECOND = slice(0, 120), slice(60, 180)  # share a half of their texts
HELD_OUT = slice(180, ROWS)
KINDS = ["hash", "encoder", "classifier", "open_clip", "diffusers"]
OPTIONS = {
    "classifier": {"pooled": True},
    "diffusers": {"steps": 2, "height": 32, "width": 32, "resize": 16, "batch_size": 30},
}
WITHOUT_TEACHER_LIBRARIES = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("diffusers", "open_clip"):
            raise ImportError(f"{name} is not for students")
sys.meta_path.insert(0, Absent())
from armada.cli import main
main()
"""


@pytest.fixture(scope="module")
def texts() -> Columns:
    return read_corpus("sst2", ("text", "label")) or reviews()


@pytest.fixture(scope="module")
def pairs() -> Columns:
    return read_corpus("rte", ("text_a", "text_b", "label")) or inferences()


# --- models, files, and what was asked


@dataclass(frozen=True)
class Place:
    """Where the files of these tests lie."""

    folder: Path

    def part(self, name: str, columns: Columns, rows: slice) -> Path:
        """Some rows as a file."""
        file = self.folder / f"{name}.parquet"
        pq.write_table(pa.table({k: values[rows] for k, values in columns.items()}), file)
        return file

    def source(self, kind: str) -> str:
        """A teacher of that kind as the command line takes it."""
        return "hash:8" if kind == "hash" else f"{kind}:{self.folder / kind}"

    def precompute(self, kind: str, corpus: Path, cache: Path, *columns: str) -> PrecomputeReport:
        keys = {"corpus": str(corpus), "text_column": columns or "text", "cache": str(cache)}
        keys |= {"teacher": self.source(kind)} | OPTIONS.get(kind, {})
        return run_precompute(make_precompute_job(keys), quiet=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, texts: Columns, pairs: Columns) -> Place:
    folder = tmp_path_factory.mktemp("end_to_end")
    words = [*texts["text"], *pairs["text_a"], *pairs["text_b"]]
    tiny_checkpoints.make_bert(folder / "encoder", words)
    tiny_checkpoints.make_bert_classifier(folder / "classifier", words, ("bad", "good"))
    tiny_checkpoints.make_open_clip(folder / "open_clip")
    tiny_diffusion.make_stable_diffusion(folder / "diffusers")
    tiny_checkpoints.make_bert(folder / "student", words, hidden=16)
    return Place(folder)


@pytest.fixture(scope="module")
def cached(place: Place, texts: Columns) -> dict[str, PrecomputeReport]:
    """All teachers have been asked about the first corpus, into one cache."""
    corpus = place.part("first", texts, FIRST)
    place.part("held_out", texts, HELD_OUT)
    return {kind: place.precompute(kind, corpus, place.folder / "cache") for kind in KINDS}


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


@pytest.fixture
def count_questions(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[tuple[str, ...]]]:
    """The list of all examples that a kind of teacher is asked from now on."""

    def count(kind: str) -> list[tuple[str, ...]]:
        teacher, asked = TEACHERS.load(kind), []
        start = teacher.start

        def counted(self: Any, batch: Any) -> Any:
            asked.extend(example.segments for example in batch.examples)
            return start(self, batch)

        monkeypatch.setattr(teacher, "start", counted)
        return asked

    return count


def words(place: Place, teacher: str, output: Path, *settings: str) -> list[object]:
    given = ("epochs=1", "batch_size=32", "orthogonal_map=cayley", "device=cpu", *settings)
    return [
        *("distill", "--train", place.folder / "first.parquet"),
        *("--validation", place.folder / "held_out.parquet"),
        *("--text-column", "text", "--label-column", "label"),
        *("--cache", place.folder / "cache", "--teacher", teacher),
        *("--student", place.folder / "student", "--output", output, "--quiet"),
        *(word for setting in given for word in ("--set", setting)),
    ]


# --- stage 1


def test_one_cache_holds_the_answers_of_every_teacher(place, cached, texts):
    known = {teacher.fingerprint for teacher in list_teachers(place.folder / "cache")}
    assert known == {report.fingerprint for report in cached.values()}
    unique = list(dict.fromkeys(texts["text"][FIRST]))
    for report in cached.values():
        assert (report.computed, report.already_cached, report.skipped) == (len(unique), 0, ())
        cache = open_cache(place.folder / "cache", report.fingerprint[:10])
        rows = cache.lookup(unique)
        assert sorted(rows) == list(range(len(unique)))
        for name in cache.features:
            answers = cache[name][rows].reshape(len(rows), -1)
            assert np.isfinite(answers).all()
            assert len(np.unique(answers, axis=0)) > 0.9 * len(rows)  # texts are told apart


@pytest.mark.parametrize("kind", KINDS)
def test_a_corpus_that_shares_texts_asks_for_the_others_only(
    place, cached, texts, count_questions, kind
):
    asked = count_questions(kind)
    file = place.part("second", texts, SECOND)
    report = place.precompute(kind, file, place.folder / "cache")
    known, unique = set(texts["text"][FIRST]), set(texts["text"][SECOND])
    assert set(asked) == {(text,) for text in unique - known}
    assert len(asked) == report.computed == len(unique - known) < 0.6 * len(unique)
    assert report.already_cached == len(unique & known)
    asked.clear()
    assert place.precompute(kind, file, place.folder / "cache").computed == 0
    assert asked == []


# --- stage 2


@pytest.mark.parametrize(
    ("kind", "objective", "feature"),
    [
        ("hash", "armada", "embedding"),
        ("hash", "feature", "embedding"),
        ("encoder", "armada", "pooled"),
        ("encoder", "feature", "pooled"),
        ("classifier", "armada", "pooled"),
        ("classifier", "kd", "logits"),
        ("open_clip", "armada", "embedding"),
        ("open_clip", "feature", "embedding"),
        ("diffusers", "armada", "latent"),
        ("diffusers", "feature", "latent"),
    ],
)
def test_a_student_of_every_teacher(armada, place, cached, tmp_path, kind, objective, feature):
    output = tmp_path / "run"
    given = words(place, cached[kind].fingerprint[:12], output, f"feature={feature}")
    armada.done(*given, "--objective", objective)
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["steps"] == 4
    assert 0 <= metrics["validation"]["accuracy"] <= 1
    run = json.loads((output / "run.json").read_text())
    assert (run["teacher"]["kind"], run["feature"]) == (kind, feature)
    out = armada.done("evaluate", output, "--corpus", place.folder / "held_out.parquet", "--json")
    accuracy = json.loads(out)["metrics"]["accuracy"]
    assert accuracy == pytest.approx(metrics["validation"]["accuracy"])


def test_pairs(armada, place, pairs, tmp_path):
    train = place.part("pairs", pairs, slice(0, 90))
    held_out = place.part("other_pairs", pairs, slice(90, 150))
    columns = ("text_a", "text_b")
    report = place.precompute("encoder", train, tmp_path / "cache", *columns)
    assert report.computed == len(set(zip(*(pairs[name][:90] for name in columns), strict=True)))
    armada.done(
        *("distill", "--train", train, "--validation", held_out, "--label-column", "label"),
        *("--text-column", "text_a", "--text-column", "text_b"),
        *("--cache", tmp_path / "cache", "--student", place.folder / "student"),
        *("--output", tmp_path / "run", "--set", "epochs=1", "--set", "feature=pooled", "--quiet"),
    )
    out = armada.done("evaluate", tmp_path / "run", "--corpus", held_out)
    assert out.startswith("60 examples, 0 without a label\n")


def test_a_student_s_machine_needs_no_teacher_s_library(place, cached, tmp_path):
    given = words(place, cached["diffusers"].fingerprint, tmp_path / "run")
    process = start(*given, code=WITHOUT_TEACHER_LIBRARIES)
    out, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, err
    assert "is not for students" not in err
    assert (tmp_path / "run" / "metrics.json").is_file()
    assert out.endswith(f"written to {tmp_path / 'run'}\n")
    # The wrapper does keep them out: what needs them says so.
    corpus = ("--corpus", place.folder / "held_out.parquet", "--text-column", "text")
    teacher = ("--teacher", place.source("open_clip"), "--cache", tmp_path / "cache")
    process = start("precompute", *corpus, *teacher, code=WITHOUT_TEACHER_LIBRARIES)
    _, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 1
    assert "is not for students" in err
