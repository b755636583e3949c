"""The tests of plug-ins find what plug-ins break, one promise at a time."""

from pathlib import Path

import pytest
from armada.testing import ObjectiveTests, TeacherTests

PLUG_INS = Path(__file__).parents[2] / "faulty_plug_ins"


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PLUG_INS)


class OfFaultyTeacher(TeacherTests):
    changing = {"factor": 2.0}
    untried = ("fault",)


class TestWithoutFault(OfFaultyTeacher):
    teacher = "faulty:counts"


class TestSound(ObjectiveTests):
    objective = "sound"
    changing = {"share": 0.25}
    refused = {"share": 2}


@pytest.mark.parametrize(
    ("fault", "test", "message"),
    [
        ("load", "its_spec_is_known_before_it_is_loaded", "load changed the spec"),
        ("batch", "an_answer_depends_on_its_example_alone", "is padding masked"),
        ("padding", "padding_changes_nothing", "beside a longer text: is padding masked"),
        ("generator", "it_answers_the_same_again", "asked twice"),
        ("overflow", "answers_are_as_declared_and_finite", "not finite as float16"),
        ("shape", "answers_are_as_declared_and_finite", r"is \(1,\), the spec says \(2,\)"),
        ("names", "answers_are_as_declared_and_finite", "as in the spec"),
        ("unread", "options_that_change_answers_change_the_fingerprint", "is the option read"),
        ("fingerprint", "options_that_change_answers_change_the_fingerprint", "same fingerprint"),
    ],
)
def test_faults_of_teachers(fault: str, test: str, message: str) -> None:
    class Kit(OfFaultyTeacher):
        options = {"fault": fault}

    with pytest.raises(AssertionError, match=message):
        getattr(Kit(), f"test_{test}")("faulty:counts")


def test_options_that_nobody_names() -> None:
    class Kit(OfFaultyTeacher):
        untried = ("falt",)

    with pytest.raises(AssertionError, match=r"options \['fault'\]: name them in"):
        Kit().test_every_option_is_named_here("faulty:counts")


def test_texts_said_to_be_refused() -> None:
    class Kit(OfFaultyTeacher):
        refused = ("two dogs",)

    with pytest.raises(AssertionError, match="'two dogs' has finite outputs"):
        Kit().test_what_it_cannot_answer_is_refused_in_a_line("faulty:counts")


def test_options_said_to_change_nothing() -> None:
    class Kit(OfFaultyTeacher):
        unchanging = {"factor": 2.0}

    with pytest.raises(AssertionError, match="every cache would be computed again"):
        Kit().test_options_that_change_nothing_keep_the_fingerprint("faulty:counts")


@pytest.mark.parametrize(
    ("name", "test", "message"),
    [
        ("detached", "gradients_are_those_of_the_loss", "Jacobian mismatch"),
        ("graphs", "total_has_a_graph_and_the_other_terms_are_reported", "distance: detach it"),
        ("ordered", "the_order_of_rows_is_of_no_matter", "depends on the order"),
        ("unbounded", "extremes_are_finite", "is not finite"),
        ("coarse", "half_precision_is_summed_in_float32", "distance: is torch.bfloat16"),
        ("blind", "it_reads_what_it_declares", "feature 1 is not read"),
        ("unlabelled", "it_reads_what_it_declares", None),
        ("forgetful", "its_weights_are_kept_and_read_again", "no parameter and no buffer"),
    ],
)
def test_faults_of_objectives(name: str, test: str, message: str | None) -> None:
    class Kit(ObjectiveTests):
        objective = name

    kit = Kit()
    with pytest.raises((AssertionError, RuntimeError, AttributeError), match=message):
        getattr(kit, f"test_{test}")(kit._sizes(regression=False))


def test_an_option_of_an_objective_that_is_not_read() -> None:
    class Kit(ObjectiveTests):
        objective = "idle"
        changing = {"share": 0.25}

    with pytest.raises(AssertionError, match="is it read"):
        Kit().test_options_change_the_loss()
