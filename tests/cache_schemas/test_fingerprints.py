"""Canonical JSON and teacher fingerprints, against bytes written by hand and hashed by hashlib."""

import hashlib
import json
from typing import Any

import pytest
import torch
from armada.cache_schemas.features import FeatureSpec
from armada.cache_schemas.keys import canonical_json, digest
from armada.cache_schemas.teachers import TeacherSpec, differences
from armada.stages.precompute.teachers.hash import HashOptions, HashTeacher
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

SPEC = TeacherSpec(
    kind="encoder",
    name="some/folder",
    weights={"model": "a" * 32, "tokenizer": "b" * 32},
    settings={"pooling": "mean", "layers": (1, 2), "seed": 0, "scale": 1.0, "lowercase": False},
    features=(
        FeatureSpec(name="embedding", shape=(4,), dtype="float16", description="mean of tokens"),
        FeatureSpec(name="logits", shape=(2,), dtype="float32", labels=("no", "yes")),
    ),
)
EMBEDDING, LOGITS = SPEC.features

OTHER_ANSWERS: dict[str, dict[str, Any]] = {
    "kind": {"kind": "classifier"},
    "weights": {"weights": {**SPEC.weights, "model": "c" * 32}},
    "one part less": {"weights": {"model": "a" * 32}},
    "setting": {"settings": {**SPEC.settings, "pooling": "cls"}},
    "one setting more": {"settings": {**SPEC.settings, "layer": 3}},
    "integer instead of float": {"settings": {**SPEC.settings, "scale": 1}},
    "integer instead of bool": {"settings": {**SPEC.settings, "lowercase": 0}},
    "text instead of integer": {"settings": {**SPEC.settings, "seed": "0"}},
    "order of a tuple": {"settings": {**SPEC.settings, "layers": (2, 1)}},
    "feature name": {"features": (EMBEDDING.model_copy(update={"name": "token"}), LOGITS)},
    "shape": {"features": (EMBEDDING.model_copy(update={"shape": (2, 2)}), LOGITS)},
    "dtype": {"features": (EMBEDDING.model_copy(update={"dtype": "float32"}), LOGITS)},
    "labels": {"features": (EMBEDDING, LOGITS.model_copy(update={"labels": ("yes", "no")}))},
    "one feature less": {"features": (EMBEDDING,)},
    "order of features": {"features": (LOGITS, EMBEDDING)},
}
SAME_ANSWERS: dict[str, dict[str, Any]] = {
    "name": {"name": "other/folder"},
    "prose": {"features": (EMBEDDING.model_copy(update={"description": "other words"}), LOGITS)},
    "order of settings": {"settings": dict(reversed(SPEC.settings.items()))},
}

SETTING_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=3).map(tuple),
    st.lists(st.text(max_size=4), max_size=3).map(tuple),
)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({"b": 1, "a": [True, None]}, b'{"a":[true,null],"b":1}'),
        ({"é": "\n"}, b'{"\xc3\xa9":"\\n"}'),
        ({"Z": 1.0, "a": 1, "_": 1e16}, b'{"Z":1.0,"_":1e+16,"a":1}'),
        ((0.1, -0.0), b"[0.1,-0.0]"),
    ],
    ids=["sorted", "utf-8", "numbers", "tuple"],
)
def test_canonical_json_is_written_so(value: Any, written: bytes) -> None:
    assert canonical_json(value) == written
    assert digest(value) == hashlib.sha256(written).hexdigest()[:32]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [-float("inf")]])
def test_what_is_not_a_number_has_no_canonical_json(value: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(value)


@given(st.recursive(SETTING_VALUES, lambda v: st.dictionaries(st.text(max_size=4), v, max_size=3)))
def test_canonical_json_is_stable_under_parsing(value: Any) -> None:
    written = canonical_json(value)
    assert canonical_json(json.loads(written)) == written


@pytest.mark.parametrize(
    ("source", "settings", "fingerprint"),
    [
        ("4", '"seed":0,"store_dtype":"float32"', "561e0d1af370976273a3c46d608c96fe"),
        ("4", '"seed":1,"store_dtype":"float32"', None),
        ("16", '"seed":0,"store_dtype":"float16"', None),
    ],
)
def test_fingerprint_of_the_hash_teacher(
    source: str, settings: str, fingerprint: str | None
) -> None:
    options = HashOptions.model_validate_json(f"{{{settings}}}")
    spec = HashTeacher(source, options, torch.device("cpu")).spec
    by_hand = (
        f'{{"features":[{{"dtype":"{options.store_dtype}","labels":null,"name":"embedding",'
        f'"shape":[{source}]}}],"kind":"hash","settings":{{{settings}}},"weights":{{}}}}'
    )
    assert spec.fingerprint == hashlib.sha256(by_hand.encode()).hexdigest()[:32]
    # Pinned: every cache that exists is found by it.
    assert fingerprint in (None, spec.fingerprint)


@pytest.mark.parametrize("update", OTHER_ANSWERS.values(), ids=OTHER_ANSWERS)
def test_what_can_change_an_answer_changes_the_fingerprint(update: dict[str, Any]) -> None:
    changed = SPEC.model_copy(update=update)
    assert changed.fingerprint != SPEC.fingerprint


@pytest.mark.parametrize("update", SAME_ANSWERS.values(), ids=SAME_ANSWERS)
def test_names_and_prose_do_not(update: dict[str, Any]) -> None:
    changed = SPEC.model_copy(update=update)
    assert changed.fingerprint == SPEC.fingerprint
    assert differences(SPEC, changed) == []


@given(st.dictionaries(st.text(max_size=6), SETTING_VALUES, max_size=5))
def test_fingerprint_outlives_json(settings: dict[str, Any]) -> None:
    spec = TeacherSpec(**{**dict(SPEC), "settings": settings})
    read = TeacherSpec.model_validate_json(spec.model_dump_json())
    assert read == spec
    assert read.fingerprint == spec.fingerprint


def test_differences_name_each_field() -> None:
    asked = SPEC.model_copy(
        update={
            "weights": {**SPEC.weights, "model": "c" * 32},
            "settings": {"pooling": "cls", "seed": 0, "layers": (1, 2), "new": True}
            | {"lowercase": False},
            "features": (EMBEDDING.model_copy(update={"shape": (8,)}), LOGITS),
        }
    )
    assert differences(SPEC, asked) == [
        "features.embedding: cached float16[4], requested float16[8]",
        "new: cached (absent), requested True",
        "pooling: cached mean, requested cls",
        "scale: cached 1.0, requested (absent)",
        f"weights.model: cached {'a' * 32}, requested {'c' * 32}",
    ]


@pytest.mark.parametrize(
    "feature",
    [
        {"name": "Upper"},
        {"name": "../escape"},
        {"name": "commits"},
        {"name": "tables"},
        {"name": "x" * 65},
        {"shape": (0,)},
        {"dtype": "float64"},
        {"unknown": 1},
    ],
    ids=str,
)
def test_features_that_could_not_be_stored_are_refused(feature: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FeatureSpec(**{"name": "embedding", "shape": (4,), "dtype": "float32"} | feature)


def test_features_of_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="repeat a name"):
        TeacherSpec(kind="k", name="n", weights={}, settings={}, features=(EMBEDDING, EMBEDDING))
