"""A feature added later to keys that are there: the teacher is asked for that feature alone."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_checkpoints
import torch
from armada import open_cache
from armada.cache_schemas.errors import CacheError, MissingKeysError
from armada.cache_schemas.keys import example_key
from armada.cache_schemas.manifest import TeacherManifest
from armada.cache_schemas.teachers import differ_in_features_alone
from armada.pipeline.precompute import DryRun, dry_run, run_precompute
from armada.pipeline.precompute_job import PrecomputeJob, make_precompute_job
from armada.pipeline.precompute_plan import PrecomputeReport
from armada.stages.corpus.corpus import read_corpus
from armada.stages.precompute.batching import BatchSizes
from armada.stages.precompute.precompute import EncodingRun, precompute
from armada.stages.precompute.teachers.base import Example, Teacher
from armada.stages.precompute.teachers.classifier import ClassifierOptions, ClassifierTeacher
from armada.stages.precompute.teachers.encoder import EncoderOptions, EncoderTeacher
from armada.stages.store.format.manifests import list_teachers
from armada.stages.store.writing.writer import CacheWriter, Work
from command_line import CommandLine
from small_caches import stored_bytes
from spying_teacher import HUGE, SpyingTeacher
from tiny_runs import TEXTS, VALIDATION_TEXTS, class_labels

CPU = torch.device("cpu")
Make = Callable[..., PrecomputeJob]


@pytest.fixture
def job(
    checkpoint: Callable[[str], Path], write_parquet: Callable[..., str], tmp_path: Path
) -> Make:
    """A job that asks a BERT about the first texts, or about others."""

    def make(texts: list[str] = TEXTS, kind: str = "encoder:bert", **keys: Any) -> PrecomputeJob:
        name, _, model = kind.partition(":")
        columns = {"text": texts, "label": class_labels(len(texts))}
        fixed = {
            "corpus": write_parquet(f"corpus{len(texts)}", columns),
            "text_column": "text",
            "teacher": f"{name}:{checkpoint(model)}",
            "cache": str(tmp_path / "cache"),
            "max_length": 32,
        }
        return make_precompute_job(fixed | keys)

    return make


def ask(job: PrecomputeJob) -> PrecomputeReport:
    return run_precompute(job, quiet=True)


def features(cache: Path, texts: list[str], *names: str) -> Mapping[str, Any]:
    opened = open_cache(cache)
    rows = opened.lookup(texts)
    return {name: opened[name][rows] for name in names}


def check_as_if_asked_at_once(job: Make, texts: list[str], tmp_path: Path, **options: Any) -> None:
    """Whether the cache holds what a teacher says who was asked for all of it in one run."""
    ask(job(texts, cache=str(tmp_path / "at-once"), **options))
    names = open_cache(tmp_path / "at-once").features
    expected = features(tmp_path / "at-once", texts, *names)
    found = features(tmp_path / "cache", texts, *names)
    for name in names:
        np.testing.assert_array_equal(found[name], expected[name], strict=True)


def test_a_layer_is_added_to_texts_that_are_there(job: Make, tmp_path: Path) -> None:
    base = ask(job())
    before = stored_bytes(tmp_path / "cache")
    added = ask(job(layers=[1], add_features=True))
    assert (added.computed, added.already_cached, added.rows) == (len(TEXTS), 0, len(TEXTS))
    after = stored_bytes(tmp_path / "cache")
    assert {name: after[name] for name in before} == before
    extension = next(t for t in list_teachers(tmp_path / "cache") if t.extends)
    assert extension.extends == base.fingerprint
    assert extension.fingerprint == added.fingerprint
    assert [spec.name for spec in extension.spec.features] == ["layer_1"]
    assert "layers" not in extension.spec.settings
    assert open_cache(tmp_path / "cache").features == ("pooled", "layer_1")
    check_as_if_asked_at_once(job, TEXTS, tmp_path, layers=[1])


def test_only_what_is_lacking_is_added(job: Make, tmp_path: Path) -> None:
    ask(job(layers=[0]))
    ask(job(layers=[0, 2], add_features=True))
    third = ask(job(layers=[0, 1, 2], add_features=True))
    manifests = list_teachers(tmp_path / "cache")
    held = {t.fingerprint: [spec.name for spec in t.spec.features] for t in manifests}
    assert sorted(held.values()) == [["layer_1"], ["layer_2"], ["pooled", "layer_0"]]
    assert held[third.fingerprint] == ["layer_1"]
    check_as_if_asked_at_once(job, TEXTS, tmp_path, layers=[2, 0, 1])


def test_pooled_is_added_to_logits(job: Make, tmp_path: Path) -> None:
    folder = tiny_checkpoints.make_bert_classifier(tmp_path / "model", TEXTS, ("bad", "good"))
    teacher = {"teacher": f"classifier:{folder}"}
    ask(job(**teacher))
    ask(job(**teacher, pooled=True, add_features=True))
    check_as_if_asked_at_once(job, TEXTS, tmp_path, **teacher, pooled=True)


def test_a_second_run_asks_nothing(job: Make, tmp_path: Path) -> None:
    ask(job())
    ask(job(layers=[1], add_features=True))
    before = stored_bytes(tmp_path / "cache")
    again = ask(job(layers=[1], add_features=True))
    assert (again.computed, again.already_cached) == (0, len(TEXTS))
    assert stored_bytes(tmp_path / "cache") == before


def test_texts_that_came_later_are_filled_up(job: Make, tmp_path: Path) -> None:
    more = [*VALIDATION_TEXTS, *TEXTS]
    ask(job())
    ask(job(layers=[1], add_features=True))
    first = ask(job(more, layers=[1], add_features=True))
    assert (first.rows, first.computed) == (len(TEXTS), 0)
    assert len(first.skipped) == len(VALIDATION_TEXTS)
    assert first.skipped[0].endswith(" has not computed them")
    with pytest.raises(MissingKeysError, match="none of the 23 rows is in the cache"):
        ask(job(VALIDATION_TEXTS, layers=[1], add_features=True))
    ask(job(more))
    with pytest.raises(
        MissingKeysError, match=f"{len(VALIDATION_TEXTS)} of {len(more)} rows do not"
    ):
        features(tmp_path / "cache", more, "layer_1")
    assert ask(job(more, layers=[1], add_features=True)).computed == len(VALIDATION_TEXTS)
    check_as_if_asked_at_once(job, more, tmp_path, layers=[1])


def test_a_dry_run_counts_what_would_be_added(job: Make, tmp_path: Path) -> None:
    ask(job())
    before = stored_bytes(tmp_path / "cache")
    plan = dry_run(job(layers=[1, 2], add_features=True))
    assert isinstance(plan, DryRun)
    assert stored_bytes(tmp_path / "cache") == before
    ask(job(layers=[1, 2], add_features=True))
    written = (tmp_path / "cache").glob(f"teachers/{plan.fingerprint}/layer_*/c/*/*")
    assert plan.bytes == sum(file.stat().st_size for file in written)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another answer": ({"layers": [1], "pooling": "cls"}, "pooling: cached mean, requested cls"),
    "another number type": ({"layers": [1], "store_dtype": "float16"}, "requested float16"),
    "nothing lacking": ({"layers": []}, "has pooled already; leave add_features out"),
    "two steps at once": ({"layers": [0, 1]}, "layer_0, layer_1 were not added in one step"),
    "other rows per shard": ({"layers": [1], "rows_per_shard": 64}, "rows_per_shard: cached 16384"),
}


@pytest.mark.parametrize(("changed", "told"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_added_is_refused(
    job: Make, tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    ask(job(layers=[2]))
    ask(job(layers=[2, 0], add_features=True))
    ask(job(layers=[2, 1], add_features=True))
    before = stored_bytes(tmp_path / "cache")
    with pytest.raises(CacheError, match=told):
        ask(job(**changed, add_features=True))
    assert stored_bytes(tmp_path / "cache") == before


def test_a_teacher_whose_options_choose_no_features_takes_none(
    armada: CommandLine, write_parquet: Callable[..., str], tmp_path: Path
) -> None:
    corpus = write_parquet("corpus", {"text": TEXTS})
    words = ["precompute", "--corpus", corpus, "--text-column", "text", "--teacher", "hash:4"]
    words += ["--cache", str(tmp_path / "cache"), "--set", "add_features=true", "--quiet"]
    assert "holds no teacher that differs from hash:4 in nothing (none" in armada(*words).error
    armada.done(*words[:-3])
    told = armada(*words, "--set", "seed=1").error
    assert "seed: cached 0, requested 1); leave add_features out" in told
    # The same settings are the same teacher: nothing is to be added, and nothing is wrong.
    assert "already cached, 0 computed" in armada.done(*words)


def test_the_command_line_tells_how_to_add_and_what_was_added(
    armada: CommandLine, checkpoint: Callable[[str], Path], job: Make, tmp_path: Path
) -> None:
    first = job(max_length=None)
    words = ["precompute", "--corpus", *first.corpus, "--text-column", "text"]
    words += ["--teacher", first.teacher, "--cache", str(tmp_path / "cache"), "--quiet"]
    armada.done(*words)
    told = armada(*words, "--set", "layers=[1]").error
    assert "add_features=true to add layer_1 to it, or add_teacher=true to keep both" in told
    other = armada(*words, "--set", "layers=[1]", "--set", "pooling=cls").error
    assert "use the cached settings, or add_teacher=true" in other
    armada.done(*words, "--set", "layers=[1]", "--set", "add_features=true")
    base = open_cache(tmp_path / "cache").teacher.fingerprint
    listed = armada.done("cache", "ls", tmp_path / "cache")
    assert f"encoder, added to {base[:12]}" in listed
    teachers = json.loads(armada.done("cache", "ls", tmp_path / "cache", "--json"))
    assert sorted(str(teacher["extends"]) for teacher in teachers) == sorted(["None", base])
    added = next(teacher["fingerprint"] for teacher in teachers if teacher["extends"])
    inspected = json.loads(armada.done("cache", "inspect", tmp_path / "cache", "--teacher", added))
    assert inspected["extends"] == base


def test_a_student_learns_from_an_added_feature(
    armada: CommandLine, job: Make, tmp_path: Path
) -> None:
    ask(job())
    ask(job(TEXTS[:40], layers=[1], add_features=True))
    words = [
        "distill",
        "--train",
        *job().corpus,
        "--text-column",
        "text",
        "--label-column",
        "label",
    ]
    words += ["--cache", str(tmp_path / "cache"), "--student", "scratch:bert", "--quiet"]
    small = ["student_hidden_size=16", "student_heads=2", "epochs=1", "aligner_hidden_size=8"]
    words += [word for setting in small for word in ("--set", setting)]
    words += ["--set", "feature=layer_1", "--output", str(tmp_path / "run")]
    told = armada(*words).error
    assert f"{len(TEXTS) - 40} of {len(TEXTS)} rows are not in the cache of teacher" in told
    assert "with layer_1; run `armada precompute` on them, with add_features=true" in told
    armada.done(*words, "--set", "skip_bad_rows=true")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["train_examples"] == 40


@pytest.mark.parametrize(
    "model", ["bert", "roberta", "distilbert", "deberta", "opt", "llama", "t5"]
)
def test_asking_for_layers_changes_no_bit_of_the_rest(
    checkpoint: Callable[[str], Path], model: str
) -> None:
    source = str(checkpoint(model))
    options = ({"layers": ()}, {"layers": (0, 1)})
    one, other = (EncoderTeacher(source, EncoderOptions(**o), CPU) for o in options)
    assert differ_in_features_alone(one.spec, other.spec, EncoderTeacher.selecting)
    np.testing.assert_array_equal(answers(one)["pooled"], answers(other)["pooled"], strict=True)


@pytest.mark.parametrize("make", ["make_bert_classifier", "make_opt_classifier"])
def test_asking_for_the_heads_input_changes_no_bit_of_the_logits(tmp_path: Path, make: str) -> None:
    source = str(getattr(tiny_checkpoints, make)(tmp_path / "model", TEXTS, ("bad", "good")))
    one, other = (
        ClassifierTeacher(source, ClassifierOptions(pooled=pooled), CPU) for pooled in (False, True)
    )
    assert differ_in_features_alone(one.spec, other.spec, ClassifierTeacher.selecting)
    np.testing.assert_array_equal(answers(one)["logits"], answers(other)["logits"], strict=True)


def answers(teacher: Teacher) -> Mapping[str, Any]:
    teacher.load()
    with torch.inference_mode():
        return teacher.encode([Example(example_key(text), (text,)) for text in TEXTS[:8]]).features


def test_a_feature_that_is_not_added_may_be_anything(
    write_parquet: Callable[..., str], tmp_path: Path
) -> None:
    """It overflows in half precision, and was refused or stored long ago."""
    corpus = read_corpus([write_parquet("corpus", {"a": [f"{HUGE} text", "text"]})], ["a"])
    teacher = SpyingTeacher()
    spec = teacher.spec.model_copy(update={"features": teacher.spec.features[1:]})
    manifest = TeacherManifest(fingerprint=spec.fingerprint, rows_per_shard=64, spec=spec)
    with CacheWriter(tmp_path / "cache", manifest) as writer:
        work = Work(writer, corpus.keys())
        precompute(corpus, corpus.keys(), work, teacher, writer, EncodingRun(BatchSizes(8)))
    assert open_cache(tmp_path / "cache")["words"][:].tolist() == [2.0, 1.0]
