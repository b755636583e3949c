"""`armada objectives`: every objective with what it needs, from its own docstring."""

import json

import pytest
from armada.stages.distill.objectives import OBJECTIVES
from command_line import CommandLine


def test_all_are_listed_with_needs_formula_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    listed = json.loads(CommandLine(capsys).done("objectives", "--json"))
    assert [each["name"] for each in listed] == OBJECTIVES.names()
    (rkd,) = (each for each in listed if each["name"] == "rkd")
    assert rkd["needs"] == {
        **{"features": 1, "default_feature": None, "axis": None, "classes": False},
        **{"student": ["output", "pooled"], "labels": False, "regression": True, "least_rows": 3},
    }
    assert "huber" in rkd["formula"]
    assert "1904.05068" in rkd["source"]
    assert rkd["options"]["angle_weight"]["default"] == 2


def test_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    printed = CommandLine(capsys).done("objectives", "kd").splitlines()
    assert printed[0].startswith("kd  Class probabilities")
    assert [line.split()[0] for line in printed[1:]] == ["needs", "formula", "source"]
    assert "class logits, labels" in printed[1]


def test_an_unknown_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'rkd'" in CommandLine(capsys)("objectives", "rdk").error
