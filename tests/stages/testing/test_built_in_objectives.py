"""No built-in objective is left out of the tests of the contract, and each says what it is."""

import re
from pathlib import Path

import pytest
from armada.pipeline.objectives import description_of
from armada.stages.distill.objectives import OBJECTIVES, WITHOUT_TEACHER

HERE = Path(__file__).parent


def test_none_is_left_out() -> None:
    files = HERE.glob("test_*_objectives.py")
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    tested = set(re.findall(r'^    objective = "(\w+)"', text, re.MULTILINE))
    assert tested == set(OBJECTIVES.built_in)


def test_those_without_a_teacher_are_named() -> None:
    alone = {name for name in OBJECTIVES.built_in if OBJECTIVES.load(name).reads.features == 0}
    assert alone == WITHOUT_TEACHER


@pytest.mark.parametrize("name", OBJECTIVES.built_in)
def test_it_says_what_it_is(name: str) -> None:
    """One line of summary, the formula, the source: `armada objectives` shows them."""
    about = description_of(name)
    assert about.summary.endswith(".")
    assert about.formula
    assert about.source
