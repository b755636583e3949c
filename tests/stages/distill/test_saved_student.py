"""`armada.load_student`: every kind of student as a module that predicts."""

from pathlib import Path
from typing import Any

import armada
import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import InputError, StudentSourceError
from armada.stages.corpus.labels import NO_LABELS, LabelSpace
from armada.stages.distill.export import StudentCard, save_student
from armada.stages.distill.objectives.base import Sizes
from armada.stages.distill.objectives.features import FeatureObjective
from armada.stages.distill.objectives.options import FeatureOptions, ObjectiveOptions
from armada.stages.distill.objectives.undistilled import UndistilledObjective
from armada.stages.distill.settings import StudentSettings
from armada.stages.distill.student import PooledStudent, Student
from armada.stages.distill.student_models import load_backbone
from armada.stages.distill.student_source import load_student
from armada.stages.distill.tokens import encode
from tiny_runs import NUMBERS, TEXTS, TWO_CLASSES

NAMED = LabelSpace(task="classification", num_labels=3, names=("bad", "fair", "good"))


def save(
    folder: Path, student: Student, tokenizer: Any, objective: Any = None, columns: int = 1
) -> Path:
    space = student.space
    sizes = Sizes(student.dim, space.num_labels, space.regression, (5,))
    card = StudentCard(
        space=space,
        pooling=student.pooling,
        dropout=0.1,
        max_length=32,
        text_columns=("a", "b")[:columns],
        label_column="label",
        metric="accuracy",
    )
    parts = objective or UndistilledObjective(ObjectiveOptions(), sizes)
    save_student(folder, student, tokenizer, parts, card)
    return folder


def make(source: Path, space: LabelSpace, pooling: str = "auto") -> tuple[Student, Any]:
    torch.manual_seed(0)
    settings = StudentSettings(student=str(source), pooling=pooling)
    student, tokenizer = load_student(settings, space, [], 0.1)
    return student.eval(), tokenizer


def outputs(student: Student, tokenizer: Any, examples: list[tuple[str, ...]]) -> torch.Tensor:
    tokens = encode(tokenizer, examples, 32)
    with torch.no_grad():
        return student(**tokens.pad(np.arange(len(tokens))))[1]


@pytest.mark.parametrize("pooling", ["auto", "mean"])
@pytest.mark.parametrize("space", [NAMED, TWO_CLASSES])
def test_classes(checkpoint, tmp_path, space, pooling):
    student, tokenizer = make(checkpoint("bert"), space, pooling)
    folder = save(tmp_path / "run" / "student", student, tokenizer, columns=2)
    pairs = list(zip(TEXTS[:5], TEXTS[5:10], strict=True))
    expected = outputs(student, tokenizer, pairs).double().softmax(1)
    opened = armada.load_student(folder.parent)
    assert (opened.kind, opened.classes, opened.training) == ("classification", space.names, False)
    answers = opened.predict(pairs, batch_size=2)
    np.testing.assert_allclose([row["probabilities"] for row in answers], expected, atol=1e-6)
    chosen = expected.argmax(1).tolist()
    names = space.names or range(space.num_labels)
    assert [row["class"] for row in answers] == [names[place] for place in chosen]
    assert opened.predict([]) == []


def test_scores(checkpoint, tmp_path):
    student, tokenizer = make(checkpoint("roberta"), NUMBERS)
    expected = outputs(student, tokenizer, [(text,) for text in TEXTS[:5]])
    answers = armada.load_student(save(tmp_path / "s", student, tokenizer)).predict(TEXTS[:5])
    np.testing.assert_allclose([row["score"] for row in answers], expected[:, 0], atol=1e-6)


def test_a_folder_of_an_earlier_version_is_read(checkpoint, tmp_path):
    """A pooler of the family's own was then no part of a classifier."""
    torch.manual_seed(0)
    _, tokenizer = make(checkpoint("bert"), NAMED)
    student = PooledStudent(load_backbone(checkpoint("bert")), "pooler", NAMED).eval()
    expected = outputs(student, tokenizer, [(text,) for text in TEXTS[:5]])
    tokenizer.padding_side = "left"  # what they said of it was not heeded
    opened = armada.load_student(save(tmp_path / "student", student, tokenizer))
    assert opened.card.pooling == "pooler"
    with torch.no_grad():
        again = opened(**opened.encode(TEXTS[:5]))
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-6)


def test_embeddings_are_those_that_were_to_meet_the_feature(checkpoint, tmp_path):
    student, tokenizer = make(checkpoint("bert"), NO_LABELS, "mean")
    sizes = Sizes(student.dim, 1, regression=False, feature_shape=(5,))
    objective = FeatureObjective(FeatureOptions(), sizes)
    folder = save(tmp_path / "student", student, tokenizer, objective)
    tokens = encode(tokenizer, [(text,) for text in TEXTS[:5]], 32)
    with torch.no_grad():
        pooled, _ = student(**tokens.pad(np.arange(5)))
        expected = objective.projection(pooled)
    opened = armada.load_student(folder)
    assert opened.kind == "embedding"
    found = np.stack([row["embedding"] for row in opened.predict(TEXTS[:5], batch_size=3)])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_folders_that_hold_no_student_are_refused(checkpoint):
    with pytest.raises(StudentSourceError, match="name a folder that `distill` wrote"):
        armada.load_student(checkpoint("bert"))


def test_a_url_is_refused_without_its_password():
    with pytest.raises(StudentSourceError, match="looks like a URL; name a local folder") as said:
        armada.load_student("https://me:secret@example.org/student")
    assert "secret" not in str(said.value)


def test_a_text_alone_is_not_taken_for_its_letters(checkpoint, tmp_path):
    student, tokenizer = make(checkpoint("bert"), NO_LABELS, "mean")
    opened = armada.load_student(save(tmp_path / "student", student, tokenizer))
    with pytest.raises(InputError, match="takes a list of texts"):
        opened.predict("a red bird")
